"""One recording, pipe or microphone transcribed while it is heard.

source, in its own thread → Inbox → 16 kHz → Listener → events → stdout
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.decode.endpoint import BlankDetector
from nim4_jax.decode.hotwords import Hotwords
from nim4_jax.decode.live import audio_sources, display, stdin_source
from nim4_jax.decode.live.audio_sources import MICROPHONE, PACES, STDIN, Inbox
from nim4_jax.decode.live.display import FORMATS
from nim4_jax.decode.live.events import Event, Failed, Final
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.session import Session
from nim4_jax.decode.live.stdin_source import Warn
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.silero import Silero
from nim4_jax.serving import recognisers
from nim4_jax.text import prompt

DETECTORS = ("silero", "blank")


NONE_GIVEN = Hotwords()


def _warn(message: str) -> None:
    """A line on stderr, in the place of a partial that may stand there."""
    lead = display.CLEAR if sys.stderr.isatty() else ""
    print(f"{lead}{message}", file=sys.stderr, flush=True)


def _report(message: str) -> None:
    """A line for who watches."""
    if sys.stderr.isatty():
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _ending(inbox: Inbox) -> Iterator[None]:
    """Ctrl-C ends the audio; a second one breaks off."""

    def handle(_signal, _frame):
        signal.signal(signal.SIGINT, before)
        inbox.end()

    before = signal.signal(signal.SIGINT, handle) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a stream.

    Attributes:
        seconds: of audio heard.
        texts: utterances that have a text.
        failed: whether the source broke before its end.
    """

    seconds: float
    texts: int
    failed: bool


def run_stream(
    listener: Listener,
    packets: Iterable[np.ndarray],
    show: Callable[[Event], None],
    *,
    hotwords: Hotwords = NONE_GIVEN,
    warn: Warn = _warn,
) -> Outcome:
    """Feed a listener's new stream to its end.

    Args:
        listener: with a free place.
        packets: mono float32 at 16 kHz, of any size.
        show: is given every event as soon as there is one.
        hotwords: names for every prompt, and those that are looked for.
        warn: told of packets that were left out, and of a source that broke: what
            came before it is transcribed.
    """
    retriever = hotwords.found.retriever if hotwords.found else None
    session = listener.open(hints=hotwords.names, retriever=retriever)
    source = iter(packets)
    texts, failed = 0, False
    try:
        while not session.closed:
            try:
                packet = next(source, None)
            except (ValueError, OSError) as error:
                warn(f"error: {error}")
                packet, failed = None, True
            if packet is None:
                session.close()
            else:
                _feed(session, packet, warn)
            for _, event in listener.drain():
                show(event)
                if isinstance(event, Failed):
                    warn(f"error: the stream broke off: {event.error}")
                    failed = True
                texts += isinstance(event, Final) and bool(event.text)
    finally:
        listener.drop(session)
    return Outcome(session.seconds, texts, failed)


def _feed(session: Session, packet: np.ndarray, warn: Warn) -> None:
    try:
        session.feed(packet)
    except ValueError as error:
        warn(f"warning: {error}")


def load_listener(
    model: str,
    chunk_ms: int,
    left: int,
    detector: str,
    hotwords: Sequence[str],
    warn: Warn,
) -> Listener:
    """A listener with one place.

    Args:
        model: workdir, .safetensors file or bundle.
        chunk_ms: length of chunks, 0 for the default.
        left: chunks seen to the left.
        detector: one of DETECTORS.
        hotwords: names for every prompt.
        warn: told of those that no prompt has room for.

    Raises:
        ValueError: nothing to load, or a model that does not write.
    """
    chunk_ms = chunk_ms or StreamConfig().chunk_ms
    loaded = recognisers.load(model, chunk_ms=chunk_ms, left=left)
    rates = loaded.recogniser.programs.rates
    config = StreamConfig.of(chunk_ms, left, rates)
    blank = BlankDetector(frame=rates.frame_samples)
    listener = Listener(
        loaded.recogniser,
        config=config,
        detector=Silero() if detector == "silero" else blank,
    )
    tokenizer, size = loaded.recogniser.tokenizer, config.suffix_tokens
    fitting = prompt.fit_hints(tokenizer, hotwords, size)
    if missing := [name for name in hotwords if name not in fitting]:
        warn(
            f"warning: {len(missing)} of {len(hotwords)} hotwords have no room in the "
            f"prompt and are left out: {', '.join(missing)}"
        )
    return listener


@dataclasses.dataclass(frozen=True)
class Options:
    """How a recording is heard, and what is shown.

    Attributes:
        form: one of FORMATS.
        pace: of a file, one of PACES.
        packet_ms: audio fed at once.
        chunk_ms: length of chunks, 0 for the default.
        left: chunks seen to the left.
        detector: one of DETECTORS.
        rate: of stdin, Hz.
        channels: one of `channels.CHOICES`, or how many alternate in stdin.
    """

    form: str = "text"
    pace: str = "fast"
    packet_ms: int = 100
    chunk_ms: int = 0
    left: int = 4
    detector: str = "silero"
    rate: int = reading.SAMPLE_RATE
    channels: str = "mix"

    def check(self) -> None:
        """Refuse an unknown choice.

        Raises:
            ValueError: there is one.
        """
        for name, given, choices in (
            ("format", self.form, FORMATS),
            ("pace", self.pace, PACES),
            ("detector", self.detector, DETECTORS),
        ):
            if given not in choices:
                raise ValueError(
                    f"--{name}={given} is not for streams; use one of {choices}."
                )
        stdin_source.parse_channels(self.channels)


def run(
    model: str, recording: str, options: Options, hotwords: Hotwords = NONE_GIVEN
) -> Outcome:
    """Transcribe a recording to stdout while it is heard.

    Args:
        model: workdir, .safetensors file or bundle.
        recording: a path, STDIN or MICROPHONE.
        options: how it is heard, and what is shown.
        hotwords: names for every prompt, and those that are looked for.

    Raises:
        ValueError: nothing to hear, no usable model, or an unknown choice.
    """
    options.check()
    audio_sources.check_source(recording)
    _report("loading…")
    sizes = options.chunk_ms, options.left, options.detector
    listener = load_listener(model, *sizes, hotwords.names, _warn)
    live = recording in (STDIN, MICROPHONE)
    if live or options.pace == "real":
        listener.warm_up()
    source = {
        name: getattr(options, name)
        for name in ("packet_ms", "pace", "rate", "channels")
    }
    with (
        audio_sources.open_source(recording, warn=_warn, **source) as inbox,
        _ending(inbox),
    ):
        _report("listening… (Ctrl-C ends)" if live else "listening…")
        packets = audio_sources.convert(inbox, inbox.rate, _warn)
        show = display.make_show(options.form, sys.stdout)
        outcome = run_stream(listener, packets, show, hotwords=hotwords)
    if not outcome.texts:
        _warn(f"no speech in {round(outcome.seconds, 1):g} s")
    return outcome
