"""`nim4 train --compile_only` for TPUs that are not here."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from nim4_jax import sharding
from nim4_jax.aot.compilation import Report, from_json
from nim4_jax.configs import stage4
from nim4_jax.model_files import loading
from nim4_jax.models.asr import param_shapes
from nim4_jax.train import placement

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]

LOAD = ("--rows=8", "--seconds=4", "--tokens=16")


def compile_only(stage: str, topology: str, *flags: str) -> subprocess.CompletedProcess:
    """The command, as a user gives it."""
    command = [
        *(sys.executable, "-m", "nim4_jax.launch.cli", "train", "--compile_only"),
        f"--config=configs/{stage}.py:nano",
        "--config.mesh=()",
        "--config.model.policy.compute=bfloat16",
        f"--topology={topology}",
        *flags,
    ]
    # Eight CPU devices are the tests', not the user's.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )


def read(path) -> list[Report]:
    return [from_json(row) for row in json.loads(path.read_text(encoding="utf8"))]


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> Report:
    """Stage 4 on four chips, parameters cut over two of them."""
    out = tmp_path_factory.mktemp("aot") / "report.json"
    made = compile_only("stage4", "v5e:2x2", "--mesh=2,2,1", *LOAD, f"--out={out}")
    assert made.returncode == 0, made.stderr
    assert "GiB: peak" in made.stdout
    return read(out)[0]


def test_memory_by_kind(joint):
    """Parameters as their shards, moments twice what trains; and it adds up."""
    config = loading.build_model_config(stage4.get_config("nano").model.to_dict())
    axes = placement.find_axes(config)
    expected = sum(
        np.prod(shape) / (2 if "fsdp" in sharding.to_spec(axes[path]) else 1)
        for path, shape in param_shapes(config).items()
        if not path.startswith(("ctc_head", "phoneme_reader"))
    )
    memory = joint.memory
    assert memory.parameters == pytest.approx(4 * expected / 2**30, rel=1e-6)
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=1e-3)
    whole = memory.parameters + memory.optimizer + memory.batch + memory.activations
    # Arrays as small as nano's are padded to whole tiles.
    assert memory.peak == pytest.approx(whole + memory.program, rel=0.2)
    assert memory.peak < memory.available == 15.75


def test_operations_and_traffic(joint):
    """The LLM and the encoder are counted; gathered parameters and summed gradients."""
    assert joint.flops.keys() == {"encoder", "adaptor", "llm", "unembed"}
    seconds = [joint.step_seconds[share] for share in ("0.3", "0.5")]
    assert seconds[0] / seconds[1] == pytest.approx(5 / 3)
    assert joint.traffic["all-reduce"]["bytes"] > 0
    moved = sum(one["bytes"] for one in joint.traffic.values()) / 2**30
    assert moved > joint.memory.parameters
    assert joint.audio_seconds == 8 * 4


def test_a_batch_that_does_not_fit():
    """The compiler's words, and what would help."""
    flags = ("--mesh=1,1,1", "--rows=65536", "--seconds=15", "--tokens=256")
    made = compile_only("stage4", "v5e:2x2", *flags)
    assert made.returncode == 2
    last = made.stderr.strip().splitlines()[-1]
    assert "65536 rows" in last and "hbm" in last and "--search" in last


def test_reinforcement_learning_is_two_programs(tmp_path):
    """The rollout, and the step that learns from judged samples."""
    out = tmp_path / "report.json"
    made = compile_only("stage6", "v5e:2x2", "--mesh=4,1,1", *LOAD, f"--out={out}")
    assert made.returncode == 0, made.stderr
    step, rollout = read(out)
    assert (step.program, rollout.program) == ("train_step", "rollout")
    assert rollout.memory.optimizer == 0.0 < step.memory.optimizer
    assert sum(rollout.flops.values()) < sum(step.flops.values())


def test_only_the_data_axis_crosses_slices(tmp_path):
    """Two slices: fsdp fills each of them, unless the mesh asks for what cannot be."""
    out = tmp_path / "report.json"
    made = compile_only("stage4", "2xv5e-4", *LOAD, f"--out={out}")
    assert made.returncode == 0, made.stderr
    report = read(out)[0]
    assert report.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    assert report.topology == "2xv5e:2x2"
    made = compile_only("stage4", "2xv5e-4", "--mesh=1,8,1", *LOAD)
    assert made.returncode == 2
    assert "2 slices" in made.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("topology", "flags", "message"),
    [
        ("v5e:3x5", (), "libtpu knows no topology v5e:3x5"),
        ("v5e:2x2", ("--mesh=8,1,1",), "wants 8 devices, there are 4"),
        ("v5e:2x2", ("--mesh=1,1,4",), "'tensor' has size 4.*would do"),
        ("v5e:2x2", ("--mesh=4,1,1", "--rows=6"), "6 rows do not divide over the 4"),
    ],
)
def test_what_cannot_be(topology, flags, message):
    """One line, exit code 2."""
    made = compile_only("stage4", topology, *flags)
    assert made.returncode == 2
    assert re.search(message, made.stderr.strip().splitlines()[-1])
