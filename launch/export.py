r"""Export a trained model as a bundle that runs without Flax and the model's code.

nim4 export --model=runs/demo/stage4 --out=runs/demo/bundle
nim4 transcribe --bundle=runs/demo/bundle FILE…

One bundle holds programs for CPUs, CUDA GPUs and TPUs, weights, tokenizer, phonemes and
a manifest with checksums; `nim4_jax.serving.bundle` loads it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from nim4_jax.launch import program
from nim4_jax.serving import bundle_source, exporting, manifest
from nim4_jax.serving.manifest import BundleError


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or .safetensors file.", required=True)
    flags.DEFINE_string("out", None, "Folder of the bundle, new.", required=True)
    flags.DEFINE_enum(
        "dtype", "float32", bundle_source.WEIGHTS, "Of the matrices in the file."
    )
    flags.DEFINE_enum(
        "compute",
        "float32",
        bundle_source.COMPUTE,
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
    made = exporting.run(
        given.model,
        given.out,
        exporting.Options(
            dtype=given.dtype,
            compute=given.compute,
            platforms=given.platforms,
            seconds=_read_numbers("seconds", given.seconds, float),
            stream_ms=_read_numbers("stream_ms", given.stream_ms, int),
            left=given.left,
            licence=given.licence,
        ),
        show_progress=True,
    )
    size = sum(facts["bytes"] for facts in made.files.values())
    print(
        f"{given.out}: {len(made.programs)} programs for {', '.join(made.platforms)}, "
        f"{made.model['parameters'] / 1e6:.2f} M parameters in {made.weights}, "
        f"{size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    program.launch(main, define_flags)
