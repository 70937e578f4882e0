"""Checkpoints of a run: train state, data iterator and facts in one bundle."""

from __future__ import annotations

from typing import Any

import grain.checkpoint
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nim4_jax.train.state import TrainState
from nim4_jax.types import Params

_FOLDER = "checkpoints"


class Checkpoints:
    """Saves and restores {state, data, meta} under WORKDIR/checkpoints/STEP.

    Orbax writes each step under a temporary name and renames it when complete, so what
    was cut off is never taken for whole.

    Attributes:
        every: steps between two saves.
    """

    def __init__(self, workdir: str, every: int, keep: int = 2):
        self.every = every
        self._manager = ocp.CheckpointManager(
            (epath.Path(workdir) / _FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest_step(self) -> int | None:
        """The last complete step, None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: Any, meta: dict[str, Any]) -> None:
        """Save the state and the iterator that will deliver its next batch."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=grain.checkpoint.CheckpointSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def restore(self, state: TrainState, data: Any) -> TrainState:
        """The latest state, with the shardings of `state`; moves the iterator there.

        Args:
            state: arrays or shapes of the same structure.
            data: iterator of the same data configuration.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._manager.restore(
            self._manager.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                data=grain.checkpoint.CheckpointRestore(data),
            ),
        )
        return restored["state"]

    def param_shapes(self) -> Params:
        """Shapes and dtypes of the parameters in the latest checkpoint.

        Raises:
            ValueError: there is no checkpoint yet.
        """
        step = self._manager.latest_step()
        if step is None:
            raise ValueError("there is no checkpoint yet; train first.")
        folder = self._manager.directory / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(folder).item_metadata.tree["params"]
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
        )

    def read_meta(self) -> dict[str, Any]:
        """The facts of the latest checkpoint."""
        restored = self._manager.restore(
            self._manager.latest_step(),
            args=ocp.args.Composite(meta=ocp.args.JsonRestore()),
        )
        return restored["meta"]

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_step(workdir: str) -> int | None:
    """The last complete checkpoint of a run, None when there is none.

    Only looks: a training run may be writing there. Orbax renames a step's folder to
    its bare number when it is complete.
    """
    folder = epath.Path(workdir) / _FOLDER
    if not folder.exists():
        return None
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    return max(steps, default=None)


def load_params(workdir: str) -> tuple[Params, dict[str, Any]]:
    """Parameters (host arrays) and meta of a run's latest checkpoint.

    Raises:
        ValueError: there is no complete checkpoint in the folder.
    """
    step = latest_step(workdir)
    if step is None:
        raise ValueError(
            f"{workdir} holds no complete checkpoint; name the --workdir of a training "
            "run, or a .safetensors file that `nim4 snapshot` wrote."
        )
    folder = _locate(workdir, step)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        shapes = reader.metadata(folder / "state").item_metadata.tree
        on_host = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes
        )
        arguments = ocp.args.PyTreeRestore(restore_args=on_host)
        state = reader.restore(folder / "state", args=arguments)
    return state["params"], load_meta(workdir, step)


def load_meta(workdir: str, step: int) -> dict[str, Any]:
    """The facts of one checkpoint of a run."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(_locate(workdir, step) / "meta")


def _locate(workdir: str, step: int) -> epath.Path:
    return (epath.Path(workdir) / _FOLDER / str(step)).absolute()
