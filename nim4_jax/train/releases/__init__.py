"""Encoder releases of IA-SFT: published by stage 1, used by stages 2 and 3."""
