"""The stages of a tiny model, one from the next, through the real commands."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import soundfile
from jax.experimental.compilation_cache import compilation_cache

from nim4_jax.configs import pipeline as pipeline_config
from nim4_jax.decode import longform
from nim4_jax.eval.reports import curves
from nim4_jax.model_files import loading
from nim4_jax.runs import pipeline, run_settings, training
from nim4_jax.runs.restart import Restart
from nim4_jax.serving import recognisers
from nim4_jax.train import cmvn as statistics
from nim4_jax.train import optim
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.checkpoints.stored_step import StoredStep
from nim4_jax.train.metrics import read_metrics
from nim4_jax.train.releases import store

TINY = {
    "steps": 2,
    "checkpoint_every": 1,
    "log_every": 1,
    "model.encoder.num_layers": 1,
    "model.encoder.width": 32,
    "model.encoder.num_heads": 2,
    "model.encoder.conv_kernel": 7,
    "model.encoder.subsampling_channels": 4,
    "model.adaptor_width": 32,
    "model.llm.num_layers": 1,
    "model.llm.width": 32,
    "model.llm.num_heads": 2,
    "model.llm.num_kv_heads": 1,
    "model.llm.head_dim": 16,
    "model.llm.ffn": 64,
}
SPEECH = {"data.batch_size": (4,), "data.bucket_seconds": (1.0,)}
TEXT = {"data.max_tokens": (8,)}
SILENCE = {"data.nonspeech_share": 0.4}
UNWATCHED = {"probe.every": 0}
OWN = {
    "warmup": {"data.batch_size": 4, "data.max_phonemes": (44,)},
    "stage1": {"loss.views": 1, "publish.every": 1, "publish.batches": 1},
    "stage2": {**TEXT, "loss.imitate_steps": 1},
    "stage3": {**TEXT, "follow.min_steps": 1, "follow.last_steps": 1},
    "stage4": {**TEXT, "probe.batches": 1},
    "stage5": {**TEXT, **SILENCE, **UNWATCHED, "data.long_seconds": 0.6},
    "stage6": {
        **TEXT,
        **SILENCE,
        **UNWATCHED,
        "data.hints.draw.p_keyword": 1.0,
        "data.hints.draw.p_none": 0.0,
        "loss.samples": 3,
        "loss.budget.most": 6,
        "optimizer.peak_rate": 3e-4,
    },
    "phoneme_head": {"loss.views": 1},
}
ALL = {"encoder", "adaptor", "llm"}
TRAINED = {
    "warmup": {"llm", "phoneme_reader"},
    "stage1": {"encoder", "ctc_head"},
    "stage2": {"adaptor"},
    "stage3": {"adaptor", "llm"},
    "stage4": ALL,
    "stage5": ALL,
    "stage6": ALL,
    "phoneme_head": {"ctc_head"},
}
STARTS = {
    "stage1": "warmup",
    "stage2": "warmup",
    "stage3": "stage2",
    "stage4": "stage3",
    "stage5": "stage4",
    "stage6": "stage5",
    "phoneme_head": "stage6",
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six short tones, each with its own text, whose last word is a name."""
    folder = tmp_path_factory.mktemp("tones")
    texts = ["one", "two", "打开", "call anna", "三", "stop bob"]
    lines = []
    for number, text in enumerate(texts):
        time = np.arange(12_000) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * number) * time)
        soundfile.write(folder / f"{number}.wav", tone.astype(np.float32), 16_000)
        line = {
            "audio": f"{number}.wav",
            "text": text,
            "lang": "en" if text.isascii() else "zh",
            "keywords": text.split()[-1:],
        }
        lines.append(line)
    path = folder / "tones.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def make_config(manifest):
    """The seven stages of `nano`, shrunk; a warm-up in place of packaged weights."""
    config = pipeline_config.get_config("nano")
    stages = []
    for entry in (pipeline_config.entry("warmup"), *config.stages):
        heard = {}
        if entry.stage != "warmup":
            heard = {**SPEECH, "data.sources": (manifest,)}
        for key in ("publish", "probe"):
            if f"{key}.batches" in OWN[entry.stage]:
                heard[f"{key}.sources"] = (manifest,)
        overrides = {**dict(entry.overrides), **TINY, **OWN[entry.stage], **heard}
        stages.append(
            pipeline_config.entry(entry.stage, group=entry.group, overrides=overrides)
        )
    config.stages = tuple(stages)
    return config


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory, cache_in_process):
    """(config, workdir) of the pipeline after its end."""
    workdir = str(tmp_path_factory.mktemp("pipeline"))
    config = make_config(manifest)
    pipeline.run(config, workdir)
    return config, workdir


@pytest.fixture(scope="module")
def cache_in_process(tmp_path_factory):
    """Stages share programs, and a resumed one has those of the run before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.2)):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def read_state(folder, step):
    """(parameters, optimizer slots) of one checkpoint, flat."""
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(Path(folder, "checkpoints", str(step), "state"))
    slots = jax.tree_util.tree_leaves_with_path(state["opt_state"])
    stored = StoredStep(Path(folder, "checkpoints", str(step)).absolute())
    params = optim.flatten(stored.read_params())
    return params, {str(path): leaf for path, leaf in slots}


def read_parts(workdir, stage, step=2):
    """Part → path → leaf."""
    parts = {}
    for path, leaf in read_state(f"{workdir}/{stage}", step)[0].items():
        parts.setdefault(path.split("/")[0], {})[path] = np.asarray(leaf)
    return parts


def assert_equal(got, expected):
    """To the bit, by path."""
    assert got.keys() == expected.keys()
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def find_stage(config, name):
    """Its entry."""
    return next(entry for entry in config.stages if entry.name == name)


pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stage_trains_its_own_parts_and_no_other(finished, stage):
    """Between its two steps."""
    before, after = (read_parts(finished[1], stage, step) for step in (1, 2))
    moved = set()
    for part, leaves in after.items():
        if part in TRAINED[stage]:
            same = map(np.array_equal, leaves.values(), before[part].values())
            moved |= set() if all(same) else {part}
        else:
            assert_equal(leaves, before[part])
    assert moved == TRAINED[stage]


def test_each_stage_starts_from_the_last(finished):
    """What it freezes has the same bits; what it trains has made one step at most."""
    _, workdir = finished
    for stage, previous in STARTS.items():
        first, last = read_parts(workdir, stage, 1), read_parts(workdir, previous)
        last.pop("reference", None)
        for part, leaves in last.items():
            if part in TRAINED[stage]:
                for path, leaf in leaves.items():
                    close = {"atol": 3e-3, "err_msg": f"{stage} {path}"}
                    np.testing.assert_allclose(first[part][path], leaf, **close)
            elif stage != "stage3" or part not in TRAINED["stage1"]:
                assert_equal(first[part], leaves)
    assert_equal(
        read_parts(workdir, "phoneme_head")["encoder"],
        read_parts(workdir, "stage6")["encoder"],
    )


def test_followers_hear_with_released_encoders(finished):
    """Stage 2 with the first one, stage 3 with the final one."""
    _, workdir = finished
    folder = f"{workdir}/stage1/releases"
    index = store.read_index(folder)
    for stage, release in (("stage2", index[0]), ("stage3", index[-1])):
        parts = read_parts(workdir, stage)
        for part, leaves in store.load(folder, release).items():
            assert_equal(parts[part], optim.flatten({part: leaves}))


def test_the_reference_of_reinforcement_learning_is_stage5(finished):
    """It is kept beside the policy, and not handed on."""
    _, workdir = finished
    reference = read_parts(workdir, "stage6")["reference"]
    stage5 = read_state(f"{workdir}/stage5", 2)[0]
    trained = {p: leaf for p, leaf in stage5.items() if p.split("/")[0] in ALL}
    assert_equal(reference, {f"reference/{p}": leaf for p, leaf in trained.items()})
    assert "reference" not in read_parts(workdir, "phoneme_head")


@pytest.mark.parametrize("stage", ["stage5", "stage6"])
def test_batches_have_hints_and_rows_without_speech(finished, stage):
    """Names to reward are for stage 6 alone."""
    entry = find_stage(finished[0], stage)
    made = run_settings.build_settings(pipeline.stage_config(entry, "nano", None))
    data = training._open_data(made.data)
    batches = [next(data) for _ in range(4)]
    data.close()
    lengths = np.concatenate([arrays["suffix_mask"].sum(1) for arrays in batches])
    assert lengths.max() > lengths.min()  # someone has a name in the prompt
    answers = np.concatenate([arrays["tokens_mask"].sum(1) for arrays in batches])
    assert answers.min() == 1 < answers.max()  # nothing to write but the end
    wanted = [arrays["wanted_mask"].any() for arrays in batches if "wanted" in arrays]
    assert wanted == ([True] * 4 if stage == "stage6" else [])


def run_again_from_the_first_step(config, folder, tmp_path):
    """A copy of a run that lost its last checkpoint, as by a kill, gone on to its end.

    Returns:
        (parameters, optimizer slots), flat.
    """
    shutil.copytree(folder, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "2")
    training.run(config, str(tmp_path / "resumed"))
    return read_state(tmp_path / "resumed", 2)


@pytest.mark.parametrize("stage", ["stage5", "stage6"])
def test_a_resumed_stage_ends_with_the_same_bits(finished, tmp_path, stage):
    """Law 2 with hints, rows without speech, rollouts and rewards for names."""
    config, workdir = finished
    made = pipeline.stage_config(find_stage(config, stage), "nano", "nowhere")
    got = run_again_from_the_first_step(made, f"{workdir}/{stage}", tmp_path)
    for part, expected in zip(got, read_state(f"{workdir}/{stage}", 2)):
        assert_equal(part, expected)


def test_a_run_goes_on_with_other_data(finished, manifest, tmp_path):
    """If that is meant: weights, optimizer and step stay, a new epoch begins."""
    config, workdir = finished
    folder = str(tmp_path / "moved")
    shutil.copytree(f"{workdir}/phoneme_head", folder)
    made = pipeline.stage_config(find_stage(config, "phoneme_head"), "nano", "nowhere")
    made.steps, made.data.sources = 3, (f"{manifest}?lang=en",)
    with pytest.raises(ValueError, match=r"data\.sources was .* --force_config"):
        training.run(made, folder)
    training.run(made, folder, allowed=Restart(force_config=True))
    saved = [
        json.loads(Path(folder, "checkpoints", step, "data", "metadata").read_text())
        for step in ("2", "3")
    ]
    assert saved[0]["plan"] != saved[1]["plan"]
    before, after = (read_state(folder, step)[0] for step in (2, 3))
    assert any("ctc_head" in path for path in before)
    for path, leaf in before.items():
        if not path.startswith("ctc_head"):
            np.testing.assert_array_equal(after[path], leaf)
    assert int(checkpoint.load_meta(folder, 3)["steps"]) == 3


def test_what_nobody_trained_is_not_frozen(finished, tmp_path):
    """The phoneme head on a random encoder: refused by name."""
    config, _ = finished
    made = pipeline.stage_config(find_stage(config, "phoneme_head"), "nano", None)
    with pytest.raises(ValueError, match=r"^encoder \(encoder/.* stay at random"):
        training.run(made, str(tmp_path / "random"))


def test_rollout_devices_change_nothing(finished, tmp_path):
    """2 devices train, 2 others sample: stage 6 ends as on one; resumed, as itself."""
    config, workdir = finished
    made = pipeline.stage_config(
        find_stage(config, "stage6"), "nano", f"{workdir}/stage5"
    )
    made.mesh, made.rollout_devices = (2, 1, 1), 2
    training.run(made, str(tmp_path / "whole"))
    folders = (str(tmp_path / "whole"), f"{workdir}/stage6")
    got, alone = (read_state(folder, 2) for folder in folders)
    for path, leaf in got[0].items():
        # Adam divides a gradient by its own size: where that is no more than rounding,
        # an element moves by up to the rate either way.
        apart = np.abs(np.asarray(leaf) - np.asarray(alone[0][path]))
        assert apart.max(initial=0.0) < 3e-4 and np.mean(apart < 1e-5) > 0.998, path
    rows = [
        [row for row in read_metrics(folder) if "train/reward" in row]
        for folder in folders
    ]
    for two, one in zip(*rows):
        for name in ("loss", "reward", "length", "gradient_norm", "flat_groups"):
            key = f"train/{name}"
            np.testing.assert_allclose(two[key], one[key], atol=1e-4, err_msg=name)
    assert min(row["train/flat_groups"] for row in rows[0]) < 1.0
    for part, expected in zip(
        run_again_from_the_first_step(made, tmp_path / "whole", tmp_path), got
    ):
        assert_equal(part, expected)


def test_finished_stages_are_skipped(finished):
    config, workdir = finished
    before = pipeline.read_times(workdir)
    assert pipeline.run(config, workdir) == before and set(before) == set(TRAINED)
    assert {row["step"] for row in read_metrics(f"{workdir}/stage5")} == {1, 2}


def test_statistics_of_the_features_are_measured_and_kept(finished):
    cmvn = checkpoint.load_params(f"{finished[1]}/stage4")[0]["cmvn"]
    assert np.all(np.isfinite(cmvn["mean"])) and np.all(cmvn["scale"] > 0)
    assert not np.allclose(cmvn["mean"], 0)
    kept = statistics.read(f"{finished[1]}/stage1/cmvn.json")
    np.testing.assert_array_equal(statistics.to_params(kept)["mean"], cmvn["mean"])


def test_the_result_transcribes(finished, manifest):
    loaded = recognisers.load(f"{finished[1]}/phoneme_head")
    folder = manifest.rsplit("/", 1)[0]
    paths = [f"{folder}/0.wav", f"{folder}/missing.wav", f"{folder}/1.wav"]
    done = list(longform.transcribe_files(loaded, paths))
    assert [bool(recording.error) for recording in done] == [False, True, False]
    assert "missing.wav" in done[1].error


def test_loss_curves_are_drawn(finished, tmp_path):
    config, workdir = finished
    stages = [entry.name for entry in config.stages]
    out = curves.plot_losses(workdir, stages, str(tmp_path / "losses.png"))
    with open(out, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_a_model_of_another_size_is_refused_by_name(finished, tmp_path):
    config, workdir = finished
    entry = find_stage(config, "phoneme_head")
    wide = pipeline_config.entry(
        "phoneme_head",
        init_from=f"{workdir}/stage6",
        overrides={**dict(entry.overrides), "model.encoder.width": 48},
    )
    other = pipeline_config.get_config("nano")
    other.stages = (wide,)
    with pytest.raises(ValueError, match=r"another size.*expected"):
        pipeline.run(other, str(tmp_path))


@pytest.mark.parametrize("kind", ["nano", "demo", "scratch", "ia_sft"])
def test_every_pipeline_builds(kind):
    """Each in folders of its own; overrides fit, and what is packaged is there."""
    config = pipeline_config.get_config(kind)
    names = [entry.name for entry in config.stages]
    assert len(set(names)) == len(names)
    for entry in config.stages:
        made = run_settings.build_settings(pipeline.stage_config(entry, "nano", None))
        assert all(Path(loading.resolve(path)).exists() for path in made.init_from)
        assert (
            getattr(made.recipe.loss, "steps", made.recipe.steps) == made.recipe.steps
        )


def test_an_unknown_stage_or_override_is_named(tmp_path):
    config = pipeline_config.get_config("scratch")
    config.stages = (pipeline_config.entry("stage9"),)
    with pytest.raises(ValueError, match="stage9"):
        pipeline.run(config, str(tmp_path))
    config.stages = (pipeline_config.entry("stage1", overrides={"stepz": 3}),)
    with pytest.raises(ValueError, match="stepz"):
        pipeline.run(config, str(tmp_path))


def test_a_workdir_without_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        loading.load_model(str(tmp_path))
