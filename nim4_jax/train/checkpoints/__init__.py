"""Checkpoints: written, checked, found broken, restored; frozen parameters once."""
