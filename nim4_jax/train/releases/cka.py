"""Linear CKA, the similarity of two encoders' outputs on the same audio.

With X̃ [L, D] and Ỹ [L, E] the frames of one fixed set, each feature's mean removed,

    CKA = ‖X̃ᵀỸ‖²_F / (‖X̃ᵀX̃‖_F · ‖ỸᵀỸ‖_F), between 0 and 1.

This is ⟨K̃_x, K̃_y⟩ / √(⟨K̃_x, K̃_x⟩⟨K̃_y, K̃_y⟩) with the centred Gram matrices
K̃ = C X Xᵀ C of the paper, which are L × L and are never formed.

Source: paper §2.2.2; Kornblith et al., arXiv 1905.00414, §3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nim4_jax.types import Frames

# Variance over mean square of what float32 can no longer tell from a constant.
_CONSTANT = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
    """Sums over frames from which CKA follows; those of two batches add up.

    Attributes:
        count: number of valid frames.
        x: Σx of the first encoder's frames, float64.
        y: Σy of the second encoder's frames, float64.
        xx: Σxxᵀ, float64.
        yy: Σyyᵀ, float64.
        xy: Σxyᵀ, float64.
    """

    count: int
    x: Float[np.ndarray, " D"]
    y: Float[np.ndarray, " E"]
    xx: Float[np.ndarray, "D D"]
    yy: Float[np.ndarray, "E E"]
    xy: Float[np.ndarray, "D E"]

    def __add__(self, other: Sums) -> Sums:
        """The sums over the frames of both.

        Raises:
            ValueError: the widths differ.
        """
        if self.xy.shape != other.xy.shape:
            raise ValueError(
                f"sums of encoders of widths {self.xy.shape} and {other.xy.shape} do "
                "not add up; compare the same two encoders in every batch."
            )
        return Sums(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.yy + other.yy,
            self.xy + other.xy,
        )

    def value(self) -> float:
        """CKA of all frames added so far, between 0 and 1.

        Raises:
            ValueError: no frame, a number that is not finite, or an encoder whose
            frames are all the same.
        """
        if self.count == 0:
            raise ValueError(
                "CKA of no frame at all: every frame was behind the mask; check the "
                "evaluation set."
            )
        xx = self.xx - np.outer(self.x, self.x) / self.count
        yy = self.yy - np.outer(self.y, self.y) / self.count
        xy = self.xy - np.outer(self.x, self.y) / self.count
        norms = np.linalg.norm(xx), np.linalg.norm(yy)
        for name, norm, raw in zip(("first", "second"), norms, (self.xx, self.yy)):
            if not np.isfinite(norm):
                raise ValueError(
                    f"the {name} encoder gives frames that are not finite; look at its "
                    "parameters and at the audio."
                )
            if norm <= _CONSTANT * np.linalg.norm(raw):
                raise ValueError(
                    f"the {name} encoder gives the same values in all {self.count} "
                    "frames, so CKA is undefined; it has collapsed, or the evaluation "
                    "set is too short."
                )
        return min(float(np.linalg.norm(xy) ** 2 / (norms[0] * norms[1])), 1.0)


def add_up(first: Frames, second: Frames) -> Sums:
    """The sums of one batch, heard by two encoders.

    Products are taken in float32 on the device, around the batch's mean; the mean is
    put back in float64 on the host, so that a large one costs no digits.

    Args:
        first: frames [B, U, D], any float dtype; what stands behind the mask is unused.
        second: frames [B, U, E] of the same audio, with the same mask.

    Raises:
        ValueError: the two masks differ.
    """
    same = first.mask.shape == second.mask.shape
    if not same or not np.array_equal(first.mask, second.mask):
        raise ValueError(
            f"the two encoders' frames have masks {first.mask.shape} with "
            f"{int(np.sum(first.mask))} and {second.mask.shape} with "
            f"{int(np.sum(second.mask))} valid frames; CKA needs the same frames of "
            "the same audio."
        )
    products = _multiply(first.values, second.values, first.mask)
    origins, totals, squares = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), jax.device_get(products)
    )
    count = int(np.sum(first.mask))

    def move(square, i, j):
        """Σxyᵀ around 0, from sums around the origins."""
        cross = np.outer(totals[i], origins[j]) + np.outer(origins[i], totals[j])
        return square + cross + count * np.outer(origins[i], origins[j])

    return Sums(
        count,
        totals[0] + count * origins[0],
        totals[1] + count * origins[1],
        move(squares[0], 0, 0),
        move(squares[1], 1, 1),
        move(squares[2], 0, 1),
    )


@jax.jit
def _multiply(
    x: Float[Array, "B U D"], y: Float[Array, "B U E"], mask: Bool[Array, "B U"]
):
    """Origins, and sums and products around them: (x, y), (x, y), (xx, yy, xy)."""
    valid = mask[..., None]
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)

    def centre(values):
        values = Frames(values.astype(jnp.float32), mask).masked().values
        origin = jnp.sum(values, axis=(0, 1), keepdims=True) / count
        return jnp.where(valid, values - origin, 0.0), origin[0, 0]

    def product(a, b):
        return jnp.einsum("bud,bue->de", a, b, precision=jax.lax.Precision.HIGHEST)

    (x, first), (y, second) = centre(x), centre(y)
    totals = jnp.sum(x, axis=(0, 1)), jnp.sum(y, axis=(0, 1))
    return (first, second), totals, (product(x, x), product(y, y), product(x, y))


def measure(batches: Iterable[tuple[Frames, Frames]]) -> float:
    """CKA of two encoders over all valid frames of a set.

    Args:
        batches: (first, second) frames of each batch, as for `add_up`; each shape
            compiles once.

    Returns:
        CKA, between 0 and 1.

    Raises:
        ValueError: no frame, numbers that are not finite, constant frames, or frames
        that do not belong together.
    """
    total: Sums | None = None
    for first, second in batches:
        sums = add_up(first, second)
        total = sums if total is None else total + sums
    if total is None:
        raise ValueError(
            "CKA of no batch at all: the evaluation set is empty; check its sources."
        )
    return total.value()
