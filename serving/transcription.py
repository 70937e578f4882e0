"""Transcription of files, printed or written in the requested formats."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from nim4_jax import whole_file
from nim4_jax.data.audio import channels, reading
from nim4_jax.decode import longform
from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.decode.transcripts import FORMATS, Recording, render
from nim4_jax.serving import recognisers

CHANNELS = (*channels.CHOICES, "each")


_SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def plan_channels(
    paths: Sequence[str], choice: str
) -> list[tuple[str, channels.Channel]]:
    """What is heard: each path with its channel; with "each" all that a file has.

    Raises:
        ValueError: an unknown choice.
    """
    if choice != "each":
        if choice not in channels.CHOICES:
            raise ValueError(
                f"--channels={choice} is not for recordings; use one of "
                f"{', '.join(CHANNELS)}."
            )
        return [(path, choice) for path in paths]
    planned: list[tuple[str, channels.Channel]] = []
    for path in paths:
        try:
            count = reading.count_channels(path)
        except reading.AudioError:
            count = 1  # what is wrong is told when it is read
        planned += [(path, number) for number in range(count)]
    return planned


def plan_outputs(
    paths: Sequence[str | tuple[str, channels.Channel]], form: str, out: str | None
) -> list[Path | None]:
    """Where each transcript goes, None for stdout; of channels, NAME.1.srt and so on.

    Raises:
        ValueError: several subtitle files to one stdout, or two to one name.
    """
    if out is None:
        if form in ("srt", "vtt") and len(paths) > 1:
            raise ValueError(
                f"{len(paths)} recordings cannot share one {form} on stdout; add "
                "--out=DIR."
            )
        return [None] * len(paths)
    targets: dict[Path, str] = {}
    for given in paths:
        path, channel = given if isinstance(given, tuple) else (given, "mix")
        number = f".{channel + 1}" if isinstance(channel, int) else ""
        target = Path(out) / (Path(path).stem + number + _SUFFIXES[form])
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {path} would both be written to {target}; "
                "transcribe them into different folders."
            )
        targets[target] = path
    return list(targets)


@dataclasses.dataclass(frozen=True)
class Options:
    """How files are transcribed, and into what.

    Attributes:
        form: one of FORMATS.
        out: folder; None prints.
        batch: most segments at once.
        vad: how long recordings are cut, one of VADS.
        chunk_ms: length of chunks, 0 for the full pass.
        left: chunks seen to the left.
        channel: one of CHANNELS.
        names: to be looked for in what is heard.
    """

    form: str = "text"
    out: str | None = None
    batch: int = 8
    vad: str = "silero"
    chunk_ms: int = 0
    left: int = 4
    channel: str = "mix"
    names: HotwordList | None = None


DEFAULT = Options()


def run(
    model: str, paths: Sequence[str], options: Options = DEFAULT
) -> list[Recording]:
    """Transcribe files and print or write what is asked for.

    Args:
        model: workdir, .safetensors file or bundle.
        paths: audio files.
        options: how, and into what.

    Returns:
        All recordings, those that could not be read with `error` set, those that broke
        off with `warning` (both also on stderr).

    Raises:
        ValueError: no usable model, an unknown format or vad, or outputs that collide.
    """
    form = options.form
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown; use one of {FORMATS}.")
    planned = plan_channels(paths, options.channel)
    targets = plan_outputs(planned, form, options.out)
    loaded = recognisers.load(model, chunk_ms=options.chunk_ms, left=options.left)
    loaded.recogniser.check_writes()
    if options.out:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    done = []
    stream = longform.transcribe_files(
        loaded,
        planned,
        longform.Options(
            batch=options.batch,
            vad=options.vad,
            timings=form != "text",
            names=options.names,
        ),
        show_progress=True,
    )
    for target, recording in zip(targets, stream, strict=True):
        done.append(recording)
        _deliver(recording, form, target, named=len(planned) > 1)
    return done


def _deliver(
    recording: Recording, form: str, target: Path | None, *, named: bool
) -> None:
    """Write or print what a recording has become, or its error on stderr.

    Args:
        recording: complete; `error` is set if its transcript cannot be written.
        form: one of FORMATS.
        target: file; None for stdout.
        named: whether lines of text on stdout begin with what it is called.
    """
    if recording.warning and not recording.error:
        print(f"warning: {recording.warning}", file=sys.stderr, flush=True)
    if not recording.error and target is not None:
        try:
            whole_file.write_text(target, render(recording, form))
        except OSError as error:
            recording.error = f"{recording.path}: no transcript is written: {error}"
    if recording.error:
        print(f"error: {recording.error}", file=sys.stderr, flush=True)
    elif target is None:
        text = render(recording, form)
        if named and form == "text":
            lines = text.removesuffix("\n").split("\n")
            text = "".join(f"{recording.label}: {line}\n" for line in lines)
        print(text, end="", flush=True)
