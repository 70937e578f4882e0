"""The inference engine: one thread that owns the device, for streams and files.

event loop, workers → queues with bounds → this thread → outboxes with bounds
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.decode.live.listener import DeviceError, Listener
from nim4_jax.decode.live.session import Limits, Session
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.recogniser import Loaded
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.serving.server import errors
from nim4_jax.serving.server.fair_share import FairShare
from nim4_jax.serving.server.metrics import HOST, Metrics
from nim4_jax.serving.server.shared_programs import SharedPrograms
from nim4_jax.serving.server.streams import Stream

T = TypeVar("T")

_RESETS = 3  # of the device that may follow each other within …
_RESET_SECONDS = 60.0
FOUND_TOKENS = 64
"""Of a prompt, that names which were found in a file may take."""
_LONGEST_PACKET = 60.0  # seconds of audio that are fed at once


class EngineStopped(RuntimeError):
    """The engine's thread has ended, or is about to."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a stream asks for.

    Attributes:
        chunk_ms: one of the lengths that the engine has.
        hints: names for every prompt.
        retriever: finds further names in what is heard.
        boundaries: when its speech begins and ends; None for the defaults.
    """

    chunk_ms: int
    hints: tuple[str, ...] = ()
    retriever: HotwordRetriever | None = None
    boundaries: EndpointConfig | None = None


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine.

    Attributes:
        streams: most streams at once, of each length of chunks.
        chunk_ms: lengths of chunks.
        left: chunks that a chunk sees to its left.
        window: seconds that a chunk waits for those of other streams.
        waiting: seconds of audio that may wait in a stream.
        unsent: events that may wait for a stream's client.
        file_rows: segments of files in one call of the device.
        file_share: of the device's time that files may have while streams wait.
        finds: whether there are lists of names to be found.
        sizes: of streams, instead of `chunk_ms` and `left`.
    """

    streams: int = 1
    chunk_ms: tuple[int, ...] = (640,)
    left: int = 4
    window: float = 0.01
    waiting: float = 10.0
    unsent: int = 256
    file_rows: int = 1
    file_share: float = 0.25
    finds: bool = False
    sizes: tuple[StreamConfig, ...] = ()


class Engine:
    """A model that many clients share.

    Any thread may call its methods. Its own thread loads the model, compiles all that
    is needed, and is `ready` from then on; nothing compiles afterwards.

    Attributes:
        config: sizes.
        metrics: what is counted.
        failure: why its thread has ended, None while it has not.
        loaded: the model, once it is there.
        on_end: called, from its thread, when that ends by a failure.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        config: EngineConfig,
        *,
        metrics: Metrics | None = None,
        on_ready: Callable[[], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ):
        """An engine that has not started.

        Args:
            load: makes the model.
            config: sizes.
            metrics: to count in; None for some of its own.
            on_ready: called, from its thread, just before it is ready.
            on_end: called, from its thread, when that ends by a failure.
        """
        self.config, self.metrics = config, metrics or Metrics()
        self.failure: BaseException | None = None
        self.loaded: Loaded | None = None
        self._load, self._on_ready, self.on_end = load, on_ready, on_end
        self._listeners: dict[int, Listener] = {}
        self._streams: dict[Session, Stream] = {}
        self._calls: collections.deque[_Call] = collections.deque()
        self._changed = threading.Condition()
        self._fed = self._stopping = False
        self._file_seconds = 0.0  # of the processor, in calls for files
        self._ready = threading.Event()
        self._share = FairShare(config.file_share)
        self._resets: collections.deque[float] = collections.deque(maxlen=_RESETS)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether it takes streams and files."""
        return self._ready.is_set() and not self._ended

    @property
    def _ended(self) -> bool:
        return self._stopping or self.failure is not None

    def start(self) -> None:
        """Begin to load the model, unless that has been done."""
        if not self._thread.ident:
            self._thread.start()

    def wait_ready(self, seconds: float | None = None) -> None:
        """Wait until it is ready.

        Raises:
            EngineStopped: it never will be.
            TimeoutError: it is not yet.
        """
        if not self._ready.wait(seconds):
            raise TimeoutError(f"the engine was not ready after {seconds} s.")
        if self._ended:
            raise EngineStopped("the engine has stopped.") from self.failure

    def stop(self) -> None:
        """End the thread after what it does now; open streams are told.

        While it loads and compiles, which may take minutes and serves nobody, it is not
        waited for: see `loading`.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident and not self.loading:
            self._thread.join()

    @property
    def loading(self) -> bool:
        """Whether the thread has begun, and is not ready to serve yet."""
        return self._thread.is_alive() and not self._ready.is_set()

    def open(self, options: Options) -> Stream:
        """A new stream.

        Raises:
            ServeError: not ready, or all places are taken.
            StreamError: hints that no stream takes.
        """
        self._check()
        listener = self._listeners[options.chunk_ms]
        if sum(stream.listener is listener for stream in self.streams) >= (
            listener.streams
        ):
            raise errors.refuse("no_free_stream", "all streams are taken.")
        waiting = self.config.waiting + _LONGEST_PACKET
        session = listener.open(
            hints=options.hints,
            retriever=options.retriever,
            limits=Limits(waiting=waiting),
            boundaries=options.boundaries,
        )
        stream = Stream(
            listener,
            session,
            unsent=self.config.unsent,
            waiting=self.config.waiting,
            metrics=self.metrics,
            wake=self.wake,
        )
        with self._changed:
            self._streams[session] = stream
        if self._ended:  # by now
            self._tell_end()
        return stream

    def drop(self, stream: Stream) -> None:
        """Forget a stream at once; unknown ones are no error."""
        with self._changed:
            self._streams.pop(stream.session, None)
        stream.listener.drop(stream.session)
        stream.finish()

    @property
    def streams(self) -> Sequence[Stream]:
        """Those that are open."""
        with self._changed:
            return list(self._streams.values())

    def wake(self) -> None:
        """Audio has come, or its end."""
        with self._changed:
            self._fed = True
            self._changed.notify_all()

    def call(self, work: Callable[[], T]) -> T:
        """Have the device for a file, when it is the file's turn; waits for it.

        Raises:
            EngineStopped: it has ended, or ends before the turn comes.
            Exception: what the work raises.
        """
        made = _Call(work)
        with self._changed:
            if self._ended:
                raise EngineStopped("the engine has stopped.") from self.failure
            self._calls.append(made)
            self._changed.notify_all()
        return made.future.result()

    @property
    def prompt_tokens(self) -> int:
        """Room for instruction and names in a file's prompt, once it is ready."""
        return next(iter(self._listeners.values())).config.suffix_tokens

    def prompt_room(self, chunk_ms: int) -> int:
        """The same in a stream's prompt, for streams with chunks of that length."""
        return self._listeners[chunk_ms].config.suffix_tokens

    def has_chunk(self, chunk_ms: int) -> bool:
        """Whether streams may have chunks of that length."""
        return chunk_ms in self._listeners

    def _check(self) -> None:
        if not self.ready:
            raise errors.refuse("not_ready", "the server is not ready.")

    def _run(self) -> None:
        """The thread."""
        try:
            self._prepare()
            if self._on_ready:
                self._on_ready()
            self._note_processor()
            self._ready.set()
            while not self._stopping:
                self._wait()
                self._turn()
                self._note_processor()
        except BaseException as error:
            self.failure = error
        finally:
            self._ready.set()
            self._tell_end()
        if self.failure is not None and self.on_end:
            self.on_end()

    def _prepare(self) -> None:
        """Load, and compile every program that may be needed."""
        loaded = self._load()
        loaded.recogniser.check_writes()
        rates = loaded.recogniser.programs.rates
        config = self.config
        sizes = config.sizes or tuple(
            StreamConfig.of(milliseconds, config.left, rates)
            for milliseconds in config.chunk_ms
        )
        for size in sizes:
            listener = Listener(loaded.recogniser, streams=config.streams, config=size)
            listener.warm_up()
            self._listeners[size.chunk_ms] = listener
        own = loaded.recogniser
        width = self.prompt_tokens
        # Names that are found come behind those that are given.
        widths = (width, width + FOUND_TOKENS) if config.finds else (width,)
        shared = SharedPrograms(own.programs, own.tokenizer, widths, self.call)
        shared.warm_up(loaded.bucket_seconds, config.file_rows)
        recogniser = dataclasses.replace(own, programs=shared)
        self.loaded = dataclasses.replace(loaded, recogniser=recogniser)

    @property
    def _live(self) -> bool:
        """Whether streams have something to do."""
        return self._fed or any(own.pending for own in self._listeners.values())

    def _wait(self) -> None:
        """Sleep until there is something to do; let streams gather for a moment."""
        with self._changed:
            while not (self._stopping or self._calls or self._live):
                self._changed.wait()
            if self._fed and len(self._streams) > 1 and not self._calls:
                until = time.monotonic() + self.config.window
                while (left := until - time.monotonic()) > 0 and not self._stopping:
                    self._changed.wait(left)

    def _turn(self) -> None:
        """One tick of the streams, and one call of a file if it may have it."""
        if live := self._live:
            self._fed = False
            began = time.monotonic()
            for listener in self._listeners.values():
                self._tick(listener)
            self._share.add_tick(time.monotonic() - began)
        live = live and self._live
        if self._calls and self._share.allows_file(live):
            call = self._calls.popleft()
            began, spent = time.monotonic(), time.thread_time()
            call.run()
            seconds = time.monotonic() - began
            self._file_seconds += time.thread_time() - spent
            self._share.add_file(seconds, self._live)
            self.metrics.file_call_seconds.observe(seconds)

    def _note_processor(self) -> None:
        """What this thread has taken besides its calls of the device."""
        listeners = self._listeners.values()
        device = sum(own.metrics.device_seconds for own in listeners)
        host = time.thread_time() - device - self._file_seconds
        self.metrics.note_processor(HOST, host)

    def _tick(self, listener: Listener) -> None:
        """What a listener has to say, to those whom it is for."""
        streams = [stream for stream in self.streams if stream.listener is listener]
        if not streams:
            return
        done = listener.metrics.chunks
        began = time.monotonic()
        try:
            events = listener.advance()
        except DeviceError:
            self._reset(listener)
            return  # what it has to say of that comes with the next tick
        if chunks := listener.metrics.chunks - done:
            self.metrics.tick_seconds.observe(time.monotonic() - began)
            self.metrics.chunks.inc(chunks)
        self._fed |= bool(events)  # there may be more behind them
        for session, event in events:
            if stream := self._streams.get(session):
                stream.tell(event)
        held = listener.list_sessions()
        for stream in streams:
            if stream.session not in held:
                stream.finish()

    def _reset(self, listener: Listener) -> None:
        """Begin anew on the device; not again and again.

        Raises:
            DeviceError: it fails too often.
            Exception: what the device says if it cannot even begin.
        """
        now = time.monotonic()
        self._resets.append(now)
        self.metrics.device_resets.inc()
        often = len(self._resets) == _RESETS
        if often and now - self._resets[0] < _RESET_SECONDS:
            raise DeviceError(
                f"the device failed {_RESETS} times within {_RESET_SECONDS:.0f} s."
            )
        listener.reset()
        self._fed = True

    def _tell_end(self) -> None:
        """Nobody waits for a thread that has ended."""
        with self._changed:
            calls, self._calls = list(self._calls), collections.deque()
            streams = list(self._streams.values())
        for call in calls:
            call.future.set_exception(EngineStopped("the engine has stopped."))
        for stream in streams:
            stream.break_off("engine_stopped", "the recogniser has stopped.")


class _Call:
    """Work that waits for the device."""

    def __init__(self, work: Callable[[], Any]):
        self.work = work
        self.future: concurrent.futures.Future = concurrent.futures.Future()

    def run(self) -> None:
        try:
            made = self.work()
        except Exception as error:
            self.future.set_exception(error)
        except BaseException as error:  # it ends the thread, and nobody may wait on
            self.future.set_exception(EngineStopped(f"the engine stops: {error!r}"))
            raise
        else:
            self.future.set_result(made)
