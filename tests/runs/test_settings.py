"""The border of a run: what a config may say, and how errors of input look."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nim4_jax import settings
from nim4_jax.configs import (
    base,
    phoneme_head,
    stage1,
    stage2,
    stage3,
    stage4,
    stage5,
    stage6,
)
from nim4_jax.features import FeatureConfig, WhisperFeatures
from nim4_jax.model_files import loading
from nim4_jax.models.conformer import ConformerConfig
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.runs import run_settings

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    """A part with a default."""

    rate: float = 1.0
    name: str = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    """All kinds of fields that settings have."""

    steps: int
    inner: Inner
    sizes: tuple[int, ...] = ()
    pairs: tuple[str | tuple[str, float], ...] = ()
    limit: int | None = None


def test_nested_values_become_frozen_dataclasses():
    """Lists become tuples, whole numbers become floats where floats are wanted."""
    got = settings.build(
        Outer,
        {
            "steps": 3,
            "inner": {"rate": 2},
            "sizes": [1, 2],
            "pairs": ["x", ["y", 0.5]],
            "limit": None,
        },
    )
    assert got == Outer(3, Inner(2.0), (1, 2), ("x", ("y", 0.5)), None)
    assert isinstance(got.inner.rate, float)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"step": 1, "inner": {}}, r"config\.step is unknown; did you mean 'steps'\?"),
        (
            {"steps": 1, "inner": {"rats": 1}},
            r"config\.inner\.rats.*did you mean 'rate'",
        ),
        (
            {"steps": 1, "inner": {}, "zzz": 1},
            r"config\.zzz is unknown; known: \['inner'",
        ),
        ({"inner": {}}, r"config\.steps is missing; Outer needs it"),
        ({"steps": "3", "inner": {}}, r"config\.steps='3' must be of type int"),
        ({"steps": 1.5, "inner": {}}, r"config\.steps=1\.5 must be of type int"),
        ({"steps": True, "inner": {}}, r"config\.steps=True must be of type int"),
        ({"steps": 1, "inner": 5}, r"config\.inner=5 must be of type Inner"),
        ({"steps": 1, "inner": {"name": 2}}, r"config\.inner\.name=2 must be .* str"),
        ({"steps": 1, "inner": {}, "sizes": 3}, r"config\.sizes=3 must be a list"),
        (
            {"steps": 1, "inner": {}, "sizes": [1, "b"]},
            r"config\.sizes\[1\]='b' must be",
        ),
        (
            {"steps": 1, "inner": {}, "pairs": [["y"]]},
            r"config\.pairs\[0\]=.* is none of",
        ),
        ({"steps": 1, "inner": {}, "limit": "all"}, r"config\.limit='all' is none of"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(values, message):
    """Unknown keys with the nearest known one, missing ones, values of another kind."""
    with pytest.raises(ValueError, match=message):
        settings.build(Outer, values)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (
            "loss.kind",
            "ctc",
            r"config\.loss\.kind='ctc'.*'cr_ctc', 'grpo', 'read_phonemes'",
        ),
        ("data.kind", "video", r"config\.data\.kind='video'.*'speech', 'text'"),
        ("model.policy.compute", "int8", r"policy\.compute='int8'.*bfloat16.*float32"),
        ("model.policy.kernels", "triton", r"policy\.kernels='triton'.*splash.*cudnn"),
        ("model.encoder.num_heads", 5, r"width 144.*num_heads 5"),
        ("optimizer.warmup_steps", "ten", r"config\.optimizer\.warmup_steps='ten'"),
    ],
)
def test_impossible_configs_are_refused(path, value, message):
    """Before any data is read or any parameter made."""
    config = stage1.get_config("nano")
    config.unlock()
    *folders, leaf = path.split(".")
    place = config
    for folder in folders:
        place = place[folder]
    with place.ignore_type():
        place[leaf] = value
    with pytest.raises(ValueError, match=message):
        run_settings.build_settings(config)


def build_model(**parts):
    """The model of nano with other parts."""
    return loading.build_model_config(base.get_config("nano").model.to_dict() | parts)


def test_the_class_of_a_part_follows_from_its_fields():
    """Those of checkpoints of any time; features that say nothing are Kaldi's."""
    for encoder in (ConformerConfig(), WhisperEncoderConfig()):
        assert build_model(encoder=dataclasses.asdict(encoder)).encoder == encoder
    for given in ({"conv_kernel": 3}, {"width": 40, "conv_context": "causal"}):
        assert type(build_model(encoder=given).encoder) is ConformerConfig
    for features in (FeatureConfig(), WhisperFeatures()):
        stored = dataclasses.asdict(features)
        assert build_model(features=stored).features == features
    for given in ({}, {"num_mels": 80}, {"window": 400, "hop": 160}):
        assert build_model(features=given).features == FeatureConfig()


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            {"encoder": {"width": 64, "num_heads": 2}},
            r"model\.encoder has the fields \['num_heads', 'width'\], which may be "
            "ConformerConfig or WhisperEncoderConfig; .* WhisperEncoderConfig by max_f",
        ),
        (
            {"encoder": {"max_frames": 64, "conv_kernel": 3}},
            r"encoder has .* no known kind: ConformerConfig has no 'max_frames'; .*"
            "WhisperEncoderConfig has no 'conv_kernel'",
        ),
        (
            {"encoder": {"conv_kernell": 3}},
            r"ConformerConfig has no 'conv_kernell'; did you mean 'conv_kernel'\?",
        ),
        (
            {"features": {"floor": -8.0, "fft_size": 512}},
            r"model\.features has .* no known kind: FeatureConfig has no 'floor'",
        ),
    ],
)
def test_a_part_of_no_one_class_is_refused(parts, message):
    """Fields that several classes have, fields of different ones, and typing errors."""
    with pytest.raises(ValueError, match=message):
        build_model(**parts)


def test_kernels_are_of_a_run_and_not_of_its_model():
    """A checkpoint loads on other devices; one from before the setting loads too."""
    config = stage1.get_config("nano")
    config.model.policy.kernels = "splash"
    config.model.policy.operands = "bfloat16"
    made = run_settings.build_settings(config)
    assert made.model.policy.kernels == "splash"
    stored = run_settings.describe(made, config)["model"]
    policy = loading.build_model_config(stored).policy
    assert (policy.kernels, policy.operands) == ("auto", "compute")
    del stored["policy"]["kernels"]
    assert loading.build_model_config(stored).policy.kernels == "auto"


def test_an_unknown_size_lists_the_sizes():
    """configs/STAGE.py:SIZE."""
    with pytest.raises(
        ValueError, match=r"size 'huge' is unknown.*nano, smollm2, base, small, 2b3"
    ):
        base.get_config("huge")


@pytest.mark.parametrize(
    "size, kind, mels, frame_ms",
    [
        ("base", WhisperEncoderConfig, 80, 20),
        ("2b3+whisper-large-v3", WhisperEncoderConfig, 128, 20),
        ("small+firered", ConformerConfig, 80, 40),
    ],
)
def test_another_encoder_stands_in_every_stage(size, kind, mels, frame_ms):
    """Its features, rates and chunks come with it; speech tokens stay 160 ms."""
    stages = stage1, stage2, stage3, stage4, stage5, stage6, phoneme_head
    for config in (stage.get_config(size) for stage in stages):
        model = loading.build_model_config(config.model.to_dict())
        assert type(model.encoder) is kind and model.features.num_mels == mels
        rates = model.rates
        assert rates.frame_seconds * 1000 == frame_ms
        assert rates.frame_seconds * rates.speech_stride == 0.16


def test_an_unknown_encoder_lists_the_encoders():
    with pytest.raises(ValueError, match=r"encoder 'huge' is unknown.*whisper-large"):
        stage1.get_config("2b3+huge")


def run_train(*arguments: str) -> subprocess.CompletedProcess:
    """launch/train.py as a user starts it."""
    environment = {
        name: v for name, v in os.environ.items() if name != "NIM4_TRACEBACK"
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.stepz=3"], "no key 'stepz' Did you mean \"steps\""),
        (["--config.optimizer.peak_rat=1.0"], 'Did you mean "peak_rate"'),
        (["--config.steps=many"], "steps"),
        (["--config.data.sources=('missing.jsonl',)"], "missing.jsonl"),
    ],
)
def test_errors_of_input_are_one_line(tmp_path, arguments, message):
    """Exit code 2, the culprit by name, no traceback."""
    config = f"--config={ROOT / 'configs' / 'stage1.py'}:nano"
    done = run_train(config, f"--workdir={tmp_path}", *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1 and message in lines[0], done.stderr
