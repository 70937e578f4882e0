"""Measurements behind `launch/bench.py`, one module each."""
