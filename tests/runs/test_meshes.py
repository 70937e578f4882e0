"""Which mesh a run gets by its devices: of any kind, in slices or nodes."""

import dataclasses

import jax
import pytest

from nim4_jax import sharding
from nim4_jax.configs import base, stage1, stage4
from nim4_jax.runs import meshes


@dataclasses.dataclass(frozen=True)
class Device:
    """What the choice looks at."""

    device_kind: str
    platform: str
    process_index: int
    slice_index: int = 0


@pytest.fixture
def shapes(monkeypatch):
    """The sizes that are asked for; such devices are not here to make a mesh of."""
    asked = []

    def make(sizes, devices, slices):
        asked.append((tuple(sizes), slices))

    monkeypatch.setattr(sharding, "make_mesh", make)
    return asked


def of_tpus(count: int, slices: int = 1) -> list[Device]:
    each = count // slices
    return [Device("TPU v5 lite", "tpu", n // 4, n // each) for n in range(count)]


def of_gpus(nodes: int, by_node: bool, linked: bool = True) -> list[Device]:
    return [
        Device(
            "NVIDIA H100 80GB HBM3",
            "gpu",
            number // 8 if by_node else number,
            number // 8 if linked else 0,
        )
        for number in range(8 * nodes)
    ]


@pytest.mark.parametrize(
    ("devices", "sizes", "slices"),
    [
        (of_tpus(16), (1, 16, 1), 1),
        (of_tpus(32, slices=2), (2, 16, 1), 2),
        (of_gpus(2, by_node=True), (2, 8, 1), 1),
        (of_gpus(2, by_node=True, linked=False), (2, 8, 1), 1),
        (of_gpus(2, by_node=False), (2, 8, 1), 1),
        (of_gpus(2, by_node=False, linked=False), (1, 16, 1), 1),
    ],
)
def test_parameters_are_cut_within_a_slice_or_node(shapes, devices, sizes, slices):
    """Only the data axis crosses what is slow, whatever the processes are."""
    meshes.choose((), stage4.get_config("2b3").meshes.to_dict(), devices)
    assert shapes == [(sizes, slices)]


def test_the_encoder_alone_is_whole_where_it_fits(shapes):
    """Stage 1 on H100s exchanges gradients and nothing else."""
    meshes.choose((), stage1.get_config("2b3").meshes.to_dict(), of_gpus(1, True))
    assert shapes == [((8, 1, 1), 1)]


def test_what_the_config_wants_comes_first(shapes):
    """Also across nodes."""
    meshes.choose((1, 16, 1), base.CUT_MESHES, of_gpus(2, True))
    assert shapes == [((1, 16, 1), 1)]


def test_unknown_devices_hold_everything():
    """CPUs, say."""
    mesh = meshes.choose((), base.CUT_MESHES, jax.devices())
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
