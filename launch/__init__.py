"""The commands; whatever they import finds its cache in `cache.find_folder`."""

from nim4_jax.process import cache

cache.keep_fonts()
