"""Loading of a recogniser from a checkpoint, a snapshot or a bundle."""

from __future__ import annotations

import json
from typing import Any

from nim4_jax.decode.model_programs import ModelPrograms
from nim4_jax.decode.recogniser import BatchRecogniser, Loaded
from nim4_jax.model_files import loading
from nim4_jax.ops.chunking import Chunking
from nim4_jax.serving import bundle, manifest
from nim4_jax.text.tokenizer import Tokenizer

_BUCKETS = (2.5, 5.0, 9.0)
_ROWS = (16, 10, 6)


def load(origin: str, *, chunk_ms: int = 0, left: int = 4) -> Loaded:
    """Load a workdir, a .safetensors file or an exported bundle.

    Args:
        origin: folder of a training run or of a bundle, file, or "package:FILE".
        chunk_ms: length of chunks, as in streaming; 0 for the full pass.
        left: chunks that a chunk sees to its left.

    Raises:
        ValueError: nothing to load, or parts that do not fit each other.
    """
    if chunk_ms < 0 or left < 0:
        raise ValueError(f"chunks of {chunk_ms} ms, {left} to the left, must be ≥ 0.")
    if manifest.is_bundle(origin):
        return bundle.load(origin, chunk_ms=chunk_ms, left=left)
    params, meta = loading.load_model(origin)
    config = loading.build_model_config(meta["model"])
    # What only hears needs no tokenizer of its own, which may be elsewhere.
    writes = "llm" in params
    name = meta["tokenizer"] if writes else "nano"
    tokenizer = Tokenizer.from_file(loading.find_tokenizer(name))
    if writes:
        loading.check_vocabulary(tokenizer, config)
    chunk = config.rates.frames_of_chunk(chunk_ms) if chunk_ms else 0
    programs = ModelPrograms.create(
        config,
        params,
        loading.make_prompt(tokenizer),
        tokenizer.end_id,
        chunking=Chunking.of(chunk, left) if chunk else None,
    )
    seconds, rows = find_shapes(meta)
    return Loaded(BatchRecogniser(programs, tokenizer), seconds, rows)


def find_shapes(meta: dict[str, Any]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Batch shapes of the training data, defaults where a checkpoint does not say."""
    data = json.loads(meta.get("config") or "{}").get("data") or {}
    seconds = tuple(float(value) for value in data.get("bucket_seconds", _BUCKETS))
    rows = data.get("batch_size") or _ROWS
    if share := data.get("device_seconds"):
        rows = tuple(max(1, int(share / value)) for value in seconds)
    rows = (rows,) * len(seconds) if isinstance(rows, int) else tuple(rows)
    return (seconds, rows) if len(rows) == len(seconds) else (_BUCKETS, _ROWS)
