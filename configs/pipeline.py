r"""The stages in order, each from the last.

python launch/pipeline.py --config=configs/pipeline.py:nano --workdir=runs/nano

`nano` runs all seven stages, stage 1 and the LLM from the snapshots in the package;
`demo` is the short way that `make demo` takes: stages 1, 2 and 4. `scratch` is the same
model from random weights and takes hours. `ia_sft` shows stage 1 publishing encoders
while stages 2 and 3 train on them, and draws what happened:

python launch/pipeline.py --config=configs/pipeline.py:ia_sft --workdir=runs/ia_sft \
    --config.mode=interleaved
"""

from ml_collections import ConfigDict

_ENCODER = "package:nano_stage1.safetensors"
_LLM = "package:nano_llm.safetensors"


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


def _short() -> tuple[ConfigDict, ...]:
    return (
        entry(
            "stage1",
            init_from=_ENCODER,
            overrides={
                "steps": 30,
                "optimizer.peak_rate": 2e-4,
                "optimizer.warmup_steps": 10,
                "loss.alpha_warmup": 1,
            },
        ),
        entry("stage2", init_from=_LLM),
        entry("stage4"),
    )


def _all_seven() -> tuple[ConfigDict, ...]:
    return (
        *_asynchronous(stage1_steps=160, stage2_steps=800, stage3_steps=200),
        entry("stage4", overrides={"steps": 200}),
        entry("stage5", overrides={"steps": 150}),
        entry("stage6", overrides={"steps": 60}),
        entry("phoneme_head", overrides={"steps": 100}),
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
    # Copying from the prompt is learnt where nothing else helps.
    copying = {
        "steps": 800,
        "optimizer.final_share": 0.5,
        "data.open_names": 1.0,
        "data.hints.p_keyword": 1.0,
        "data.hints.p_none": 0.0,
        "data.hints.p_misleading": 0.0,
        "data.hints.extra": 0,
        "data.max_phonemes": (20,),
        "loss.corrupt": 0.5,
    }
    plain = {"data.open_names": 0.0, "data.hints": None}
    return (
        entry("warmup", name="warmup_texts", overrides=plain),
        entry("warmup", name="warmup_names", overrides=copying),
        entry("warmup"),
        entry("stage1", name="stage1_start", overrides=easy),
        entry("stage1"),
        entry("stage2"),
        entry("stage4"),
    )


def _asynchronous(
    stage1_steps: int = 400, stage2_steps: int = 400, stage3_steps: int = 300
) -> tuple[ConfigDict, ...]:
    """Stage 1 publishes, stages 2 and 3 follow."""
    # The packaged encoder is nearly done: a high rate moves it.
    stage1 = {
        "steps": stage1_steps,
        "checkpoint_every": 20,
        "optimizer.peak_rate": 2e-3,
        "optimizer.warmup_steps": 50,
        "loss.alpha_warmup": 1,
        "publish.from_step": 0,
        "publish.every": 20,
        "publish.threshold": 0.975,
    }
    stage2 = {
        "steps": stage2_steps,
        "checkpoint_every": 20,
        "loss.imitate_steps": stage2_steps * 3 // 4,
    }
    stage3 = {
        "steps": stage3_steps,
        "follow.min_steps": stage3_steps // 5,
        "follow.last_steps": stage3_steps // 3,
    }
    group = {"group": "ia_sft"}
    return (
        entry("stage1", init_from=_ENCODER, overrides=stage1, **group),
        entry("stage2", init_from=_LLM, overrides=stage2, **group),
        entry("stage3", overrides=stage3, **group),
    )


def get_config(kind: str = "nano") -> ConfigDict:
    """`nano` or `demo` (from the packaged snapshots), `scratch` or `ia_sft`."""
    kinds = {
        "nano": _all_seven,
        "demo": _short,
        "scratch": _from_scratch,
        "ia_sft": _asynchronous,
    }
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
