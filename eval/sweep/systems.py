"""The systems of a sweep: models and peers, in a mode, with hotwords.

| mode      | what is heard                                                          |
| offline   | whole recordings, in batches                                           |
| stream:MS | recordings as streams, in chunks of MS ms, a multiple of 160           |

| hotwords                    | names in the prompts                                  |
| none                        | none                                                  |
| said, misleading, both      | as `hints.plan` chooses them from the transcripts     |
| list:PATH                   | those of a database or list that are found in what is |
|                             | heard, by the phoneme head                            |
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol, TypeVar

from nim4_jax.decode.hotwords import FindingRecogniser, HotwordList
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.recogniser import BatchRecogniser, Loaded
from nim4_jax.eval import hints
from nim4_jax.eval.shared import Shared, System
from nim4_jax.eval.streaming import StreamedRecogniser
from nim4_jax.eval.sweep.peers import PEERS, PeerRecogniser

OFFLINE = "offline"
_STREAM, LIST = "stream:", "list:"
_TOKEN = 160  # ms of a speech token
_PEER_SECONDS, _PEER_ROWS = (10.0, 30.0), (1, 1)


class Load(Protocol):
    """Loads a model: `nim4_jax.serving.recognisers.load`."""

    def __call__(self, origin: str, *, chunk_ms: int, left: int) -> Loaded:
        """Load it, to hear in chunks of so many encoder frames, 0 for all at once."""
        ...


@dataclasses.dataclass(frozen=True)
class Model:
    """A model or peer.

    Attributes:
        name: in reports.
        origin: workdir, file or bundle; "" for a peer.
    """

    name: str
    origin: str = ""

    @classmethod
    def parse(cls, text: str) -> Model:
        """From "PATH", "NAME=PATH" or the name of a peer."""
        if text in PEERS:
            return cls(text)
        name, equals, origin = text.partition("=")
        if not equals:
            name = origin = text
        if not name or not origin or name in PEERS:
            raise ValueError(
                f"model {text!r}; expected PATH, NAME=PATH with a name of your own, or "
                f"a peer: {', '.join(PEERS)}."
            )
        return cls(name.rstrip("/"), origin)


@dataclasses.dataclass(frozen=True)
class Mode:
    """How recordings are heard.

    Attributes:
        name: as it is asked for.
        chunk_ms: length of a stream's chunks, 0 offline.
    """

    name: str
    chunk_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> Mode:
        """From "offline" or "stream:MS".

        Raises:
            ValueError: neither, or chunks of that length are not possible.
        """
        if text == OFFLINE:
            return cls(text)
        digits = text.removeprefix(_STREAM)
        length = int(digits) if digits != text and digits.isdecimal() else 0
        if length < 1 or length % _TOKEN:
            raise ValueError(
                f"mode {text!r}; expected {OFFLINE}, or {_STREAM}MS with chunks of a "
                f"multiple of {_TOKEN} ms, such as {_STREAM}640."
            )
        return cls(f"{_STREAM}{length}", length)


@dataclasses.dataclass(frozen=True)
class Hotwords:
    """Where the names in the prompts come from.

    Attributes:
        name: as it is asked for.
        mode: of `hints.MODES`.
        path: of a database or list, "" without.
    """

    name: str
    mode: str = "none"
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Hotwords:
        """From one of `hints.MODES`, or "list:PATH".

        Raises:
            ValueError: neither.
        """
        path = text.removeprefix(LIST)
        if path != text and path:
            return cls(text, path=path)
        if text not in hints.MODES:
            raise ValueError(
                f"hotwords {text!r}; choose from {', '.join(hints.MODES)}, or "
                f"{LIST}PATH, a database of nim4 build_hotwords or a list of names."
            )
        return cls(text, text)


T = TypeVar("T", Model, Mode, Hotwords)


def parse_all(parse: Callable[[str], T], texts: Iterable[str], what: str) -> list[T]:
    """Several of a kind, each once.

    Raises:
        ValueError: none, one of them twice, or one that cannot be.
    """
    parsed = [parse(text.strip()) for text in texts]
    if not parsed:
        raise ValueError(f"no {what} is given; name one or more.")
    counts = collections.Counter(one.name for one in parsed)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{what} {', '.join(twice)}: given twice; results are told apart by name."
        )
    return parsed


def refuse(model: Model, mode: Mode, hotwords: Hotwords, lang: str) -> str:
    """Why a peer cannot do it, "" if it can; of models more is known when loaded."""
    if model.origin:
        return ""
    peer = PEERS[model.name]
    if mode.chunk_ms:
        return f"{peer.name} hears whole recordings only: there are no partial results."
    if hotwords.path:
        return f"{peer.name} has no phoneme head that would find names."
    if hotwords.mode != "none" and not peer.hints:
        return f"{peer.name} takes no names."
    if lang in ("en", "zh") and lang not in peer.languages:
        return f"{peer.name} writes {' and '.join(peer.languages)}, not {lang}."
    return ""


class Opened:
    """A model in one mode, ready for any set.

    Attributes:
        bucket_seconds: lengths of its batch shapes.
        rows: rows of each.
        shared: what its evaluations share.
    """

    def __init__(self, model: Model, mode: Mode, left: int, load: Load):
        """Load it and compile what does not depend on the sets.

        Args:
            model: which.
            mode: in which it hears.
            left: chunks that a chunk sees to its left.
            load: loads a model.

        Raises:
            ValueError: it cannot be loaded, or has no LLM and shall stream.
        """
        self.shared = Shared()
        self._listener: Listener | None = None
        if not model.origin:
            self.bucket_seconds, self.rows = _PEER_SECONDS, _PEER_ROWS
            self._base: BatchRecogniser | PeerRecogniser = PeerRecogniser.open(
                model.name
            )
            return
        loaded = load(model.origin, chunk_ms=mode.chunk_ms, left=left)
        self.bucket_seconds, self.rows = loaded.bucket_seconds, loaded.rows
        self._base = loaded.recogniser
        if mode.chunk_ms and self._base.writes:
            self._listener = Listener(
                self._base,
                streams=max(self.rows),
                config=StreamConfig.of(mode.chunk_ms, left, self._base.programs.rates),
            )
            self._listener.warm_up()

    @property
    def lacks(self) -> str:
        """Why it gives no transcripts, "" if it does."""
        try:
            self._base.check_writes()
        except ValueError as error:
            return str(error)
        return ""

    def prepare(self, lang: str, names: HotwordList | None) -> System:
        """What hears one set.

        Args:
            lang: of the whole set; anything but "en" and "zh" where it differs.
            names: to be found in what is heard.
        """
        base = self._base
        if isinstance(base, PeerRecogniser):
            return dataclasses.replace(base, lang=lang if lang in ("en", "zh") else "")
        if self._listener is not None:
            retriever = names.retriever if names else None
            return StreamedRecogniser(base, self._listener, retriever=retriever)
        return FindingRecogniser(base, names) if names else base


def check_folders(keys: Iterable[tuple[str, Hashable]]) -> None:
    """Refuse names that would share a folder.

    Raises:
        ValueError: two do, by name.
    """
    taken: dict[str, Hashable] = {}
    for folder, key in keys:
        if taken.setdefault(folder, key) != key:
            raise ValueError(
                f"{key} and {taken[folder]} would both be stored as {folder}; give "
                "one of them another name (NAME=PATH)."
            )
