"""Goldens of Silero VAD: what the reference says of real speech, noise and silence.

    pip install onnxruntime silero-vad==6.2.3
    python tests/goldens/make_silero.py

Source: github.com/snakers4/silero-vad 6.2.3, MIT, `silero_vad_16k_op15.onnx`, fed as
its `OnnxWrapper` does: the last 64 samples before each window, the state carried on.
"""

from importlib import resources
from pathlib import Path

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening

WINDOW, CONTEXT = 512, 64


def make_stream() -> np.ndarray:
    """Float32 [N, 512]: six commands; half as loud, in noise; noise; silence."""
    records = opening.open_source("bundled:commands:test")
    spoken = [reading.decode(records[index]["audio"]) for index in range(6)]
    random = np.random.default_rng(0)
    speech = np.concatenate(spoken)
    noisy = 0.5 * speech + random.normal(0, 0.02, len(speech))
    noise = random.normal(0, 0.1, 40 * WINDOW)
    stream = np.concatenate([speech, noisy, noise, np.zeros(40 * WINDOW)])
    count = len(stream) // WINDOW
    return stream[: count * WINDOW].reshape(count, WINDOW).astype(np.float32)


def score(windows: np.ndarray) -> np.ndarray:
    """The reference's probabilities."""
    import onnxruntime
    import silero_vad

    path = resources.files(silero_vad) / "data" / "silero_vad_16k_op15.onnx"
    session = onnxruntime.InferenceSession(path.read_bytes())
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    made = []
    for window in windows:
        inputs = {
            "input": np.concatenate([context, window])[None],
            "state": state,
            "sr": np.array(16_000),
        }
        probability, state = session.run(["output", "stateN"], inputs)
        context = window[-CONTEXT:]
        made.append(probability[0, 0])
    return np.array(made, np.float32)


if __name__ == "__main__":
    path = Path(__file__).with_name("silero.npy")
    np.save(path, score(make_stream()))
