"""Every stage of every size begins: its config, its rules, its batches, on any mesh."""

import dataclasses
import functools
import importlib
import itertools

import jax
import pytest
from jax.sharding import AbstractMesh

from nim4_jax import accelerators, sharding
from nim4_jax.configs import base
from nim4_jax.model_files import loading
from nim4_jax.models import lora
from nim4_jax.models.asr import Asr, param_shapes
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.worker import outline
from nim4_jax.runs import (
    batch_rows,
    callbacks,
    initial_state,
    meshes,
    restart,
    run_settings,
)
from nim4_jax.train import optim, placement
from nim4_jax.train import state as train_state
from nim4_jax.train.step import make_train_step

STAGES = (
    "warmup",
    "stage1",
    "stage2",
    "stage3",
    "stage4",
    "stage5",
    "stage6",
    "phoneme_head",
)
SHRUNK = {"num_layers": 1, "width": 16, "num_heads": 2, "dropout": 0.1}
LLM = {
    "vocab_size": 2048,
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "ffn": 16,
}
ALL = [
    (stage, size)
    for stage, size in itertools.product(STAGES, base.SIZES)
    if stage != "warmup" or size == "nano"
]


def get_config(stage: str, size: str):
    """With the tokenizer that is here."""
    module = importlib.import_module(f"nim4_jax.configs.{stage}")
    config = module.get_config(size)
    config.tokenizer = "nano"
    return config


def shrink(config):
    """The same stage of almost no size; rules, adapters and kinds of parts stay."""
    encoder, features = config.model.encoder, config.model.features
    encoder.update({key: value for key, value in SHRUNK.items() if key in encoder})
    for key, value in {"subsampling_channels": 2, "conv_kernel": 3}.items():
        if key in encoder:
            encoder[key] = value
    encoder.num_mels = features.num_mels = 16
    config.model.adaptor_width = 16
    config.model.llm.update(LLM)
    if config.stage == "stage6":
        config.loss.samples, config.loss.budget.most = 2, 3
    return config


QUICK = [("stage6", "smollm2"), ("stage5", "base")]


@pytest.mark.parametrize(
    ("stage", "size"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long)
        for pair in ALL
    ],
)
def test_every_stage_of_every_size_makes_its_step(tiny, stage, size):
    """Traced from fresh parameters to the new state, under the rules of its config."""
    made = run_settings.build_settings(shrink(get_config(stage, size)))
    recipe, model = dataclasses.replace(made.recipe, micro_batches=1), Asr(made.model)
    batch = tiny.make_batch(0)
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)

    def begin():
        params = train_state.init_params(model, recipe, batch, 0)
        params = train_state.add_reference(params, recipe)
        return train_state.init_state(params, recipe, tx)

    before = jax.eval_shape(begin)
    if isinstance(recipe.loss, Grpo):
        batch = outline(model, recipe, before.params, batch)
    after, metrics = jax.eval_shape(make_train_step(model, recipe, tx), before, batch)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert {"loss", "gradient_norm", "skipped_in_row"} <= set(metrics)
    trainable, _ = optim.split_params(before.params, recipe.rules)
    assert trainable
    adapted = any(path.endswith(lora.A) for path in trainable)
    assert adapted == (config_rank(made) > 0 and stage not in ("stage1", "stage2"))


def config_rank(made) -> int:
    """Of the adapters, where the loss reaches the LLM."""
    reaches = hasattr(made.recipe.loss, "prompt")
    return made.model.llm.lora.rank if reaches else 0


@pytest.mark.parametrize(("stage", "size"), ALL)
def test_every_stage_saves_and_measures_often_enough(stage, size):
    """A run that is lost between two checkpoints is no tenth of the stage."""
    config = get_config(stage, size)
    assert config.checkpoint_every <= config.steps / 10
    if config.get("probe") and config.probe.every:
        assert config.probe.every <= config.steps / 5


@functools.cache
def shapes_of(size: str):
    """(shapes, axes) of all parameters."""
    values = get_config("stage4", size).model.to_dict()
    values["llm"]["lora"]["rank"] = 0
    model = loading.build_model_config(values)
    return param_shapes(model), placement.find_axes(model)


@dataclasses.dataclass(frozen=True)
class Device:
    """What the choice of a mesh looks at."""

    device_kind: str
    platform: str
    process_index: int
    slice_index: int = 0


@pytest.mark.parametrize("size", ["small", "2b3"])
@pytest.mark.parametrize("known", accelerators.ACCELERATORS, ids=lambda a: a.name)
def test_every_stage_starts_on_every_default_mesh(monkeypatch, known, size):
    """Rows divide over the devices, and none gets more audio than is configured."""
    monkeypatch.setattr(
        sharding,
        "make_mesh",
        lambda sizes, devices, slices: AbstractMesh(sizes, sharding.MESH_AXES),
    )
    platform = "gpu" if known.kind.startswith("NVIDIA") else "tpu"
    for stage, count in itertools.product(STAGES[1:], (1, 8, 16, 64)):
        made = run_settings.build_settings(get_config(stage, size))
        assert known.name in made.meshes
        devices = [Device(known.kind, platform, n // 8, n // 64) for n in range(count)]
        mesh = meshes.choose(made.mesh, made.meshes, devices)
        assert mesh.size == count
        settled = batch_rows.settle(made, mesh).data
        shards = sharding.count_batch_shards(mesh)
        most = made.data.device_seconds
        for rows, seconds in zip(settled.batch_size, settled.bucket_seconds):
            assert rows % shards == 0
            assert most / 2 < rows * seconds / shards <= most
        sharding.check_divisible(mesh, *shapes_of(size))


def test_a_run_keeps_its_rows_on_other_devices():
    """Another number of devices would else be other batches."""
    made = run_settings.build_settings(get_config("stage1", "2b3"))
    mesh = AbstractMesh((8, 1, 1), sharding.MESH_AXES)
    rows = batch_rows.settle(made, mesh).data.batch_size
    assert rows == (192, 120, 72, 32, 16)
    larger = AbstractMesh((16, 1, 1), sharding.MESH_AXES)
    assert batch_rows.settle(made, larger).data.batch_size[0] == 384
    saved = {"batch_size": list(rows)}
    assert batch_rows.settle(made, larger, saved).data.batch_size == rows
    recipe = dataclasses.replace(made.recipe, micro_batches=3)
    cut = dataclasses.replace(made, recipe=recipe, rollout_devices=2)
    assert batch_rows.settle(cut, mesh).data.batch_size == (192, 120, 72, 24, 24)
    both = dataclasses.replace(made.data, batch_size=(8, 8, 8, 8, 8))
    given = dataclasses.replace(made, data=both)
    assert batch_rows.settle(given, mesh) is given
    neither = dataclasses.replace(made.data, device_seconds=0.0)
    with pytest.raises(ValueError, match="give one, rows or seconds for each device"):
        batch_rows.settle(dataclasses.replace(made, data=neither), mesh)


def test_full_sizes_compare_encoders_on_what_they_are_given():
    """The bundled commands say nothing of such a run."""
    made = run_settings.build_settings(get_config("stage4", "2b3"))
    with pytest.raises(ValueError, match=r"config\.probe\.sources is empty: .*every"):
        callbacks.check_sources(made)
    config = get_config("stage1", "small")
    callbacks.check_sources(run_settings.build_settings(config))  # publishes nothing
    config.publish.folder = "releases"
    with pytest.raises(ValueError, match=r"config\.publish\.sources is empty"):
        callbacks.check_sources(run_settings.build_settings(config))
    config.publish.sources = ("test.jsonl",)
    callbacks.check_sources(run_settings.build_settings(config))


def test_random_parameters_are_not_frozen():
    """By part and path; statistics and adapters begin as they should."""
    rules = (("adaptor/.*", 1.0), (".*", None))
    given = ["cmvn/mean", "adaptor/up/kernel", "llm/layers/mlp/up/lora_a"]
    initial_state.refuse_random(given, rules, "")
    fresh = [*given, "encoder/a/kernel", "encoder/b/kernel", "llm/layers/mlp/up/kernel"]
    message = (
        r"^encoder \(encoder/a/kernel, …\), llm \(llm/layers/mlp/up/kernel, …\) would "
        r"stay at random values: .* config\.init_from='runs/x' holds none\. Name a work"
    )
    with pytest.raises(ValueError, match=message):
        initial_state.refuse_random(fresh, rules, "runs/x")


def test_another_length_says_what_becomes_of_the_rate(monkeypatch):
    """Longer, it goes up again; at the old end or of the old length nothing happens."""
    told = []
    warning = restart.logging.warning
    monkeypatch.setattr(restart.logging, "warning", lambda *args: told.append(args))
    optimizer = optim.OptimizerConfig(1e-3, warmup_steps=10)
    saved = {"steps": 100}
    text = restart.tell_rate(saved, optimizer, 1000, 90)
    assert "config.steps was 100, is 1000" in text and len(told) == 1
    old, new = (float(optimizer.schedule(steps)(90)) for steps in (100, 1000))
    assert f"from {old:.3g} to {new:.3g} (× {new / old:.2g})" in text
    assert not restart.tell_rate(saved, optimizer, 100, 50)
    assert len(told) == 1 and warning is not restart.logging.warning
