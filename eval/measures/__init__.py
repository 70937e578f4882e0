"""Figures of transcripts: error rates, names, latency, hallucinations, intervals."""
