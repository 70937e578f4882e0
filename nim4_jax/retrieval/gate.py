"""Acceptance thresholds of hits from a budget of false ones shared by all names.

A hit has evidence: the negative natural log of how many like it are expected by chance
in an hour. An exact match of key k has −log chance(k); a near match has less by what
its acoustic score has lost. One threshold −log t holds for both, and then there may be

    sum of chance(k) over the K' keys with chance(k) ≤ t     exact false hits an hour,
    K' · t at most                                           near ones,

of which both grow with t. The threshold is the lowest that the budget allows.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

LATTICE, SCANN, NOWHERE = "lattice", "scann", "none"
WAYS = (LATTICE, SCANN, NOWHERE)
"""Where near matches are looked for; "none": exact ones only."""
NEVER = 1e-37
"""Occurrences an hour of what never occurs: its log is finite."""


def check_near(near: str) -> None:
    """Refuse what is none of WAYS, by ValueError."""
    if near not in WAYS:
        raise ValueError(f"near={near!r}: use one of {', '.join(WAYS)}.")


@dataclasses.dataclass(frozen=True)
class Gate:
    """Acceptance settings: the budget of false hits, and which keys it covers.

    Attributes:
        false_per_minute: expected by chance, exact and near, of all keys of a database
            together.
        max_chance: expected by chance an hour of any one key; the limit of short lists.
        min_phonemes: shorter keys never match.
        near_nats: per phoneme, how much less likely than what was heard a name may be.
    """

    false_per_minute: float = 8.0
    max_chance: float = 1.0
    min_phonemes: int = 4
    near_nats: float = 2.5

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(
                    f"Gate({field.name}={value!r}): expected a number from 0 on."
                )

    def find_threshold(
        self,
        chance: Float[np.ndarray, " K"],
        lengths: Int[np.ndarray, " K"],
        near: bool,
    ) -> float:
        """The most that a hit may be expected by chance, an hour.

        Args:
            chance: how often an hour each key is expected by chance.
            lengths: phonemes of each.
            near: whether near matches are looked for too.
        """
        rates = np.sort(chance[lengths >= self.min_phonemes].astype(np.float64))
        budget, count = 60.0 * self.false_per_minute, len(rates)
        if not count:
            return self.max_chance
        exact = np.cumsum(rates)
        keys = np.arange(1, count + 1) * float(near)
        # What is spent when the threshold is just at each key's own chance.
        allowed = int(np.searchsorted(exact + keys * rates, budget, side="right"))
        spent = exact[allowed - 1] if allowed else 0.0
        # Between that key and the next one only near matches become more.
        most = rates[allowed] if allowed < count else np.inf
        if near and allowed:
            most = min(most, (budget - spent) / allowed)
        if allowed < count:  # the next key stays out
            most = min(most, np.nextafter(np.float32(rates[allowed]), np.float32(0.0)))
        return float(min(most, self.max_chance))

    def allow(
        self,
        chance: Float[np.ndarray, " K"],
        lengths: Int[np.ndarray, " K"],
        near: bool,
    ) -> Bool[np.ndarray, " K"]:
        """Keys that may be hits, see `find_threshold`."""
        threshold = self.find_threshold(chance, lengths, near)
        return (lengths >= self.min_phonemes) & (chance <= threshold)
