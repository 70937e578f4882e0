"""`nim4 export`: a trained model loaded and written as a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tqdm import tqdm

from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.serving import bundle_source, export, manifest
from nim4_jax.serving.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Options:
    """What a bundle is to hold.

    Attributes:
        dtype: of the matrices in the file, one of WEIGHTS.
        compute: of activations, one of COMPUTE.
        platforms: of `manifest.PLATFORMS`.
        seconds: lengths of whole recordings; () for the model's buckets.
        stream_ms: chunks of streams, multiples of 160.
        left: chunks seen to the left of a stream's chunk.
        licence: of the weights.
    """

    dtype: str = "float32"
    compute: str = "float32"
    platforms: Sequence[str] = manifest.PLATFORMS
    seconds: Sequence[float] = ()
    stream_ms: Sequence[int] = (640,)
    left: int = 4
    licence: str = "not stated"


DEFAULT = Options()


def run(
    model: str, out: str, options: Options = DEFAULT, *, show_progress: bool = False
) -> Manifest:
    """Export a model.

    Args:
        model: workdir or .safetensors file.
        out: folder of the bundle.
        options: what it is to hold.
        show_progress: whether a bar is drawn on stderr.

    Raises:
        ValueError: no usable model, or sizes and types that do not fit.
    """
    source = bundle_source.make_source(
        model,
        dtype=options.dtype,
        compute=options.compute,
        seconds=options.seconds,
        licence=options.licence,
    )
    rates, lengths = source.programs.rates, dict.fromkeys(options.stream_ms)
    streams = [StreamConfig.of(ms, options.left, rates) for ms in lengths]
    source = dataclasses.replace(source, streams=tuple(streams))
    with tqdm(unit="program", disable=None if show_progress else True) as bar:

        def advance(name: str) -> None:
            bar.set_description(name)
            bar.update()

        return export.write(out, source, options.platforms, advance)
