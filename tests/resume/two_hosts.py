"""One host of a run without a model: `two_hosts.py WORKDIR STEPS TIMEOUT_MINUTES`.

NIM4_COORDINATOR, NIM4_PROCESSES and NIM4_PROCESS say which. Row r of step s is the
number 8·s + r, and the parameters add up what all hosts have heard, in whole numbers:
their sum tells which rows came, and not by whom.
"""

import os
import sys
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nim4_jax import sharding
from nim4_jax.process import errors, logs
from nim4_jax.train import loop
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.multihost import hosts
from nim4_jax.train.multihost.preemption import Preemption
from nim4_jax.train.multihost.watchdog import Watchdog
from nim4_jax.train.state import TrainState

ROWS, EVERY, PAUSE = 8, 10, 0.02


class Rows(grain.DatasetIterator):
    """This host's rows of each batch; its state is the step."""

    def __init__(self, rank: int, count: int):
        super().__init__()
        self.step, share = 0, ROWS // count
        self.mine = slice(rank * share, (rank + 1) * share)

    def __next__(self):
        time.sleep(PAUSE)
        rows = (ROWS * self.step + np.arange(ROWS, dtype=np.float32))[self.mine, None]
        self.step += 1
        found = {"index": rows[:, 0].astype(np.int32)}
        for name in ("audio", "phonemes", "tokens"):
            ids = rows if name == "audio" else rows.astype(np.int32)
            found |= {name: ids, f"{name}_mask": np.ones(rows.shape, bool)}
        return found

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]

    def start_prefetch(self):
        """Nothing to fetch."""


RULES = (("a/.*", 1.0), ("b/.*", None))


def step_once(state: TrainState, batch):
    """Add up; the loss is the sum."""
    total = jnp.sum(batch.audio.values)
    moved = jax.tree.map(lambda leaf: leaf + total, state.params["a"])
    params = {**state.params, "a": moved}
    metrics = {"loss": total, "gradient_norm": total}
    return TrainState(state.step + 1, params, state.opt_state), metrics


def train(workdir: str, steps: int, minutes: float, stop: Preemption) -> None:
    """From the last checkpoint to the last step."""
    mesh = sharding.make_mesh()
    cut = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    lies = TrainState(whole, {part: {"kernel": cut} for part in "ab"}, ())

    def begin() -> TrainState:
        step = jnp.zeros((), jnp.int32)
        zeros, still = jnp.zeros((ROWS, 3)), jnp.arange(3.0 * ROWS).reshape(ROWS, 3)
        return TrainState(step, {"a": {"kernel": zeros}, "b": {"kernel": still}}, ())

    with jax.set_mesh(mesh):
        state = jax.jit(begin, out_shardings=lies)()
        data = Rows(*sharding.share_of_rows(mesh))
        checkpoints = Checkpoints(workdir, EVERY, rules=RULES)
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state, data)
        writer = MetricWriter(workdir, int(state.step))
        watchdog = Watchdog(minutes)
        with stop.deferred(), watchdog:
            loop.train(
                state,
                step_once,
                data,
                checkpoints,
                writer,
                loop.LoopConfig(steps, log_every=1),
                loop.Hooks(stop=stop.requested, mark=watchdog.mark),
            )
            checkpoints.close()


def main(_) -> None:
    """As `launch/train.py` begins and ends."""
    with hosts.joined(), Preemption() as stop:
        train(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), stop)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(os.environ["DEVICES"]))
    logs.prepare()
    errors.guard(main)(None)
