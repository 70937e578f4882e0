"""Sweeps: models × benchmarks × modes × hotwords, a stored cell each, one report.

`runner` is what `nim4 evaluate --models` calls.
"""
