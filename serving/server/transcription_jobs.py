"""Transcription jobs of whole files, each in a worker thread."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from nim4_jax.data.audio.reading import AudioError
from nim4_jax.decode import longform
from nim4_jax.decode.hotwords import NameFinder
from nim4_jax.decode.transcripts import Passage, Recording
from nim4_jax.serving.server import decoding, errors
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.engine import Engine, EngineStopped
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.streams import count_heard, describe_names

_TOO_LONG = "too long"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for a file.

    Attributes:
        hints: names for every prompt.
        names: to be found in what is heard.
        lists: of the server, that they are of.
        timings: whether words get times.
    """

    hints: tuple[str, ...] = ()
    names: NameFinder | None = None
    lists: tuple[str, ...] = ()
    timings: bool = True


class Job:
    """A file on its way.

    Attributes:
        recording: what is done so far.
        request: what is asked for.
        hits: names of prompts that were written.
    """

    def __init__(self, request: Request):
        self.request, self.hits = request, 0
        self.recording = Recording("file")
        self._passages: asyncio.Queue[Passage | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody wants it any more: it ends before its next call of the device."""
        self._cancelled.set()

    def check(self) -> None:
        """From its worker.

        Raises:
            CancelledError: it was cancelled.
        """
        if self._cancelled.is_set():
            raise asyncio.CancelledError

    def tell(self, passage: Passage | Exception | None) -> None:
        """From its worker: a passage, what went wrong, or the end."""
        self._loop.call_soon_threadsafe(self._passages.put_nowait, passage)

    async def passages(self) -> AsyncIterator[Passage]:
        """Passages in the order of time, as they are done.

        Raises:
            ServeError: it cannot be transcribed.
        """
        while (passage := await self._passages.get()) is not None:
            if isinstance(passage, Exception):
                raise passage
            yield passage


class Jobs:
    """The files of all clients."""

    def __init__(self, engine: Engine, config: ServerConfig):
        """None yet.

        Args:
            engine: whose device they share.
            config: how many, and their limits.
        """
        self._engine, self._config = engine, config
        self._workers = ThreadPoolExecutor(config.files, "file")
        self._decoders = decoding.Pool(
            config.files, config.decode_mib, config.decode_seconds
        )
        self._open: set[Job] = set()
        self._coming = 0  # uploads

    def __len__(self) -> int:
        """Files that wait or are in work."""
        return len(self._open)

    @contextlib.contextmanager
    def take_room(self) -> Iterator[None]:
        """Room for a file that is about to come, on the disk too.

        Raises:
            ServeError: 503, there is none.
        """
        most = self._config.files + self._config.waiting_files
        if len(self._open) + self._coming >= most:
            raise errors.refuse("too_many_files", "too many files wait already.")
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def start(self, upload: BinaryIO, request: Request) -> Job:
        """Begin with a file, for which room was taken.

        Args:
            upload: its bytes; to be kept open until the job has ended.
            request: what is asked for.
        """
        job = Job(request)
        self._open.add(job)
        self._engine.metrics.files.set(len(self._open))
        future = self._workers.submit(self._run, job, upload)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._forget, job))
        return job

    def close(self) -> None:
        """End all of them."""
        for job in list(self._open):
            job.cancel()
        self._decoders.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _forget(self, job: Job) -> None:
        self._open.discard(job)
        self._engine.metrics.files.set(len(self._open))

    def _run(self, job: Job, upload: BinaryIO) -> None:
        """In a worker."""
        began = time.monotonic()
        try:
            self._transcribe(job, upload)
        except asyncio.CancelledError:
            return
        except Exception as error:
            job.tell(self._explain(error))
        else:
            job.tell(None)
            self._engine.metrics.file_seconds.observe(time.monotonic() - began)

    def _transcribe(self, job: Job, upload: BinaryIO) -> None:
        """Decode, cut, transcribe."""
        request = job.request
        with tempfile.TemporaryDirectory(prefix="nim4-serve-") as folder:
            source, samples = Path(folder, "upload"), Path(folder, "samples")
            job.check()
            with source.open("wb") as file:
                shutil.copyfileobj(upload, file, 1 << 20)
            most = self._config.file_seconds
            job.recording.audio = self._decoders.decode(source, samples, most)
            self._engine.metrics.file_audio.inc(len(job.recording.audio) / 16_000)
            loaded = self._engine.loaded
            if loaded is None:
                raise EngineStopped("the engine has no model yet.")
            done = longform.follow(
                loaded,
                job.recording,
                longform.Options(
                    batch=self._config.file_rows,
                    timings=request.timings,
                    hints=request.hints,
                    names=request.names,
                ),
            )
            for passage in done:
                job.check()
                heard = count_heard(passage.text, passage.hints or request.hints)
                job.hits += heard
                self._engine.metrics.hotword_hits.inc(heard)
                job.tell(passage)

    def _explain(self, error: Exception) -> ServeError:
        """What the client is told."""
        if isinstance(error, AudioError):
            self._engine.metrics.decode_failures.labels(error.reason).inc()
            status = 413 if error.reason == _TOO_LONG else 400
            code = "audio_too_long" if error.reason == _TOO_LONG else "invalid_audio"
            message = f"{error.reason}: {error.detail}"
            return ServeError(status, code, message, param="file")
        if isinstance(error, EngineStopped):
            return errors.die("the recogniser has stopped.")
        if isinstance(error, OSError):
            return errors.refuse("no_room", "the server has no room for the file.")
        return errors.die(
            f"the file could not be transcribed ({type(error).__name__})."
        )


def describe_job(job: Job) -> dict[str, Any]:
    """Facts of a job for the log."""
    return {
        "audio_seconds": round(job.recording.duration, 2),
        **describe_names(job.request.lists, job.hits),
    }
