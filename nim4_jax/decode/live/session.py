"""The host state of one stream: endpointing, chunks for the device, events.

Packets are only ever appended to a buffer. Everything else happens at fixed places of
the audio (windows of the detector, chunks of an utterance), in the order of the audio,
so the packets' sizes change nothing.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nim4_jax.decode import endpoint
from nim4_jax.decode.endpoint import BlankDetector, Boundary, EndpointConfig
from nim4_jax.decode.live import events
from nim4_jax.decode.live.audio_buffer import AudioBuffer, StreamError
from nim4_jax.decode.live.events import Event, Failed, SpeechStarted, SpeechStopped
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.live.utterance import Ending, Piece, Utterance
from nim4_jax.decode.silero import WINDOW, Silero
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.retrieval.hotwords import Hit, HotwordRetriever
from nim4_jax.retrieval.hotwords import StreamState as Hearing

_IDLE_CHUNKS = 8  # chunks without speech after which what was heard is forgotten
_WINDOWS = 64  # of Silero that a stream may have scored: two seconds of audio
_NEAR_FULL = 3 * SAMPLE_RATE  # samples before an utterance is full
_NOBODY = HotwordRetriever(())


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one stream, since it shares the process with others.

    Attributes:
        hints: names for every prompt; what does not fit into it is encoded in vain.
        hint_length: characters of each.
        waiting: seconds of audio that may wait to be heard.
    """

    hints: int = 256
    hint_length: int = 256
    waiting: float = 4 * 3600.0

    def check(self, hints: Sequence[str]) -> tuple[str, ...]:
        """Hints as they were given.

        Raises:
            StreamError: too many, too long, or no texts.
        """
        if isinstance(hints, str):
            raise StreamError(f"hints are {hints!r}; give a sequence of texts.")
        checked = tuple(hints)
        if len(checked) > self.hints:
            raise StreamError(
                f"{len(checked)} hints; a prompt takes at most {self.hints}. Put a "
                "longer list into a hotword layer (`retriever`), which finds those "
                "that are said."
            )
        for hint in checked:
            if not isinstance(hint, str) or len(hint) > self.hint_length:
                raise StreamError(
                    f"hint {str(hint)[:40]!r} … is no text of at most "
                    f"{self.hint_length} characters; leave it out."
                )
        return checked


Step = Event | Piece | Ending | None
_Flow = Generator[Step, None, None]


class Session:
    """A stream of audio, cut into utterances and those into pieces.

    Any thread may call `feed` and `close` and set `hints` and `retriever`, whatever the
    listener does meanwhile. All else is the listener's.

    Attributes:
        retriever: finds further names in what is heard; may be replaced at any time:
            one that comes late still finds what was said a few seconds ago.
        utterance: the last that was opened, None before the first.
        failure: why the stream broke off, None while it has not.
        detector: of speech.
        paused: whether audio that has come waits to be scored, see `detection`.
    """

    def __init__(
        self,
        config: StreamConfig,
        boundaries: EndpointConfig,
        detector: Silero | BlankDetector,
        *,
        hints: Sequence[str] = (),
        retriever: HotwordRetriever | None = None,
        limits: Limits | None = None,
    ):
        """A stream before its first sample.

        Args:
            config: sizes.
            boundaries: when speech begins and ends.
            detector: of speech. Silero judges audio before the recogniser hears it;
                a BlankDetector judges what the recogniser heard.
            hints: see the attribute.
            retriever: see the attribute.
            limits: what the stream may ask for; None for the defaults.

        Raises:
            StreamError: hints beyond the limits.
        """
        self._limits = limits or Limits()
        self._hints = self._limits.check(hints)
        self.retriever = retriever
        self._config, self._boundaries = config, boundaries
        # From where a chunk begins to the end of what it sees.
        self._reach = config.hop + config.rates.samples_after
        self.utterance: Utterance | None = None
        self.failure: Exception | None = None
        self.paused = False
        self._audio = AudioBuffer()
        self._judged = 0  # samples
        self._needed = 0  # samples that were needed for what is known
        self._count = 0
        self._endpoint = endpoint.EndpointState()
        self.detector: Any = detector
        self._detected: Any = detector.start()
        self._scores: collections.deque[float] = collections.deque()  # not yet judged
        self._early = isinstance(detector, Silero)
        # What was heard begins at whole frames; what was not, anywhere.
        self._grain = 1 if self._early else detector.frame
        self._flow: _Flow = self._run()

    @property
    def hints(self) -> tuple[str, ...]:
        """Names that each prompt of the stream holds; may be replaced at any time.

        Raises:
            StreamError: on setting: see `Limits`.
        """
        return self._hints

    @hints.setter
    def hints(self, hints: Sequence[str]) -> None:
        self._hints = self._limits.check(hints)

    @property
    def seconds(self) -> float:
        """Audio so far."""
        return self._audio.sent / SAMPLE_RATE

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait to be heard."""
        return max(0, self._audio.sent - self._judged) / SAMPLE_RATE

    @property
    def closed(self) -> bool:
        """Whether the end of the audio has come."""
        return self._audio.closed

    def feed(self, samples: Float[np.ndarray, " S"]) -> None:
        """Append a packet of any size; from any thread.

        Args:
            samples: float32 in [-1, 1), 16 kHz, one channel.

        Raises:
            StreamError: the stream has ended or is full (`Limits.waiting`), the packet
                has another form, or it holds a sample that is no number.
        """
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
        most = self._judged + round(self._limits.waiting * SAMPLE_RATE)
        self._audio.append(samples, most)

    def close(self) -> None:
        """No more audio will come; from any thread."""
        self._audio.close("after the end of the stream; open another stream for them.")

    def fail(self, error: Exception) -> Failed:
        """The stream breaks off; what it says of that."""
        self.failure = error
        told = f"{type(error).__name__}: {error}"
        self._audio.close(f"for a stream that broke off ({told}); open another one.")
        number = self.utterance.number if self.utterance else 0
        return Failed(number, told, self._needed / SAMPLE_RATE)

    def find_windows(self) -> tuple[Any, Float[np.ndarray, "N 512"]]:
        """Audio for Silero to score next, not much at a time, and its state.

        None where a BlankDetector listens.
        """
        self._audio.receive()
        begin = self._judged + WINDOW * len(self._scores)
        count = (self._audio.end - begin) // WINDOW if self._early else 0
        count = max(0, min(count, _WINDOWS - len(self._scores)))
        windows = self._audio.read(begin, begin + count * WINDOW) if count else ()
        return self._detected, np.reshape(windows, (count, WINDOW))

    def take_scores(self, state: Any, scores: Float[np.ndarray, " N"]) -> None:
        """What Silero says of the windows that were found, and its state behind."""
        self._detected = state
        self._scores.extend(scores.tolist())

    def advance(self) -> Step:
        """What comes next in the audio; None where more of it, or scores, are needed.

        A piece must be taken (`take`) before the next call.

        Raises:
            StopIteration: the stream is closed and all of it is done.
        """
        self._audio.receive()
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
        utterance.log_probs.append(log_probs)
        full = full or utterance.chunks == self._config.chunks
        if full and utterance.end is None:
            utterance.finish(piece.until, events.FULL, piece.heard)
        if utterance.begun:
            # What is heard is kept without a retriever too: one may come later.
            hearing = utterance.hearing
            begin = (hearing.frames + frames) * hearing.frame_seconds
            times = np.stack([begin, begin + hearing.frame_seconds], axis=1)
            utterance.hearing, _ = (self.retriever or _NOBODY).scan(
                hearing, phonemes, log_probs, times
            )

    def find_hits(self, utterance: Utterance) -> tuple[Hit, ...]:
        """Names heard in an utterance that the retriever still holds."""
        utterance.hearing = (self.retriever or _NOBODY).refresh(utterance.hearing)
        return utterance.hearing.hits

    def _run(self) -> _Flow:
        """Utterances are where the detector hears speech."""
        find = self._find_speech if self._early else self._overhear
        follow = self._follow if self._early else self._hear_on
        while True:
            start = yield from find()
            if start is None:
                return
            utterance = self.utterance = self._open(start)
            yield self._tell_start(utterance)
            yield from follow(utterance)
            yield from self._tell_end(utterance)
            if utterance.reason == events.STREAM_ENDED:
                return
            if utterance.reason == events.FULL:
                self._endpoint = endpoint.break_off(self._endpoint, utterance.end or 0)

    def _find_speech(self) -> Generator[None, None, int | None]:
        """Judge windows until speech begins; None where the stream ends before."""
        while (yield from self._await_window()):
            boundary = self._judge_window()
            if boundary and boundary.kind == endpoint.START:
                return boundary.at
            self._forget(self._judged)
        return None

    def _follow(self, utterance: Utterance) -> _Flow:
        """Pieces of an utterance until its end."""
        while utterance.end is None or self._place(utterance) < utterance.end:
            until = self._place(utterance) + self._reach
            while utterance.end is None and self._judged < until:
                if not (yield from self._await_window()):
                    end = self._audio.end
                    utterance.finish(end, events.STREAM_ENDED, end)
                elif (found := self._judge_window()) and found.kind == endpoint.END:
                    utterance.finish(found.at, events.SPEECH_ENDED, found.known)
                else:
                    self._end_at_pause(utterance)
            yield self._cut(utterance)
            self._forget(self._first_seen(utterance))

    def _end_at_pause(self, utterance: Utterance) -> None:
        """An utterance that will soon be full ends where somebody takes breath."""
        room = self._config.chunks * self._config.hop
        near = room - min(_NEAR_FULL, room // 8)
        quiet = self._endpoint.quiet
        if self._judged - utterance.start < near or quiet < endpoint.BREATH:
            return
        # What the device has heard already is not taken back.
        earliest = self._place(utterance) + (WINDOW if self._early else 0)
        end = max(self._judged - quiet // 2, earliest)
        utterance.finish(min(end, self._judged), events.FULL, self._needed)

    def _await_window(self) -> Generator[None, None, bool]:
        """Wait for a window to judge; False where the stream ends before."""
        while True:
            self.paused = False
            if self._scores:
                return True
            if self._audio.end - self._judged >= WINDOW:
                self.paused = True
            elif self._audio.ended:
                return False
            yield None

    def _judge_window(self) -> Boundary | None:
        boundary = self._judge(self._scores.popleft(), WINDOW)
        self._needed = self._judged
        return boundary

    def _judge(self, probability: float, samples: int) -> Boundary | None:
        self._judged += samples
        self._endpoint, boundary = endpoint.judge(
            self._boundaries, self._endpoint, probability, samples
        )
        return boundary

    def _overhear(self) -> Generator[Step, None, int | None]:
        """Let the device hear until speech begins; None where the stream ends before.

        What it heard is forgotten: the utterance is heard anew from its beginning.
        """
        while True:
            heard = self.utterance = self._open(self._judged, begun=False)
            while heard.chunks < _IDLE_CHUNKS:
                if not (yield from self._await_piece(heard)):
                    return None
                yield self._cut(heard)
                if boundary := self._judge_heard(heard):
                    return boundary.at // self._grain * self._grain
                self._forget(self._first_seen(heard))

    def _hear_on(self, utterance: Utterance) -> _Flow:
        """Pieces of an utterance until its end shows in one of them."""
        while utterance.end is None:
            audible = yield from self._await_piece(utterance)
            end = self._audio.end
            if self._audio.ended and end <= self._place(utterance) + self._config.hop:
                utterance.finish(end, events.STREAM_ENDED, end)
            if not audible:
                return
            yield self._cut(utterance)
            boundary = self._judge_heard(utterance)
            if boundary and utterance.reason != events.STREAM_ENDED:
                utterance.finish(boundary.at, events.SPEECH_ENDED, self._needed)
            elif utterance.end is None:
                self._end_at_pause(utterance)
            self._forget(self._first_seen(utterance))

    def _await_piece(self, utterance: Utterance) -> Generator[None, None, bool]:
        """Wait for a chunk and what it sees behind it; False: nothing comes."""
        place = self._place(utterance)
        while self._audio.end < place + self._reach and not self._audio.ended:
            yield None
        until = min(self._audio.end, place + self._reach)
        self._needed = max(self._needed, until)
        return self._audio.end > place

    def _judge_heard(self, utterance: Utterance) -> Boundary | None:
        """The first boundary in what is new in the last chunk.

        Frames behind it are judged when they are heard as part of what follows.
        """
        frame = self.detector.frame
        place = self._place(utterance) - self._config.hop
        scores = utterance.log_probs[-1][max(0, self._judged - place) // frame :]
        _, probabilities = self.detector.score(self._detected, scores)
        count, boundary = 0, None
        while count < len(scores) and boundary is None:
            boundary = self._judge(float(probabilities[count]), frame)
            count += 1
        self._detected, _ = self.detector.score(self._detected, scores[:count])
        return boundary

    def _open(self, start: int, begun: bool = True) -> Utterance:
        """The next utterance, from that sample of the stream on."""
        hearing = Hearing(frame_seconds=self._config.rates.frame_seconds)
        return Utterance(self._count, start, begun=begun, hearing=hearing)

    def _place(self, utterance: Utterance) -> int:
        """Where the next chunk begins."""
        return utterance.start + utterance.chunks * self._config.hop

    def _first_seen(self, utterance: Utterance) -> int:
        """First sample that the next chunk sees, of this utterance or behind it."""
        before = self._config.rates.samples_before
        seen = max(utterance.start, self._place(utterance) - before)
        return seen if utterance.end is None else min(seen, utterance.end)

    def _cut(self, utterance: Utterance) -> Piece:
        place, begin = self._place(utterance), self._first_seen(utterance)
        stop = self._audio.end if utterance.end is None else utterance.end
        stop = min(stop, place + self._reach)
        until = min(place + self._config.hop, stop)
        last = utterance.end is not None and utterance.end <= until
        missing = self._config.rates.samples_before - (place - begin)
        samples = self._audio.read(begin, stop)
        return Piece(utterance, missing, samples, until, self._needed, last)

    def _tell_start(self, utterance: Utterance) -> SpeechStarted:
        self._count += 1
        start, heard = utterance.start / SAMPLE_RATE, self._needed / SAMPLE_RATE
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

    def _forget(self, place: int) -> None:
        """Samples before that place are not needed again, but for the next START."""
        earliest = endpoint.find_earliest(self._boundaries, self._endpoint)
        earliest = earliest // self._grain * self._grain
        self._audio.forget(min(place, earliest, self._judged))
