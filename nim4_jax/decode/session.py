"""One stream of audio on the host: packets in; events, and work for the device, out.

Packets are only ever appended to a buffer. Everything else happens at fixed places of
the audio (windows of the detector, chunks of an utterance), in the order of the audio,
so the packets' sizes change nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nim4_jax.decode import endpoint, events
from nim4_jax.decode.endpoint import BlankDetector, Boundary, EndpointConfig, Silero
from nim4_jax.decode.events import Event, SpeechStarted, SpeechStopped
from nim4_jax.decode.stream_config import StreamConfig
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.retrieval.hotwords import Hit, HotwordRetriever
from nim4_jax.retrieval.hotwords import StreamState as Hearing

_IDLE_CHUNKS = 8  # chunks without speech after which what was heard is forgotten


class StreamError(ValueError):
    """A packet that cannot be taken; nothing of it is, and the stream goes on."""


@dataclasses.dataclass
class Utterance:
    """A stretch of speech on its way to a text.

    Attributes:
        number: in its stream, from 0.
        start: first sample, in the stream.
        end: one past the last; None while it goes on.
        reason: why it ended, one of `events.REASONS`.
        known: samples of the stream that were needed to know the end.
        begun: whether somebody is known to speak.
        log_probs: phoneme posteriors of each chunk's real frames.
        hearing: what the hotword search has heard.
    """

    number: int
    start: int
    end: int | None = None
    reason: str = ""
    known: int = 0
    begun: bool = True
    log_probs: list[np.ndarray] = dataclasses.field(default_factory=list)
    hearing: Hearing = dataclasses.field(default_factory=Hearing)

    @property
    def chunks(self) -> int:
        """How many the device has taken."""
        return len(self.log_probs)

    @property
    def hits(self) -> tuple[Hit, ...]:
        """Hotwords heard so far."""
        return self.hearing.hits

    def finish(self, end: int, reason: str, known: int) -> None:
        """It ends there."""
        self.end, self.reason, self.known = end, reason, known


@dataclasses.dataclass(frozen=True)
class Piece:
    """A chunk of an utterance, and the samples that its frames see around it.

    Attributes:
        utterance: to which it belongs.
        missing: samples of a window of the device before the utterance's first.
        samples: float32, the window's next, at most as many as it has left.
        until: one past the chunk's last sample, in the stream.
        heard: samples of the stream that were needed.
        last: whether the utterance is known to end with it.
    """

    utterance: Utterance
    missing: int
    samples: Float[np.ndarray, " S"]
    until: int
    heard: int
    last: bool

    @property
    def fresh(self) -> bool:
        """Whether it begins the utterance."""
        return self.utterance.chunks == 0


@dataclasses.dataclass(frozen=True)
class Ending:
    """An utterance of which the device has every piece."""

    utterance: Utterance


Step = Event | Piece | Ending | None
_Flow = Generator[Step, None, None]


class Session:
    """A stream of audio, cut into utterances and those into pieces.

    Attributes:
        hints: names that each prompt of the stream holds; may be replaced at any time.
        retriever: finds further names in what is heard; may be replaced at any time.
        utterance: the last that was opened, None before the first.
    """

    def __init__(
        self,
        config: StreamConfig,
        boundaries: EndpointConfig,
        detector: Silero | BlankDetector,
        *,
        hints: tuple[str, ...] = (),
        retriever: HotwordRetriever | None = None,
    ):
        """A stream before its first sample.

        Args:
            config: sizes.
            boundaries: when speech begins and ends.
            detector: of speech. Silero judges audio before the recogniser hears it;
                a BlankDetector judges what the recogniser heard.
            hints: see the attribute.
            retriever: see the attribute.
        """
        self.hints, self.retriever = tuple(hints), retriever
        self._config, self._boundaries = config, boundaries
        # From where a chunk begins to the end of what it sees.
        self._reach = config.hop + config.rates.samples_after
        self.utterance: Utterance | None = None
        self._detector: Any = detector
        self._packets: list[np.ndarray] = []
        self._buffer = np.zeros(0, np.float32)
        self._first = 0  # sample of the stream at which the buffer begins
        self._fed = 0
        self._judged = 0
        self._closed = False
        self._count = 0
        self._endpoint = endpoint.EndpointState()
        self._detected: Any = detector.start()
        early = isinstance(detector, Silero)
        self._flow: _Flow = self._judge_first() if early else self._hear_first()

    @property
    def seconds(self) -> float:
        """Audio so far."""
        return self._fed / SAMPLE_RATE

    @property
    def closed(self) -> bool:
        """Whether the end of the audio has come."""
        return self._closed

    def feed(self, samples: Float[np.ndarray, " S"]) -> None:
        """Append a packet of any size.

        Args:
            samples: float32 in [-1, 1), 16 kHz, one channel.

        Raises:
            StreamError: the stream has ended, the packet has another form, or it holds
                a sample that is no number.
        """
        if self._closed:
            raise StreamError(
                f"{np.size(samples)} samples came after the end of the stream; open "
                "another stream for them."
            )
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise StreamError(
                f"a packet has shape {samples.shape} and dtype {samples.dtype}; "
                "expected float32 samples of one channel at 16 kHz "
                "(data.resample.StreamResampler makes them)."
            )
        bad = np.flatnonzero(~np.isfinite(samples))
        if len(bad):
            raise StreamError(
                f"sample {bad[0]} of a packet of {len(samples)} is {samples[bad[0]]}; "
                "the packet was left out. Send finite samples."
            )
        if len(samples):
            self._packets.append(samples.copy())
            self._fed += len(samples)

    def close(self) -> None:
        """No more audio will come."""
        self._closed = True

    def advance(self) -> Step:
        """What comes next in the audio; None where more of it is needed.

        A piece must be taken (`take`) before the next call.

        Raises:
            StopIteration: the stream is closed and all of it is done.
        """
        return next(self._flow)

    def take(
        self,
        piece: Piece,
        log_probs: Float[np.ndarray, "U P"],
        phonemes: Int[np.ndarray, " N"],
        frames: Int[np.ndarray, " N"],
        *,
        full: bool = False,
    ) -> None:
        """What the device made of a piece.

        Args:
            piece: from `advance`.
            log_probs: phoneme posteriors of its real frames.
            phonemes: uint8 ids of those that begin in it.
            frames: of the piece, in which they do.
            full: whether the text has no more room.
        """
        utterance = piece.utterance
        if self.retriever is not None:
            frame_seconds = self._config.rates.frame_seconds
            begin = utterance.chunks * self._config.chunk + frames
            begin = begin * frame_seconds
            utterance.hearing, _ = self.retriever.scan(
                utterance.hearing,
                phonemes,
                log_probs,
                np.stack([begin, begin + frame_seconds], axis=1),
            )
        utterance.log_probs.append(log_probs)
        full = full or utterance.chunks == self._config.chunks
        if full and utterance.end is None:
            utterance.finish(piece.until, events.FULL, piece.heard)

    def _judge_first(self) -> _Flow:
        """Utterances are where the detector hears speech."""
        start = None
        while True:
            if start is None:
                start = yield from self._find_speech()
            if start is None:
                return
            self.utterance = self._open(start)
            yield self._tell_start(self.utterance)
            start = yield from self._follow(self.utterance)

    def _find_speech(self) -> Generator[None, None, int | None]:
        """Judge windows until speech begins; None where the stream ends before."""
        while (yield from self._await_window()):
            boundary = self._judge_window()
            if boundary and boundary.kind == endpoint.START:
                return boundary.at
            self._forget(self._judged)
        return None

    def _follow(self, utterance: Utterance) -> Generator[Step, None, int | None]:
        """Pieces of an utterance until its end; where the next begins if it is full."""
        while utterance.end is None or self._place(utterance) < utterance.end:
            until = self._place(utterance) + self._reach
            while utterance.end is None and self._judged < until:
                if not (yield from self._await_window()):
                    utterance.finish(self._fed, events.STREAM_ENDED, self._fed)
                elif (found := self._judge_window()) and found.kind == endpoint.END:
                    utterance.finish(found.at, events.SPEECH_ENDED, found.known)
            yield self._cut(utterance, self._judged)
            self._forget(self._first_seen(utterance))
        yield from self._tell_end(utterance)
        return utterance.end if utterance.reason == events.FULL else None

    def _await_window(self) -> Generator[None, None, bool]:
        """Wait for a window to judge; False where the stream ends before."""
        while self._fed - self._judged < endpoint.WINDOW:
            if self._closed:
                return False
            yield None
        return True

    def _judge_window(self) -> Boundary | None:
        samples = self._read(self._judged, self._judged + endpoint.WINDOW)
        self._detected, probability = self._detector.score(self._detected, samples)
        return self._judge(float(probability), endpoint.WINDOW)

    def _judge(self, probability: float, samples: int) -> Boundary | None:
        self._judged += samples
        self._endpoint, boundary = endpoint.judge(
            self._boundaries, self._endpoint, probability, samples
        )
        return boundary

    def _hear_first(self) -> _Flow:
        """Everything is heard; what has no speech in it is forgotten again."""
        start = 0
        while start is not None:
            self.utterance = self._open(start, begun=False)
            start = yield from self._overhear(self.utterance)

    def _overhear(self, utterance: Utterance) -> Generator[Step, None, int | None]:
        """Pieces until speech has come and gone; where the next utterance begins."""
        following = None
        while utterance.end is None:
            place = self._place(utterance)
            while self._fed < place + self._reach and not self._closed:
                yield None
            if self._closed and self._fed <= place + self._config.hop:
                utterance.finish(self._fed, events.STREAM_ENDED, self._fed)
            if self._fed > place:
                yield self._cut(utterance, min(self._fed, place + self._reach))
            following, begins = self._judge_heard(utterance, place)
            if begins:
                yield self._tell_start(utterance)
            if utterance.reason == events.FULL:
                following = utterance.end
            idle = not utterance.begun and utterance.chunks >= _IDLE_CHUNKS
            if utterance.end is None and idle:
                return place
            self._forget(min(place, self._first_seen(utterance)))
        if utterance.begun:
            yield from self._tell_end(utterance)
        return None if utterance.reason == events.STREAM_ENDED else following

    def _judge_heard(self, utterance: Utterance, place: int) -> tuple[int | None, bool]:
        """Where the utterance ended in its last chunk, if so; whether it began there.

        An end behind which somebody speaks on in the same chunk is none.
        """
        frame = self._detector.frame
        scores = utterance.log_probs[-1][max(0, self._judged - place) // frame :]
        self._detected, probabilities = self._detector.score(self._detected, scores)
        end, begins = None, False
        for probability in probabilities:
            boundary = self._judge(float(probability), frame)
            if boundary and boundary.kind == endpoint.START and not utterance.begun:
                utterance.begun = begins = True
            if boundary and boundary.kind == endpoint.END:
                end = boundary
            elif probability >= self._boundaries.threshold:
                end = None
        if end and utterance.begun and utterance.end is None:
            until = self._place(utterance)
            utterance.finish(end.at, events.SPEECH_ENDED, min(self._fed, until))
        return (end.at if end else None), begins

    def _open(self, start: int, begun: bool = True) -> Utterance:
        """The next utterance, from that sample of the stream on."""
        hearing = Hearing(frame_seconds=self._config.rates.frame_seconds)
        return Utterance(self._count, start, begun=begun, hearing=hearing)

    def _place(self, utterance: Utterance) -> int:
        """Where the next chunk begins."""
        return utterance.start + utterance.chunks * self._config.hop

    def _first_seen(self, utterance: Utterance) -> int:
        """First sample of the utterance that its next chunk sees."""
        before = self._config.rates.samples_before
        return max(utterance.start, self._place(utterance) - before)

    def _cut(self, utterance: Utterance, heard: int) -> Piece:
        place, begin = self._place(utterance), self._first_seen(utterance)
        stop = self._fed if utterance.end is None else utterance.end
        stop = min(stop, place + self._reach)
        until = min(place + self._config.hop, stop)
        last = utterance.end is not None and utterance.end <= until
        missing = self._config.rates.samples_before - (place - begin)
        samples = self._read(begin, stop)
        return Piece(utterance, missing, samples, until, heard, last)

    def _tell_start(self, utterance: Utterance) -> SpeechStarted:
        self._count += 1
        start, heard = utterance.start / SAMPLE_RATE, self._judged / SAMPLE_RATE
        return SpeechStarted(utterance.number, start, heard)

    def _tell_end(self, utterance: Utterance) -> _Flow:
        assert utterance.end is not None
        yield SpeechStopped(
            utterance.number,
            utterance.end / SAMPLE_RATE,
            utterance.reason,
            utterance.known / SAMPLE_RATE,
        )
        yield Ending(utterance)

    def _read(self, begin: int, end: int) -> np.ndarray:
        """Samples of the stream from the buffer."""
        if self._packets:
            self._buffer = np.concatenate([self._buffer, *self._packets])
            self._packets = []
        if not self._first <= begin <= end <= self._first + len(self._buffer):
            raise RuntimeError(
                f"samples {begin} to {end} of a stream are not in its buffer, which "
                f"holds {len(self._buffer)} from {self._first} on."
            )
        return self._buffer[begin - self._first : end - self._first]

    def _forget(self, place: int) -> None:
        """Samples before that place are not needed again, but for the next START."""
        earliest = endpoint.find_earliest(self._boundaries, self._endpoint)
        place = min(place, earliest, self._judged)
        if place - self._first > len(self._buffer) // 2:
            self._buffer = self._buffer[place - self._first :].copy()
            self._first = place
