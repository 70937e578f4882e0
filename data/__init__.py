"""Training and test data: audio files, sources of examples, noise, corpora, batches.

audio → sources (noise on the way) → pipeline → batches;  corpora makes data sets
"""
