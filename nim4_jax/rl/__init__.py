"""Reinforcement learning: what a transcript is worth, and what to learn from it."""
