"""Names for the prompt while training: keywords, what sounds like them, the draw."""
