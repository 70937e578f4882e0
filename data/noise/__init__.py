"""Augmentation of audio: noise, rooms, levels, telephone lines, tempo."""
