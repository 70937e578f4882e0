r"""The stages in order, each from the last.

python launch/pipeline.py --config=configs/pipeline.py:nano --workdir=runs/nano

`nano` starts stage 1 and the LLM from the snapshots in the package and ends in minutes;
`scratch` is the same model from random weights and takes hours.
"""

from ml_collections import ConfigDict


def entry(
    stage: str, *, name: str = "", init_from: str = "", overrides: dict | None = None
) -> ConfigDict:
    """One stage: config file, folder, extra starting points, dotted overrides."""
    return ConfigDict(
        {
            "stage": stage,
            "name": name or stage,
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


def get_config(kind: str = "nano") -> ConfigDict:
    """`nano` (from the packaged snapshots) or `scratch`."""
    kinds = {"nano": _from_package, "scratch": _from_scratch}
    if kind not in kinds:
        raise ValueError(f"pipeline {kind!r} is unknown; use one of {sorted(kinds)}.")
    return ConfigDict({"size": "nano", "stages": kinds[kind]()})
