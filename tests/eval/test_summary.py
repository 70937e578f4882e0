"""The report of cells made by hand."""

import html
import json

import numpy as np
import pytest

from nim4_jax.eval.evaluation import SetResult, Utterance
from nim4_jax.eval.measures import bootstrap, latency
from nim4_jax.eval.measures.entities import Entities
from nim4_jax.eval.measures.error_rates import Counts
from nim4_jax.eval.measures.latency import Latency
from nim4_jax.eval.reports import comparison, report
from nim4_jax.eval.sweep import cells, rates, summary
from nim4_jax.eval.sweep.cells import ABSENT, DONE, FAILED, UNFIT, Cell, Key

HOSTILE = "<script>alert(1)</script> | `no` *way*"
FILES = {"report.md", "report.html", "report.json"}


def make_cell(key, seed=0, count=12, lists=0, text="turn the light on"):
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        lang = ("en", "zh")[number % 2]
        wrong = int(random.integers(0, 4))
        said = ("light",) if number % 3 else ()
        found = said if random.random() < 0.7 else ()
        rows.append(
            Utterance(
                f"<b>u{number}</b>",
                lang,
                text,
                2.0,
                "turn on",
                -1.0,
                Counts(wrong, 0, 0, 4),
                entities=Entities(said, found),
            )
        )
    result = SetResult(key.benchmark, tuple(rows), 1.0, {}, {})
    (summary,) = report.build(key.model, [result])["sets"]
    if key.mode != "offline":
        delays = tuple(random.gamma(2.0, 0.2, 30))
        measured = Latency(delays, delays, delays, delays, delays, streams=3, finals=3)
        summary["streaming"] = measured.summary()
    if lists:
        summary["hotword_list"] = {"names": lists}
    return Cell(key, DONE, summary=summary, rows=report.list_rows([result]))


@pytest.fixture(scope="module")
def sweep():
    """Two models with everything that there is, and cells that are not done."""
    made = []
    for seed, model in enumerate(("before", "after")):
        for number, benchmark in enumerate(("calls", "calls-10db", "calls-0db")):
            for mode in ("offline", "stream:640"):
                made.append(make_cell(Key(model, benchmark, mode), seed + 2 * number))
        for size in (10, 1000):
            key = Key(model, "calls", "offline", f"list:{size}")
            made.append(make_cell(key, seed, lists=size))
        made.append(Cell(Key(model, "far", "offline"), ABSENT, f"place {HOSTILE}"))
    made.append(Cell(Key("peer", "calls", "stream:640"), UNFIT, "cannot stream"))
    made.append(Cell(Key("peer", "calls", "offline"), FAILED, "broke: x|y"))
    return made


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    summary.write(str(folder), sweep)
    return {name: (folder / name).read_text(encoding="utf8") for name in FILES}


def test_the_same_cells_give_the_same_bytes(sweep, written, tmp_path):
    for cell in sweep:
        cells.write(str(tmp_path), cell)
    stored = [cells.read(str(tmp_path), cell.key) for cell in sweep]
    summary.write(str(tmp_path), stored)
    for name in FILES:
        assert (tmp_path / name).read_text(encoding="utf8") == written[name]
    assert not list(tmp_path.glob("*.tmp"))


def test_every_cell_appears_with_its_reason(sweep, written):
    listed = json.loads(written["report.json"])["cells"]
    keys = {(c["model"], c["benchmark"], c["mode"], c["hotwords"]) for c in listed}
    assert len(listed) == len(keys) == len(sweep)
    for cell in sweep:
        key = cell.key
        assert (key.model, key.benchmark, key.mode, key.hotwords) in keys
        for name in (key.model, key.benchmark, cell.reason):
            assert html.escape(name) in written["report.html"]
    for status in (ABSENT, UNFIT, FAILED):
        assert f"| {status} |" in written["report.md"]
    assert r"broke: x\|y" in written["report.md"]


def test_nothing_hostile_is_a_tag(written):
    for name in ("report.md", "report.html"):
        assert "<script" not in written[name]
    assert "&lt;b&gt;u1&lt;/b&gt;" in written["report.html"]


def test_intervals_are_those_of_the_bootstrap(sweep, written):
    cell = sweep[0]
    counts = [
        (row["text"]["substitutions"], 4) for row in cell.rows if row["lang"] == "en"
    ]
    low, high = bootstrap.interval(np.array(counts))
    percent = 100 * sum(wrong for wrong, _ in counts) / (4 * len(counts))
    told = json.loads(written["report.json"])["cells"][0]
    (error,) = [it for it in told["errors"] if it["metric"] == "WER"]
    assert (error["percent"], error["low"], error["high"]) == (percent, low, high)
    shown = f"{percent:.2f} ({low:.2f} … {high:.2f})"
    assert shown in written["report.html"].replace("\u00a0", " ")
    assert shown in written["report.md"]


def test_comparisons_are_those_of_compare(sweep, written):
    done = {cell.key: cell for cell in sweep}
    told = json.loads(written["report.json"])["comparisons"]
    assert {it["model"] for it in told} == {"after"}
    assert {it["base"] for it in told} == {"before"}
    for mode in ("offline", "stream:640"):
        pair = (done[Key(model, "calls-0db", mode)] for model in ("before", "after"))
        expected = comparison.to_json(comparison.compare(*(cell.rows for cell in pair)))
        mine = [
            it for it in told if (it["benchmark"], it["mode"]) == ("calls-0db", mode)
        ]
        assert len(mine) == len(expected["lines"])
        for one, other in zip(mine, expected["lines"]):
            for key in ("measure", "language", "a", "b", "low", "high", "p", "change"):
                assert one[key] == other[key]


def test_another_model_may_be_the_base(sweep, tmp_path):
    summary.write(str(tmp_path), sweep, base="after")
    told = json.loads((tmp_path / "report.json").read_text())["comparisons"]
    assert {(it["base"], it["model"]) for it in told} == {("after", "before")}
    with pytest.raises(ValueError, match="no cell of the base 'none'"):
        summary.write(str(tmp_path), sweep, base="none")


def test_plots_are_where_their_data_are(written, sweep, tmp_path):
    titles = (
        "Error by benchmark and model",
        "Error against noise, calls",
        "Delays of streams, calls",
        "Recall against the size of the list, calls",
    )
    for title in titles:
        assert f"<figcaption>{title}" in written["report.html"]
    bare = [cell for cell in sweep if cell.key in {Key("before", "calls", "offline")}]
    summary.write(str(tmp_path), bare)
    page = (tmp_path / "report.html").read_text(encoding="utf8")
    assert [f"<figcaption>{title}" in page for title in titles] == [True] + [False] * 3
    assert "Models compared" not in page and "Streams" not in page


def test_a_report_of_absent_cells_says_so(tmp_path):
    reason = "no manifest"
    absent = [Cell(Key("m", name, "offline"), ABSENT, reason) for name in "ab"]
    summary.write(str(tmp_path), absent)
    text = (tmp_path / "report.md").read_text(encoding="utf8")
    assert "2 cells: 2 absent." in text
    assert "| a, b | m | offline | absent | no manifest |" in text
    assert "<figure" not in (tmp_path / "report.html").read_text(encoding="utf8")


def test_one_utterance_and_no_word_are_enough(tmp_path):
    silence = Utterance("s", "en", "", 1.0, "um", 0.0, Counts(insertions=1))
    result = SetResult("quiet", (silence,), 0.0, {}, {})
    (scored,) = report.build("m", [result])["sets"]
    key = Key("m", "quiet", "offline")
    quiet = Cell(key, DONE, summary=scored, rows=report.list_rows([result]))
    single = [make_cell(Key(model, "one", "offline"), 3, 1) for model in "mn"]
    summary.write(str(tmp_path), [quiet, *single])
    text = (tmp_path / "report.md").read_text(encoding="utf8")
    assert "nothing said, 1 written" in text
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf8"))
    (error,) = told["cells"][0]["errors"]
    assert error["percent"] is None and error["insertions"] == 1


def test_sets_that_differ_are_not_compared_and_it_is_said(tmp_path):
    one = make_cell(Key("m", "b", "offline"), text="go home")
    other = make_cell(Key("n", "b", "offline"), text="stay here")
    summary.write(str(tmp_path), [one, other])
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf8"))
    assert told["comparisons"] == []
    assert "the set has changed" in told["not_compared"][0]
    assert "the set has changed" in (tmp_path / "report.md").read_text(encoding="utf8")


def test_no_cell_or_one_twice_is_refused(sweep, tmp_path):
    for wrong in ([], [sweep[0], sweep[0]]):
        with pytest.raises(ValueError, match="expected one or more, each once"):
            summary.write(str(tmp_path), wrong)


def test_holm_by_hand():
    # Sorted: 0.01 · 4, 0.03 · 3, 0.04 · 2 (not below the one before), 0.5 · 1.
    corrected = rates.correct([0.04, 0.01, 0.5, 0.03])
    assert corrected == pytest.approx([0.09, 0.04, 0.5, 0.09])
    assert rates.correct([0.9, 0.8]) == [1.0, 1.0]
    assert rates.correct([]) == []


def test_quantiles_are_a_distribution():
    delays = tuple(np.random.default_rng(0).normal(0.5, 0.2, 500))
    known = Latency(final_delay=delays).summary()["quantiles"]
    assert set(known) == {"final_delay"}
    values = np.array(known["final_delay"]) / 1000
    assert len(values) == len(latency.RANKS) and (np.diff(values) >= 0).all()
    for rank, value in zip(latency.RANKS, values):
        below = 100 * np.mean(np.array(delays) <= value)
        assert below == pytest.approx(rank, abs=0.6)
