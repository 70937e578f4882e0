"""Prometheus metrics; no label has values that clients choose."""

from __future__ import annotations

import time

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
NETWORK, HOST, DEVICE = PARTS = "network", "host", "device"
"""Of the server, by what they take of the processor."""

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Metrics of one server."""

    def __init__(self):
        """All at zero."""
        self.registry = registry = CollectorRegistry()

        def count(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"nim4_{name}", what, labels, registry=registry)

        def clock(name: str, what: str) -> Histogram:
            return Histogram(
                f"nim4_{name}_seconds", what, registry=registry, buckets=_SECONDS
            )

        self.ready = Gauge("nim4_ready", "1 while it takes requests", registry=registry)
        self.streams = Gauge("nim4_streams", "streams that are open", registry=registry)
        self.files = Gauge("nim4_files", "files that are in work", registry=registry)
        self.requests = count("requests", "requests answered", ("route", "status"))
        self.refusals = count("refusals", "requests refused", ("code",))
        self.failed_streams = count("failed_streams", "streams that broke off")
        self.stream_audio = count("stream_audio_seconds", "audio of streams")
        self.file_audio = count("file_audio_seconds", "audio of files")
        self.decode_failures = count(
            "decode_failures", "files that could not be decoded", ("reason",)
        )
        self.chunks = count("chunks", "chunks heard")
        self.late_partials = count(
            "late_partials", "partials that came more than a chunk behind their audio"
        )
        self.hotword_hits = count("hotword_hits", "names of prompts that were written")
        self.hotword_lists = Gauge(
            "nim4_hotword_lists", "lists of names", registry=registry
        )
        self.hotword_names = Gauge(
            "nim4_hotword_names", "names of all lists", registry=registry
        )
        self.hotword_changes = count(
            "hotword_changes", "lists changed", ("kind", "status")
        )
        self.hotword_build_seconds = clock("hotword_build", "a list built")
        self.device_resets = count("device_resets", "failures of the device")
        self.tick_seconds = clock("tick", "a tick with chunks")
        self.partial_seconds = clock("partial", "from a partial's audio to the partial")
        self.final_seconds = clock("final", "from the end of speech to the final")
        self.file_call_seconds = clock("file_call", "a device call for files")
        self.file_seconds = clock("file", "a whole file")
        self.processor = count(
            "processor_seconds",
            "processor time: network (the event loop's thread), host (the engine's "
            "thread without its calls of the device), device (all else)",
            ("part",),
        )
        self._spent = dict.fromkeys(PARTS, 0.0)

    def note_processor(self, part: str, seconds: float) -> None:
        """What a part has taken of the processor so far.

        Args:
            part: one of PARTS, each of which one thread notes.
            seconds: since the process began.
        """
        # Clocks of threads are read one after the other: "all else" may seem to shrink.
        grown = max(self._spent[part], seconds)
        self.processor.labels(part).inc(grown - self._spent[part])
        self._spent[part] = grown

    def render(self) -> bytes:
        """The text that Prometheus reads; for the event loop's thread to call."""
        network = time.thread_time()
        self.note_processor(NETWORK, network)
        rest = time.process_time() - network - self._spent[HOST]
        self.note_processor(DEVICE, rest)
        return prometheus_client.generate_latest(self.registry)
