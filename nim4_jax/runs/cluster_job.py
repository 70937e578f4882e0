"""Job descriptions of a stage for Kubernetes (JobSet), XPK and SLURM."""

from __future__ import annotations

import dataclasses
import json
import shlex
import string
from collections.abc import Sequence
from importlib import resources

KINDS = {"jobset": "jobset.yaml", "slurm": "slurm.sh", "xpk": "xpk.sh"}


_V5E, _V5P, _V6E = "tpu-v5-lite-podslice", "tpu-v5p-slice", "tpu-v6e-slice"
_MOUNT = "/bucket"  # where a pod reads the bucket as files


@dataclasses.dataclass(frozen=True)
class Machines:
    """The machines of a job.

    Attributes:
        hosts: processes.
        chips: devices of each.
        kind: of the nodes, for Kubernetes; "" for GPUs.
        topology: of the slice.
        machine: XPK's name of the slice.
    """

    hosts: int
    chips: int
    kind: str = ""
    topology: str = ""
    machine: str = ""


ACCELERATORS = {
    "v5e-16": Machines(4, 4, _V5E, "4x4", "v5litepod-16"),
    "v5e-64": Machines(16, 4, _V5E, "8x8", "v5litepod-64"),
    "v5p-8": Machines(1, 4, _V5P, "2x2x1", "v5p-8"),
    "v5p-32": Machines(4, 4, _V5P, "2x2x4", "v5p-32"),
    "v6e-8": Machines(1, 8, _V6E, "2x4", "v6e-8"),
    "v6e-16": Machines(4, 4, _V6E, "4x4", "v6e-16"),
    "h100-8": Machines(1, 8),
    "h100-16": Machines(2, 8),
    "h100-64": Machines(8, 8),
}


ORIGINS: dict[str, tuple[str, ...]] = {
    "stage1": (),
    "stage2": ("weights/qwen3/model.safetensors", "stage1"),
    "stage3": ("stage2",),
    "stage4": ("stage3",),
    "stage5": ("stage4",),
    "stage6": ("stage5",),
    "phoneme_head": ("stage6",),
}
"""Stage → what it starts from, in the bucket."""


_ROLES = {"stage1": "publish", "stage2": "follow", "stage3": "follow"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One stage on some machines.

    Attributes:
        stage: a key of `ORIGINS`.
        accelerator: a key of `ACCELERATORS`.
        bucket: gs://NAME[/FOLDER], or a folder that all machines share.
        image: of the container; "" on SLURM.
        queue: Kueue's.
        account: Kubernetes service account that may read and write the bucket.
        asynchronous: whether stage 1 publishes its encoders, and 2 and 3 follow it.
        extra: further flags of the training.
    """

    stage: str
    accelerator: str
    bucket: str
    image: str = ""
    queue: str = "multislice-queue"
    account: str = "default"
    asynchronous: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self):
        for name, table in (("stage", ORIGINS), ("accelerator", ACCELERATORS)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"--{name}={getattr(self, name)!r} is unknown; use one of "
                    f"{', '.join(table)}."
                )

    @property
    def machines(self) -> Machines:
        """What it runs on."""
        return ACCELERATORS[self.accelerator]

    def place(self, path: str) -> str:
        """A path in the bucket that is read and written through its interface."""
        return f"{self.bucket.rstrip('/')}/{path}"

    def file(self, path: str) -> str:
        """A path in the bucket that is read as an ordinary file."""
        if not self.bucket.startswith("gs://"):
            return self.place(path)
        _, _, folder = self.bucket.removeprefix("gs://").rstrip("/").partition("/")
        return "/".join(filter(None, (_MOUNT, folder, path)))

    def command(self) -> list[str]:
        """What every host runs."""
        origins = [
            self.file(path) if path.endswith(".safetensors") else self.place(path)
            for path in ORIGINS[self.stage]
        ]
        if self.asynchronous and self.stage == "stage2":
            origins.remove(self.place("stage1"))  # its encoder is the first release
        chosen = {
            "data.sources": repr((self.file("data/train.jsonl"),)),
            "cmvn": self.file("cmvn.json"),
            "tokenizer": self.file("weights/qwen3/tokenizer.json"),
            "init_from": ",".join(origins),
        }
        if self.asynchronous and (role := _ROLES.get(self.stage)):
            chosen[f"{role}.folder"] = self.place("releases")
        tests = repr((self.file("data/test.jsonl"),))
        if self.stage in ("stage1", "phoneme_head"):
            chosen["publish.sources"] = tests
        elif self.stage in ("stage4", "stage5", "stage6"):
            chosen["probe.sources"] = tests
        return [
            "nim4",
            "train",
            f"--config=configs/{self.stage}.py:2b3",
            f"--workdir={self.place(self.stage)}",
            *(f"--config.{key}={value}" for key, value in chosen.items() if value),
            *self.extra,
        ]


def render(job: Job, kind: str = "") -> str:
    """The description of a job.

    Args:
        job: what to run.
        kind: a key of `KINDS`; "" for the usual one of the accelerator.

    Raises:
        ValueError: an unknown kind, or one that the accelerator or the bucket has not.
    """
    machines = job.machines
    kind = kind or ("jobset" if machines.kind else "slurm")
    if kind not in KINDS or (kind == "slurm") == bool(machines.kind):
        raise ValueError(
            f"--kind={kind!r} does not run on {job.accelerator}; TPUs have jobset and "
            "xpk, GPUs slurm."
        )
    if kind != "slurm" and not (job.image and job.bucket.startswith("gs://")):
        raise ValueError(
            f"--bucket={job.bucket!r} and --image={job.image!r}: pods need gs://NAME "
            "and a container image; see nim4_jax/runs/cluster/Dockerfile."
        )
    folder = resources.files("nim4_jax.runs") / "cluster"
    template = string.Template((folder / KINDS[kind]).read_text(encoding="utf8"))
    values = {
        **dataclasses.asdict(job),
        **dataclasses.asdict(machines),
        "name": f"nim4-{job.stage.replace('_', '-')}",
        "bucket_name": job.bucket.removeprefix("gs://").partition("/")[0],
        "mount": _MOUNT,
        "devices": ",".join(map(str, range(machines.chips))),
        "command": _write_command(job.command(), kind),
    }
    return template.substitute(values)


def _write_command(words: Sequence[str], kind: str) -> str:
    """As YAML's list, as lines of a shell, or as one argument of a shell."""
    if kind == "jobset":
        # JSON's strings are YAML's.
        return "\n".join(f"{' ' * 20}- {json.dumps(word)}" for word in words)
    if kind == "xpk":
        return shlex.quote(shlex.join(words))
    return " \\\n  ".join(map(shlex.quote, words))
