"""The commands: one module each, listed in `cli.py`."""

from nim4_jax.process import cache

cache.keep_fonts()
