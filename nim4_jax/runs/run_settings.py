"""The settings of a run as frozen dataclasses, built from its ConfigDict."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from ml_collections import ConfigDict

from nim4_jax import settings
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.pipeline.text_pipeline import TextConfig
from nim4_jax.model_files import loading
from nim4_jax.models.asr import AsrConfig
from nim4_jax.rl.judge import Judge
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.rewards import RewardConfig
from nim4_jax.text import articulation, confusions, phonemes
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.train.drift_probe import DriftConfig
from nim4_jax.train.losses import CrCtc, Transcribe
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.releases.publisher import PublishConfig
from nim4_jax.train.releases.subscriber import FollowConfig
from nim4_jax.train.text_loss import ReadPhonemes

T = TypeVar("T")

DATA_KINDS = {"speech": DataConfig, "text": TextConfig}
LOSSES = {
    "cr_ctc": CrCtc,
    "transcribe": Transcribe,
    "read_phonemes": ReadPhonemes,
    "grpo": Grpo,
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """A training run, as frozen dataclasses.

    Attributes:
        stage: name for logs.
        model: shapes.
        recipe: loss, rules, optimizer, steps.
        data: training data.
        init_from: workdirs or .safetensors files to start from.
        cmvn: path of feature statistics, or "".
        cmvn_hours: of audio that they are measured on otherwise; 0 for all.
        mesh: (data, fsdp, tensor) sizes, () for the accelerator's default.
        meshes: accelerator → default sizes, see `meshes.choose`.
        log_every: steps between records.
        checkpoint_every: steps between checkpoints.
        checkpoint_keep: how many of the newest stay.
        checkpoint_keep_every: those at multiples of it stay too; 0 for none.
        timeout_minutes: how long nothing may happen before the run gives up; 0 for
            ever.
        skip_limit: so many lost steps in a row end the run, see `loop.check_finite`.
        publish: where encoder releases go, None for nowhere.
        follow: where they come from, None for nowhere.
        probe: how drift is measured, None for not at all.
        rollout_devices: how many of the last devices sample and do not train; 0 for
            none: sampling is done where the training is.
    """

    stage: str
    model: AsrConfig
    recipe: Recipe
    data: DataConfig | TextConfig
    init_from: tuple[str, ...]
    cmvn: str
    mesh: tuple[int, ...]
    log_every: int
    checkpoint_every: int
    publish: PublishConfig | None = None
    follow: FollowConfig | None = None
    probe: DriftConfig | None = None
    rollout_devices: int = 0
    meshes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    checkpoint_keep: int = 2
    checkpoint_keep_every: int = 0
    timeout_minutes: float = 30.0
    skip_limit: int = 10
    cmvn_hours: float = 3.0


def _build_loss(
    values: dict[str, Any], tokenizer_path: str, model: AsrConfig, steps: int
) -> Any:
    kind = values.pop("kind", None)
    if kind not in LOSSES:
        raise ValueError(
            f"config.loss.kind={kind!r} is unknown; use one of {sorted(LOSSES)}."
        )
    cls = LOSSES[kind]
    names = {field.name for field in dataclasses.fields(cls)}
    if "prompt" in names:
        tokenizer = Tokenizer.from_file(tokenizer_path)
        loading.check_vocabulary(tokenizer, model)
        made = loading.make_prompt(tokenizer)
        values["prompt"] = {"prefix": made.prefix, "suffix": made.suffix}
        if "judge" in names:
            given = values.pop("rewards", {})
            weights = settings.build(RewardConfig, given, "config.loss.rewards")
            values["judge"] = Judge(tokenizer, weights)
    if "steps" in names:
        values["steps"] = steps
    if "confusions" in names:
        measured = values.pop("confusions", "")
        values["confusions"] = articulation.confusions()
        if measured:
            values["errors"] = confusions.read(measured).estimate()
    return settings.build(cls, values, "config.loss")


def _build_data(
    values: dict[str, Any], tokenizer: str, model: AsrConfig
) -> DataConfig | TextConfig:
    kind = values.pop("kind", "speech")
    if kind not in DATA_KINDS:
        raise ValueError(
            f"config.data.kind={kind!r} is unknown; use one of {sorted(DATA_KINDS)}."
        )
    if "tokens" in values.get("needs", ("tokens",)):
        values["tokenizer"] = tokenizer
    if kind == "speech":
        values["rates"] = model.rates
    return settings.build(DATA_KINDS[kind], values, "config.data")


def _build_optional(cls: type[T], values: dict[str, Any], key: str) -> T | None:
    """A part of the config that may be absent, None or empty."""
    given = values.get(key)
    return settings.build(cls, given, f"config.{key}") if given else None


def build_settings(config: ConfigDict) -> TrainSettings:
    """Everything that `launch/train.py` needs, checked.

    Raises:
        ValueError: a key or a value that does not fit, by its dotted path.
    """
    values = config.to_dict()
    model = loading.build_model_config(values["model"])
    if model.policy.weights != "float":
        raise ValueError(
            f"config.model.policy.weights={model.policy.weights!r} cannot be trained; "
            "quantise a trained model: nim4 snapshot --dtype=int8."
        )
    tokenizer = loading.find_tokenizer(values["tokenizer"])
    rules = tuple(tuple(rule) for rule in values["rules"])
    recipe = Recipe(
        loss=_build_loss(values["loss"], tokenizer, model, int(values["steps"])),
        rules=rules,
        optimizer=settings.build(
            OptimizerConfig, values["optimizer"], "config.optimizer"
        ),
        steps=int(values["steps"]),
        seed=int(values["seed"]),
        reference=bool(values.get("reference", False)),
        micro_batches=int(values.get("micro_batches", 1)),
    )
    origins = values["init_from"]
    return TrainSettings(
        stage=values["stage"],
        model=model,
        recipe=recipe,
        data=_build_data(dict(values["data"]), tokenizer, model),
        init_from=tuple(filter(None, origins.split(","))),
        cmvn=values["cmvn"],
        mesh=tuple(values["mesh"]),
        meshes={name: tuple(sizes) for name, sizes in values["meshes"].items()},
        log_every=int(values["log_every"]),
        checkpoint_every=int(values["checkpoint_every"]),
        publish=_build_optional(PublishConfig, values, "publish"),
        follow=_build_optional(FollowConfig, values, "follow"),
        probe=_build_optional(DriftConfig, values, "probe"),
        rollout_devices=int(values.get("rollout_devices", 0)),
        checkpoint_keep=int(values["checkpoint_keep"]),
        checkpoint_keep_every=int(values["checkpoint_keep_every"]),
        timeout_minutes=float(values["timeout_minutes"]),
        skip_limit=int(values["skip_limit"]),
        cmvn_hours=float(values["cmvn_hours"]),
    )


def describe(made: TrainSettings, config: ConfigDict) -> dict[str, Any]:
    """Facts that go into each checkpoint: enough to rebuild the model from it.

    Kernels and rounded operands belong to the devices of a run, and the model may load
    on others.
    """
    policy = dataclasses.replace(made.model.policy, kernels="auto", operands="compute")
    model = dataclasses.replace(made.model, policy=policy)
    return {
        "stage": made.stage,
        "steps": made.recipe.steps,
        "batch_size": made.data.batch_size,
        "model": dataclasses.asdict(model),
        "tokenizer": config.tokenizer,
        "phonemes": phonemes.INVENTORY_HASH,
        "config": config.to_json_best_effort(),
    }
