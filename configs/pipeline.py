r"""The stages in order, each from the last.

python launch/pipeline.py --config=configs/pipeline.py:nano --workdir=runs/nano

`nano` starts stage 1 and the LLM from the snapshots in the package and ends in minutes;
`scratch` is the same model from random weights and takes hours. `ia_sft` shows stage 1
publishing encoders while stages 2 and 3 train on them, and draws what happened:

python launch/pipeline.py --config=configs/pipeline.py:ia_sft --workdir=runs/ia_sft \
    --config.mode=interleaved
"""

from ml_collections import ConfigDict


def entry(
    stage: str,
    *,
    name: str = "",
    group: str = "",
    init_from: str = "",
    overrides: dict | None = None,
) -> ConfigDict:
    """One stage: config file, folder, extra starting points, dotted overrides.

    Neighbours of one group train together: the first publishes encoders, the others
    follow them.
    """
    return ConfigDict(
        {
            "stage": stage,
            "name": name or stage,
            "group": group,
            "init_from": init_from,
            "overrides": tuple((overrides or {}).items()),
        }
    )


def _from_package() -> tuple[ConfigDict, ...]:
    return (
        entry(
            "stage1",
            init_from="package:nano_stage1.safetensors",
            overrides={
                "steps": 30,
                "optimizer.peak_rate": 2e-4,
                "optimizer.warmup_steps": 10,
                "loss.alpha_warmup": 1,
            },
        ),
        entry("stage2", init_from="package:nano_llm.safetensors"),
        entry("stage4"),
    )


def _from_scratch() -> tuple[ConfigDict, ...]:
    # CTC from random weights needs an even segmentation and an easy beginning.
    easy = {
        "steps": 600,
        "loss.views": 1,
        "loss.flat_start": 400,
        "loss.chunks.full_share": 1.0,
        "loss.augment.warp": 0,
        "loss.augment.time_masks": 0,
        "optimizer.peak_rate": 1e-3,
    }
    return (
        entry("warmup"),
        entry("stage1", name="stage1_start", overrides=easy),
        entry("stage1"),
        entry("stage2"),
        entry("stage4"),
    )


def _side_by_side() -> tuple[ConfigDict, ...]:
    # The packaged encoder is nearly done: a high rate moves it.
    stage1 = {
        "steps": 400,
        "checkpoint_every": 20,
        "optimizer.peak_rate": 2e-3,
        "optimizer.warmup_steps": 50,
        "loss.alpha_warmup": 1,
        "publish.from_step": 0,
        "publish.every": 20,
        "publish.threshold": 0.975,
    }
    stage2 = {"steps": 400, "checkpoint_every": 20, "loss.imitate_steps": 300}
    stage3 = {"steps": 300, "follow.min_steps": 60, "follow.last_steps": 100}
    return (
        entry(
            "stage1",
            group="ia_sft",
            init_from="package:nano_stage1.safetensors",
            overrides=stage1,
        ),
        entry(
            "stage2",
            group="ia_sft",
            init_from="package:nano_llm.safetensors",
            overrides=stage2,
        ),
        entry("stage3", group="ia_sft", overrides=stage3),
    )


def get_config(kind: str = "nano") -> ConfigDict:
    """`nano` (from the packaged snapshots), `scratch` or `ia_sft`."""
    kinds = {"nano": _from_package, "scratch": _from_scratch, "ia_sft": _side_by_side}
    if kind not in kinds:
        raise ValueError(f"pipeline {kind!r} is unknown; use one of {sorted(kinds)}.")
    return ConfigDict(
        {
            "size": "nano",
            "stages": kinds[kind](),
            # How stages of one group train: parallel (two processes), interleaved (by
            # turns of `slice` steps, in one) or sequential.
            "mode": "sequential",
            "slice": 100,
        }
    )
