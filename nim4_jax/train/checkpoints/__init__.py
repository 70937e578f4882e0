"""Checkpoints: saved, verified, restored; frozen parameters are stored once."""
