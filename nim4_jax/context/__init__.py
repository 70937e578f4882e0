"""Contextual biasing data: keywords of a corpus, distractors, the hints of a prompt."""
