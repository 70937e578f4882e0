"""Checksums of arrays that are the same under any sharding.

A checkpoint keeps one a leaf: the storage format notices missing files, but not bits
that have changed in a file of the right length.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Large odd numbers, one an axis, so that places far apart have weights far apart.
_STRIDES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0x2545F491)


def name_leaves(tree: Any) -> dict[str, Any]:
    """Path → leaf; "opt_state/1/mu/a/kernel" names keys, fields and places alike."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def sum_leaves(tree: Any) -> dict[str, int]:
    """Path → checksum of every leaf: Σ bits · weight(place) mod 2³².

    Weights are odd, so that a change of one element always shows; of several, but for
    one in 2³². Sums are of integers: any sharding and any order give the same.

    Args:
        tree: of arrays of at most 4 bytes an element; on several hosts all call this.
            Leaves in the host's memory are summed there, others where they lie.
    """
    named = name_leaves(tree)
    on_host = {n: leaf for n, leaf in named.items() if isinstance(leaf, np.ndarray)}
    sums: dict[str, Any] = {n: _sum(leaf, np) for n, leaf in on_host.items()}
    on_device = {n: leaf for n, leaf in named.items() if n not in on_host}
    sums |= jax.device_get(_sum_on_device(on_device))
    return {name: int(sums[name]) for name in named}


@jax.jit
def _sum_on_device(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _sum(leaf, jnp) for name, leaf in leaves.items()}


def _sum(leaf: Any, xp: ModuleType) -> Any:
    """The same sum by NumPy and by JAX."""
    bits = leaf
    if bits.dtype.kind != "b":
        bits = bits.view(f"uint{8 * bits.dtype.itemsize}")
    bits = bits.astype(np.uint32)
    weights = xp.zeros((1,) * bits.ndim, np.uint32)
    for axis, size in enumerate(bits.shape):
        places = xp.arange(size, dtype=np.uint32) * np.uint32(_STRIDES[axis % 6])
        others = [other for other in range(bits.ndim) if other != axis]
        weights = weights + xp.expand_dims(places, others)
    odd = weights * np.uint32(2) + np.uint32(1)
    return xp.sum(bits * odd, dtype=np.uint32)
