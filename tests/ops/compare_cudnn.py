"""cuDNN against XLA's form on an NVIDIA GPU: bfloat16 values and gradients.

Run as a program; an error is a difference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.ops import attention

SCALE, ROWS, LENGTH, KV_HEADS, GROUPS, WIDTH = 0.09, 4, 333, 2, 2, 128


def differentiate(kernel: str, queries, keys, values, mask, slope):
    """Outputs and the gradients of all three operands, in float32."""

    @jax.jit
    def run(queries, keys, values):
        attend = functools.partial(
            attention.attend_causal, mask=mask, scale=SCALE, kernel=kernel
        )
        outputs, pull = jax.vjp(attend, queries, keys, values)
        return jnp.where(mask[:, :, None, None], outputs, 0), pull(slope)

    return jax.tree.map(lambda x: np.float32(x), run(queries, keys, values))


def main() -> None:
    """Rows of every length, an empty one too."""
    rng = np.random.default_rng(0)
    assert attention.choose_kernel("auto", jnp.bfloat16, WIDTH) == "cudnn"

    def draw(heads):
        values = rng.normal(size=(ROWS, LENGTH, heads, WIDTH))
        return jnp.asarray(values, jnp.bfloat16)

    lengths = np.array([[LENGTH], [0], [1], [200]])
    mask = jnp.asarray(np.arange(LENGTH)[None] < lengths)
    operands = draw(KV_HEADS * GROUPS), draw(KV_HEADS), draw(KV_HEADS)
    slope = jnp.where(mask[:, :, None, None], draw(KV_HEADS * GROUPS), 0)
    expected = differentiate("xla", *operands, mask, slope)
    got = differentiate("cudnn", *operands, mask, slope)
    for found, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        error = np.linalg.norm(found - right) / np.linalg.norm(right)
        print(f"relative difference {error:.2e}")
        assert np.all(np.isfinite(found)) and error < 0.02


if __name__ == "__main__":
    main()
