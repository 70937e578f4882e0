"""State that all routes of a server share."""

from __future__ import annotations

import asyncio
import dataclasses

from nim4_jax.serving.server import errors
from nim4_jax.serving.server.auth import Admission, Keys
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.engine import Engine
from nim4_jax.serving.server.hotword_finding import Asked, Finding
from nim4_jax.serving.server.hotword_lists import HotwordLists
from nim4_jax.serving.server.metrics import Metrics
from nim4_jax.serving.server.transcription_jobs import Jobs


@dataclasses.dataclass(eq=False)
class ServerState:
    """A server.

    Attributes:
        config: its settings.
        keys: of its clients.
        engine: the device.
        jobs: whole files.
        lists: names that clients may ask for by the list's name.
        metrics: what is counted.
        admission: who has what open.
        draining: set when no new work is taken and streams shall end.
    """

    config: ServerConfig
    keys: Keys
    engine: Engine
    jobs: Jobs
    lists: HotwordLists
    metrics: Metrics
    admission: Admission
    draining: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @property
    def ready(self) -> bool:
        """Whether work is taken."""
        return self.engine.ready and not self.draining.is_set()

    async def find_names(self, asked: Asked, chunk_ms: int | None = None) -> Finding:
        """Names for a stream or a file, once it is ready.

        Args:
            asked: what a client asks for.
            chunk_ms: of the stream; None for a file.

        Raises:
            ServeError: an unknown list.
        """
        loaded = self.engine.loaded
        if loaded is None:
            raise errors.refuse("not_ready", "the server is not ready.")
        tokenizer = loaded.recogniser.tokenizer
        if chunk_ms is None:
            # Names that are heard have room of their own.
            room = self.engine.prompt_tokens
            return await self.lists.prepare(asked, tokenizer, room)
        room = self.engine.prompt_room(chunk_ms)
        return await self.lists.prepare(asked, tokenizer, room, reserve=True)

    def check_ready(self) -> None:
        """Refuse work that cannot be done.

        Raises:
            ServeError: 503.
        """
        if not self.ready:
            raise errors.refuse("not_ready", "the server is not ready.")
