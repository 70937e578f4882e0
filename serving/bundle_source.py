"""Preparation of a trained model for export: dtypes, sizes, streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.model_programs import ModelPrograms
from nim4_jax.model_files import loading, packing
from nim4_jax.serving import export, recognisers
from nim4_jax.serving.manifest import BundleError
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.weights import snapshot

WEIGHTS = ("float32", "bfloat16", "int8")


COMPUTE = ("float32", "bfloat16")


def make_source(
    model: str,
    *,
    dtype: str = "float32",
    compute: str = "float32",
    seconds: Sequence[float] = (),
    streams: Sequence[StreamConfig] = (),
    licence: str = "not stated",
) -> export.Source:
    """A model in the types and for the sizes that a bundle shall have.

    Args:
        model: workdir or .safetensors file.
        dtype: of the matrices in the file, one of WEIGHTS.
        compute: of activations, one of COMPUTE.
        seconds: lengths of whole recordings; () for the model's buckets.
        streams: sizes of streams.
        licence: of the weights.

    Raises:
        ValueError: no usable model, or types that do not fit it.
    """
    lengths = tuple(sorted(set(seconds)))
    if lengths and lengths[0] <= 0:
        raise BundleError(f"--seconds={lengths[0]:g} is no length; use positive ones.")
    params, meta = loading.load_model(model)
    quantised = meta["model"]["policy"]["weights"] == "int8"
    if quantised and dtype != "int8":
        raise BundleError(
            f"{model} has int8 weights, which no --dtype={dtype} brings back; use "
            "--dtype=int8, or export the model that it was made of."
        )
    if meta["model"]["llm"]["lora"]["rank"] and "llm" in params:
        params, meta = packing.merge(params, meta)
    if dtype == "int8" and not quantised:
        params, meta = packing.quantise(params, meta)
    if dtype == "bfloat16":
        params = snapshot.round_matrices(params)
    config = loading.build_model_config(meta["model"])
    policy = dataclasses.replace(config.policy, compute=compute, kernels="xla")
    path = loading.find_tokenizer(meta["tokenizer"])
    tokenizer = Tokenizer.from_file(path)
    programs = ModelPrograms.create(
        dataclasses.replace(config, policy=policy),
        params,
        loading.make_prompt(tokenizer),
        tokenizer.end_id,
    )
    usual, rows = recognisers.find_shapes(meta)
    facts = {"stage": meta["stage"], "steps": meta["steps"], "origin": model}
    return export.Source(
        programs=programs,
        tokenizer=path,
        bucket_seconds=lengths or usual,
        rows=(rows[-1],) * len(lengths) if lengths else rows,
        streams=tuple(streams),
        facts=facts,
        weights=dtype,
        licences={"weights": licence, "code": "see LICENSE"},
    )
