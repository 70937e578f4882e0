"""Job descriptions are what Kubernetes, JobSet and SLURM take, of commands that run."""

import os
import re
import shlex
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from nim4_jax.launch import program
from nim4_jax.runs import cluster_job

TPUS = [name for name, machines in cluster_job.ACCELERATORS.items() if machines.kind]
GPUS = [name for name in cluster_job.ACCELERATORS if name not in TPUS]
BUCKET, IMAGE = "gs://speech/nim4", "registry.example/nim4-jax:1"

_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}


def closed(required: list[str], **properties: dict) -> dict:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


COUNT = {"type": "integer", "minimum": 0}
STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
REASONS = (
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
)
RULE = closed(
    ["name", "action"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={
        "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    },
    onJobFailureReasons={"type": "array", "items": {"enum": list(REASONS)}},
    targetReplicatedJobs=STRINGS,
)
REPLICATED = closed(
    ["name", "template"],
    name=_NAME,
    replicas=COUNT,
    template=closed(["spec"], metadata={"type": "object"}, spec={"type": "object"}),
)
JOBSET = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed(
        ["name"],
        name={**_NAME, "maxLength": 40},
        labels={"type": "object", "additionalProperties": {"type": "string"}},
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    spec=closed(
        ["replicatedJobs"],
        failurePolicy=closed(
            [],
            maxRestarts=COUNT,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
            rules={"type": "array", "items": RULE},
        ),
        replicatedJobs={"type": "array", "items": REPLICATED, "minItems": 1},
    ),
)
"""What we use of the custom resource's schema, closed: a misspelt key is an error."""

SLURM = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]?",
    "exclusive": None,
    "time": r"(\d+-)?\d\d:\d\d:\d\d",
    "requeue": None,
    "signal": r"(B:)?[A-Z\d]+@\d+",
    "open-mode": r"append|truncate",
    "output": r"\S+",
}
"""Options of sbatch that we use, with the form of their values."""


def check_jobset(text: str) -> dict:
    """A JobSet, whose jobs are Jobs to Kubernetes."""
    (found,) = yaml.safe_load_all(text)
    jsonschema.validate(found, JOBSET)
    for replicated in found["spec"]["replicatedJobs"]:
        name = f"{found['metadata']['name']}-{replicated['name']}"
        made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
        made |= replicated["template"]
        kubernetes_validate.validate(made, "1.30", strict=True)
    return found


def check_command(words: list[str]) -> None:
    """Flags that `nim4 train` has, and keys that its config has."""
    assert words[:2] == ["nim4", "train"]
    arguments = ["train", *(program.find_config(word) for word in words[2:])]
    known = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=known)
    with pytest.MonkeyPatch.context() as patch:
        # Overrides become flags where ml_collections finds them.
        patch.setattr(sys, "argv", arguments)
        config_flags.DEFINE_config_file("config", lock_config=True, flag_values=known)
        assert known(arguments) == ["train"]
    assert known.config.is_locked
    assert known.workdir.endswith(f"/{known.config.stage}")
    assert "2b3" in words[2] and known.config.model.llm.width == 2048


def read_container(found: dict) -> dict:
    """The one container of the one job."""
    (replicated,) = found["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("stage", cluster_job.ORIGINS)
def test_each_stage_has_a_jobset(stage, asynchronous):
    """Valid, with a command that parses."""
    made = cluster_job.Job(stage, "v5e-16", BUCKET, IMAGE, asynchronous=asynchronous)
    found = check_jobset(cluster_job.render(made))
    container = read_container(found)
    assert container["command"] == made.command()
    check_command(container["command"])


@pytest.mark.parametrize("accelerator", TPUS)
def test_a_slice_gets_the_pods_that_it_has(accelerator):
    """Chips of the topology = hosts × chips of each."""
    made = cluster_job.Job("stage4", accelerator, BUCKET, IMAGE)
    found = check_jobset(cluster_job.render(made))
    (replicated,) = found["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    chips = int(read_container(found)["resources"]["limits"]["google.com/tpu"])
    selector = spec["template"]["spec"]["nodeSelector"]
    sides = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
    total = 1
    for side in sides:
        total *= side
    assert spec["completions"] == spec["parallelism"] == made.machines.hosts
    assert spec["completions"] * chips == total


def test_wrong_input_alone_is_not_tried_again():
    """Exit code 2 fails the set; an interrupted or hung run starts again."""
    found = check_jobset(
        cluster_job.render(cluster_job.Job("stage2", "v5e-16", BUCKET, IMAGE))
    )
    (replicated,) = found["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    (pod_rule,) = spec["podFailurePolicy"]["rules"]
    assert pod_rule["action"] == "FailJob"
    assert pod_rule["onExitCodes"]["operator"] == "In"
    assert pod_rule["onExitCodes"]["values"] == [2]
    assert pod_rule["onExitCodes"]["containerName"] == read_container(found)["name"]
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] >= 1
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_the_schemas_refuse_what_is_misspelt():
    """A JobSet's key, a Job's key, a volume's type."""
    text = cluster_job.render(cluster_job.Job("stage2", "v5e-16", BUCKET, IMAGE))
    for right, wrong, error in (
        ("maxRestarts", "maxRestart", jsonschema.ValidationError),
        ("FailJobSet", "FailSet", jsonschema.ValidationError),
        ("backoffLimit", "backofLimit", kubernetes_validate.ValidationError),
        (
            "containerPort: 8471",
            "containerPort: x",
            kubernetes_validate.ValidationError,
        ),
    ):
        assert right in text
        with pytest.raises(error):
            check_jobset(text.replace(right, wrong))


def test_an_asynchronous_pair_shares_one_folder():
    """What stage 1 publishes stages 2 and 3 follow, and 2 does not begin from 1's."""
    commands = {
        stage: cluster_job.Job(
            stage, "v5e-16", BUCKET, IMAGE, asynchronous=True
        ).command()
        for stage in ("stage1", "stage2", "stage3", "stage4")
    }
    folder = f"{BUCKET}/releases"
    assert f"--config.publish.folder={folder}" in commands["stage1"]
    for stage in ("stage2", "stage3"):
        assert f"--config.follow.folder={folder}" in commands[stage]
        assert f"{BUCKET}/stage1" not in " ".join(commands[stage])
    assert folder not in " ".join(commands["stage4"])


def read_slurm(text: str) -> tuple[dict[str, str | None], list[str]]:
    """(directives, words of the command behind srun's flags)."""
    found: dict[str, str | None] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            parsed = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert parsed, line
            found[parsed[1]] = parsed[2]
    (called,) = re.findall(r"^srun (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    words = shlex.split(called.replace("\\\n", ""))
    return found, words[words.index("nim4") :]


@pytest.mark.parametrize("stage", cluster_job.ORIGINS)
@pytest.mark.parametrize("accelerator", GPUS)
def test_each_stage_has_a_slurm_script(stage, accelerator):
    """Known directives, a command that parses, one process a node with all GPUs."""
    made = cluster_job.Job(
        stage, accelerator, "/shared/nim4", extra=("--config.seed=1",)
    )
    text = cluster_job.render(made)
    directives, words = read_slurm(text)
    for name, value in directives.items():
        form = SLURM[name]
        assert value is None if form is None else re.fullmatch(form, value or ""), name
    assert words == made.command() and words[-1] == "--config.seed=1"
    check_command(words)
    assert int(directives["nodes"]) == made.machines.hosts
    (devices,) = re.findall(r"^export JAX_LOCAL_DEVICE_IDS=(.*)$", text, re.MULTILINE)
    assert len(devices.split(",")) == int(directives["gpus-per-node"])


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, 0),
        (2, 0, 0),
        (75, 0, 1),
        (75, 100, 1),
        (76, 0, 1),
        (1, 3, 1),
        (1, 100, 0),
    ],
)
def test_slurm_runs_again_what_was_interrupted(tmp_path, code, restarts, again):
    """The script as bash runs it; `srun` and `scontrol` stand for the cluster's."""
    script = tmp_path / "job.sh"
    script.write_text(
        cluster_job.render(cluster_job.Job("stage2", "h100-8", "/shared/nim4"))
    )
    for name, body in (("srun", f"exit {code}"), ("scontrol", 'echo "$@" >> asked')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(script)],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_RESTART_COUNT": str(restarts),
        },
    )
    assert done.returncode == code
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == "requeue 17\n" * again


def test_xpk_gets_the_same_command():
    """In one argument of the shell."""
    made = cluster_job.Job("stage6", "v5e-16", BUCKET, IMAGE)
    text = cluster_job.render(made, "xpk").replace("\\\n", "")
    words = shlex.split(text, comments=True)
    assert words[:3] == ["xpk", "workload", "create"]
    (command,) = [w.partition("=")[2] for w in words if w.startswith("--command=")]
    assert shlex.split(command) == made.command()
    assert "--restart-on-exit-codes=1,75,76" in words


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"stage": "stage9"}, "", "use one of stage1, stage2"),
        ({"accelerator": "v7"}, "", "use one of v5e-16"),
        ({"accelerator": "h100-8"}, "jobset", "GPUs slurm"),
        ({}, "slurm", "TPUs have jobset and xpk"),
        ({}, "helm", "TPUs have jobset and xpk"),
        ({"bucket": "/shared"}, "", "pods need gs://NAME"),
        ({"image": ""}, "", "a container image"),
    ],
)
def test_what_cannot_run_is_refused(given, kind, words):
    """With what would do."""
    values = {"stage": "stage1", "accelerator": "v5e-16", "bucket": BUCKET}
    with pytest.raises(ValueError, match=re.escape(words)):
        cluster_job.render(cluster_job.Job(**{**values, "image": IMAGE, **given}), kind)
