"""How hosts find each other, and what they must agree on."""

import jax
import pytest

from nim4_jax.configs import pipeline, stage4
from nim4_jax.process.errors import EXIT_HUNG
from nim4_jax.runs import start
from nim4_jax.train.multihost import hosts

NAMES = (hosts.COORDINATOR, hosts.PROCESSES, hosts.PROCESS)


def set_environment(monkeypatch, *values: str) -> None:
    """NIM4_* as given, "" for unset."""
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)


def test_one_process_needs_nothing(monkeypatch):
    """Nothing set, nothing detected, nothing joined."""
    set_environment(monkeypatch, "", "", "")
    assert hosts.read_environment() == {}
    assert hosts.join() is False


def test_an_explicit_environment_is_read(monkeypatch):
    """As arguments of jax.distributed.initialize."""
    set_environment(monkeypatch, "trainer-0:8476", "16", "3")
    assert hosts.read_environment() == {
        "coordinator_address": "trainer-0:8476",
        "num_processes": 16,
        "process_id": 3,
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            ("a:1", "2", ""),
            "NIM4_COORDINATOR, NIM4_PROCESSES set, but not NIM4_PROCESS",
        ),
        (("", "2", "0"), "but not NIM4_COORDINATOR"),
        (("a", "2", "0"), "expected HOST:PORT"),
        (("a:x", "2", "0"), "expected HOST:PORT"),
        (("a:1", "two", "0"), "NIM4_PROCESSES='two'"),
        (("a:1", "2", "2"), "a smaller number from 0"),
        (("a:1", "2", "-1"), "NIM4_PROCESS='-1'"),
    ],
)
def test_a_wrong_environment_is_named(monkeypatch, values, words):
    """What is missing or cannot be, and what would do."""
    set_environment(monkeypatch, *values)
    with pytest.raises(ValueError) as error:
        hosts.read_environment()
    assert words in str(error.value)


def test_a_pod_that_does_not_know_the_others_does_not_train_alone(monkeypatch):
    """Each of N pods would write the same workdir."""
    set_environment(monkeypatch, "", "", "")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    with (
        pytest.warns(UserWarning, match="kubernetes"),
        pytest.raises(ValueError, match="pod 3 of a Kubernetes job"),
    ):
        hosts.join()


def test_differences_say_who_has_what():
    """Keys, values and hosts; what is equal is left out."""
    told = {
        0: {"config.steps": 10, "config.seed": 0, "version of jax": "0.10.2"},
        1: {"config.steps": 10, "config.seed": 1, "version of jax": "0.10.2"},
        2: {"config.steps": 10, "config.seed": 1},
    }
    text = hosts.compare(told)
    assert "config.seed is 0 on host 0, 1 on hosts 1, 2" in text
    assert 'version of jax is "0.10.2" on hosts 0, 1, "absent" on host 2' in text
    assert "config.steps" not in text


def test_hosts_that_disagree_are_refused(settings, launch, tmp_path):
    """Every host exits with code 2 and names the keys; nothing is written."""
    per_host = [
        {**settings, "seed": seed, "optimizer.peak_rate": 1e-3 * (1 + seed)}
        for seed in range(2)
    ]
    for host in launch("stage1", per_host, tmp_path / "run"):
        assert host.code == 2, host.log
        assert "error: the hosts disagree on the config: " in host.log
        assert "config.seed is 0 on host 0, 1 on host 1" in host.log
        assert (
            "config.optimizer.peak_rate is 0.001 on host 0, 0.002 on host 1" in host.log
        )
        assert "config.steps" not in host.log and "Traceback" not in host.log
    assert not (tmp_path / "run").exists()


def test_a_host_whose_others_do_not_come_says_so(
    settings, launch, tmp_path, monkeypatch
):
    """Within NIM4_JOIN_SECONDS, with an exit code that lets it be tried again."""
    monkeypatch.setenv(hosts.PATIENCE, "3")
    for missing in (0, 1):
        (host,) = launch("stage1", [settings], tmp_path / "run", absent=missing)
        assert host.code == EXIT_HUNG, host.log
        words = (
            ("host 0 at localhost", "does not answer")
            if missing == 0
            else ("not all of the 2 hosts have come",)
        )
        assert all(word in host.log for word in words), host.log


@pytest.mark.long
def test_a_mesh_without_work_for_a_host_is_refused(settings, launch, tmp_path):
    """nano's default is one device."""
    per_host = [{**settings, "mesh": (2, 1, 1)}] * 2
    for host in launch("stage1", per_host, tmp_path / "run"):
        assert host.code == 2, host.log
        assert "takes 2 of 4 devices, and none of host 1" in host.log


def test_the_facts_of_a_run_are_those_that_can_differ(tmp_path):
    """Config by dotted keys, flags, versions, code, and the tokenizer's content."""
    config = stage4.get_config("nano")
    facts = start.describe(config, {"workdir": "runs/x"})
    assert facts["--workdir"] == "runs/x"
    assert facts["config.optimizer.peak_rate"] == config.optimizer.peak_rate
    assert facts["version of jax"] == jax.__version__
    assert facts == start.describe(config, {"workdir": "runs/x"})
    tokenizer = tmp_path / "tokenizer.json"
    config.tokenizer = str(tokenizer)
    seen = set()
    for content in (None, "a", "b"):
        if content:
            tokenizer.write_text(content)
        seen.add(start.describe(config, {})["tokenizer file"])
    assert len(seen) == 3 and facts["tokenizer file"] not in seen
    assert any("cannot be read" in value for value in seen)
    stages = start.describe(pipeline.get_config("nano"), {})["config.stages"]
    assert "stage6" in str(stages)
