"""The form of benchmark reports; tests never time anything themselves."""

import json

import pytest

from nim4_jax.launch import bench
from nim4_jax.launch.benchmarks import measure


def test_runs_are_interleaved_and_medians_compared():
    """Two warm-up runs each, then by turns, who is first changing."""
    calls = []
    row = measure.compare(
        "work_ms",
        "ms",
        lambda: calls.append("ours"),
        lambda: calls.append("peer"),
        peer_name="other",
        runs=3,
    )
    assert calls[:4] == ["ours", "peer"] * 2
    assert calls[4:] == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert row.peer is not None and row.ratio == pytest.approx(row.peer / row.ours)
    assert (row.figure, row.unit, row.peer_name, row.runs) == (
        "work_ms",
        "ms",
        "other",
        3,
    )


def test_json_is_one_object_on_one_line():
    """The fixed keys; a peer that there is not is null."""
    rows = [
        measure.Row("a_ms", "ms", 2.0, 3.0, "other", 1.5, 5),
        measure.Row("b_ms", "ms", 2.0, None, "none", None, 5),
    ]
    text = measure.format_json("name", rows, threads=2)
    report = json.loads(text)
    assert "\n" not in text and set(report) == {"bench", "machine", "rows"}
    assert report["machine"]["threads"] == 2
    assert report["rows"][1] == {
        "figure": "b_ms",
        "unit": "ms",
        "ours": 2.0,
        "peer": None,
        "peer_name": "none",
        "ratio": None,
        "runs": 5,
    }
    table = measure.format_table(rows)
    assert "| a_ms | 2 ms | 3 ms (other) | 1.50 | 5 |" in table
    assert "| b_ms | 2 ms | none |  | 5 |" in table


def test_a_missing_peer_names_the_extra():
    """An error and not a missing row."""
    with pytest.raises(ValueError, match=r"no_such_peer is not installed.*\.\[peers\]"):
        measure.need("no_such_peer")


@pytest.mark.parametrize("names", [[], ["speed"], ["ctc", "features"]])
def test_the_name_must_be_one_of_the_benches(names):
    """The error lists them."""
    with pytest.raises(ValueError, match="name one of features, ctc, train_step"):
        bench.find_bench(names)
