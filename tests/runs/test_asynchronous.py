"""Stage 1 and its followers: by turns, and in two processes."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from nim4_jax.configs import pipeline as pipeline_config
from nim4_jax.process.errors import Interrupted
from nim4_jax.runs import asynchronous, cka_curve, pipeline
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.multihost.preemption import Preemption
from nim4_jax.train.releases import store

TINY = {
    "model.encoder.num_layers": 1,
    "model.encoder.width": 16,
    "model.encoder.num_heads": 2,
    "model.encoder.conv_kernel": 3,
    "model.encoder.subsampling_channels": 2,
    "model.adaptor_width": 16,
    "model.llm.num_layers": 1,
    "model.llm.width": 16,
    "model.llm.num_heads": 2,
    "model.llm.num_kv_heads": 1,
    "model.llm.head_dim": 8,
    "model.llm.ffn": 16,
    "data.batch_size": (4,),
    "data.bucket_seconds": (0.8,),
    "data.speed_perturb": (1.0,),
    "log_every": 1,
    "checkpoint_every": 2,
}
FOLLOW = {
    "data.max_tokens": (16,),
    "follow.poll_seconds": 0.2,
    "follow.limit_seconds": 240.0,
}
OWN = {
    "stage1": {
        "steps": 8,
        "publish.from_step": 0,
        "publish.every": 2,
        "publish.threshold": 1.0,
        "publish.batches": 1,
        "optimizer.warmup_steps": 1,
        "loss.views": 1,
    },
    # There is no pretrained LLM of this size: it trains, too.
    "stage2": {
        "steps": 2,
        "rules": (("(adaptor|llm|phoneme_reader)/.*", 1.0), (".*", None)),
        **FOLLOW,
    },
    "stage3": {"steps": 6, "follow.min_steps": 2, "follow.last_steps": 2, **FOLLOW},
}
NAMES = list(OWN)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    """Five tones, each with its own text."""
    folder = tmp_path_factory.mktemp("tones")
    lines = []
    for number, text in enumerate(["one", "two", "打开", "三", "stop"]):
        time = np.arange(11_000 + 200 * number) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * number) * time)
        soundfile.write(folder / f"{number}.wav", tone.astype(np.float32), 16_000)
        lang = "en" if text.isascii() else "zh"
        lines.append({"audio": f"{number}.wav", "text": text, "lang": lang})
    path = folder / "tones.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def make_config(manifest, mode, **changes):
    """The group of `ia_sft`, shrunk."""
    config = pipeline_config.get_config("ia_sft")
    entries = []
    for name in NAMES:
        sources = {"data.sources": (manifest,)}
        if name == "stage1":
            sources["publish.sources"] = (manifest,)
        overrides = {**TINY, **OWN[name], **sources, **changes.get(name, {})}
        entries.append(pipeline_config.entry(name, group="ia_sft", overrides=overrides))
    config.update({"stages": tuple(entries), "mode": mode, "slice": 4})
    return config


@pytest.fixture(scope="module")
def by_turns(manifest, tmp_path_factory):
    """A finished group of which stage 1 had to be resumed."""
    workdir = tmp_path_factory.mktemp("turns")
    pipeline.run(make_config(manifest, "interleaved"), str(workdir))
    return workdir


def read_index(workdir):
    return [
        (release.step, release.final)
        for release in store.read_index(str(workdir / "stage1" / "releases"))
    ]


def test_turns_are_taken_as_the_table_says(by_turns):
    """Stage 2 on the first release, stage 3 swapped, then on the final one."""
    assert read_index(by_turns) == [(2, False), (4, False), (6, False), (8, True)]
    assert cka_curve.read_segments(str(by_turns / "stage2")) == [(0, 2, 2)]
    segments = cka_curve.read_segments(str(by_turns / "stage3"))
    assert [segment[0] for segment in segments] == [0, 2, 4]
    assert [segment[2] for segment in segments] == [2, 4, 8]
    assert len(cka_curve.read_cka(str(by_turns / "stage1"))) == 4
    assert (by_turns / "ia_sft.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_encoder_of_the_followers_is_the_released_one(by_turns):
    """Stage 2 keeps the first, stage 3 ends on the final; both train the adaptor."""
    folder = str(by_turns / "stage1" / "releases")
    first, *_, final = store.read_index(folder)
    got = [checkpoint.load_params(str(by_turns / name))[0] for name in NAMES]
    for params, release in ((got[1], first), (got[2], final), (got[0], final)):
        for name, part in store.load(folder, release).items():
            jax.tree.map(np.testing.assert_array_equal, params[name], part)
    adaptors = [jax.tree.leaves(params["adaptor"]) for params in got[1:]]
    assert not all(map(np.array_equal, *adaptors))


def test_a_finished_group_is_skipped(by_turns, manifest):
    """Nothing is trained again, in whatever mode."""
    times = pipeline.read_times(str(by_turns))
    for mode in ("interleaved", "parallel", "sequential"):
        assert pipeline.run(make_config(manifest, mode), str(by_turns)) == times


def test_two_processes_train_side_by_side(
    manifest, tmp_path, monkeypatch, compilation_cache
):
    """At least one swap, the final encoder at the end, and a picture."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compilation_cache)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    pipeline.run(make_config(manifest, "parallel"), str(tmp_path))
    index = read_index(tmp_path)
    segments = cka_curve.read_segments(str(tmp_path / "stage3"))
    assert len(segments) >= 2 and segments[-1][1:] == (6, 8)
    assert {segment[2] for segment in segments} <= {step for step, _ in index}
    assert (tmp_path / "ia_sft.png").exists()
    assert set(pipeline.read_times(str(tmp_path))) == set(NAMES)


def test_the_failure_of_one_process_ends_the_other(manifest, tmp_path, monkeypatch):
    """Stage 1 cannot find its recordings; stage 2 would have waited for minutes."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    wrong = {"data.sources": (str(tmp_path / "none.jsonl"),)}
    config = make_config(manifest, "parallel", stage1=wrong)
    with pytest.raises(ChildProcessError, match=r"stage1 ended .* code 2.*stage2 stop"):
        pipeline.run(config, str(tmp_path))


@pytest.mark.long
def test_a_signal_ends_both_and_the_same_command_goes_on(
    manifest, tmp_path, monkeypatch, compilation_cache
):
    """Each process saves its step; SIGTERM comes when stage 1 has one checkpoint."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compilation_cache)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    endless = {name: {"steps": 100_000} for name in ("stage1", "stage2")}
    config = make_config(manifest, "parallel", **endless)

    def send() -> None:
        while not checkpoint.latest_step(str(tmp_path / "stage1")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with Preemption() as stop, pytest.raises(Interrupted, match="SIGTERM was received"):
        pipeline.run(config, str(tmp_path), stop=stop)
    stopped = checkpoint.latest_step(str(tmp_path / "stage1"))
    assert not list(tmp_path.glob("*/checkpoints/*tmp*"))
    assert stopped
    # Stage 3 waits for the encoder that stage 1 ends with.
    config = make_config(manifest, "parallel", stage1={"steps": stopped + 2})
    pipeline.run(config, str(tmp_path))
    assert checkpoint.latest_step(str(tmp_path / "stage1")) == stopped + 2
    assert checkpoint.latest_step(str(tmp_path / "stage3")) == OWN["stage3"]["steps"]


class Fake:
    """Trains nothing: counts steps in a dict, and may be killed."""

    def __init__(self, monkeypatch, kill=None):
        self.done, self.calls, self.kill = dict.fromkeys(NAMES, 0), [], kill
        find = lambda workdir: self.done[Path(workdir).name] or None  # noqa: E731
        monkeypatch.setattr(asynchronous.checkpoint, "latest_step", find)
        monkeypatch.setattr(asynchronous.training, "run", self.run)
        monkeypatch.setattr(asynchronous.store, "read_index", self.read_index)

    def read_index(self, folder):
        step = self.done["stage1"]
        ends = [at for at in (3, 6, 8) if at <= step]
        return tuple(store.Release("", at, None, "", at == 8) for at in ends)

    def run(self, config, workdir, until=None, **terms):
        name = Path(workdir).name
        self.calls.append((name, until))
        if len(self.calls) == self.kill:
            self.done[name] = max(self.done[name], until - 1)
            raise KeyboardInterrupt
        self.done[name] = until


@pytest.mark.parametrize("kill", [None, 1, 2, 4, 5, 6])
def test_a_group_that_was_killed_takes_the_same_turns(
    manifest, tmp_path, monkeypatch, kill
):
    """Stage 2 waits for a release; stage 3 stops before its last two steps."""
    fake = Fake(monkeypatch, kill)
    members = pipeline._make_members(
        list(make_config(manifest, "interleaved").stages), "nano", None, str(tmp_path)
    )
    folder = asynchronous.link(members)
    for _ in range(1 if kill is None else 2):
        try:
            asynchronous.train_interleaved(
                members, folder, 2, str(tmp_path), asynchronous.Terms()
            )
        except KeyboardInterrupt:
            fake.kill = None
    calls = fake.calls[:]
    if kill is not None:
        assert calls[kill - 1] == calls[kill]
        del calls[kill]
    assert calls == [
        ("stage1", 2),
        ("stage1", 4),  # no release yet
        ("stage2", 2),
        ("stage1", 6),
        ("stage3", 2),
        ("stage1", 8),
        ("stage3", 6),  # wholly: nobody is left to wait for
    ]


def test_a_stage_that_cannot_follow_is_named(manifest, tmp_path):
    """Also an unknown mode."""
    config = make_config(manifest, "sideways")
    with pytest.raises(ValueError, match=r"sideways.*parallel, interleaved"):
        pipeline.run(config, str(tmp_path))
    entry = pipeline_config.entry("warmup", group="ia_sft")
    config.stages = (config.stages[0], entry)
    with pytest.raises(ValueError, match=r"warmup has no config\.follow"):
        pipeline.run(config, str(tmp_path))
    assert not os.path.exists(tmp_path / "stage1")
