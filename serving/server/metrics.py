"""Prometheus metrics; no label has values that clients choose."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Metrics of one server."""

    def __init__(self):
        """All at zero."""
        self.registry = registry = CollectorRegistry()

        def count(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"nim4_{name}", what, labels, registry=registry)

        def time(name: str, what: str) -> Histogram:
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
        self.device_resets = count("device_resets", "failures of the device")
        self.tick_seconds = time("tick", "a tick with chunks")
        self.partial_seconds = time("partial", "from a partial's audio to the partial")
        self.final_seconds = time("final", "from the end of speech to the final")
        self.file_call_seconds = time("file_call", "a device call for files")
        self.file_seconds = time("file", "a whole file")

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return prometheus_client.generate_latest(self.registry)
