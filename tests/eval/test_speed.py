"""The form of benchmark reports; tests never time anything themselves."""

import json

import pytest

from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.eval.speed import measure, streaming, ticks
from nim4_jax.launch import bench
from nim4_jax.serving import recognisers


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


def test_streams_need_a_model():
    """Packaged parts with a random adaptor would write texts of any length."""
    with pytest.raises(ValueError, match="--model=WORKDIR of stage 4"):
        streaming.Settings("")


def test_the_state_of_the_full_model_is_counted_by_part():
    """Rows add up; a thousand streams fit beside the weights on a large device."""
    config = StreamConfig()
    states = streaming.measure_states(None, config)
    rows = streaming.describe_states(states)
    whole, *parts = rows
    assert whole.figure == "state_bytes_2b3"
    assert whole.ours == sum(row.ours for row in parts) and len(parts) == 4
    assert {row.unit for row in rows} == {"bytes"}
    # Keys and values, 28 layers, 8 heads of 128, bfloat16.
    slot = 2 * 28 * 8 * 128 * 2
    cache = next(row.ours for row in parts if row.figure.endswith("llm_cache"))
    assert cache % slot == 0 and cache // slot >= config.slots(0)
    count = streaming.count_streams(states["2b3"])
    assert count.figure == "streams_by_memory_80gb_2b3"
    assert 1_000 < count.ours < 1_500


def test_streams_give_all_their_figures(model_files):
    """Names and counts alone, of a model of almost no size; times may be any."""
    config = StreamConfig(left=2, text_tokens=64, chunks=8)
    recogniser = recognisers.load(model_files[0], chunk_ms=640, left=2).recogniser
    assert streaming.find_size(recogniser.programs.model.config) == "model"
    listener = Listener(recogniser, streams=2, config=config)
    speech = streaming.load_speech()[:4]
    held, *delays = streaming.time_streams(listener, speech, 2.0, grain=4)
    assert held.figure == "realtime_streams_held" and held.ours in (0, 1, 2)
    names = ("stream_tick_delay", "stream_speech_end_to_final")
    expected = [f"{name}_p{rank}_ms" for name in names for rank in (50, 95, 99)]
    assert [row.figure for row in delays] == expected
    host = ticks.count_host_work(listener, speech, 2.0)
    assert host.figure == "host_ms_per_chunk" and host.ours > 0 and host.runs > 0
    (one,) = ticks.time_active(recogniser, config, 2, runs=1)
    assert one.figure == "tick_1_of_2_ms" and one.ratio
    rows = streaming.Repetition(recogniser, config, 3.2).compare(speech, runs=1)
    expected = ["chunk_at_3s_ms", "encode_chunk_at_3s_ms"]
    assert [row.figure for row in rows] == expected
    assert all(row.ratio and row.peer for row in rows)
