"""Eight GRPO steps of the tiny model in a folder: `killed_run.py FOLDER [CALL]`.

With CALL, the process kills itself when its judge is called for the CALL-th time: in
the middle of a step, the samples drawn and nothing learnt from them.
"""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from nim4_jax import sharding
from nim4_jax.decode.programs import Budget
from nim4_jax.models.asr import Asr
from nim4_jax.rl import alarm
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.worker import RolloutWorker
from nim4_jax.train import loop, optim
from nim4_jax.train import state as train_state
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.step import make_train_step

STEPS, EVERY, SAMPLES, WANTED = 8, 3, 3, 7


class Count:
    """Rewards one token; kills its process at the call `last`."""

    class decoder:
        end_id = 1

    def __init__(self, folder: str, last: int):
        self.folder, self.left = folder, last

    def __call__(self, ids, mask, said, said_mask):
        self.left -= 1
        if self.left == 0:
            while checkpoint.latest_step(self.folder) != EVERY:
                time.sleep(0.01)  # it is written beside the steps
            os.kill(os.getpid(), signal.SIGKILL)
        hits = np.sum((np.asarray(ids) == WANTED) & np.asarray(mask), axis=1)
        return hits.reshape(len(said), -1).astype(np.float32)


def load_tiny():
    """tests/tiny_training.py; tests are no package."""
    path = Path(__file__).parents[1] / "tiny_training.py"
    spec = importlib.util.spec_from_file_location("tiny_training", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(folder: str, call: int) -> None:
    """Train to the last step, from the folder's checkpoint where there is one."""
    tiny = load_tiny()
    loss = Grpo(
        tiny.PROMPT,
        Count(folder, call),
        steps=STEPS,
        samples=SAMPLES,
        budget=Budget(first=3, per_second=4.0, most=5),
    )
    rules = (("(reference|cmvn)/.*", None), (".*", 1.0))
    recipe = Recipe(loss, rules, OptimizerConfig(1e-2, 1), STEPS, reference=True)
    tx = optim.make_optimizer(recipe.optimizer, rules, STEPS)
    params = jax.tree.map(jax.numpy.asarray, tiny.make_params(recipe))
    state = train_state.init_state(
        train_state.add_reference(params, recipe), recipe, tx
    )
    state = sharding.replicate(state)
    data = tiny.make_data()
    checkpoints = Checkpoints(folder, EVERY, rules=rules)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state, data)
    print("from step", int(state.step), flush=True)
    writer = MetricWriter(folder, int(state.step))
    state = loop.train(
        state,
        make_train_step(Asr(tiny.CONFIG), recipe, tx),
        data,
        checkpoints,
        writer,
        loop.LoopConfig(STEPS, log_every=1),
        loop.Hooks(
            check=alarm.choose_check(loss, tiny.CONFIG.policy),
            prepare=RolloutWorker(Asr(tiny.CONFIG), recipe).prepare,
        ),
    )
    checkpoints.close()
    writer.close()
    flat = optim.flatten(jax.device_get(state.params))
    np.savez(
        Path(folder, "last.npz"), **{k.replace("/", "|"): v for k, v in flat.items()}
    )


if __name__ == "__main__":
    with jax.set_mesh(sharding.make_mesh((1, 1, 1))):
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
