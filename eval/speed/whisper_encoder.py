"""Whisper base's encoder: ours by chunks of a stream, CTranslate2's by windows of 30 s.

CTranslate2 encodes windows of 30 s, whatever they hold: a stream that wants news every
640 ms encodes a window at each chunk. Ours encodes the chunk alone, beside the cached
keys and values of the chunks before it.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nim4_jax import features
from nim4_jax.eval.speed import measure
from nim4_jax.eval.sweep import peers
from nim4_jax.features import WhisperFeatures
from nim4_jax.layers import Policy
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.ops.chunking import Chunking
from nim4_jax.types import Frames

_CONFIG = WhisperEncoderConfig()
_FEATURES = WhisperFeatures()
_CHUNKS_MS = (320, 640, 1280)
_LEFT_SECONDS = 9.6  # of cached frames
_WINDOW_SECONDS = 30
_FRAME_MS = 20
_PEER = "CTranslate2 Whisper base encoder, float32"


def _make_params(module) -> dict:
    """Random weights: time does not depend on their values."""
    frames = Frames(jnp.zeros((1, 8, _CONFIG.num_mels)), jnp.ones((1, 8), bool))
    init = functools.partial(module.init, jax.random.key(0))
    return nn.unbox(jax.jit(init)(frames, Chunking.full()))


def _make_chunk(module, params, chunk_ms: int) -> measure.Work:
    """One chunk of one stream, features and all, behind a full cache."""
    size = chunk_ms // _FRAME_MS
    left = int(1000 * _LEFT_SECONDS) // chunk_ms
    chunking = Chunking.of(size, left)
    before, after = _CONFIG.frames_before, _CONFIG.frames_after
    count = before + size * _CONFIG.frame_stride + after
    samples = (count - 1) * _FEATURES.hop + _FEATURES.window
    audio = np.random.default_rng(0).normal(0, 0.1, (1, samples)).astype(np.float32)
    piece = Frames(jnp.asarray(audio), jnp.ones((1, samples), bool))
    state = module.init_state(1, left * size)
    state = dataclasses.replace(state, mask=jnp.ones_like(state.mask))

    @jax.jit
    def advance(params, piece, state):
        mels = features.log_mel_piece(piece, _FEATURES, before)
        return module.apply(params, mels, state, chunking, method="advance")

    return lambda: jax.block_until_ready(advance(params, piece, state))


def _open_peer(threads: int):
    """CTranslate2's encoder: log-mel [1, M, 3000] → anything."""
    library = measure.need("ctranslate2")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in peers.read_whisper_base().items():
            Path(folder, name).write_bytes(content)
        model = library.models.Whisper(
            folder, device="cpu", compute_type="float32", intra_threads=threads
        )
    return lambda mels: model.encode(library.StorageView.from_array(mels))


def run(full: bool, threads: int) -> list[measure.Row]:
    """Milliseconds for each chunk of a stream, and for a whole window of 30 s."""
    module = _CONFIG.build(Policy())
    params = _make_params(module)
    encode = _open_peer(threads)
    rng = np.random.default_rng(0)
    samples = _WINDOW_SECONDS * features.SAMPLE_RATE
    audio = rng.normal(0, 0.1, (1, samples)).astype(np.float32)
    window = Frames(jnp.asarray(audio), jnp.ones((1, samples), bool))
    extract = jax.jit(lambda audio: features.log_mel(audio, _FEATURES))
    # A copy: their views want to write.
    mels = np.array(np.swapaxes(extract(window).values, 1, 2), order="C")

    def theirs() -> None:
        encode(mels)

    @jax.jit
    def encode_whole(params, audio):
        found = features.log_mel(audio, _FEATURES)
        return module.apply(params, found, Chunking.full())

    runs = 15 if full else 5
    rows = [
        measure.compare(
            f"whisper_base_chunk_{chunk_ms}ms_ms",
            "ms",
            _make_chunk(module, params, chunk_ms),
            theirs,
            peer_name=f"{_PEER}, a window",
            runs=runs,
        )
        for chunk_ms in _CHUNKS_MS
    ]
    whole = measure.compare(
        "whisper_base_whole_30s_ms",
        "ms",
        lambda: jax.block_until_ready(encode_whole(params, window)),
        theirs,
        peer_name=_PEER,
        runs=runs,
    )
    return [*rows, whole]
