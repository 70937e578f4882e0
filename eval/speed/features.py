"""Log-mel features of real speech: ours against kaldi-native-fbank."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax import features
from nim4_jax.data.audio import reading
from nim4_jax.data.sources import builders
from nim4_jax.eval.speed import measure
from nim4_jax.features import FeatureConfig
from nim4_jax.types import Frames

_SECONDS = 60


def load_speech(seconds: int, rows: int) -> np.ndarray:
    """Bundled recordings in a row, float32 [rows, S] of `seconds` in all."""
    recordings = builders.open_bundled("commands", "test")
    wanted = seconds * features.SAMPLE_RATE
    pieces: list[np.ndarray] = []
    index = 0
    while sum(map(len, pieces)) < wanted:
        pieces.append(reading.decode(recordings[index % len(recordings)]["audio"]))
        index += 1
    return np.concatenate(pieces)[:wanted].reshape(rows, -1)


def run(full: bool, threads: int) -> list[measure.Row]:
    """Samples to log-mel frames, one utterance per thread.

    Raises:
        ValueError: the two do not give the same features.
    """
    kaldi = measure.need("kaldi_native_fbank")
    config = FeatureConfig()
    samples = load_speech(_SECONDS, threads)
    mask = np.ones(samples.shape, bool)
    extract = jax.jit(lambda frames: features.log_mel(frames, config).values)
    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = config.num_mels
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz
    # The binding wants a list; making it is not counted against the peer.
    waveforms = [(row * 32_768.0).tolist() for row in samples]

    def ours() -> np.ndarray:
        return np.asarray(extract(Frames(jnp.asarray(samples), jnp.asarray(mask))))

    def extract_peer(waveform: list[float]) -> np.ndarray:
        fbank = kaldi.OnlineFbank(options)
        fbank.accept_waveform(features.SAMPLE_RATE, waveform)
        fbank.input_finished()
        return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])

    with ThreadPoolExecutor(threads) as pool:

        def peer() -> np.ndarray:
            return np.stack(list(pool.map(extract_peer, waveforms)))

        if (gap := np.abs(ours() - peer()).max()) > 5e-3:
            raise ValueError(
                f"features differ by {gap:.2g}; a ratio would mean nothing."
            )
        return [
            measure.compare(
                "features_ms_per_audio_second",
                "ms",
                ours,
                peer,
                peer_name="kaldi-native-fbank",
                runs=101 if full else 25,
                scale=1e3 / _SECONDS,
            )
        ]
