"""Streaming hotword retrieval: hits updated as phonemes arrive.

A stream is given the layers that it may see (everybody's, its tenant's, its own), and
can reach no other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from nim4_jax.retrieval import automaton, rules, verification
from nim4_jax.retrieval.automaton import Matches
from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.layer import Layer, Part, Served
from nim4_jax.retrieval.pronunciation import LONGEST
from nim4_jax.retrieval.verification import Acoustics, Candidates, Verified
from nim4_jax.text.phonemes import INVENTORY

EXACT = "exact"
NEAR = "near"
MOST_ALIKE = 16
"""Names of one sound that are told of: the heaviest; a prompt takes fewer."""
_PIECE = verification.FRAMES // 3  # frames that are looked through at once


@dataclasses.dataclass(frozen=True)
class Hit:
    """A name that was heard.

    Attributes:
        text: as it is written.
        start: seconds from the beginning of the stream.
        end: the same.
        score: phonemes, each as sure as it was heard (1 if exactly), times the name's
            weight.
        source: EXACT or NEAR.
        tag: of the name.
        evidence: nats, of an exact hit −log of how often an hour it is expected by
            chance; a near one has as much less as it was heard less surely.
        weight: of the name.
    """

    text: str
    start: float
    end: float
    score: float
    source: str
    tag: str = ""
    evidence: float = 0.0
    weight: float = 1.0

    @property
    def strength(self) -> float:
        """Evidence of a name that is `weight` times as likely to be said as others."""
        return self.evidence + math.log(self.weight)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A hit and where it is.

    Attributes:
        hit: what the caller sees.
        start: first phoneme of the stream.
        end: one past the last.
        key: phonemes of the name, one byte each.
    """

    hit: Hit
    start: int
    end: int
    key: bytes

    def weaker_than(self, other: _Found) -> bool:
        """Whether the same name in the same place is surer so."""
        if self.hit.source == EXACT:
            return False
        return other.hit.source == EXACT or other.hit.evidence > self.hit.evidence


@dataclasses.dataclass(frozen=True, eq=False)
class _Cursor:
    """Where a stream stands in a part; a part that is new is read from `recent`."""

    part: Part
    state: int = automaton.ROOT
    waiting: Candidates = dataclasses.field(default_factory=Candidates.none)


def _nothing_heard() -> Acoustics:
    return Acoustics.empty(len(INVENTORY))


@dataclasses.dataclass(frozen=True, eq=False)
class StreamState:
    """A stream between two pieces.

    Attributes:
        position: phonemes so far.
        recent: the last of them, LONGEST at most.
        times: start and end of each of those, seconds.
        found: names heard so far, by their ends, none of which gives way to another.
        cursors: where the stream stands in each part that it sees.
        acoustics: the last frames.
        frame_seconds: from one frame of the posteriors to the next.
        served: what the layers held when `found` was last seen to.
    """

    position: int = 0
    recent: bytes = b""
    times: Float[np.ndarray, "R 2"] = dataclasses.field(
        default_factory=lambda: np.zeros((0, 2))
    )
    found: tuple[_Found, ...] = ()
    cursors: tuple[_Cursor, ...] = ()
    acoustics: Acoustics = dataclasses.field(default_factory=_nothing_heard)
    frame_seconds: float = 0.04
    served: tuple[Served, ...] = ()

    @property
    def frames(self) -> int:
        """Frames of posteriors so far: where the next ones begin."""
        return self.acoustics.begin + len(self.acoustics.ratios)

    @property
    def new(self) -> bool:
        """Whether nothing has been heard yet."""
        return not (self.position or self.frames)

    @property
    def hits(self) -> tuple[Hit, ...]:
        """Names heard so far, by their ends."""
        return tuple(found.hit for found in self.found)


class HotwordRetriever:
    """Finds the names of some layers in a stream of phonemes."""

    def __init__(self, layers: Sequence[Layer]):
        """Over the layers that a stream may see, as (everybody's, tenant's, own)."""
        self._layers = tuple(layers)

    def scan(
        self,
        state: StreamState,
        phonemes: Int[np.ndarray, " N"],
        posteriors: Float[np.ndarray, "U P"] | None,
        times: Float[np.ndarray, "N 2"],
    ) -> tuple[StreamState, list[Hit]]:
        """Names that end within the next phonemes.

        A layer that is new to the stream is looked for in the last phonemes before too.
        Names that no layer holds any more are no hits any more.

        Args:
            state: `StreamState()` for a new stream, then what the last call returned.
            phonemes: uint8 ids as the phoneme head heard them.
            posteriors: natural log of the class posteriors of the stream's next frames
                (`state.frame_seconds` each), in which these phonemes begin; None for
                exact matches only. All calls of a stream have them or none has.
            times: when each phoneme began and ended, seconds from the stream's
                beginning.

        Returns:
            The new state; and the hits that are new in it, by their ends. A hit may
            still give way to a longer one that ends later, see `rules`.

        Raises:
            ValueError: not one pair of times per phoneme, posteriors of another
                inventory, or phonemes that do not begin in these frames in order.
        """
        if times.shape != (len(phonemes), 2):
            raise ValueError(
                f"times have shape {times.shape}; expected {(len(phonemes), 2)}."
            )
        if posteriors is not None and posteriors.shape[1:] != (len(INVENTORY),):
            raise ValueError(
                f"posteriors have shape {posteriors.shape}; expected "
                f"(frames, {len(INVENTORY)}): is the head of another inventory?"
            )
        if posteriors is None:
            return self._scan(state, phonemes, None, times)
        frames = _find_frames(times, state.frame_seconds)
        first = state.frames
        _check_frames(frames, first, len(posteriors))
        if len(posteriors) <= _PIECE:
            return self._scan(state, phonemes, posteriors, times)
        fresh: list[Hit] = []
        for begin in range(0, len(posteriors), _PIECE):
            inside = (frames >= first + begin) & (frames < first + begin + _PIECE)
            piece = posteriors[begin : begin + _PIECE]
            state, new = self._scan(state, phonemes[inside], piece, times[inside])
            fresh += new
        standing = set(state.hits)
        return state, [hit for hit in fresh if hit in standing]

    def refresh(self, state: StreamState) -> StreamState:
        """The stream as the layers are now, with nothing more heard."""
        if state.new or _same(state.served, self._look(state)):
            return state
        silence = None
        if len(state.acoustics.ratios):
            silence = np.zeros((0, len(INVENTORY)), np.float32)
        nothing = np.zeros(0, np.uint8), silence, np.zeros((0, 2))
        return self._scan(state, *nothing)[0]

    def _look(self, state: StreamState) -> tuple[Served, ...]:
        """What the layers hold at this moment; a subclass may look at the stream."""
        del state
        return tuple(layer.served for layer in self._layers)

    def _scan(
        self,
        state: StreamState,
        phonemes: Int[np.ndarray, " N"],
        posteriors: Float[np.ndarray, "U P"] | None,
        times: Float[np.ndarray, "N 2"],
    ) -> tuple[StreamState, list[Hit]]:
        """`scan` of a piece that is not too long to be kept."""
        acoustics = state.acoustics
        if posteriors is not None:
            frames = _find_frames(times, state.frame_seconds)
            acoustics = acoustics.extend(posteriors, frames, phonemes)
        moment = self._look(state)
        if not _same(state.served, moment):
            stands = [one for one in state.found if _is_served(one, moment)]
            state = dataclasses.replace(state, found=tuple(stands), served=moment)
        known = {id(cursor.part): cursor for cursor in state.cursors}
        clock = np.concatenate([state.times, times])
        first = state.position - len(state.recent)
        cursors, found = [], []
        for served in moment:
            for part in (served.base, served.added):
                gone = served.removed if part is served.base else frozenset()
                cursor, fresh = known.get(id(part)), len(phonemes)
                position, heard = state.position, phonemes
                if cursor is None:
                    cursor, fresh = _Cursor(part), len(acoustics.places)
                    recent = np.frombuffer(state.recent, np.uint8)
                    position, heard = first, np.concatenate([recent, phonemes])
                place, matches = part.database.machine.scan(
                    cursor.state, heard, position=position, allowed=part.allowed
                )
                if len(matches):
                    found += _name_exact(part.database, matches, gone, clock, first)
                waiting = cursor.waiting
                if posteriors is not None and part.demand and len(part.database):
                    near, waiting = part.find_near(acoustics, fresh, waiting)
                    found += _name_near(part.database, near, gone, state.frame_seconds)
                cursors.append(_Cursor(part, place, waiting))
        recent = (state.recent + phonemes.tobytes())[-LONGEST:]
        after = dataclasses.replace(
            state,
            position=state.position + len(phonemes),
            recent=recent,
            times=clock[len(clock) - len(recent) :],
            cursors=tuple(cursors),
            acoustics=acoustics,
        )
        if not found:
            return after, []
        after = dataclasses.replace(after, found=_settle([*state.found, *found]))
        old = set(state.hits)
        return after, [hit for hit in after.hits if hit not in old]


class VersionedRetriever(HotwordRetriever):
    """Finds the names that there are when an utterance begins.

    Whatever changes meanwhile, the next utterance finds; a retriever is of one stream.
    """

    def __init__(self, find: Callable[[], tuple[Served, ...]]):
        """A retriever of one stream.

        Args:
            find: what there is at the moment; any thread may call it.
        """
        super().__init__(())
        self._find = find
        self._moment = find()

    def _look(self, state: StreamState) -> tuple[Served, ...]:
        """What there was when the utterance began; a new state is a new one."""
        if state.new:
            self._moment = self._find()
        return self._moment


def _find_frames(
    times: Float[np.ndarray, "N 2"], frame_seconds: float
) -> Int[np.ndarray, " N"]:
    """Frame of the stream at which each phoneme begins."""
    return np.rint(times[:, 0] / frame_seconds).astype(np.int64)


def _check_frames(frames: Int[np.ndarray, " N"], first: int, count: int) -> None:
    """Refuse phonemes outside the frames in which they shall be looked for."""
    if not len(frames):
        return
    if frames[0] < first or frames[-1] >= first + count or (np.diff(frames) < 0).any():
        raise ValueError(
            f"phonemes begin in frames {frames.min()} to {frames.max()} of the stream, "
            f"the posteriors are of {first} to {first + count - 1}; give every piece "
            "of a stream to its state, times that go on from it (`state.frames`)."
        )


def _same(one: Sequence[Served], other: Sequence[Served]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other))


def _is_served(found: _Found, moment: Sequence[Served]) -> bool:
    """Whether some layer holds the name, under the phonemes that it was found by."""
    text, key = found.hit.text, np.frombuffer(found.key, np.uint8)
    for served in moment:
        for part in (served.base, served.added):
            if part is served.base and text in served.removed:
                continue
            base = part.database
            _, matches = base.machine.scan(automaton.ROOT, key, allowed=part.allowed)
            whole = matches.take(matches.ends - matches.starts == len(key))
            if any(base.has(int(number), text) for number in whole.keys):
                return True
    return False


def _name_exact(
    base: Database,
    matches: Matches,
    gone: frozenset[str],
    clock: Float[np.ndarray, "T 2"],
    first: int,
) -> list[_Found]:
    """Matches of keys → hits of all names that sound so."""
    if not gone:  # else a shorter name may be all that is left of a long match
        matches = matches.longest()
    found = []
    for key, start, end in zip(*map(np.ndarray.tolist, matches.columns)):
        begin, until = clock[start - first, 0], clock[end - 1 - first, 1]
        spelled, evidence = base.machine.spell(key), base.find_evidence(key)
        for name in base.names_of(key, MOST_ALIKE, gone):
            score = (end - start) * name.weight
            span = float(begin), float(until)
            own = score, EXACT, name.tag, evidence, name.weight
            found.append(_Found(Hit(name.text, *span, *own), start, end, spelled))
    return found


def _name_near(
    base: Database, verified: Verified, gone: frozenset[str], frame_seconds: float
) -> list[_Found]:
    """Keys that fit the acoustics → hits of all names that sound so."""
    if not gone:
        verified = verified.strongest()
    found = []
    for index, key in enumerate(verified.keys.tolist()):
        length = int(base.machine.lengths[key])
        alike = length * float(np.exp(verified.scores[index] / length))
        begin, until = (verified.frames[index] * frame_seconds).tolist()
        start, end = verified.spans[index].tolist()
        evidence = float(verified.evidence[index])
        spelled = base.machine.spell(key)
        for name in base.names_of(key, MOST_ALIKE, gone):
            own = alike * name.weight, NEAR, name.tag, evidence, name.weight
            hit = Hit(name.text, begin, until, *own)
            found.append(_Found(hit, start, end, spelled))
    return found


def _settle(found: Sequence[_Found]) -> tuple[_Found, ...]:
    """By their ends: one of each text and place, none that gives way to another."""
    best: dict[tuple[int, int, str], _Found] = {}
    for one in found:
        place = (one.start, one.end, one.hit.text)
        if place not in best or best[place].weaker_than(one):
            best[place] = one
    unique = list(best.values())
    kept = rules.find_strongest(
        np.array([f.start for f in unique]),
        np.array([f.end for f in unique]),
        np.array([f.hit.evidence for f in unique]),
        np.array([f.hit.source == EXACT for f in unique]),
    )
    chosen = [f for f, stays in zip(unique, kept) if stays]
    return tuple(sorted(chosen, key=lambda f: (f.end, f.start, f.hit.text)))
