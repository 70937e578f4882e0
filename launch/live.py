"""Transcribe a file, a pipe or the microphone while it is heard.

nim4 transcribe --model=runs/demo/stage4 --stream FILE
nim4 transcribe --model=runs/demo/stage4 --stream mic
arecord -t raw -f S16_LE -r 16000 | nim4 transcribe --model=… --stream -

    source, in its own thread → Inbox → 16 kHz → Listener → events → stdout
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from nim4_jax.data.audio import reading, resample
from nim4_jax.decode.live import audio_sources
from nim4_jax.decode.live.audio_sources import PACES
from nim4_jax.launch import hotword_flags
from nim4_jax.serving import live_transcription


def define_flags() -> None:
    """Flags that --stream needs beyond those of `transcribe`."""
    flags.DEFINE_boolean(
        "stream",
        False,
        "Transcribe one recording while it is heard: a file, - for stdin (raw 16 bit "
        "little-endian PCM, or a file with a header), mic for the microphone (a file "
        "of that name: ./mic).",
    )
    flags.DEFINE_enum("pace", "fast", PACES, "With --stream, how files are fed.")
    flags.DEFINE_integer(
        "packet_ms",
        100,
        "With --stream, ms of audio fed at once.",
        lower_bound=1,
        upper_bound=audio_sources.ROOM_MS,
    )
    flags.DEFINE_enum(
        "detector",
        "silero",
        live_transcription.DETECTORS,
        "With --stream, what hears speech; blank: the phoneme head.",
    )
    flags.DEFINE_integer(
        "rate",
        reading.SAMPLE_RATE,
        "Sample rate of --stream -, Hz.",
        lower_bound=resample.LOWEST_RATE,
        upper_bound=resample.HIGHEST_RATE,
    )
    flags.DEFINE_string(
        "channels",
        "mix",
        "What is heard of several channels: mix, left, right, or each alone (not with "
        "--stream). With --stream -, a number: how many alternate in raw PCM.",
    )


def main(model: str, recordings: Sequence[str], given: Any) -> None:
    """`nim4 transcribe --stream`, with the values of all flags.

    Raises:
        app.UsageError: not one recording.
        ValueError: --out, or see `run`.
    """
    if len(recordings) != 1:
        raise app.UsageError(
            f"--stream hears one recording (a file, - or mic), got {len(recordings)}."
        )
    if given.out:
        raise ValueError("--out is not for streams; send stdout to a file: … > FILE.")
    outcome = live_transcription.run(
        model,
        recordings[0],
        live_transcription.Options(
            form=given.format,
            pace=given.pace,
            packet_ms=given.packet_ms,
            chunk_ms=given.chunk_ms,
            left=given.left,
            detector=given.detector,
            rate=given.rate,
            channels=str(given.channels),
        ),
        hotword_flags.read(given),
    )
    if outcome.failed:
        sys.exit(1)
