"""NIM4-ASR in JAX: speech → log-mel → Conformer → adaptor → LLM → text."""

import os

# We need no onnxruntime, but the extras `corpus` and `eval-peers` bring libraries that
# import it. From 1.29 on it writes a device id and a database of events into the user's
# cache and holds what sends them; it looks for this when it is imported. Whoever wants
# the telemetry sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
