"""Sweeps of a tiny random model: every cell once, whatever happens in between."""

import contextlib
import dataclasses
import functools
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.eval.sweep import cells, identity, runner
from nim4_jax.eval.sweep.cells import ABSENT, DONE, FAILED, UNFIT, Key
from nim4_jax.eval.sweep.runner import SweepConfig
from nim4_jax.serving import recognisers

TIMED = ("processing_seconds", "real_time_factor", "rtfx", "busy_seconds", "rtf")


def write_set(folder: Path, name: str, count: int, seconds: float) -> str:
    """A manifest of noise, which a random model writes something for."""
    rows = []
    for number in range(count):
        samples = np.random.default_rng(number).normal(0, 0.1, int(16_000 * seconds))
        soundfile.write(folder / f"{name}{number}.wav", samples, 16_000, "FLOAT")
        row = {"audio": f"{name}{number}.wav", "text": f"call anna {number}"}
        rows.append(json.dumps({**row, "lang": "en", "keywords": ["anna"]}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf8")
    return str(path)


@pytest.fixture(scope="module")
def material(model_files, tmp_path_factory):
    """Two sets, one whose audio is not there, and a list of names."""
    folder = tmp_path_factory.mktemp("material")
    short, long = (
        write_set(folder, name, count, seconds)
        for name, count, seconds in (("short", 4, 0.5), ("long", 3, 0.7))
    )
    broken = folder / "broken.jsonl"
    broken.write_text('{"audio": "nowhere.wav", "text": "go", "lang": "en"}\n')
    names = folder / "names.txt"
    names.write_text("Anna Larsen\n黄丽\n", encoding="utf8")
    absent = str(folder / "absent.jsonl")
    return dict(
        short=short, long=long, broken=str(broken), names=str(names), absent=absent
    )


@pytest.fixture(scope="module")
def load():
    """Loads a model; every call is noted in `loaded`, and programs are kept."""
    loaded = []
    kept = functools.cache(recognisers.load)

    def noting(origin, *, chunk_ms, left):
        loaded.append((origin, chunk_ms))
        return kept(origin, chunk_ms=chunk_ms, left=left)

    noting.loaded = loaded
    return noting


@pytest.fixture(scope="module")
def config(model_files, material) -> SweepConfig:
    return SweepConfig(
        models=(f"tiny={model_files[0]}", f"deaf={model_files[1]}"),
        benchmarks=(material["short"], material["absent"], material["long"]),
        hotwords=("none", "both", f"list:{material['names']}"),
        hint_names=material["names"],
        hint_count=1,
        phonemes=True,
    )


def go(config, out, load, **options):
    return runner.run(
        config,
        str(out),
        load=load,
        identify=identity.identify,
        **{"say": lambda line: None, **options},
    )


def untimed(stored):
    """Cells without what another run measures differently."""

    def strip(value):
        if not isinstance(value, dict):
            return value
        return {k: strip(v) for k, v in value.items() if k not in TIMED}

    return [dataclasses.replace(cell, summary=strip(cell.summary)) for cell in stored]


@pytest.fixture(scope="module")
def whole(config, load, tmp_path_factory):
    """The whole sweep, undisturbed."""
    out = tmp_path_factory.mktemp("whole")
    return go(config, out, load), out


def test_every_cell_of_the_product_is_there_once(whole, config, material):
    outcome, out = whole
    keys = {(c.key.model, c.key.benchmark, c.key.hotwords) for c in outcome.cells}
    assert len(outcome.cells) == len(keys) == 2 * 3 * 3 and outcome.left == 0
    stored = [cells.read_folder(path) for path in sorted(out.glob("cells/[!.]*"))]
    assert stored == sorted(outcome.cells, key=lambda cell: cell.key.folder)
    for cell in outcome.cells:
        expected = DONE
        if cell.key.model == "deaf" and cell.key.hotwords != "none":
            expected = UNFIT
        if cell.key.benchmark == material["absent"]:
            expected = ABSENT
        assert cell.status == expected, cell.reason
        assert bool(cell.rows) == bool(cell.summary) == (expected == DONE)
        assert bool(cell.reason) == (expected != DONE)
    assert all((out / f"report.{kind}").is_file() for kind in ("md", "html", "json"))
    done = {(c.key.model, c.key.benchmark, c.key.hotwords): c for c in outcome.cells}
    listed = done["tiny", material["short"], f"list:{material['names']}"]
    assert listed.summary["hotword_list"] == {"names": 2, "near": "lattice"}
    assert listed.summary["entities"]["hints"]["mode"] == "found"
    heard = done["deaf", material["short"], "none"].summary["scores"]
    assert set(heard) == {"phonemes"}


def test_what_is_finished_is_not_measured_again(whole, config, load):
    _, out = whole
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    load.loaded.clear()
    go(config, out, load)
    assert load.loaded == []
    assert before == {path: path.read_bytes() for path in before}


def test_other_settings_and_other_data_are_measured_anew(
    config, model_files, material, load, tmp_path
):
    first = dataclasses.replace(
        config,
        models=(model_files[0],),
        benchmarks=(write_set(tmp_path, "own", 2, 0.5),),
        hotwords=("none",),
    )
    out = tmp_path / "out"
    prints = [go(first, out, load).cells[0].fingerprint]
    other = dataclasses.replace(first, limit=1)
    (cell,) = go(other, out, load).cells
    assert len(cell.rows) == 1
    write_set(tmp_path, "own", 3, 0.5)
    (more,) = go(first, out, load).cells
    assert len(more.rows) == 3
    assert len({*prints, cell.fingerprint, more.fingerprint}) == 3


def test_names_that_are_looked_for_elsewhere_are_found_anew(config):
    """Only cells with a list depend on `near`."""
    plans = [
        runner.plan(dataclasses.replace(config, near=near), lambda origin: origin)
        for near in ("lattice", "scann")
    ]
    for one, other in zip(*plans, strict=True):
        same = one.fingerprint == other.fingerprint
        assert one.key == other.key and same != bool(one.hotwords.path)


@pytest.mark.parametrize("hosts", [2, 5])
def test_shards_together_are_one_sweep(whole, config, load, tmp_path, hosts):
    """And it is the last one that writes the report."""
    outcome, _ = whole
    for number in range(hosts):
        assert not (tmp_path / "report.md").exists()
        last = go(config, tmp_path, load, shard=(number, hosts))
        assert (last.left == 0) == (number == hosts - 1)
    assert untimed(last.cells) == untimed(outcome.cells)
    with pytest.raises(ValueError, match="shard 2 of 2"):
        go(config, tmp_path, load, shard=(2, 2))


class Killed(BaseException):
    """What no handler of errors stops."""


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 13, 30, -1])
def test_what_was_stopped_anywhere_ends_alike(
    whole, config, load, tmp_path, monkeypatch, place
):
    """While a batch is heard, a cell is stored or the report written: all its steps."""
    outcome, _ = whole

    def watch(out, last):
        """Run it, and stop at a step; returns the steps."""
        steps = []

        def stumble(function):
            @functools.wraps(function)
            def once(*args, **kwargs):
                if len(steps) == last:
                    raise Killed
                steps.append(function.__name__)
                return function(*args, **kwargs)

            return once

        with monkeypatch.context() as patch:
            for owner, name in (
                (BatchRecogniser, "transcribe"),
                (cells.shutil, "rmtree"),
                (cells.os, "replace"),
            ):
                patch.setattr(owner, name, stumble(getattr(owner, name)))
            with contextlib.suppress(Killed):
                go(config, out, load)
        return steps

    if place < 0:
        place += len(watch(tmp_path / "counted", None))
    steps = watch(tmp_path / "out", place)
    assert len(steps) == place
    assert not (tmp_path / "out" / "report.md").exists() or "replace" in steps[-3:]
    again = go(config, tmp_path / "out", load)
    assert untimed(again.cells) == untimed(outcome.cells)
    assert not list((tmp_path / "out" / "cells").glob(".*"))


def test_a_cell_that_breaks_leaves_the_others_alone(
    config, model_files, material, load, tmp_path
):
    broken = dataclasses.replace(
        config,
        models=(model_files[0],),
        benchmarks=(material["broken"], material["long"]),
        hotwords=("none",),
    )
    outcome = go(broken, tmp_path, load)
    assert [cell.status for cell in outcome.cells] == [FAILED, DONE]
    assert [cell.key.benchmark for cell in outcome.failed] == [material["broken"]]
    assert "no utterance can be evaluated" in outcome.failed[0].reason
    assert "missing file" in outcome.failed[0].reason
    assert (tmp_path / "report.md").is_file()
    told = []
    go(broken, tmp_path, load, say=told.append)
    assert told[0] == "1 of 2 cells are finished already" and len(told) == 2


def test_a_full_disk_is_an_error_and_no_result(config, load, material, tmp_path):
    """A file may have so many bytes: the same error as that of a full disk."""
    small = dataclasses.replace(
        config, models=config.models[:1], benchmarks=(material["long"],)
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            go(small, tmp_path, load)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cells").iterdir()) == []
    assert not (tmp_path / "report.md").exists()
    assert {cell.status for cell in go(small, tmp_path, load).cells} == {DONE}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"models": ("/nowhere/at/all",)}, "/nowhere/at/all holds no model"),
        ({"models": ()}, "no model is given"),
        ({"models": ("a=x", "a=y")}, "model a: given twice"),
        ({"models": ("whisper-base=x",)}, "a name of your own"),
        ({"benchmarks": ("comands",)}, "Did you mean commands"),
        ({"modes": ("stream:100",)}, "multiple of 160 ms"),
        ({"modes": ("streaming",)}, "expected offline"),
        ({"hotwords": ("list:/nowhere",)}, "no hotword database and no list of names"),
        ({"hotwords": ("all",)}, "choose from none, said, misleading, both"),
        ({"near": "ann"}, "near='ann': use one of lattice, scann, none"),
        ({"hint_names": "/nowhere"}, "/nowhere"),
    ],
)
def test_nothing_is_measured_if_anything_asked_for_cannot_be(
    config, load, tmp_path, change, message
):
    load.loaded.clear()
    with pytest.raises(ValueError, match=message):
        go(dataclasses.replace(config, **change), tmp_path / "out", load)
    assert load.loaded == [] and not (tmp_path / "out").exists()


def test_names_that_share_a_folder_are_refused(config, model_files, load, tmp_path):
    models = (f"a b={model_files[0]}", f"a/b={model_files[0]}")
    with pytest.raises(ValueError, match="would both be stored"):
        go(dataclasses.replace(config, models=models), tmp_path, load)
    assert Key("a b", "c", "offline").folder == Key("a/b", "c", "offline").folder


@pytest.mark.long
def test_streams_are_cells_with_their_latency(
    config, model_files, material, load, tmp_path
):
    streamed = dataclasses.replace(
        config,
        models=(model_files[0],),
        benchmarks=("bundled:commands:test?lang=mixed",),
        modes=("stream:640",),
        hotwords=("none", f"list:{material['names']}"),
        limit=2,
    )
    outcome = go(streamed, tmp_path, load)
    for cell in outcome.cells:
        assert cell.status == DONE, cell.reason
        assert cell.summary["streaming"]["streams"] == len(cell.rows) == 2
    assert outcome.cells[1].summary["hotword_list"] == {"names": 2, "near": "lattice"}
