"""Text without JAX: normalisation, English and Mandarin phonemes, tokenizer, prompt."""
