"""Hotword retrieval in phoneme hypotheses: exact and approximate matching."""
