"""From a config to the objects of a run, and from a checkpoint back to a model."""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

import nim4_jax
from nim4_jax.data.config import DataConfig
from nim4_jax.data.text_pipeline import TextConfig
from nim4_jax.launch import settings
from nim4_jax.models import quantisation
from nim4_jax.models.asr import AsrConfig, Prompt
from nim4_jax.rl.judge import Judge
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.rewards import RewardConfig
from nim4_jax.text import articulation, phonemes, prompt
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.train import checkpoint
from nim4_jax.train.drift_probe import DriftConfig
from nim4_jax.train.losses import CrCtc, ReadPhonemes, Transcribe
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.publisher import PublishConfig
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.subscriber import FollowConfig
from nim4_jax.types import Params
from nim4_jax.weights import snapshot

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


def find_tokenizer(name: str) -> str:
    """Path of a tokenizer.json: "nano" is the packaged one, anything else a path."""
    if name == "nano":
        folder = resources.files(nim4_jax) / "text" / "resources"
        return str(folder / "nano_tokenizer.json")
    return name


def make_prompt(tokenizer: Tokenizer) -> Prompt:
    """Token ids around the speech, without hints."""
    return Prompt(
        tuple(prompt.encode_prefix(tokenizer)), tuple(prompt.encode_suffix(tokenizer))
    )


def build_model_config(values: dict[str, Any]) -> AsrConfig:
    """`config.model` as dataclasses, with the phoneme inventory of this package."""
    values = {"num_phonemes": len(phonemes.INVENTORY), **values}
    return settings.build(AsrConfig, values, "config.model")


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
        check_vocabulary(tokenizer, model)
        made = make_prompt(tokenizer)
        values["prompt"] = {"prefix": made.prefix, "suffix": made.suffix}
        if "judge" in names:
            given = values.pop("rewards", {})
            weights = settings.build(RewardConfig, given, "config.loss.rewards")
            values["judge"] = Judge(tokenizer, weights)
    if "steps" in names:
        values["steps"] = steps
    if "confusions" in names:
        values["confusions"] = articulation.confusions()
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


def check_vocabulary(tokenizer: Tokenizer, model: AsrConfig) -> None:
    """Refuse a tokenizer with more ids than the LLM has embeddings."""
    if tokenizer.vocab_size > model.llm.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the LLM only "
            f"{model.llm.vocab_size} embeddings; set config.model.llm.vocab_size."
        )


def build_settings(config: ConfigDict) -> TrainSettings:
    """Everything that `launch/train.py` needs, checked.

    Raises:
        ValueError: a key or a value that does not fit, by its dotted path.
    """
    values = config.to_dict()
    model = build_model_config(values["model"])
    if model.policy.weights != "float":
        raise ValueError(
            f"config.model.policy.weights={model.policy.weights!r} cannot be trained; "
            "quantise a trained model: nim4 snapshot --dtype=int8."
        )
    tokenizer = find_tokenizer(values["tokenizer"])
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


def load_model(origin: str) -> tuple[Params, dict[str, Any]]:
    """Parameters and meta of a workdir or of a .safetensors snapshot.

    Raises:
        ValueError: nothing to load, or made with another phoneme inventory.
    """
    if origin.endswith(".safetensors"):
        params, meta = snapshot.read(resolve(origin))
    else:
        params, meta = checkpoint.load_params(origin)
    if meta["phonemes"] != phonemes.INVENTORY_HASH:
        raise ValueError(
            f"{origin} was made with phoneme inventory {meta['phonemes'][:12]}, this "
            f"package has {phonemes.INVENTORY_HASH[:12]}; its phoneme head means other "
            "sounds. Use the version of the package that made it."
        )
    for name, leaf in params.items():
        if not leaf or not all(np.asarray(x).size for x in _leaves(leaf)):
            raise ValueError(f"{origin} holds an empty part {name!r}.")
    return params, meta


def load_trainable(origin: str) -> Params:
    """Parameters of a workdir or snapshot to train from; int8 ones become float32.

    Raises:
        ValueError: see `load_model`.
    """
    params, meta = load_model(origin)
    policy = meta["model"].get("policy", {})
    if policy.get("weights", "float") == "int8":
        params = quantisation.dequantise(params)
    return params


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [tree]


def resolve(path: str) -> str:
    """A path; "package:NAME" is a file that comes with the package."""
    if not path.startswith("package:"):
        return path
    return str(resources.files(nim4_jax) / "pretrained" / path.removeprefix("package:"))
