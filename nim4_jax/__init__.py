"""NIM4-ASR in JAX: speech → log-mel → Conformer → adaptor → LLM → text."""

import os

# onnxruntime from 1.29 on writes a device id and a database of events into the user's
# cache and holds what sends them; it looks for this when it is imported, by us or by a
# library that we import. Whoever wants the telemetry sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
