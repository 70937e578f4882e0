r"""Export a trained model as a bundle that runs without Flax and the model's code.

nim4 export --model=runs/demo/stage4 --out=runs/demo/bundle
nim4 transcribe --bundle=runs/demo/bundle FILE…

One bundle holds programs for CPUs, CUDA GPUs and TPUs, weights, tokenizer, phonemes and
a manifest with checksums; `nim4_jax.serving.bundle` loads it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from nim4_jax.decode.model_programs import ModelPrograms
from nim4_jax.decode.stream_config import StreamConfig
from nim4_jax.launch import assembly, recognition, runtime
from nim4_jax.launch import snapshot as snapshots
from nim4_jax.serving import export, manifest
from nim4_jax.serving.manifest import BundleError, Manifest
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.weights import snapshot

WEIGHTS = ("float32", "bfloat16", "int8")
COMPUTE = ("float32", "bfloat16")


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or .safetensors file.", required=True)
    flags.DEFINE_string("out", None, "Folder of the bundle, new.", required=True)
    flags.DEFINE_enum("dtype", "float32", WEIGHTS, "Of the matrices in the file.")
    flags.DEFINE_enum(
        "compute",
        "float32",
        COMPUTE,
        "Of activations and products: float32 on CPUs, bfloat16 on accelerators.",
    )
    flags.DEFINE_list(
        "platforms", list(manifest.PLATFORMS), "For which programs are lowered."
    )
    flags.DEFINE_list(
        "seconds",
        [],
        "Lengths of whole recordings to have programs for; the model's buckets if "
        "empty. Longer ones are cut where nobody speaks.",
    )
    flags.DEFINE_list(
        "stream_ms", ["640"], "Chunks of streams to have programs for; none if empty."
    )
    flags.DEFINE_integer(
        "left", 4, "Chunks that a stream's chunk sees to its left.", lower_bound=0
    )
    flags.DEFINE_string("licence", "not stated", "Of the weights, for the manifest.")


def run(
    model: str,
    out: str,
    *,
    dtype: str = "float32",
    compute: str = "float32",
    platforms: Sequence[str] = manifest.PLATFORMS,
    seconds: Sequence[float] = (),
    stream_ms: Sequence[int] = (640,),
    left: int = 4,
    licence: str = "not stated",
    show_progress: bool = False,
) -> Manifest:
    """Export a model.

    Args:
        model: workdir or .safetensors file.
        out: folder of the bundle.
        dtype: of the matrices in the file, one of WEIGHTS.
        compute: of activations, one of COMPUTE.
        platforms: of `manifest.PLATFORMS`.
        seconds: lengths of whole recordings; () for the model's buckets.
        stream_ms: chunks of streams, multiples of 160.
        left: chunks seen to the left of a stream's chunk.
        licence: of the weights.
        show_progress: whether a bar is drawn on stderr.

    Raises:
        ValueError: no usable model, or sizes and types that do not fit.
    """
    source = make_source(
        model,
        dtype=dtype,
        compute=compute,
        seconds=seconds,
        licence=licence,
    )
    rates = source.programs.rates
    streams = [StreamConfig.of(ms, left, rates) for ms in dict.fromkeys(stream_ms)]
    source = dataclasses.replace(source, streams=tuple(streams))
    with tqdm(unit="program", disable=None if show_progress else True) as bar:

        def advance(name: str) -> None:
            bar.set_description(name)
            bar.update()

        return export.write(out, source, platforms, advance)


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
    params, meta = assembly.load_model(model)
    quantised = meta["model"]["policy"]["weights"] == "int8"
    if quantised and dtype != "int8":
        raise BundleError(
            f"{model} has int8 weights, which no --dtype={dtype} brings back; use "
            "--dtype=int8, or export the model that it was made of."
        )
    if meta["model"]["llm"]["lora"]["rank"] and "llm" in params:
        params, meta = snapshots.merge(params, meta)
    if dtype == "int8" and not quantised:
        params, meta = snapshots.quantise(params, meta)
    if dtype == "bfloat16":
        params = snapshot.round_matrices(params)
    config = assembly.build_model_config(meta["model"])
    policy = dataclasses.replace(config.policy, compute=compute, kernels="xla")
    path = assembly.find_tokenizer(meta["tokenizer"])
    tokenizer = Tokenizer.from_file(path)
    programs = ModelPrograms.create(
        dataclasses.replace(config, policy=policy),
        params,
        assembly.make_prompt(tokenizer),
        tokenizer.end_id,
    )
    usual, rows = recognition.find_shapes(meta)
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


def _read_numbers(name: str, given: Sequence[str], kind: type) -> list[Any]:
    try:
        return [kind(value) for value in given if value]
    except ValueError as error:
        raise BundleError(
            f"--{name}={','.join(given)} holds no {kind.__name__}: {error}"
        ) from error


def main(_) -> None:
    """Entry point of `launch/export.py` and `nim4 export`."""
    given, began = flags.FLAGS, time.monotonic()
    made = run(
        given.model,
        given.out,
        dtype=given.dtype,
        compute=given.compute,
        platforms=given.platforms,
        seconds=_read_numbers("seconds", given.seconds, float),
        stream_ms=_read_numbers("stream_ms", given.stream_ms, int),
        left=given.left,
        licence=given.licence,
        show_progress=True,
    )
    size = sum(facts["bytes"] for facts in made.files.values())
    print(
        f"{given.out}: {len(made.programs)} programs for {', '.join(made.platforms)}, "
        f"{made.model['parameters'] / 1e6:.2f} M parameters in {made.weights}, "
        f"{size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    runtime.launch(main, define_flags)
