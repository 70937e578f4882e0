"""The table of benchmarks: every name can be found, what is absent says what to do."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from nim4_jax.data.sources import builders, conditions, opening
from nim4_jax.eval.measures import normalisers
from nim4_jax.eval.sweep import benchmarks
from nim4_jax.eval.sweep.benchmarks import BENCHMARKS, GROUPS, Benchmark


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of placed sets."""
    monkeypatch.setenv(benchmarks.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def test_the_papers_table_is_whole():
    rows = [benchmarks.BENCHMARKS[name].row for name in GROUPS["paper"]]
    tables = {row.partition(" dev")[0].partition(" test")[0] for row in rows}
    # LibriSpeech has a row of dev and one of test, as it has in the paper.
    assert len(set(rows)) == 15 and len(rows) == 25 and len(tables) == 14
    for name in GROUPS["paper"]:
        known = BENCHMARKS[name]
        assert known.published is not None and 0 < known.published[0] < 30
        assert known.licence and known.lang != "auto"


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_is_there_or_says_what_to_place_where(name, folder):
    (found,) = benchmarks.find([name])
    assert found.name == name and "$" not in found.source
    assert found.normaliser in normalisers.NAMES
    assert found.metric in ("WER", "CER", "MER", "by language")
    why = benchmarks.missing(found)
    if name in GROUPS["local"]:
        assert why is None and len(opening.open_source(found.source)) > 5
        return
    assert why is not None and str(folder) in why
    with pytest.raises(ValueError, match="no manifest"):
        opening.open_source(found.source)
    # What it asks for is enough.
    place = Path(found.source)
    assert place.is_relative_to(folder)
    place.parent.mkdir(exist_ok=True)
    place.write_text('{"audio": "a.wav", "text": "hi"}\n', encoding="utf8")
    assert benchmarks.missing(found) is None
    assert len(opening.open_source(found.source)) == 1


def test_a_prepared_data_set_of_the_name_stands_for_a_manifest(folder):
    shutil.copytree(builders.BUNDLED / "prompts", folder / "mls-en")
    (found,) = benchmarks.find(["mls-en"])
    assert benchmarks.missing(found) is None
    source = opening.open_source(found.source)
    assert len(source) == 40 and source[0]["lang"] == "en"
    # A manifest goes before it.
    (folder / "mls-en.jsonl").write_text('{"audio": "a.wav", "text": "hi"}\n')
    assert benchmarks.find(["mls-en"])[0].source == str(folder / "mls-en.jsonl")


def test_names_groups_and_sources_are_found_in_order_and_once():
    found = benchmarks.find(["prompts", "noisy", "bundled:names:test", "commands-5db"])
    assert [one.name for one in found] == [
        "prompts",
        "commands",
        *(f"commands-{snr}db" for snr in (20, 15, 10, 5, 0)),
        "bundled:names:test",
    ]
    assert found[-1].source == "bundled:names:test"
    assert dict(found[2].conditions) == {"snr_db": 20}
    assert {name for group in GROUPS.values() for name in group} <= set(BENCHMARKS)
    assert not set(GROUPS) & set(BENCHMARKS)


def test_kinds_without_speech_are_apart_and_together():
    records = {
        one.name: opening.open_source(one.source) for one in benchmarks.find(["silent"])
    }
    assert len(records) == 4
    for name, kind in (("silence", "silence"), ("noise", "vehicle"), ("music",) * 2):
        source = records[f"nonspeech-{name}"]
        for place in range(0, len(source), 20):
            assert re.match(f"nonspeech:{kind}:", source[place]["origin"])
            assert source[place]["text"] == ""


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["comands"], r"no benchmark 'comands'\. Did you mean commands"),
        (["Librispeech-test-clen"], "Did you mean librispeech-test-clean"),
        (["zzz"], r"'zzz'\. Choose from paper, local.*m4singer, or a source"),
        (["commands", ""], "no benchmark ''"),
        ([], "no benchmark is named; choose from"),
        ("commands", "expected a list"),
    ],
)
def test_unknown_names_are_told_what_there_is(names, match):
    with pytest.raises(ValueError, match=match):
        benchmarks.find(names)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("none.jsonl?lang=en", r"no file none\.jsonl"),
        ("noisy:5:none.jsonl", r"no file none\.jsonl"),
        ("tfds:none:test", "no prepared TFDS data set 'none'"),
        ("joined:9:tfds:none:test", "no prepared TFDS data set 'none'"),
        ("level:-9:room:1:none.jsonl", r"no file none\.jsonl"),
        ("level:3:noisy:5@hum:bundled:commands:test", "no noise at hum: a folder or"),
    ],
)
def test_a_source_that_is_absent_says_so(spec, why):
    (found,) = benchmarks.find([spec])
    assert found.name == spec
    assert re.search(why, benchmarks.missing(found) or "")


def test_a_broken_manifest_is_there_but_names_its_line_when_it_is_opened(folder):
    (found,) = benchmarks.find(["voices"])
    lines = ['{"audio": "a.wav", "text": "hi"}', '{"audio": "b.wav", "text": ']
    Path(found.source).write_text("\n".join(lines) + "\n", encoding="utf8")
    assert benchmarks.missing(found) is None
    with pytest.raises(ValueError, match=r"voices\.jsonl:2: not JSON"):
        opening.open_source(found.source)


def test_an_entry_is_frozen_and_conditions_are_those_of_its_source():
    for known in BENCHMARKS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            known.name = "x"  # pyright: ignore[reportAttributeAccessIssue]
        derived = conditions.find_origin(known.source) != known.source
        settings = dict(known.conditions)
        made = {"snr_db", "joined_s", "rt60_s", "level_db", "line"}
        assert derived == bool(made & set(settings))
    assert Benchmark("a", "A", "a.jsonl").metric == "by language"
