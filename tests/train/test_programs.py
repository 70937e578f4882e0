"""Shapes that are known beforehand are compiled before the first step."""

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax import sharding
from nim4_jax.train import loop
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.programs import StepPrograms
from nim4_jax.train.state import TrainState


def make_step(traced: list[int]):
    """Adds up the audio; notes the width of each batch that it is traced for."""

    def step(state: TrainState, batch):
        traced.append(batch.audio.values.shape[1])
        total = jnp.sum(batch.audio.values)
        params = jax.tree.map(lambda leaf: leaf + total, state.params)
        metrics = {"loss": total, "gradient_norm": total}
        return TrainState(state.step + 1, params, state.opt_state), metrics

    return step


def begin() -> TrainState:
    """Step 0."""
    return TrainState(jnp.zeros((), jnp.int32), {"a": jnp.zeros(())}, ())


def test_a_known_shape_is_not_compiled_again(tiny):
    """On one device and on a mesh; the numbers are those of the step."""
    batches = [tiny.make_batch(0, rows=8, samples=size) for size in (1_600, 3_200, 800)]
    for mesh in (None, sharding.make_mesh((8, 1, 1))):
        with jax.set_mesh(mesh or sharding.make_mesh((1, 1, 1))):
            traced, told = [], []
            state = sharding.replicate(begin())
            programs = StepPrograms(make_step(traced), state)
            shapes = [sharding.describe_batch(batch) for batch in batches[:2]]
            programs.compile_all(state, [*shapes, shapes[0]], told.append)
            assert (traced, programs.count(), len(told)) == ([1_600, 3_200], 2, 4)
            for batch in batches * 2:
                state, metrics = programs(state, sharding.put_batch(batch))
                expected = np.sum(batch.audio.values)
                np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
            assert (traced, programs.count()) == ([1_600, 3_200, 800], 3)
            assert int(state.step) == 6


def test_a_run_compiles_before_its_first_batch(tiny, tmp_path, log):
    """Also where no mesh was entered; what is measured as compilation counts it."""
    traced, seen = [], []
    state, data = begin(), tiny.make_data()
    checkpoints, writer = Checkpoints(str(tmp_path), 10), MetricWriter(str(tmp_path))
    loop.train(
        state,
        make_step(traced),
        data,
        checkpoints,
        writer,
        loop.LoopConfig(
            2, ahead=[tiny.make_arrays(0), tiny.make_arrays(0, samples=800)]
        ),
        loop.Hooks(
            check=lambda step, values, arrays: seen.append(list(traced)),
            mark=lambda step, phase: log.append(f"{step} {phase}"),
        ),
    )
    checkpoints.close()
    writer.close()
    assert seen == [[tiny.SAMPLES, 800]] * 2
    said = [line for line in log if "compiled for 2 shapes" in line]
    assert said and log.index(said[0]) < log.index("1 waiting for data")
