"""NIM4-ASR in JAX: speech → log-mel → Conformer → adaptor → LLM → text."""
