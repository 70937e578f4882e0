"""Examples without speech: silence, noise and music with an empty transcript.

In training they stand behind the examples of the sources as one more source. Each has a
length, as speech has it; what it sounds like is drawn anew from (seed, epoch, index).
In evaluation they are a set of their own, `Fixed`, the same whenever it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from nim4_jax.data.audio.reading import SAMPLE_RATE
from nim4_jax.data.noise import mixing, noise_kinds
from nim4_jax.data.sources import examples

SYNTHETIC = noise_kinds.choose(noise_kinds.ALONE, voices=False, recordings=False)
"""Kinds where there are no recordings of noise."""

RECORDED = noise_kinds.choose(noise_kinds.ALONE, voices=False, recordings=True)
"""Kinds where there are some."""

IN_TEST_SETS = noise_kinds.list_in_test_sets(SYNTHETIC)
"""Kinds of a fixed set that names none."""

_SECONDS = (1.0, 6.0)  # length of an example of a fixed set
_LENGTHS, _SOUNDS = 0, 1  # streams of random numbers of a fixed set

ReadNoise = Callable[[np.random.Generator, int], np.ndarray]


class NonSpeech:
    """A source of `count` records without words.

    Their audio is empty, because the pipeline makes it anew in every epoch.
    """

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> examples.Record:
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count} without speech")
        return {
            "audio": np.zeros(0, np.float32),
            "sample_rate": None,
            "text": "",
            "lang": "auto",
            "keywords": (),
            "id": f"nonspeech-{index}",
            "duration": None,
            "origin": f"nonspeech:{index}",
        }


class Fixed:
    """`count` records without words whose audio and length never change.

    Record i is a pure function of (seed, kinds, i): a longer set begins with a shorter
    one. Lengths are uniform in 1 … 6 s; levels are as in training.
    """

    def __init__(
        self, count: int, seed: int = 0, kinds: Sequence[str] = IN_TEST_SETS
    ) -> None:
        """Nothing is made before a record is asked for.

        Args:
            count: records.
            seed: of lengths and sounds; any integer ≥ 0.
            kinds: of `SYNTHETIC`, each as likely as any other.

        Raises:
            ValueError: no record, a negative seed, or unknown kinds.
        """
        unknown = sorted(set(kinds) - set(SYNTHETIC))
        if count < 1 or seed < 0 or unknown or not kinds:
            raise ValueError(
                f"audio without speech: got {count} records, seed {seed}, kinds "
                f"{list(kinds)}; expected at least 1, a seed ≥ 0, and kinds of "
                f"{', '.join(SYNTHETIC)}"
            )
        self._seed, self._kinds = seed, tuple(kinds)
        rng = np.random.default_rng((seed, _LENGTHS))
        self._sizes = np.rint(rng.uniform(*_SECONDS, count) * SAMPLE_RATE).astype(int)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> examples.Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} without speech")
        rng = np.random.default_rng((self._seed, _SOUNDS, index))
        size = int(self._sizes[index])
        return {
            "audio": make(rng, size, None, self._kinds),
            "sample_rate": SAMPLE_RATE,
            "text": "",
            "lang": "auto",
            "keywords": (),
            "id": f"nonspeech-{self._seed}-{index}",
            "duration": size / SAMPLE_RATE,
            "origin": f"nonspeech:{'|'.join(self._kinds)}:{self._seed}[{index}]",
        }


def count_examples(share: float, sizes: Sequence[int], weights: Sequence[float]) -> int:
    """How many examples an epoch needs for `share` of it to be without speech.

    Args:
        share: in [0, 1).
        sizes: examples of each source.
        weights: passes over each source in one epoch.
    """
    speech = sum(size * weight for size, weight in zip(sizes, weights))
    return round(share / (1 - share) * speech)


def draw(rng: np.random.Generator, kinds: Sequence[str]) -> tuple[str, float]:
    """What is heard where nobody speaks.

    Args:
        rng: consumed by the same amount whatever is drawn.
        kinds: `SYNTHETIC` or `RECORDED`, each entry as likely as any other.

    Returns:
        Kind, and level in dB below full scale (root mean square): −∞ for the kind's
        share of digital silence, drawn evenly from its levels otherwise.
    """
    name = kinds[int(rng.integers(len(kinds)))]
    mute, height = rng.random(2)
    kind = noise_kinds.find(name)
    low, high = kind.level
    return name, -np.inf if mute < kind.mute else low + (high - low) * height


def make(
    rng: np.random.Generator,
    size: int,
    read_noise: ReadNoise | None,
    kinds: Sequence[str] | None = None,
) -> Float[np.ndarray, " S"]:
    """The samples of one example.

    Args:
        rng: of this example and epoch.
        size: samples.
        read_noise: (rng, size) → samples, from recordings; None where there are none.
        kinds: as for `draw`; None for `RECORDED` or, without recordings, `SYNTHETIC`.

    Returns:
        float32 [size] in [-1, 1).

    Raises:
        ValueError: an unknown kind, or one that needs recordings and there are none.
    """
    kind, level = draw(rng, kinds or (RECORDED if read_noise else SYNTHETIC))
    material = noise_kinds.Material(read_recording=read_noise)
    samples = noise_kinds.find(kind).make(rng, size, material)
    return mixing.limit_peak(mixing.set_level(samples, level))
