"""CTC loss and gradient over the logits: ours against torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.eval.speed import measure
from nim4_jax.ops import ctc
from nim4_jax.types import Labels

_QUICK_RUNS, _FULL_RUNS = 15, 61


def run(
    full: bool,
    threads: int,
    shape: tuple[int, int, int, int] = (16, 400, 80, 200),
    runs: int = 0,
) -> list[measure.Row]:
    """Log-softmax, CTC forward and backward: B × T frames, U labels, V ids.

    Raises:
        ValueError: the two do not give the same loss.
    """
    torch = measure.need("torch")
    torch.set_num_threads(threads)
    batch, frames, width, classes = shape
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(batch, frames, classes)).astype(np.float32)
    ids = rng.integers(1, classes, (batch, width)).astype(np.int32)
    device_logits = jnp.asarray(logits)
    mask = jnp.ones((batch, frames), bool)
    labels = Labels(jnp.asarray(ids), jnp.ones((batch, width), bool))

    @jax.jit
    @jax.value_and_grad
    def evaluate(logits: jax.Array) -> jax.Array:
        return jnp.sum(ctc.ctc_loss(logits, mask, labels))

    leaf = torch.tensor(logits, requires_grad=True)
    targets = torch.tensor(ids.astype(np.int64))
    frame_counts = torch.full((batch,), frames)
    label_counts = torch.full((batch,), width)

    def ours() -> jax.Array:
        return jax.block_until_ready(evaluate(device_logits))[0]

    def peer() -> float:
        leaf.grad = None
        log_probs = torch.log_softmax(leaf, -1).transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(
            log_probs, targets, frame_counts, label_counts, reduction="sum"
        )
        loss.backward()
        return float(loss.detach())

    if not np.isclose(ours(), peer(), rtol=1e-4):
        raise ValueError("losses differ; a ratio would mean nothing.")
    return [
        measure.compare(
            "ctc_forward_backward_ms",
            "ms",
            ours,
            peer,
            peer_name="torch.nn.functional.ctc_loss",
            runs=runs or (_FULL_RUNS if full else _QUICK_RUNS),
        )
    ]
