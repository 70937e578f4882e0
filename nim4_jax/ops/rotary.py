"""Rotary position embedding (RoPE) in the half-split convention of HF checkpoints."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def count_positions(
    mask: Bool[Array, "B L"], start: Int[Array, " B"] | None = None
) -> Int[Array, "B L"]:
    """Positions that count valid tokens only, so that a gap costs no position.

    mask       1 1 0 0 1 1
    position   0 1 1 1 2 3   (what stands behind the mask does not matter)

    Args:
        mask: True where the token is real.
        start: number of real tokens that came before, per row; 0 if None.

    Returns:
        int32 positions, never negative.
    """
    counts = jnp.cumsum(mask.astype(jnp.int32), axis=1)
    positions = jnp.maximum(counts - 1, 0)
    return positions if start is None else positions + start.astype(jnp.int32)[:, None]


def rotary_angles(
    positions: Int[Array, "B L"], head_dim: int, theta: float
) -> tuple[Float[Array, "B L 1 R"], Float[Array, "B L 1 R"]]:
    """Cosine and sine of position · theta^(−2i/H), i = 0 … R−1.

    Args:
        positions: of the tokens.
        head_dim: H, even.
        theta: base of the geometric series of wavelengths.

    Returns:
        (cosines, sines) of the R = H / 2 pairs, float32, an axis of 1 for the heads.

    Raises:
        ValueError: head_dim is odd.

    Source: Su et al. 2021 (arXiv 2104.09864).
    """
    if head_dim % 2:
        raise ValueError(f"RoPE rotates pairs: head_dim={head_dim} must be even.")
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = jnp.float32(theta) ** -exponents
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies.reshape(
        1, 1, 1, -1
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    heads: Float[Array, "B L N H"],
    cosines: Float[Array, "B L 1 R"],
    sines: Float[Array, "B L 1 R"],
) -> Float[Array, "B L N H"]:
    """Each pair (x_i, x_{i+R}) turned by its angle, in float32.

    Args:
        heads: queries or keys.
        cosines: from `rotary_angles`.
        sines: from `rotary_angles`.

    Returns:
        The rotated heads, in the dtype they came in.

    Source: `rotate_half` of the HF Llama and Qwen models.
    """
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(heads.dtype)
