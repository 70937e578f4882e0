"""Transcribe recordings of any length and format.

python launch/transcribe.py --model=runs/demo/stage4 FILE…
python launch/transcribe.py --model=runs/demo/stage4 --format=srt --out=DIR FILE…
python launch/transcribe.py --model=runs/demo/stage4 --stream FILE|-|mic
python launch/transcribe.py --bundle=BUNDLE [--stream] FILE…
python launch/transcribe.py --model=runs/demo/stage4 --hotwords=list:hotwords FILE…
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from nim4_jax.decode import longform
from nim4_jax.decode.transcripts import FORMATS
from nim4_jax.launch import hotword_flags, live, program
from nim4_jax.serving import manifest, transcription


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or .safetensors file.")
    flags.DEFINE_string("bundle", None, "Instead of a model, what `export` made of it.")
    flags.DEFINE_enum("format", "text", FORMATS, "What is written.")
    flags.DEFINE_string("out", None, "Folder for one file per recording, else stdout.")
    flags.DEFINE_enum(
        "vad",
        "silero",
        longform.VADS,
        "How long audio is cut: where nobody speaks, or anywhere.",
    )
    flags.DEFINE_integer("batch", 8, "Most segments at once.", lower_bound=1)
    flags.DEFINE_integer(
        "chunk_ms",
        0,
        "Length of chunks, 0 for the full pass (with --stream: 640).",
    )
    flags.DEFINE_integer("left", 4, "Chunks seen to the left of a chunk's own.")
    for module in (live, hotword_flags):
        module.define_flags()
        flags.adopt_module_key_flags(module)  # --help shows them too


def main(argv: Sequence[str]) -> None:
    """Entry point of `launch/transcribe.py` and `nim4 transcribe`."""
    paths, given = list(argv[1:]), flags.FLAGS
    if bool(given.model) == bool(given.bundle) or not paths:
        raise app.UsageError(
            "Either --model=WORKDIR|FILE or --bundle=BUNDLE, and at least one audio "
            "file needed."
        )
    if given.bundle:
        manifest.read(given.bundle)
    model = given.model or given.bundle
    if given.stream:
        live.main(model, paths, given)
        return
    done = transcription.run(
        model,
        paths,
        transcription.Options(
            form=given.format,
            out=given.out,
            batch=given.batch,
            vad=given.vad,
            chunk_ms=given.chunk_ms,
            left=given.left,
            channel=str(given.channels),
            names=hotword_flags.read(given).found,
        ),
    )
    if any(recording.error or recording.warning for recording in done):
        sys.exit(1)


if __name__ == "__main__":
    program.launch(main, define_flags)
