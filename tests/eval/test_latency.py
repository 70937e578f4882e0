"""Figures of timed events: values worked out by hand, and what they add up to."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode.live import events
from nim4_jax.decode.live.events import Final, Partial, SpeechStarted, SpeechStopped
from nim4_jax.decode.timing import Word
from nim4_jax.eval.measures import latency
from nim4_jax.eval.measures.latency import Latency, Timed

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "打", "开"]), max_size=5).map(" ".join)


def start(clock, heard=0.4, at=0.2, utterance=0):
    return Timed(SpeechStarted(utterance, at, heard), clock)


def partial(clock, text, heard, stable=0, utterance=0):
    return Timed(Partial(utterance, text, stable, (), heard), clock)


def stop(clock, heard, utterance=0):
    return Timed(SpeechStopped(utterance, heard, events.SPEECH_ENDED, heard), clock)


def final(clock, words, heard, utterance=0, text=None):
    """A final whose words are (text, start, end)."""
    timed = tuple(Word(*word, 1.0) for word in words)
    text = " ".join(word.text for word in timed) if text is None else text
    event = Final(
        utterance, text, timed, 0.2, heard, events.SPEECH_ENDED, (), -1.0, True, heard
    )
    return Timed(event, clock)


OPEN = [("open", 0.5, 0.75), ("the", 0.75, 1.0), ("window", 1.0, 1.5)]
STREAM = [
    start(0.5),
    partial(0.875, "", 0.75),
    partial(1.25, "open", 1.0, stable=4),
    partial(1.5, "open a", 1.25, stable=4),
    partial(1.75, "open the wind", 1.5, stable=8),
    stop(2.0, 2.0),
    final(2.5, OPEN, 2.0),
]


def test_a_stream_by_hand():
    found = latency.measure(STREAM, audio_seconds=4.0, busy_seconds=1.0)
    assert found == Latency(
        first_partial_delay=(0.75,),  # 1.25 − 0.5; the empty partial does not count
        partial_lag=(0.5, 0.75, 1.0),  # since the partials at 1.25, 1.75, the final
        final_delay=(1.0,),  # 2.5 − 1.5
        final_work=(0.5,),  # 2.5 − 2.0
        tick_delay=(0.125, 0.25, 0.25, 0.25),
        partial_changes=1,  # a
        last_changes=1,  # wind
        final_words=3,
        partials=4,
        finals=1,
        streams=1,
        audio_seconds=4.0,
        busy_seconds=1.0,
    )
    assert found.upwr == pytest.approx(2 / 3)
    assert found.partial_upwr == pytest.approx(1 / 3)
    assert found.rtf == 0.25


def test_a_summary_by_hand():
    summary = latency.measure(STREAM, 4.0, 1.0).summary()
    assert json.loads(json.dumps(summary)) == summary
    lags = summary["partial_lag"]
    assert lags["count"] == 3
    assert lags["p50"] == 0.75
    assert lags["p95"] == pytest.approx(0.975)  # 0.9 of the way from 0.75 to 1.0
    assert lags["p99"] == pytest.approx(0.995)
    assert summary["rtf"] == 0.25
    assert summary["final_words"] == 3


def test_a_word_that_flickers_is_settled_when_it_comes_to_stay():
    words = [("a", 0.0, 0.25), ("b", 0.25, 0.5)]
    stream = [
        partial(0.5, "a b", 0.5),
        partial(1.0, "a c", 1.0),
        partial(1.5, "a b", 1.5),
        final(2.0, words, 2.0),
    ]
    found = latency.measure(stream)
    assert found.partial_lag == (0.25, 1.0)
    assert found.partial_changes == 2  # b, then c
    assert found.last_changes == 0


def test_a_word_behind_a_wrong_one_is_not_settled():
    words = [("a", 0.0, 0.25), ("b", 0.25, 0.5)]
    stream = [partial(0.5, "x b", 0.5), final(2.0, words, 2.0)]
    found = latency.measure(stream)
    assert found.partial_lag == (1.75, 1.5)
    assert found.upwr == 0.5


@pytest.mark.parametrize(
    ("text", "following", "changes"),
    [
        ("a big cat", "a big cat s", 0),
        ("a big cat", "a bad cat", 1),
        ("a big cat", "a cat", 1),
        ("cat", "a cat", 0),
        ("open", "open.", 1),
        ("打开窗", "打开窗户", 0),
        ("打开窗", "大开窗", 1),
        ("打开窗", "", 3),
        ("ＯＫ", "OK", 0),
        ("", "a", 0),
    ],
)
def test_words_taken_back(text, following, changes):
    stream = [partial(1.0, text, 1.0), partial(2.0, following, 2.0), final(3, [], 3)]
    assert latency.measure(stream).partial_changes == changes
    stream = [partial(1.0, text, 1.0), final(3, [], 3, text=following)]
    assert latency.measure(stream).last_changes == changes


def test_chinese_counts_characters():
    words = [("打", 0.0, 0.25), ("开", 0.25, 0.5), ("灯", 0.5, 0.75)]
    stream = [
        partial(0.5, "打", 0.5),
        partial(1.0, "打开等", 1.0),
        final(1.5, words, 1.5, text="打开灯"),
    ]
    found = latency.measure(stream)
    assert found.final_words == 3
    assert found.upwr == pytest.approx(1 / 3)
    assert found.partial_lag == (0.25, 0.5, 0.75)


def test_broken_promises():
    stream = [
        partial(1.0, "open a", 1.0, stable=6),
        partial(2.0, "open a door", 2.0, stable=4),
        partial(3.0, "open the", 3.0, stable=8),
        partial(4.0, "open the", 4.0, stable=8),
        final(5.0, OPEN[:1], 5.0, text="open a door"),
    ]
    found = latency.measure(stream)
    assert found.stable_violations == 1  # the first, by the third and fourth
    assert found.final_changes == 2  # the third and the fourth


def test_without_words_the_wait_begins_with_the_speech():
    stream = [start(0.5, at=0.25), partial(1.0, "uh", 1.0), final(2.0, [], 1.5)]
    found = latency.measure(stream)
    assert found.first_partial_delay == (0.75,)
    assert found.final_delay == found.partial_lag == ()
    assert found.final_work == (0.5,)
    assert found.upwr == 1.0  # one word taken back, the divisor is 1
    assert latency.measure(stream[1:]).first_partial_delay == ()


def test_an_utterance_cut_off_counts_in_what_it_has():
    found = latency.measure([start(0.5), *STREAM[2:4]])
    assert found == Latency(
        first_partial_delay=(1.25 - 0.2,),
        tick_delay=(0.25, 0.25),
        partials=2,
        streams=1,
    )


def test_events_before_their_audio_are_counted():
    found = latency.measure([start(0.3), partial(0.9, "a", 1.0), final(2, [], 2)])
    assert found.early == 2


def test_nothing_is_no_division_by_zero():
    for found in (Latency(), latency.add_up([]), latency.measure([])):
        summary = found.summary()
        nothing = {"count": 0, "p50": None, "p95": None, "p99": None}
        assert summary["final_delay"] == summary["partial_lag"] == nothing
        assert summary["upwr"] == summary["partial_upwr"] == 0
        assert summary["rtf"] is None
    assert latency.late_share([], 0.5) == 0


def test_late_share():
    assert latency.late_share([0.1, 0.5, 0.6, 2.0], 0.5) == 0.5
    assert latency.late_share((0.1,), 0.5) == 0.0


def test_an_event_after_the_final_is_refused():
    with pytest.raises(ValueError, match="after its Final"):
        latency.measure([final(1, [], 1), partial(2, "a", 1)])
    with pytest.raises(ValueError, match="after its Final"):
        latency.measure([final(1, [], 1), final(2, [], 2)])


@pytest.mark.parametrize("clock", [0.5, float("nan"), float("inf")])
def test_a_clock_that_runs_backwards_is_refused(clock):
    with pytest.raises(ValueError, match="event 1 has clock"):
        latency.measure([start(1.0), start(clock, utterance=1)])


@st.composite
def utterances(draw):
    """Texts of partials with their stable fronts, and the final text."""
    texts = draw(st.lists(TEXTS, max_size=4))
    return [(text, draw(st.integers(0, 4))) for text in texts], draw(TEXTS)


def make_stream(parts, first=0):
    """Events of one second each, utterances numbered from `first`."""
    stream, clock = [], 0.0
    for number, (partials, last) in enumerate(parts, start=first):
        stream.append(start(clock + 0.5, clock, clock, number))
        for text, stable in partials:
            clock += 1.0
            stream.append(partial(clock + 0.25, text, clock, stable, number))
        spoken = [(word, clock, clock + 0.5) for word in last.split()]
        clock += 1.0
        stream.append(final(clock + 0.5, spoken, clock, number))
    return stream


STREAMS = st.lists(st.lists(utterances(), max_size=2), max_size=4)


@given(STREAMS)
def test_merging_is_concatenating_events(streams):
    joined, count, clock = [], 0, 0.0
    for parts in streams:
        # One stream after another: each starts when the last event has come.
        for timed in make_stream(parts, first=count):
            joined.append(shift(timed, clock))
        count += len(parts)
        clock = joined[-1].clock if joined else 0.0
    merged = latency.add_up(latency.measure(make_stream(parts)) for parts in streams)
    whole = latency.measure(joined)
    assert dataclasses.replace(whole, streams=len(streams)) == merged
    assert latency.add_up([merged, Latency()]) == merged == merged + Latency()


def shift(timed, seconds):
    """The same event so much later; the figures used are exact in binary."""
    event = timed.event
    moved = {
        name: getattr(event, name) + seconds
        for name in ("start", "end", "heard")
        if hasattr(event, name)
    }
    if isinstance(event, Final):
        moved["words"] = tuple(
            dataclasses.replace(
                word, start=word.start + seconds, end=word.end + seconds
            )
            for word in event.words
        )
    return Timed(dataclasses.replace(event, **moved), timed.clock + seconds)


@given(STREAMS.flatmap(lambda s: st.tuples(st.just(s), st.permutations(s))))
def test_the_order_of_streams_is_irrelevant(orders):
    one, other = (
        latency.add_up(
            latency.measure(make_stream(parts), 0.1 * len(parts), 0.7)
            for parts in streams
        )
        for streams in orders
    )
    assert one.summary() == other.summary()


@given(TEXTS, st.data())
def test_text_that_only_grows_is_never_taken_back(text, data):
    words = text.split()
    ends = sorted(data.draw(st.lists(st.integers(0, len(words)), max_size=4)))
    texts = [" ".join(words[:end]) for end in ends]
    parts = ([(grown, len(grown)) for grown in texts], text)
    found = latency.measure(make_stream([parts]))
    assert found.upwr == found.stable_violations == found.final_changes == 0
    # A word settles with the first partial that has it.
    clocks = [place + 1.25 for place in range(len(ends))]
    said = float(len(ends)) + 0.5
    assert found.partial_lag == tuple(
        next((c for c, end in zip(clocks, ends) if end > place), len(ends) + 1.5) - said
        for place in range(len(words))
    )


@given(utterances())
def test_bounds(parts):
    found = latency.measure(make_stream([parts]))
    shown = sum(len(text.split()) for text, _ in parts[0])
    assert 0 <= found.partial_changes + found.last_changes <= shown
    assert found.stable_violations < max(found.partials, 1)
    assert all(lag <= found.final_delay[0] for lag in found.partial_lag)
    assert found.early == 0
