"""Transcripts of recordings by segment, rendered as text, JSON, SRT or WebVTT."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from nim4_jax.data.audio import channels, reading
from nim4_jax.decode import subtitles
from nim4_jax.decode.recogniser import Transcript
from nim4_jax.decode.timing import Word

FORMATS = ("text", "json", "srt", "vtt")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A segment of a recording with its transcript, in the recording's own time.

    Attributes:
        start: seconds.
        end: seconds.
        text: transcript.
        log_prob: of the answer, nats.
        words: with times and confidences.
        tokens: ids that the LLM wrote, without the end token.
        token_log_probs: nats, of each of them.
        hints: names that were found for its prompt, behind those that were given.
    """

    start: float
    end: float
    text: str
    log_prob: float
    words: tuple[Word, ...]
    tokens: tuple[int, ...] = ()
    token_log_probs: tuple[float, ...] = ()
    hints: tuple[str, ...] = ()


@dataclasses.dataclass
class Recording:
    """A recording in progress, and its transcript so far.

    Attributes:
        path: as given; what messages call it.
        passages: what is done so far.
        channel: that is heard, as `channels` describes.
        error: why there is no transcript, "" if all is well.
        warning: what of the audio could not be decoded, "" if all could.
        samples: read so far, at 16 kHz.
        waiting: samples of the segments not yet transcribed, by their start in seconds.
        read: whether the whole file has been cut.
        cause: what `error` is the text of.
        audio: its samples at 16 kHz, or the bytes of a file; None reads `path`.
    """

    path: str
    passages: list[Passage] = dataclasses.field(default_factory=list)
    channel: channels.Channel = "mix"
    error: str = ""
    warning: str = ""
    samples: int = 0
    waiting: dict[float, int] = dataclasses.field(default_factory=dict)
    read: bool = False
    cause: Exception | None = None
    audio: np.ndarray | bytes | None = dataclasses.field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The path, with the channel (counted from 1) where each is heard alone."""
        if isinstance(self.channel, int):
            return f"{self.path} (channel {self.channel + 1})"
        return self.path

    @property
    def duration(self) -> float:
        """Seconds read so far."""
        return self.samples / reading.SAMPLE_RATE

    @property
    def progress(self) -> float:
        """Seconds that are transcribed, or hold nothing to transcribe."""
        return (self.samples - sum(self.waiting.values())) / reading.SAMPLE_RATE

    @property
    def text(self) -> str:
        """The whole transcript; passages far apart are lines of their own."""
        parts = ((each.start, each.end, each.text) for each in self.passages)
        return subtitles.join_passages(parts)

    def add(self, start: float, transcript: Transcript) -> None:
        """Take the transcript of the segment that starts at `start`."""
        words = tuple(
            dataclasses.replace(word, start=word.start + start, end=word.end + start)
            for word in transcript.words
        )
        self.passages.append(
            Passage(
                start,
                start + transcript.duration,
                transcript.text,
                transcript.log_prob,
                words,
                transcript.tokens,
                transcript.token_log_probs,
                getattr(transcript, "hints", ()),
            )
        )
        del self.waiting[start]


def render(recording: Recording, form: str) -> str:
    """A recording's transcript in one of FORMATS, ending with a newline."""
    if form == "text":
        return recording.text + "\n"
    if form == "json":
        described = _describe(recording)
        return json.dumps(described, ensure_ascii=False, allow_nan=False) + "\n"
    cues = subtitles.make_cues((p.text, p.words) for p in recording.passages)
    return subtitles.to_srt(cues) if form == "srt" else subtitles.to_vtt(cues)


def _describe(recording: Recording) -> dict:
    """The JSON form; seconds to the millisecond."""
    passages = [
        {
            "start": round(passage.start, 3),
            "end": round(passage.end, 3),
            "text": passage.text,
            "log_prob": round(passage.log_prob, 4),
            "words": [
                {
                    "text": word.text,
                    "start": round(word.start, 3),
                    "end": round(word.end, 3),
                    "confidence": round(word.confidence, 4),
                }
                for word in passage.words
            ],
        }
        for passage in recording.passages
    ]
    made = {
        "file": recording.path,
        "duration": round(recording.duration, 3),
        "text": recording.text,
        "segments": passages,
    }
    if isinstance(recording.channel, int):
        made["channel"] = recording.channel + 1
    if recording.warning:
        made["warning"] = recording.warning
    return made
