"""The table of noise kinds, which all that makes noise reads.

To add a kind, write the function that makes its samples (in noise_synthesis.py, if it
is made of random numbers) and give it a row in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from nim4_jax.data.noise import mixing, noise_synthesis

Samples = Float[np.ndarray, " S"]
Synthesise = Callable[[np.random.Generator, int], Samples]
ReadVoices = Callable[[np.random.Generator], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Material:
    """What noise can be made of besides random numbers.

    Attributes:
        read_voices: rng → utterances for babble, float32 samples; None for none.
        read_recording: (rng, size) → a piece of a recording of noise, float32 [size];
            None where there are no recordings.
    """

    read_voices: ReadVoices | None = None
    read_recording: Synthesise | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of noise.

    Attributes:
        make: (rng, size, material) → float32 [size], not scaled to anything.
        needs: of `Material`: "voices", "recordings", or "" if random numbers will do.
        behind_speech: whether it is mixed with speech. All kinds but those of voices
            are also heard alone, where nobody speaks.
        level: softest and loudest where it is heard alone, dB below full scale.
        mute: share of it that is digital silence where it is heard alone.
        in_test_sets: whether the sets of an evaluation that name no kinds hold it.
            A new kind stays out, else these sets become others under the same name.
    """

    make: Callable[[np.random.Generator, int, Material], Samples]
    needs: Literal["", "voices", "recordings"] = ""
    behind_speech: bool = True
    level: tuple[float, float] = (-50.0, -15.0)
    mute: float = 0.0
    in_test_sets: bool = False

    @property
    def is_replaceable(self) -> bool:
        """Whether recordings stand in for it, where there are some."""
        return self.behind_speech and not self.needs


def _synthetic(synthesise: Synthesise) -> Callable[..., Samples]:
    """`make` of a kind that needs no material."""
    return lambda rng, size, material: synthesise(rng, size)


def _mix_babble(rng: np.random.Generator, size: int, material: Material) -> Samples:
    if material.read_voices is None:
        raise ValueError("noise of the kind 'babble' needs other utterances: got none")
    return mixing.mix_babble(rng, material.read_voices(rng), size)


def _read_recording(rng: np.random.Generator, size: int, material: Material) -> Samples:
    if material.read_recording is None:
        raise ValueError(
            "noise of the kind 'recorded' needs recordings of noise: got none"
        )
    return material.read_recording(rng, size)


KINDS: dict[str, Kind] = {
    "silence": Kind(
        _synthetic(noise_synthesis.make_hush),
        behind_speech=False,
        level=(-90.0, -50.0),
        mute=0.25,
        in_test_sets=True,
    ),
    "babble": Kind(_mix_babble, needs="voices", in_test_sets=True),
    "vehicle": Kind(_synthetic(noise_synthesis.make_vehicle), in_test_sets=True),
    "music": Kind(_synthetic(noise_synthesis.make_music), in_test_sets=True),
    "recorded": Kind(_read_recording, needs="recordings"),
}
"""Name → kind. Draws depend on the order: add rows at the end."""

BEHIND_SPEECH = tuple(name for name, kind in KINDS.items() if kind.behind_speech)
"""Those that are mixed with speech."""

ALONE = tuple(name for name, kind in KINDS.items() if kind.needs != "voices")
"""Those that are heard where nobody speaks."""

FALLBACK = "vehicle"
"""What an evaluation mixes in where babble is asked for and there are no voices."""


def find(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in KINDS:
        raise ValueError(
            f"noise of the kind {name!r}; choose from {', '.join(KINDS)} "
            "(data/noise/noise_kinds.py)"
        )
    return KINDS[name]


def choose(names: Iterable[str], *, voices: bool, recordings: bool) -> tuple[str, ...]:
    """Those of `names` that can be made of what there is, each as likely as any other.

    Args:
        names: of `KINDS`.
        voices: whether there are utterances for babble.
        recordings: whether there are recordings of noise. One entry of "recorded"
            stands then for each kind of synthetic noise.
    """
    listed = []
    for name in names:
        kind = find(name)
        if kind.is_replaceable:
            listed.append("recorded" if recordings else name)
        elif not kind.needs or (kind.needs == "voices" and voices):
            listed.append(name)
    return tuple(listed)


def list_in_test_sets(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that the sets of an evaluation hold which name no kinds."""
    return tuple(name for name in names if find(name).in_test_sets)
