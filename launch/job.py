"""Write the job description of a stage for a cluster.

nim4 job --stage=stage2 --accelerator=v5e-16 --bucket=gs://NAME --image=IMAGE > job.yaml
nim4 job --stage=stage1,stage3 --asynchronous --accelerator=v5e-16 --bucket=… --image=…
nim4 job --stage=stage2 --accelerator=h100-16 --bucket=/shared/nim4 > job.sh

TPUs get a Kubernetes JobSet (--kind=xpk: the same by XPK), GPUs a SLURM script. All
paths are under the bucket, which may be a folder that all machines share:

    data/train.jsonl, data/test.jsonl    manifests, beside their audio
    cmvn.json                            nim4 cmvn
    weights/                             nim4 convert
    stage1 … stage6, phoneme_head        workdirs
    releases                             encoders, with --asynchronous

What stands behind `--` is passed on to training: `-- --config.micro_batches=2`.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import app, flags

from nim4_jax.launch import program
from nim4_jax.runs import cluster_job


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list(
        "stage", None, f"Stages, by commas: {', '.join(cluster_job.ORIGINS)}."
    )
    flags.DEFINE_string(
        "accelerator", None, f"One of {', '.join(cluster_job.ACCELERATORS)}."
    )
    flags.DEFINE_string("bucket", None, "gs://NAME[/FOLDER], or a shared folder.")
    flags.DEFINE_string("image", "", "Container image.")
    flags.DEFINE_string(
        "kind", "", f"One of {', '.join(cluster_job.KINDS)}; by the accelerator."
    )
    flags.DEFINE_string("queue", cluster_job.Job.queue, "Kueue's queue.")
    flags.DEFINE_string(
        "account", cluster_job.Job.account, "Kubernetes service account."
    )
    flags.DEFINE_bool(
        "asynchronous", False, "Stage 1 publishes encoders, stages 2 and 3 follow it."
    )


def main(argv: Sequence[str]) -> None:
    """Entry point of `launch/job.py` and `nim4 job`."""
    given = flags.FLAGS
    if not given.stage or not given.accelerator or not given.bucket:
        raise app.UsageError("--stage, --accelerator and --bucket are needed.")
    jobs = [
        cluster_job.Job(
            stage,
            given.accelerator,
            given.bucket,
            given.image,
            given.queue,
            given.account,
            given.asynchronous,
            tuple(argv[1:]),
        )
        for stage in given.stage
    ]
    if len(jobs) > 1 and not jobs[0].machines.kind:
        raise ValueError("a SLURM script is of one stage; write one for each --stage.")
    between = "---\n" if given.kind != "xpk" else "\n"
    print(between.join(cluster_job.render(job, given.kind) for job in jobs), end="")


if __name__ == "__main__":
    program.launch(main, define_flags)
