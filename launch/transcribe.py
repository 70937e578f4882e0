"""Transcribe recordings of any length and format.

python launch/transcribe.py --model=runs/demo/stage4 FILE…
python launch/transcribe.py --model=runs/demo/stage4 --format=srt --out=DIR FILE…
python launch/transcribe.py --model=runs/demo/stage4 --stream FILE|-|mic
python launch/transcribe.py --bundle=BUNDLE [--stream] FILE…
python launch/transcribe.py --model=runs/demo/stage4 --hotwords=list:hotwords FILE…
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from tqdm import tqdm

from nim4_jax import whole_file
from nim4_jax.data import audio, channels
from nim4_jax.decode import segments
from nim4_jax.decode.endpoint import Detector, EndpointConfig
from nim4_jax.decode.recogniser import Recogniser
from nim4_jax.decode.segments import AudioBatch, Batcher, Segment
from nim4_jax.decode.silero import Silero
from nim4_jax.eval.hotword_lists import FindingRecogniser, HotwordList
from nim4_jax.launch import hotword_flags, live, recognition, runtime
from nim4_jax.launch.transcripts import FORMATS, Recording, render
from nim4_jax.serving import manifest

VADS = ("silero", "none")
CHANNELS = (*channels.CHOICES, "each")
_SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
_BLOCK_SECONDS = 10.0


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or .safetensors file.")
    flags.DEFINE_string("bundle", None, "Instead of a model, what `export` made of it.")
    flags.DEFINE_enum("format", "text", FORMATS, "What is written.")
    flags.DEFINE_string("out", None, "Folder for one file per recording, else stdout.")
    flags.DEFINE_enum(
        "vad",
        "silero",
        VADS,
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


def transcribe_files(
    loaded: recognition.Loaded,
    paths: Sequence[str | tuple[str, channels.Channel]],
    *,
    batch: int = 8,
    vad: str = "silero",
    timings: bool = True,
    names: HotwordList | None = None,
    show_progress: bool = False,
) -> Iterator[Recording]:
    """Transcribe files, segments of all of them together in batches.

    Memory holds the segments that wait for a batch, never a whole recording.

    Args:
        loaded: the model and its shapes; segments are as long as the largest shape.
        paths: audio files of any format, rate, channels and length, each alone or with
            the channel of it that is heard.
        batch: most segments at once.
        vad: one of VADS: recordings longer than the largest shape are cut where nobody
            speaks and their silence is left out, or ("none") cut at quiet places.
        timings: whether words get times and confidences.
        names: to be looked for in a first pass, for the prompts of the second.
        show_progress: whether a bar is drawn on stderr.

    Yields:
        Recordings in the order of the paths; a file that cannot be read has `error` set
        and does not stop the others; one that breaks off has `warning` set, and the
        transcript of what came before.

    Raises:
        ValueError: an unknown vad.
    """
    if vad not in VADS:
        raise ValueError(f"vad {vad!r} is unknown; use one of {VADS}.")
    recogniser = loaded.recogniser
    if names is not None:
        recogniser = FindingRecogniser(recogniser, names)
    detector = Silero() if vad == "silero" else None
    limit = loaded.bucket_seconds[-1]
    given = [path if isinstance(path, tuple) else (path, "mix") for path in paths]
    total, count = _survey([path for path, _ in given], limit)
    rows = 1
    while rows < min(batch, count):
        rows *= 2
    rows = min(rows, batch)
    batcher = Batcher(loaded.bucket_seconds, (rows,) * len(loaded.bucket_seconds))
    recordings = [Recording(path, channel=channel) for path, channel in given]
    emitted = 0
    bar = tqdm(total=round(total), unit="s", disable=None if show_progress else True)
    with bar:
        for ready in _iterate_batches(recordings, batcher, limit, detector):
            _finish(recogniser, ready, recordings, timings)
            bar.update(round(sum(each.progress for each in recordings)) - bar.n)
            while emitted < len(recordings) and _is_complete(recordings[emitted]):
                yield recordings[emitted]
                emitted += 1
    yield from recordings[emitted:]


def _is_complete(recording: Recording) -> bool:
    return bool(recording.error) or (recording.read and not recording.waiting)


def _survey(paths: Sequence[str], limit: float) -> tuple[float, int]:
    """Seconds of audio in all files, and about how many segments that makes."""
    total, count = 0.0, 0
    for path in paths:
        try:
            seconds = audio.read_duration(path)
        except audio.AudioError:
            continue  # reported when its turn comes
        total += seconds
        # Cuts lie between half the limit and the limit.
        count += 1 if seconds <= limit else int(seconds / (0.75 * limit)) + 1
    return total, max(count, 1)


def _iterate_batches(
    recordings: list[Recording],
    batcher: Batcher,
    limit: float,
    detector: Detector | None,
) -> Iterator[AudioBatch]:
    """Full batches as the files are read, what is left at the end."""
    for number, recording in enumerate(recordings):
        try:
            for segment in _cut(_read(recording), limit, detector):
                recording.waiting[segment.start] = len(segment.samples)
                yield from batcher.add((number, segment.start), segment.samples)
            if not recording.samples:
                recording.error = f"{recording.path}: zero length: it holds no sample"
        except (audio.AudioError, OSError) as error:
            recording.error = str(error)
        recording.read = True
    yield from batcher.flush()


def _read(recording: Recording) -> Iterator[np.ndarray]:
    """The file's blocks, counted; what is wrong behind them is only noted.

    Raises:
        AudioError: nothing could be read.
    """
    blocks = audio.read_blocks(
        recording.path, _BLOCK_SECONDS, channel=recording.channel
    )
    try:
        for block in blocks:
            recording.samples += len(block)
            yield block
    except audio.AudioError as error:
        if not recording.samples:
            raise
        recording.warning = str(error)


def _cut(
    blocks: Iterator[np.ndarray], limit: float, detector: Detector | None
) -> Iterable[Segment]:
    """Segments; a recording that fits in one is heard whole, speech or not."""
    if detector is None:
        return segments.cut(blocks, limit)
    head: list[np.ndarray] = []
    room = round(limit * audio.SAMPLE_RATE)
    while room >= 0 and (block := next(blocks, None)) is not None:
        head.append(block)
        room -= len(block)
    if room >= 0:
        return segments.cut(head, limit)
    whole = itertools.chain(head, blocks)
    return segments.cut_speech(whole, detector, EndpointConfig(), limit)


def _finish(
    recogniser: Recogniser | FindingRecogniser,
    batch: AudioBatch,
    recordings: list[Recording],
    timings: bool,
) -> None:
    """Transcribe a batch and hand each transcript to its recording."""
    transcripts = recogniser.transcribe(batch.audio, timings=timings)
    for (number, start), transcript in zip(batch.keys, transcripts):
        recording = recordings[number]
        recording.add(start, transcript)
        # Short and long segments come back in the order of their batches.
        recording.passages.sort(key=lambda passage: passage.start)


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
            count = audio.count_channels(path)
        except audio.AudioError:
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


def run(
    model: str,
    paths: Sequence[str],
    *,
    form: str = "text",
    out: str | None = None,
    batch: int = 8,
    vad: str = "silero",
    chunk_ms: int = 0,
    left: int = 4,
    channel: str = "mix",
    names: HotwordList | None = None,
) -> list[Recording]:
    """Transcribe files and print or write what `form` asks for.

    Args:
        model: workdir, .safetensors file or bundle.
        paths: audio files.
        form: one of FORMATS.
        out: folder; None prints.
        batch: most segments at once.
        vad: how long recordings are cut, one of VADS.
        chunk_ms: length of chunks, 0 for the full pass.
        left: chunks seen to the left.
        channel: one of CHANNELS.
        names: to be looked for in what is heard.

    Returns:
        All recordings, those that could not be read with `error` set, those that broke
        off with `warning` (both also on stderr).

    Raises:
        ValueError: no usable model, an unknown format or vad, or outputs that collide.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown; use one of {FORMATS}.")
    planned = plan_channels(paths, channel)
    targets = plan_outputs(planned, form, out)
    loaded = recognition.load(model, chunk_ms=chunk_ms, left=left)
    loaded.recogniser.check_writes()
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
    done = []
    stream = transcribe_files(
        loaded,
        planned,
        batch=batch,
        vad=vad,
        timings=form != "text",
        names=names,
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
    done = run(
        model,
        paths,
        form=given.format,
        out=given.out,
        batch=given.batch,
        vad=given.vad,
        chunk_ms=given.chunk_ms,
        left=given.left,
        channel=str(given.channels),
        names=hotword_flags.read(given).found,
    )
    if any(recording.error or recording.warning for recording in done):
        sys.exit(1)


if __name__ == "__main__":
    runtime.launch(main, define_flags)
