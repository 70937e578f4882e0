"""Reinforcement learning: rewards of transcripts, GRPO, rollouts."""
