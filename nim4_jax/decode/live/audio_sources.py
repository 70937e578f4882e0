"""Sources of live audio: a file, a pipe or the microphone, each read by a thread.

    source → Inbox → convert → packets at 16 kHz

The thread keeps a pipe or a microphone from waiting for the recogniser.
"""

from __future__ import annotations

import contextlib
import io
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nim4_jax.data.audio import reading, resample
from nim4_jax.decode.live import stdin_source
from nim4_jax.decode.live.stdin_source import Warn

PACES = ("fast", "real")
STDIN = "-"
MICROPHONE = "mic"
ROOM_MS = 10_000
"""Audio that is read ahead of the recogniser."""
WAITING_MS = 600_000
"""Audio of a source that cannot wait which may pile up before some of it is lost."""


class Inbox:
    """Packets on their way from a source's thread to the recogniser's.

    Attributes:
        rate: of the packets, Hz.
        most: packets that may pile up.
    """

    def __init__(self, rate: float, room: int, most: int | None = None):
        """An empty one.

        Args:
            rate: of the packets, Hz.
            room: packets that `fill` reads ahead.
            most: see the attribute; None for any number.
        """
        self.rate, self.most = rate, most
        # Its put() may interrupt another put(): a signal handler calls `end`.
        self._packets: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(room)

    def put(self, packet: np.ndarray) -> bool:
        """Take a packet, without waiting, from a source that cannot wait.

        Returns:
            False where too many wait already: the packet is lost.
        """
        if self.most is not None and self._packets.qsize() >= self.most:
            return False
        self._packets.put(packet)
        return True

    def end(self, error: Exception | None = None) -> None:
        """No more packets after those put so far; `error` is raised behind them."""
        self._packets.put(error)

    def fill(self, packets: Iterable[np.ndarray]) -> None:
        """Put packets as they come and as there is room, to the last."""
        try:
            for packet in packets:
                self._room.acquire()
                self.put(packet)
        except Exception as error:  # raised again where the packets are read
            self.end(error)
        else:
            self.end()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Packets until the end, waiting for them."""
        while (packet := self._packets.get()) is not None:
            if isinstance(packet, Exception):
                raise packet
            self._room.release()
            yield packet


def hold_pace(
    packets: Iterable[np.ndarray],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[np.ndarray]:
    """Packets at 16 kHz, each when a microphone would have recorded its last sample."""
    begin, seconds = clock(), 0.0
    for packet in packets:
        seconds += len(packet) / reading.SAMPLE_RATE
        early = begin + seconds - clock()
        if early > 0.0:
            sleep(early)
        yield packet


def convert(
    packets: Iterable[np.ndarray], rate: float, warn: Warn
) -> Iterator[np.ndarray]:
    """Packets of any rate to mono float32 at 16 kHz; `warn` hears of those left out."""
    resampler = resample.StreamResampler(rate)
    for packet in packets:
        try:
            samples = resampler.feed(packet)
        except ValueError as error:
            warn(f"warning: a packet was left out: {error}")
            continue
        yield samples
    yield resampler.finish()


def check_source(recording: str) -> None:
    """See that there is something to hear, before a model is loaded for it.

    Raises:
        ValueError: no such file, no audio, a terminal for stdin, or no sounddevice.
    """
    if recording == MICROPHONE:
        _import_sounddevice()
    elif recording != STDIN:
        reading.read_duration(recording)
    elif sys.stdin.isatty():
        raise ValueError(
            "stdin is a terminal; expected raw audio from a pipe: arecord -t raw "
            "-f S16_LE -r 16000 | nim4 transcribe …, or --stream mic."
        )


@contextlib.contextmanager
def open_source(
    recording: str,
    *,
    packet_ms: int,
    pace: str,
    rate: int,
    channels: str,
    warn: Warn,
) -> Iterator[Inbox]:
    """Start to read a file, stdin or the microphone.

    Args:
        recording: a path, STDIN or MICROPHONE.
        packet_ms: audio of a packet.
        pace: of a file, one of PACES.
        rate: of raw stdin, Hz.
        channels: as `stdin_source.parse_channels` takes them.
        warn: told of audio that is lost.
    """
    if recording == MICROPHONE:
        with _open_microphone(packet_ms, warn) as inbox:
            yield inbox
        return
    if recording == STDIN:
        # Unbuffered: a thread within a buffered read cannot be left at the exit.
        pipe = io.FileIO(sys.stdin.fileno(), closefd=False)
        rate, packets = stdin_source.open_stdin(pipe, packet_ms, rate, channels, warn)
    else:
        rate, (_, channel) = reading.SAMPLE_RATE, stdin_source.parse_channels(channels)
        packets = reading.read_blocks(recording, packet_ms / 1000, channel=channel)
        packets = hold_pace(packets) if pace == "real" else packets
    inbox = Inbox(rate, max(2, ROOM_MS // packet_ms))
    threading.Thread(target=inbox.fill, args=(packets,), daemon=True).start()
    yield inbox


def _import_sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise ValueError(
            "the microphone needs sounddevice: pip install 'nim4-jax[mic]'."
        ) from error
    except OSError as error:
        raise ValueError(
            f"sounddevice cannot be used: {error}; install PortAudio, on Debian and "
            "Ubuntu: apt install libportaudio2."
        ) from error
    return sounddevice


@contextlib.contextmanager
def _open_microphone(packet_ms: int, warn: Warn) -> Iterator[Inbox]:
    """The default input at its own rate: not every one can do 16 kHz."""
    sound = _import_sounddevice()
    with contextlib.ExitStack() as stack:
        try:
            rate = float(sound.query_devices(kind="input")["default_samplerate"])
            inbox = Inbox(rate, 0, WAITING_MS // packet_ms)

            def take(samples, _frames, _time, status):
                if status:
                    warn(f"warning: microphone: {status}")
                if not inbox.put(samples.copy()):
                    warn(
                        f"warning: the recogniser is {WAITING_MS // 60_000} minutes "
                        "behind the microphone; some of what was said is lost."
                    )

            stream = sound.InputStream(
                samplerate=rate,
                blocksize=round(rate * packet_ms / 1000),
                channels=1,
                dtype="int16",
                callback=take,
                finished_callback=inbox.end,
            )
            stack.enter_context(stream)
        except (sound.PortAudioError, ValueError) as error:
            raise ValueError(
                f"no microphone can be opened: {error}; plug one in and make it the "
                "system's default input, or pipe raw audio to --stream -."
            ) from error
        yield inbox
