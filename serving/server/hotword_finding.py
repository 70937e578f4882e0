"""Names for one stream or file: for its prompts, and to be found in what is heard."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from nim4_jax.decode.hotwords import NameFinder
from nim4_jax.retrieval import database
from nim4_jax.retrieval.hotwords import (
    HotwordRetriever,
    StreamState,
    VersionedRetriever,
)
from nim4_jax.retrieval.layer import Served
from nim4_jax.retrieval.names import Name
from nim4_jax.serving import hotword_build
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.text import prompt
from nim4_jax.text.phonemes import INVENTORY
from nim4_jax.text.tokenizer import Tokenizer

_KEPT = 32  # lists of requests that are likely to come again


@dataclasses.dataclass(frozen=True)
class Asked:
    """Names that a client asks for.

    Attributes:
        tenant: who asks.
        keywords: that it sends.
        lists: that it names.
        param: its field for the lists.
    """

    tenant: Tenant
    keywords: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    param: str = "hotwords"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Names for one stream or file.

    Attributes:
        hints: for every prompt.
        look: names that are looked for, as they are now; None: there are none.
    """

    hints: tuple[str, ...] = ()
    look: Callable[[], tuple[Served, ...]] | None = None

    def follow(self) -> HotwordRetriever | None:
        """For a stream: each utterance finds what the lists hold when it begins."""
        return VersionedRetriever(self.look) if self.look else None

    def hold(self) -> NameFinder | None:
        """For a file: all of it finds what the lists hold now."""
        if self.look is None:
            return None
        moment = self.look()
        return NameFinder(VersionedRetriever(lambda: moment))


def split(
    keywords: tuple[str, ...], tokenizer: Tokenizer, room: int, reserve: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keywords for every prompt, and those that are looked for."""
    hints = prompt.fit_hints(tokenizer, keywords, room)
    if len(hints) == len(keywords):
        return hints, ()
    if reserve:
        bare = len(prompt.encode_suffix(tokenizer))
        hints = prompt.fit_hints(tokenizer, keywords, (bare + room) // 2)
    chosen = set(hints)
    return hints, tuple(name for name in keywords if name not in chosen)


@functools.lru_cache(_KEPT)
def build_own(keywords: tuple[str, ...]) -> Served:
    """A list of one request."""
    listed = [Name(text) for text in keywords]
    readings = hotword_build.pronounce_new(listed, {})
    base = database.build(listed, readings, hotword_build.learn_background())
    return Served.of(base)


def warm_up() -> None:
    """Compile all that finding names needs, before streams do."""
    retriever = VersionedRetriever(lambda: (build_own(("oslo", "nio house")),))
    heard = np.full((8, len(INVENTORY)), -5.0, np.float32)
    times = np.arange(4)[:, None] * 0.04 + np.array([0.0, 0.04])
    retriever.scan(StreamState(), np.arange(1, 5, dtype=np.uint8), heard, times)
