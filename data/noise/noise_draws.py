"""Random draws of additive noise: which examples, which kind, SNR and silence.

A share of the examples gets silence before and behind, then noise of one kind over all
of it. Whatever is random about an example hangs on its `Draw`, which the plan makes
from (seed, epoch): hosts, threads and a restart hear the same noise.

Source: SPEC §3, robustness; NIM4-ASR §2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from nim4_jax.data.noise import mixing
from nim4_jax.data.noise.noise_kinds import BEHIND_SPEECH, choose

_SILENCE = (1.0, 3.0)  # parameters of the Beta distribution of silence, in seconds


@dataclass(frozen=True)
class Distribution:
    """Distribution that noise is drawn from.

    Attributes:
        share: of the examples, in [0, 1].
        snr: mean and standard deviation of the signal-to-noise ratio, dB.
        kinds: of `BEHIND_SPEECH`, each as likely as any other; one named twice is
            twice as likely.
    """

    share: float = 0.2
    snr: tuple[float, float] = (10.0, 5.0)
    kinds: tuple[str, ...] = choose(BEHIND_SPEECH, voices=True, recordings=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"noise share {self.share}; expected 0 (off) to 1 (all)")
        if not (np.isfinite(self.snr).all() and self.snr[1] >= 0):
            raise ValueError(f"noise SNR {self.snr}; expected mean and deviation, dB")
        if not self.kinds or set(self.kinds) - set(BEHIND_SPEECH):
            raise ValueError(
                f"noise kinds {self.kinds}; choose from {', '.join(BEHIND_SPEECH)}"
            )


@dataclass(frozen=True)
class Draw:
    """The noise of one example.

    Attributes:
        kind: of `BEHIND_SPEECH`.
        snr: signal-to-noise ratio, dB.
        lead: silence before the speech, s.
        tail: silence behind it, s.
        seed: of the noise's own samples.
    """

    kind: str
    snr: float
    lead: float
    tail: float
    seed: int


@dataclass(frozen=True)
class Draws:
    """The noise of many examples: `Draw`'s fields as arrays of [examples].

    Attributes:
        kinds: int8, index into `BEHIND_SPEECH`; -1: the example stays clean, lead and
            tail 0.
        snr: float64, dB.
        lead: float64, s.
        tail: float64, s.
        seeds: int64.
    """

    kinds: Int[np.ndarray, " N"]
    snr: Float[np.ndarray, " N"]
    lead: Float[np.ndarray, " N"]
    tail: Float[np.ndarray, " N"]
    seeds: Int[np.ndarray, " N"]

    def __getitem__(self, row: int) -> Draw | None:
        """The draw of one example, None if it stays clean."""
        if self.kinds[row] < 0:
            return None
        return Draw(
            BEHIND_SPEECH[self.kinds[row]],
            float(self.snr[row]),
            float(self.lead[row]),
            float(self.tail[row]),
            int(self.seeds[row]),
        )

    def take(self, indices: np.ndarray) -> Draws:
        """The same for the examples `indices`."""
        return Draws(
            self.kinds[indices],
            self.snr[indices],
            self.lead[indices],
            self.tail[indices],
            self.seeds[indices],
        )

    def fit(self, room: Float[np.ndarray, " N"]) -> Draws:
        """The same with no more silence than there is `room` for, s [examples]."""
        lead, tail = mixing.fit_silence(self.lead, self.tail, room)
        return Draws(self.kinds, self.snr, lead, tail, self.seeds)


def draw(
    rng: np.random.Generator, allowed: Bool[np.ndarray, " N"], source: Distribution
) -> Draws:
    """Draw the noise of many examples at once.

    Args:
        rng: consumed by the same amount whatever is drawn.
        allowed: examples that may get noise (speech may, its absence may not).
        source: the distribution.

    Returns:
        For each allowed example, with probability `source.share`: a kind, an SNR from
        N(mean, deviation²) dB, silences from Beta(1, 3) s and a seed.
    """
    count = len(allowed)
    noisy = (rng.random(count) < source.share) & allowed
    codes = np.array([BEHIND_SPEECH.index(kind) for kind in source.kinds], np.int8)
    kinds = codes[rng.integers(len(codes), size=count)]
    snr = rng.normal(*source.snr, size=count)
    lead, tail = rng.beta(*_SILENCE, size=(2, count)) * noisy
    seeds = rng.integers(2**63 - 1, size=count)
    return Draws(np.where(noisy, kinds, np.int8(-1)), snr, lead, tail, seeds)
