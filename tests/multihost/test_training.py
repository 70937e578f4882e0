"""Two hosts train as one process with as many devices does; host 0 alone writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

from nim4_jax.configs import stage1, stage3, stage4, stage6
from nim4_jax.runs import training
from nim4_jax.train import optim
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.metrics import read_metrics
from nim4_jax.train.releases.store import read_index

STAGES = {"stage1": stage1, "stage3": stage3, "stage4": stage4, "stage6": stage6}
TOKENS = {"data.max_tokens": (16,), "probe.every": 0}
EXTRA: dict[str, dict[str, Any]] = {
    "stage1": {"loss.alpha_warmup": 2},
    "stage4": TOKENS,
    "stage6": TOKENS | {"loss.samples": 2, "loss.budget.most": 4},
}


def run_alone(stage: str, settings: dict[str, Any], workdir: Path) -> None:
    """The same run in this process, on the first of its devices."""
    config = STAGES[stage].get_config("nano")
    with config.unlocked():
        config.update_from_flattened_dict(settings)
    config.mesh = settings["mesh"]
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    training.run(ConfigDict(config).lock(), str(workdir))


def read_metric(workdir: Path, name: str) -> list[float]:
    """Of every step."""
    return [row[name] for row in read_metrics(str(workdir)) if name in row]


def check_equal(together: Path, alone: Path) -> None:
    """Losses, gradients and parameters to 1e-5."""
    for name in ("train/loss", "train/gradient_norm"):
        got, expected = read_metric(together, name), read_metric(alone, name)
        assert len(expected) >= 3
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    got, expected = (
        optim.flatten(checkpoint.load_params(str(workdir))[0])
        for workdir in (together, alone)
    )
    assert set(got) == set(expected) and len(got) > 40
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, 1e-5, 1e-5, err_msg=name)


def check_files(hosts: list[Any], workdir: Path) -> None:
    """Metrics and logs are host 0's; checkpoints are everybody's."""
    own = [
        [path for path in host.written if Path(path).is_relative_to(workdir)]
        for host in hosts
    ]
    assert {str(workdir / "metrics.jsonl"), str(workdir / "skipped.json")} <= set(
        own[0]
    )
    shared = str(workdir / "checkpoints")
    assert not [path for path in own[1] if not path.startswith(shared)]
    assert "step 3 reached" in hosts[0].log and "/3 [" in hosts[0].log
    assert " I1" not in hosts[1].log and "/3 [" not in hosts[1].log


def train_both(
    stage: str, mesh: tuple[int, ...], settings: dict[str, Any], launch, folder: Path
) -> tuple[list[Any], Path, Path]:
    """(what two hosts did, their workdir, the workdir of one process)."""
    settings = {**settings, **EXTRA.get(stage, {}), "mesh": mesh}
    together, alone = folder / "together", folder / "alone"
    hosts = launch(stage, [settings] * 2, together)
    assert [host.code for host in hosts] == [0, 0], [h.log[-3_000:] for h in hosts]
    run_alone(stage, settings, alone)
    return hosts, together, alone


@pytest.mark.long
def test_two_hosts_train_as_one_process(settings, launch, tmp_path):
    """Stage 4, rows and parameters over both hosts."""
    hosts, together, alone = train_both("stage4", (2, 2, 1), settings, launch, tmp_path)
    check_equal(together, alone)
    check_files(hosts, together)
    for first, second in zip(*(host.rows[0][:3] for host in hosts), strict=True):
        assert len(first) == len(second) == 4 and not set(first) & set(second)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["stage1", "stage4", "stage6"])
@pytest.mark.parametrize("mesh", [(4, 1, 1), (1, 2, 2), (1, 1, 4)])
def test_any_stage_trains_on_two_hosts(stage, mesh, settings, launch, tmp_path):
    """Also where the tensor axis crosses the hosts: both then load the same rows."""
    hosts, together, alone = train_both(stage, mesh, settings, launch, tmp_path)
    check_equal(together, alone)
    check_files(hosts, together)


@pytest.mark.long
def test_encoders_are_published_and_followed_by_two_hosts(settings, launch, tmp_path):
    """What two hosts publish two others take; one process does the same."""
    mesh = {"mesh": (2, 2, 1)}
    releases = [tmp_path / name for name in ("together", "alone")]
    publish = {"publish.from_step": 0, "publish.every": 1, "publish.threshold": 1.0}
    heard = {"publish.sources": settings["data.sources"]}
    first = {**settings, **mesh, **EXTRA["stage1"], **publish, **heard}
    folders = [{"publish.folder": str(folder / "releases")} for folder in releases]
    hosts = launch("stage1", [first | folders[0]] * 2, releases[0] / "stage1")
    assert [host.code for host in hosts] == [0, 0], hosts[0].log[-3_000:]
    run_alone("stage1", first | folders[1], releases[1] / "stage1")
    published = [read_index(str(folder / "releases")) for folder in releases]
    assert [r.step for r in published[0]] == [r.step for r in published[1]]
    assert len(published[0]) > 1 and published[0][-1].final
    assert not any("releases" in path for path in hosts[1].written)

    follow = {"follow.min_steps": 1, "follow.last_steps": 1, "follow.poll_seconds": 0.1}
    second = {**settings, **mesh, **EXTRA["stage4"], **follow, "checkpoint_every": 1}
    followed = {"follow.folder": str(releases[0] / "releases")}
    hosts = launch("stage3", [second | followed] * 2, releases[0] / "stage3")
    assert [host.code for host in hosts] == [0, 0], hosts[0].log[-3_000:]
    run_alone("stage3", second | followed, releases[1] / "stage3")
    check_equal(releases[0] / "stage3", releases[1] / "stage3")
