"""Channel augmentation: tempo, room, level and telephone line of each example.

A share of the examples is spoken faster or slower, a share is heard in a room, a share
louder or quieter than it was recorded, a share over the telephone; one example may get
all of it. Whatever is random
about an example hangs on its `Draw`, which the plan makes from (seed, epoch): hosts,
threads and a restart hear the same.

Source: SPEC §3, robustness, which has noise alone; rooms as Ko et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import rooms, telephone


@dataclass(frozen=True)
class Distribution:
    """Distribution that channels are drawn from.

    Attributes:
        room_share: of the speech that is heard in a room, in [0, 1].
        gain_share: of all examples whose level is changed, in [0, 1].
        gain_db: least and most gain, dB; all between are equally likely.
        telephone_share: of all examples that go over a telephone line, in [0, 1].
        tempo_share: of the speech whose speed factor leaves the pitch as it is.
    """

    room_share: float = 0.0
    gain_share: float = 0.0
    gain_db: tuple[float, float] = (-30.0, 10.0)
    telephone_share: float = 0.0
    # Not in the text that fingerprints are made of: plans without it keep theirs.
    tempo_share: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        for name in ("room_share", "gain_share", "telephone_share", "tempo_share"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name} {share}; expected 0 (off) to 1 (all)")
        ordered = len(self.gain_db) == 2 and self.gain_db[0] <= self.gain_db[1]
        if not (ordered and np.isfinite(self.gain_db).all()):
            raise ValueError(
                f"gain_db {self.gain_db}; expected the least and the most, dB, such as "
                "(-30, 10)"
            )

    @property
    def is_off(self) -> bool:
        """Whether nothing is ever drawn."""
        return not (
            self.room_share
            or self.gain_share
            or self.telephone_share
            or self.tempo_share
        )


@dataclass(frozen=True)
class Draw:
    """The channel of one example.

    Attributes:
        room: seed of the room, None for none.
        gain: dB, 0 for none.
        law: companding of the line, of `telephone.LAWS`; None for no telephone.
        tempo: whether the speed factor changes the tempo alone, not the pitch.
    """

    room: int | None
    gain: float
    law: str | None
    tempo: bool


@dataclass(frozen=True)
class Draws:
    """The channels of many examples: `Draw`'s fields as arrays of [examples].

    Attributes:
        rooms: int64, seeds; -1 for no room.
        gains: float64, dB; 0 for none.
        laws: int8, index into `telephone.LAWS`; -1 for no telephone.
        tempos: bool.
    """

    rooms: Int[np.ndarray, " N"]
    gains: Float[np.ndarray, " N"]
    laws: Int[np.ndarray, " N"]
    tempos: Bool[np.ndarray, " N"]

    def __getitem__(self, row: int) -> Draw:
        """The draw of one example."""
        room, law = int(self.rooms[row]), int(self.laws[row])
        return Draw(
            None if room < 0 else room,
            float(self.gains[row]),
            None if law < 0 else telephone.LAWS[law],
            bool(self.tempos[row]),
        )

    def take(self, indices: np.ndarray) -> Draws:
        """The same for the examples `indices`."""
        return Draws(
            self.rooms[indices],
            self.gains[indices],
            self.laws[indices],
            self.tempos[indices],
        )


def draw(
    rng: np.random.Generator, speech: Bool[np.ndarray, " N"], source: Distribution
) -> Draws:
    """Draw the channels of many examples at once.

    Args:
        rng: consumed by the same amount whatever is drawn.
        speech: examples that hold speech. Those that do not get levels and telephone
            lines as often, lest these tell that somebody speaks; a room and a tempo
            do nothing for noise.
        source: the distribution.
    """
    count = len(speech)
    in_room, gained, called = rng.random((3, count)) < np.array(
        [[source.room_share], [source.gain_share], [source.telephone_share]]
    )
    seeds = rng.integers(2**63 - 1, size=count)
    gains = rng.uniform(*source.gain_db, size=count)
    laws = rng.integers(len(telephone.LAWS), size=count).astype(np.int8)
    tempos = (rng.random(count) < source.tempo_share) & speech
    return Draws(
        np.where(in_room & speech, seeds, -1),
        np.where(gained, gains, 0.0),
        np.where(called, laws, np.int8(-1)),
        tempos,
    )


def add_room(
    speech: Float[np.ndarray, " S"], seed: int, size: int
) -> Float[np.ndarray, " Z"]:
    """Speech as it is heard in a room that is drawn from a seed.

    Args:
        speech: float32 samples.
        seed: of the room, of who stands where, and of the tail's samples.
        size: of the result; its echo is heard behind the speech.

    Returns:
        float32 [size] in [-1, 1), with the timing and the level of the speech.
    """
    rng = np.random.default_rng(seed)
    response = rooms.make_response(rng, rooms.draw_room(rng))
    return rooms.reverberate(speech, response, size)


def amplify(samples: Float[np.ndarray, " S"], gain: float) -> Float[np.ndarray, " S"]:
    """Samples as a recorder of 16 bits stores them with another gain.

    What exceeds full scale is clipped, not scaled down, and what is quiet has fewer
    steps: a recorder does both, and a recogniser must hear through both.

    Args:
        samples: float32.
        gain: dB.

    Returns:
        float32 [S] in [-1, 1), multiples of 1 / 32768.
    """
    factor = np.float32(10 ** (gain / 20))
    return reading.to_float32(reading.to_int16(samples * factor))


def transmit(samples: Float[np.ndarray, " S"], draw: Draw) -> Float[np.ndarray, " S"]:
    """Samples behind gain and telephone line, as many and in place."""
    if draw.gain:
        samples = amplify(samples, draw.gain)
    return telephone.transmit(samples, draw.law) if draw.law else samples
