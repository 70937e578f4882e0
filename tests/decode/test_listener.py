"""Streams end to end: packets, company and history change nothing."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode import stream
from nim4_jax.decode.endpoint import BlankDetector, EndpointConfig
from nim4_jax.decode.live import events
from nim4_jax.decode.live.events import Final, Partial, SpeechStarted, SpeechStopped
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.session import StreamError
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.decode.silero import Silero
from nim4_jax.retrieval.database import Gate
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name
from nim4_jax.serving import recognisers
from nim4_jax.text.phonemes import INVENTORY
from nim4_jax.types import Frames

RATE = 16_000
CONFIG = StreamConfig(
    chunk=4,
    left=4,
    chunks=40,
    text_tokens=64,
    suffix_tokens=40,
)
DETECTOR = Silero()


@pytest.fixture(scope="module")
def whole(model_files) -> BatchRecogniser:
    loaded = recognisers.load(
        model_files[0], chunk_ms=CONFIG.chunk_ms, left=CONFIG.left
    )
    return loaded.recogniser


@pytest.fixture(scope="module")
def listener(whole) -> Listener:
    return Listener(whole, streams=4, config=CONFIG, detector=DETECTOR)


@pytest.fixture(scope="module")
def overhearing(whole) -> Listener:
    """Hears all, and tells speech by the phoneme head."""
    loose = EndpointConfig(threshold=0.95, release=0.9, end_silence=0.3)
    return Listener(
        whole,
        streams=4,
        config=CONFIG,
        boundaries=loose,
        detector=BlankDetector(hold=0.04),
    )


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    """Some short commands."""
    records = opening.open_source("bundled:commands:test")
    decoded = (reading.decode(records[i]["audio"]) for i in range(30))
    short = [samples for samples in decoded if len(samples) < 2.2 * RATE]
    return short[:4]


def talk(pieces, pause=0.9, seed=0) -> np.ndarray:
    """Utterances with quiet pauses before, between and behind them."""
    quiet = np.zeros(int(pause * RATE), np.float32)
    joined = np.concatenate([quiet, *itertools.chain(*((p, quiet) for p in pieces))])
    noise = np.random.default_rng(seed).normal(0, 1e-4, len(joined))
    return (joined + noise).astype(np.float32)


def listen(listener, samples, sizes=(RATE,), patience=1, **opened):
    """Events of one stream fed in packets of these sizes, over and over."""
    session, told, place = listener.open(**opened), [], 0
    for count, size in enumerate(itertools.cycle(sizes)):
        session.feed(samples[place : place + size])
        place += size
        if count % patience == 0:
            told += [event for _, event in listener.drain()]
        if place >= len(samples):
            break
    session.close()
    return told + [event for _, event in listener.drain()]


def assert_alike(one, other):
    """The same events; scores may differ by the order of additions."""
    assert [type(event) for event in one] == [type(event) for event in other]
    for mine, theirs in zip(one, other):
        if isinstance(mine, Final):
            assert mine.log_prob == pytest.approx(theirs.log_prob, abs=1e-3)
            for word, same in zip(mine.words, theirs.words, strict=True):
                assert word.confidence == pytest.approx(same.confidence, abs=1e-3)
                bare = [dataclasses.replace(w, confidence=0.0) for w in (word, same)]
                assert bare[0] == bare[1]
            mine = dataclasses.replace(mine, words=(), log_prob=0.0)
            theirs = dataclasses.replace(theirs, words=(), log_prob=0.0)
        assert mine == theirs


@pytest.mark.parametrize("sizes", [(112,), (1_600,), (10_240,), (RATE * 60,)])
def test_no_size_of_packets_changes_an_event(listener, spoken, sizes):
    samples = talk(spoken[:2])
    expected = listen(listener, samples)
    assert sum(isinstance(event, Final) for event in expected) == 2
    assert listen(listener, samples, sizes) == expected


def test_packets_of_one_sample_change_nothing(listener, spoken):
    samples = talk(spoken[:1], 0.7)
    assert listen(listener, samples, (1,), patience=500) == listen(listener, samples)


@settings(max_examples=4)
@given(st.lists(st.integers(0, 9_000), min_size=3, max_size=9), st.integers(1, 4))
def test_random_packets_change_nothing(listener, overhearing, spoken, sizes, patience):
    samples = talk(spoken[1:3])
    for one in (listener, overhearing):
        expected = listen(one, samples)
        assert listen(one, samples, (*sizes, 4_000), patience) == expected


def test_events_come_in_order_and_cover_the_speech(listener, spoken):
    told = listen(listener, talk(spoken[:3]))
    heard = [event.heard for event in told]
    assert heard == sorted(heard)
    for number in range(3):
        own = [event for event in told if event.utterance == number]
        assert isinstance(own[0], SpeechStarted)
        assert isinstance(own[-2], SpeechStopped) and isinstance(own[-1], Final)
        assert all(isinstance(event, Partial) for event in own[1:-2])
        final = own[-1]
        assert (final.start, final.end) == (own[0].start, own[-2].end)
        assert final.reason == events.SPEECH_ENDED
        times = [time for word in final.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert not times or final.start <= times[0] <= times[-1] <= final.end


def test_what_a_partial_calls_stable_stays(listener, spoken):
    told = listen(listener, talk(spoken))
    partials = [event for event in told if isinstance(event, Partial)]
    assert any(partial.stable for partial in partials)
    for one, other in itertools.pairwise(partials):
        if one.utterance == other.utterance:
            assert other.text.startswith(one.text[: one.stable])
            assert other.stable >= one.stable


def test_a_final_is_the_offline_transcript_of_its_audio(listener, whole, spoken):
    samples = talk(spoken[:3])
    finals = [e for e in listen(listener, samples) if isinstance(e, Final)]
    for final in finals:
        piece = samples[round(final.start * RATE) : round(final.end * RATE)]
        values = Frames(piece[None], np.ones((1, len(piece)), bool))
        (expected,) = whole.transcribe(values)
        assert final.text == expected.text
        assert final.finished == expected.finished
        assert final.log_prob == pytest.approx(expected.log_prob, abs=1e-3)
        for word, same in zip(final.words, expected.words, strict=True):
            assert word.start == pytest.approx(same.start + final.start)
            assert word.end == pytest.approx(same.end + final.start)


def test_sixteen_streams_together_are_each_alone(whole, listener, spoken):
    many = Listener(whole, streams=16, config=CONFIG, detector=DETECTOR)
    recordings = [talk(spoken[n % 4 :][: 1 + n % 2], 0.5, n) for n in range(16)]
    sessions = [many.open() for _ in recordings]
    told = {session: [] for session in sessions}
    longest = max(map(len, recordings))
    for place in range(0, longest, 5_000):
        for session, samples in zip(sessions, recordings):
            session.feed(samples[place : place + 5_000])
        for session, event in many.advance():
            told[session].append(event)
    for session in sessions:
        session.close()
    for session, event in many.drain():
        told[session].append(event)
    for session, samples in zip(sessions, recordings):
        assert_alike(told[session], listen(listener, samples))


def test_streams_that_come_and_go_are_each_alone(listener, overhearing, spoken):
    """Seven streams in four places: late, early, one after the other in a slot."""
    recordings = [talk(spoken[i % 4 : i % 4 + 1 + i % 2], 0.5, i) for i in range(7)]
    for one in (listener, overhearing):
        told = let_come_and_go(one, recordings)
        for samples, events_ in zip(recordings, told):
            assert_alike(events_, listen(one, samples))


def let_come_and_go(one, recordings):
    """Events of each recording, opened when a place is free, in packets of its own."""
    waiting, sitting = list(range(len(recordings))), {}
    told, order = {}, {}
    for clock in itertools.count():
        if waiting and len(sitting) < one.streams and clock % 3 == 0:
            session = one.open()
            order[waiting.pop(0)] = session
            sitting[session], told[session] = len(order) - 1, []
        for session, number in sitting.items():
            samples, size = recordings[number], 3_000 + 500 * number
            place = round(session.seconds * RATE)
            if place < len(samples):
                session.feed(samples[place : place + size])
            elif not session.closed:
                session.close()
        for session, event in one.advance():
            told[session].append(event)
        if not one.pending:
            for session in [session for session in sitting if session.closed]:
                for other, event in one.drain():
                    told[other].append(event)
                del sitting[session]
        if not waiting and not sitting:
            return [told[order[number]] for number in range(len(recordings))]


def test_nothing_compiles_after_the_warm_up(listener, spoken):
    listener.warm_up()
    before = stream._tick._cache_size(), stream._finish._cache_size()
    sessions = []
    for number in range(50):
        if len(sessions) == listener.streams:
            sessions.pop(number % 3).close()
            for _ in listener.drain():
                pass
        sessions.append(listener.open(hints=("perth", "anna")[: number % 3]))
        for session in sessions:
            session.feed(talk(spoken[number % 4 :][:1], 0.1)[: 4_000 + 200 * number])
        listener.advance()
    for session in sessions:
        session.close()
    for _ in listener.drain():
        pass
    assert (stream._tick._cache_size(), stream._finish._cache_size()) == before


def test_streams_without_speech_say_nothing(listener):
    assert listen(listener, np.zeros(0, np.float32)) == []
    assert listen(listener, np.zeros(3 * RATE, np.float32)) == []
    noise = np.random.default_rng(0).normal(0, 0.01, 3 * RATE).astype(np.float32)
    assert listen(listener, noise) == []


def test_offset_and_clipping_are_heard_as_speech(listener, spoken):
    samples = talk(spoken[:1])
    for bent in (samples + 0.05, np.clip(samples * 30, -1, 1)):
        told = listen(listener, bent.astype(np.float32))
        assert sum(isinstance(event, Final) for event in told) == 1


def test_a_bad_packet_is_refused_whole_and_the_stream_lives(listener, spoken):
    samples = talk(spoken[:1])
    session = listener.open()
    session.feed(samples[:9_000])
    for bad, message in (
        (np.array([0.1, np.nan], np.float32), "sample 1 .* nan"),
        (np.array([np.inf], np.float32), "inf"),
        (np.zeros((4, 2), np.float32), "one channel"),
        (np.zeros(4, np.int16), "float32"),
    ):
        with pytest.raises(StreamError, match=message):
            session.feed(bad)
    session.feed(samples[9_000:])
    session.close()
    assert [event for _, event in listener.drain()] == listen(listener, samples)
    with pytest.raises(StreamError, match="after the end"):
        session.feed(samples)


def test_an_utterance_without_room_ends_and_the_next_begins_there(whole, spoken):
    small = dataclasses.replace(CONFIG, chunks=5)
    tight = Listener(whole, config=small, detector=DETECTOR)
    told = listen(tight, talk(spoken[:1]))
    stops = [event for event in told if isinstance(event, SpeechStopped)]
    starts = [event for event in told if isinstance(event, SpeechStarted)]
    assert [stop.reason for stop in stops[:-1]] == [events.FULL] * (len(stops) - 1)
    # The last one would soon be full, but somebody takes breath before.
    assert len(stops) > 1 and stops[-1].end < stops[-1].heard
    for stop, start in zip(stops, starts[1:]):
        assert stop.end == start.start
    # Five chunks; where the end is known just behind them, its rest comes along.
    lengths = [stop.end - start.start for stop, start in zip(stops, starts)]
    assert all(length == pytest.approx(0.8) for length in lengths[:-1])
    assert lengths[-1] < 0.96


def test_a_text_without_room_ends_the_utterance(whole, spoken):
    small = dataclasses.replace(
        CONFIG, text_tokens=9, unstable_tokens=3, draft_tokens=4
    )
    tight = Listener(whole, config=small, detector=DETECTOR)
    told = listen(tight, talk(spoken[:1]))
    reasons = {event.reason for event in told if isinstance(event, SpeechStopped)}
    assert events.FULL in reasons


def test_finals_do_not_depend_on_how_much_a_call_writes(whole, listener, spoken):
    """One stream's long text takes several calls; nothing else changes."""
    short = dataclasses.replace(CONFIG, new_tokens=2)
    slow = Listener(whole, streams=4, config=short, detector=DETECTOR)
    recordings = [talk(spoken[n : n + 2], 0.5, n) for n in range(2)]
    for samples in recordings:
        said = [e for e in listen(listener, samples) if not isinstance(e, Partial)]
        same = [e for e in listen(slow, samples) if not isinstance(e, Partial)]
        assert_alike(same, said)
    assert slow.metrics.finals == 4


def test_speech_at_the_end_of_the_stream_is_heard(listener, spoken):
    samples = talk(spoken[:1])[: int(0.9 * RATE) + len(spoken[0])]
    final = listen(listener, samples)[-1]
    assert isinstance(final, Final)
    assert final.end == pytest.approx(len(samples) / RATE)


def test_hints_may_change_while_somebody_speaks(listener, spoken):
    samples = talk(spoken[:1])
    session, told = listener.open(hints=("perth",)), []
    half = len(samples) // 2
    session.feed(samples[:half])
    told += [event for _, event in listener.drain()]
    session.hints = ("anna", " ")
    session.feed(samples[half:])
    session.close()
    told += [event for _, event in listener.drain()]
    named = [e.hotwords for e in told if isinstance(e, Partial | Final)]
    assert named[0] == ("perth",) and named[-1] == ("anna",)


@pytest.mark.parametrize("near", ["lattice", "scann"])
def test_a_name_that_was_heard_joins_the_prompt(listener, whole, spoken, near):
    samples = talk(spoken[:1])
    final = listen(listener, samples)[-1]
    piece = samples[round(final.start * RATE) : round(final.end * RATE)]
    values = Frames(piece[None], np.ones((1, len(piece)), bool))
    (phonemes,) = whole.hear_phonemes(values)
    middle = phonemes[len(phonemes) // 2 :][:6]
    sounds = " ".join(INVENTORY[phoneme] for phoneme in middle)
    layer = Layer(gate=Gate(min_phonemes=1, max_chance=np.inf), near=near)
    layer.add([Name("Zork", pronunciation=sounds)])
    told = listen(listener, samples, retriever=HotwordRetriever([layer]))
    assert told[-1].hotwords == ("Zork",)
    early = [event.hotwords for event in told if isinstance(event, Partial)]
    assert early[0] == () and listen(listener, samples)[-1].hotwords == ()


def test_places_are_limited_and_given_back(listener):
    sessions = [listener.open() for _ in range(listener.streams)]
    with pytest.raises(StreamError, match="all 4 streams are taken"):
        listener.open()
    listener.drop(sessions[0])
    sessions[0] = listener.open()
    for session in sessions:
        session.close()
    assert listener.advance() == []
    listener.drop(listener.open())


def test_a_long_silence_costs_no_memory(listener, overhearing):
    for one in (listener, overhearing):
        session = one.open()
        for _ in range(120):
            session.feed(np.zeros(RATE, np.float32))
            for _ in one.drain():
                pass
        assert len(session._audio) < 8 * RATE
        one.drop(session)


def test_a_model_that_cannot_write_is_refused(model_files):
    heard = recognisers.load(model_files[1]).recogniser
    with pytest.raises(ValueError, match="no LLM"):
        Listener(heard, detector=DETECTOR)


def test_a_prompt_without_room_is_refused(whole):
    config = dataclasses.replace(CONFIG, suffix_tokens=3)
    with pytest.raises(ValueError, match="suffix_tokens=3"):
        Listener(whole, config=config, detector=DETECTOR)
