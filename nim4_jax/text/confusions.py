"""Confusion statistics of a phoneme head: substitutions, deletions, insertions.

Counts come from aligning its greedy phonemes with those of the transcript (`nim4
confusions`), and are kept in a small JSON file. A text-only warm-up draws its errors
from them, so that the LLM learns to read this head's phonemes.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

import nim4_jax
from nim4_jax.text import articulation, g2p
from nim4_jax.text.phonemes import INVENTORY, INVENTORY_HASH, PHONEME_IDS

PACKAGED = ("base",)
"""Statistics that come with the package."""

_PRIOR = 8.0  # errors of a phoneme that what sounds alike is worth
_SAID = 20.0  # times that the language's mean rate counts for each phoneme
_MOST_PRONE = 2.5  # times the mean rate of errors
_DROPPED = 0.25  # share of deletions, where too little is known


@dataclasses.dataclass(frozen=True, eq=False)
class Confusions:
    """Error probabilities of a phoneme head.

    Attributes:
        substitutes: p(b | a is heard wrongly), rows sum to 1 but for the blank's.
        proneness: how often a phoneme is dropped or heard wrongly, 1 on average of its
            language.
        dropped: share of these errors that are deletions.
        inserted: p(b | a phoneme is heard where none is said).
        insertions: for each of those errors.
    """

    substitutes: Float[np.ndarray, "P P"]
    proneness: Float[np.ndarray, " P"]
    dropped: Float[np.ndarray, " P"]
    inserted: Float[np.ndarray, " P"]
    insertions: float


class Counts:
    """Aligned phonemes, counted.

    Attributes:
        pairs: [P, P] said and heard as; row 0 holds insertions, column 0 deletions.
    """

    def __init__(self, pairs: Float[np.ndarray, "P P"] | None = None):
        self.pairs = np.zeros((len(INVENTORY),) * 2) if pairs is None else pairs

    def add(self, said: int, heard: int) -> None:
        """One place of an alignment; 0 where there is nothing on a side."""
        self.pairs[said, heard] += 1

    @property
    def rate(self) -> float:
        """Phoneme errors over phonemes said."""
        wrong = self.pairs.sum() - np.trace(self.pairs)
        return float(wrong / max(self.pairs[1:].sum(), 1.0))

    def estimate(self) -> Confusions:
        """Probabilities; where little was counted, what sounds alike."""
        pairs, alike = self.pairs[1:, 1:], articulation.confusions()
        wrong = pairs * (1.0 - np.eye(len(pairs)))
        substitutes = np.zeros_like(alike)
        substitutes[1:, 1:] = wrong + _PRIOR * alike[1:, 1:]
        substitutes[1:] /= substitutes[1:].sum(axis=1, keepdims=True)
        lost, said = self.pairs[1:, 0], self.pairs[1:].sum(axis=1)
        errors = wrong.sum(axis=1) + lost
        # Tones count, so Mandarin has more errors; a rate means the same in both.
        english = np.array([name in g2p.ARPABET for name in INVENTORY[1:]])
        mean = np.where(
            english,
            _average(errors[english], said[english]),
            _average(errors[~english], said[~english]),
        )
        rates = (errors + _SAID * mean) / (said + _SAID) / mean
        dropped = (lost + _PRIOR * _DROPPED) / (errors + _PRIOR)
        inserted = self.pairs[0] + 1e-3 * (np.arange(len(INVENTORY)) > 0)
        return Confusions(
            substitutes.astype(np.float32),
            _pad(np.clip(rates, 0.0, _MOST_PRONE)),
            _pad(dropped),
            (inserted / inserted.sum()).astype(np.float32),
            float(self.pairs[0].sum() / max(float(errors.sum()), 1.0)),
        )

    def write(self, path: epath.PathLike, about: dict[str, Any]) -> None:
        """Write the counts that are not zero, and what was measured."""
        rows = {
            INVENTORY[said]: {
                INVENTORY[heard]: int(self.pairs[said, heard])
                for heard in np.flatnonzero(self.pairs[said])
            }
            for said in np.flatnonzero(self.pairs.sum(axis=1))
        }
        content = {"phonemes": INVENTORY_HASH, "about": about, "heard": rows}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        epath.Path(path).write_text(
            text.replace('},"', '},\n"') + "\n", encoding="utf8"
        )


def _average(errors: np.ndarray, said: np.ndarray) -> float:
    return max(float(errors.sum() / max(said.sum(), 1.0)), 1e-6)


def _pad(values: np.ndarray) -> np.ndarray:
    """With a zero for the blank."""
    return np.concatenate([[0.0], values]).astype(np.float32)


def read(name: str) -> Counts:
    """Counts of a file, or of a name of PACKAGED.

    Raises:
        ValueError: no such file, none of counts, or of another phoneme inventory.
    """
    path: Any = name
    if name in PACKAGED:
        folder = resources.files(nim4_jax) / "text" / "resources"
        path = Path(str(folder / f"{name}_confusions.json"))
    try:
        content = json.loads(epath.Path(path).read_text(encoding="utf8"))
        same = content["phonemes"] == INVENTORY_HASH
        counts = Counts()
        for said, row in content["heard"].items() if same else ():
            for heard, count in row.items():
                counts.pairs[PHONEME_IDS[said], PHONEME_IDS[heard]] = float(count)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path}: no confusions of phonemes can be read ({error!r}); expected a "
            f"file of nim4 confusions, or one of {', '.join(PACKAGED)}"
        ) from error
    if not same:
        raise ValueError(
            f"{path} was measured with another phoneme inventory; measure again with "
            "nim4 confusions"
        )
    return counts
