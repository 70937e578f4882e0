"""A workdir of another run is refused; what may change does."""

import json

import pytest

from nim4_jax.configs import stage1, stage2
from nim4_jax.runs import restart
from nim4_jax.runs.restart import Restart


def describe(config) -> dict[str, str]:
    """What a checkpoint keeps of a config."""
    return {"config": config.to_json_best_effort()}


def change(key: str, value, stage=stage1):
    """A config with one other value."""
    config = stage.get_config("nano")
    *folders, leaf = key.split(".")
    place = config
    for folder in folders:
        place = place[folder]
    with config.unlocked():
        place[leaf] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stage", "stage9", r"stage was 'stage1', is 'stage9'"),
        ("model.encoder.width", 16, r"model\.encoder\.width was 144, is 16"),
        ("seed", 7, r"seed was 0, is 7"),
        ("data.seed", 7, r"data\.seed was 0, is 7"),
        ("data.sources", ("x",), r"data\.sources was \['bundled:.*'\], is \['x'\]"),
        ("rules", ((".*", 1.0),), r"rules was \[\[.*, is \[\['\.\*', 1\.0\]\]"),
        ("loss", {"kind": "grpo"}, r"loss\.kind was 'cr_ctc', is 'grpo'"),
        ("optimizer.peak_rate", 1.0, r"optimizer\.peak_rate was 0\.002, is 1\.0"),
    ],
)
def test_what_is_learnt_must_stay(key, value, message):
    """Named with both values; --force_config goes on."""
    saved, config = describe(stage1.get_config("nano")), change(key, value)
    with pytest.raises(ValueError, match=rf"another run: .*{message}.*--force_config"):
        Restart().check(saved, config)
    Restart(force_config=True).check(saved, config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 3),
        ("log_every", 1),
        ("checkpoint_keep", 9),
        ("mesh", (8, 1, 1)),
        ("data.threads", 3),
        ("data.cache_mb", 0.0),
        ("init_from", "elsewhere"),
        ("micro_batches", 2),
        ("publish.folder", "/elsewhere"),
    ],
)
def test_how_it_runs_may_change(key, value):
    """Each of these keys exists, so that none is harmless by a misspelling."""
    before = stage1.get_config("nano")
    assert restart.differ(
        json.loads(before.to_json_best_effort()),
        json.loads(change(key, value).to_json_best_effort()),
    )
    Restart().check(describe(before), change(key, value))


def test_keys_of_another_version_do_not_count():
    """A checkpoint from before a key was invented, or after one was dropped."""
    before, now = stage1.get_config("nano"), stage1.get_config("nano")
    with before.unlocked(), now.unlocked():
        before.old, now.data.invented = 1, 2
        before.data.gone = {"a": 1}
    Restart().check(describe(before), now)


def test_many_differences_are_counted():
    """Another stage differs in more than fits on a line."""
    saved = describe(stage1.get_config("nano"))
    with pytest.raises(ValueError, match=r"and \d+ more\. Choose another --workdir"):
        Restart().check(saved, stage2.get_config("2b3"))
