"""Evaluation: models over data sets, offline and streamed, with and without names.

scoring → evaluation → measures → reports;  sweep: many at once;  speed: benchmarks
"""
