"""The stages of a tiny model, one from the next, through the real commands."""

import json

import numpy as np
import pytest
import soundfile

from nim4_jax.configs import pipeline as pipeline_config
from nim4_jax.eval import curves
from nim4_jax.launch import assembly, pipeline, recognition, transcribe
from nim4_jax.train import checkpoint
from nim4_jax.train.metrics import read_metrics

TINY = {
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
    "log_every": 1,
}
SPEECH = {"data.batch_size": (4,), "data.bucket_seconds": (1.5,)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six half-second tones, each with its own text."""
    folder = tmp_path_factory.mktemp("tones")
    texts = ["one", "two", "打开", "call anna", "三", "stop"]
    lines = []
    for number, text in enumerate(texts):
        time = np.arange(12_000) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * number) * time)
        soundfile.write(folder / f"{number}.wav", tone.astype(np.float32), 16_000)
        lang = "en" if text.isascii() else "zh"
        lines.append({"audio": f"{number}.wav", "text": text, "lang": lang})
    path = folder / "tones.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def make_config(manifest, steps):
    """The scratch pipeline, shrunk."""
    config = pipeline_config.get_config("scratch")
    stages = []
    for entry in config.stages:
        overrides = dict(TINY, steps=steps, checkpoint_every=steps)
        if entry.stage == "warmup":
            overrides.update({"data.batch_size": 4, "data.max_phonemes": (44,)})
        else:
            overrides.update(SPEECH, **{"data.sources": (manifest,)})
        if entry.stage in ("stage2", "stage4"):
            overrides["data.max_tokens"] = (16,)
        stages.append(
            pipeline_config.entry(
                entry.stage, init_from=entry.init_from, overrides=overrides
            )
        )
    config.stages = tuple(stages)
    return config


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("pipeline"))
    config = make_config(manifest, steps=3)
    pipeline.run(config, workdir)
    return config, workdir


def load(workdir, stage):
    return checkpoint.load_params(f"{workdir}/{stage}")[0]


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", np.asarray(value)


def test_each_stage_starts_from_the_last_and_trains_only_its_own(finished):
    _, workdir = finished
    stage1, stage2 = load(workdir, "stage1"), load(workdir, "stage2")
    stage4 = load(workdir, "stage4")
    for part in ("encoder", "ctc_head", "cmvn", "llm"):
        before = dict(leaves(stage1[part]))
        for name, leaf in leaves(stage2[part]):
            np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    for part in ("encoder", "adaptor", "llm"):
        before = dict(leaves(stage2[part]))
        moved = [
            name
            for name, leaf in leaves(stage4[part])
            if not np.array_equal(leaf, before[name])
        ]
        assert moved, part
    for name, leaf in leaves(stage4["ctc_head"]):
        np.testing.assert_array_equal(leaf, dict(leaves(stage1["ctc_head"]))[name])


def test_finished_stages_are_skipped(finished, capfd):
    config, workdir = finished
    before = pipeline.read_times(workdir)
    assert pipeline.run(config, workdir) == before
    assert {row["step"] for row in read_metrics(f"{workdir}/stage4")} == {1, 2, 3}


def test_statistics_of_the_features_are_measured_and_kept(finished):
    _, workdir = finished
    cmvn = load(workdir, "stage4")["cmvn"]
    assert np.all(np.isfinite(cmvn["mean"])) and np.all(cmvn["scale"] > 0)
    assert not np.allclose(cmvn["mean"], 0)


def test_the_result_transcribes(finished, manifest):
    _, workdir = finished
    loaded = recognition.load(f"{workdir}/stage4")
    folder = manifest.rsplit("/", 1)[0]
    paths = [f"{folder}/0.wav", f"{folder}/missing.wav", f"{folder}/1.wav"]
    done = list(transcribe.transcribe_files(loaded, paths))
    assert [bool(recording.error) for recording in done] == [False, True, False]
    assert "missing.wav" in done[1].error


def test_loss_curves_are_drawn(finished, tmp_path):
    config, workdir = finished
    stages = [entry.name for entry in config.stages]
    out = curves.plot_losses(workdir, stages, str(tmp_path / "losses.png"))
    with open(out, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_a_model_of_another_size_is_refused_by_name(finished, manifest, tmp_path):
    config, workdir = finished
    entry = config.stages[1]
    wide = pipeline_config.entry(
        "stage1",
        init_from=f"{workdir}/stage1",
        overrides={**dict(entry.overrides), "model.encoder.width": 48},
    )
    other = pipeline_config.get_config("scratch")
    other.stages = (wide,)
    with pytest.raises(ValueError, match=r"another size.*expected"):
        pipeline.run(other, str(tmp_path))


def test_an_unknown_stage_or_override_is_named(manifest, tmp_path):
    config = pipeline_config.get_config("scratch")
    config.stages = (pipeline_config.entry("stage9"),)
    with pytest.raises(ValueError, match="stage9"):
        pipeline.run(config, str(tmp_path))
    config.stages = (pipeline_config.entry("stage1", overrides={"stepz": 3}),)
    with pytest.raises(ValueError, match="stepz"):
        pipeline.run(config, str(tmp_path))


def test_a_workdir_without_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        assembly.load_model(str(tmp_path))
