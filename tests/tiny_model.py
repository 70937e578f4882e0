"""A recogniser of almost no size, with random weights, as files that launchers load."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.model_files import loading
from nim4_jax.models.asr import Asr
from nim4_jax.ops.chunking import Chunking
from nim4_jax.text import phonemes
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames
from nim4_jax.weights import snapshot

BUCKETS = (0.8, 1.6)
ROWS = (3, 3)

ENCODERS = {
    "conformer": {
        "features": {},
        "encoder": {"num_layers": 1, "width": 16, "num_heads": 2, "conv_kernel": 3},
    },
    "whisper": {
        "features": {"floor": -8.0},
        "encoder": {"num_layers": 1, "width": 16, "num_heads": 2, "max_frames": 400},
        "speech_stride": 8,
    },
}

_SHAPES = {
    "adaptor_width": 16,
    "llm": {
        "vocab_size": 2048,
        "width": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "ffn": 16,
    },
}


def write(folder: Path, encoder: str = "conformer") -> tuple[str, str]:
    """Write a whole model, and one that only went through stage 1.

    Args:
        folder: for the files.
        encoder: of ENCODERS.

    Returns:
        Paths of the two files.
    """
    config = loading.build_model_config({**ENCODERS[encoder], **_SHAPES})
    tokenizer = Tokenizer.from_file(loading.find_tokenizer("nano"))
    prompt = loading.make_prompt(tokenizer)
    model = Asr(config)

    def touch(asr, audio):
        frames = asr.encode(asr.extract(audio), Chunking.full())
        sequence = asr.assemble(asr.adapt(frames), prompt)
        hidden, _ = asr.llm(sequence.embeddings, sequence.positions, sequence.mask)
        return asr.score_phonemes(frames), asr.unembed(hidden)

    audio = Frames(jnp.zeros((1, 4000)), jnp.ones((1, 4000), bool))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), audio, method=touch))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(shapes)["params"],
    )
    mels = config.features.num_mels
    if encoder == "conformer":  # Whisper's features are normalised already
        params["cmvn"] = {
            "mean": np.full(mels, 12.0, np.float32),
            "scale": np.full(mels, 0.25, np.float32),
        }
    meta = {
        "stage": "test",
        "steps": 0,
        "model": dataclasses.asdict(config),
        "tokenizer": "nano",
        "phonemes": phonemes.INVENTORY_HASH,
        "config": json.dumps({"data": {"bucket_seconds": BUCKETS, "batch_size": ROWS}}),
    }
    whole, heard = str(folder / "tiny.safetensors"), str(folder / "stage1.safetensors")
    snapshot.write(whole, params, meta)
    kept = {part: params[part] for part in ("cmvn", "encoder", "ctc_head")}
    snapshot.write(heard, kept, meta)
    return whole, heard
