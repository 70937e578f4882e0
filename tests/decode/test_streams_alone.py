"""A stream that goes wrong ends alone; threads, bursts, a broken device harm none."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.live.audio_buffer import AudioBuffer
from nim4_jax.decode.live.events import Failed, Final
from nim4_jax.decode.live.listener import DeviceError, Listener
from nim4_jax.decode.live.prompter import Prompter
from nim4_jax.decode.live.session import Limits, StreamError
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.decode.silero import Silero
from nim4_jax.retrieval.database import Gate
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name
from nim4_jax.serving import recognisers
from nim4_jax.text import prompt
from nim4_jax.text.phonemes import INVENTORY
from nim4_jax.types import Frames

RATE = 16_000
CONFIG = StreamConfig(chunk=4, left=4, chunks=40, text_tokens=64, suffix_tokens=40)
DETECTOR = Silero()


@pytest.fixture(scope="module")
def whole(model_files) -> BatchRecogniser:
    loaded = recognisers.load(
        model_files[0], chunk_ms=CONFIG.chunk_ms, left=CONFIG.left
    )
    return loaded.recogniser


@pytest.fixture(scope="module")
def listener(whole) -> Listener:
    return Listener(whole, streams=16, config=CONFIG, detector=DETECTOR)


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    records = opening.open_source("bundled:commands:test")
    decoded = (reading.decode(records[i]["audio"]) for i in range(30))
    return [samples for samples in decoded if len(samples) < 2.2 * RATE][:2]


def talk(pieces, pause=0.7) -> np.ndarray:
    quiet = np.zeros(int(pause * RATE), np.float32)
    return np.concatenate([quiet, *itertools.chain(*((p, quiet) for p in pieces))])


def pump(listener, told):
    for session, event in listener.advance():
        told.setdefault(session, []).append(event)


class BadRetriever(HotwordRetriever):
    """Breaks at its third piece."""

    def __init__(self):
        super().__init__([])
        self.count = 0

    def scan(self, *arguments):
        self.count += 1
        if self.count == 3:
            raise ZeroDivisionError("a bad retriever")
        return super().scan(*arguments)


class OtherClock(HotwordRetriever):
    """Numbers frames as if it had been there from the start."""

    def scan(self, state, phonemes, posteriors, times):
        return super().scan(state, phonemes, posteriors, times + 40.0)


def late(make):
    """What is set on a session when some of its audio has been heard."""

    def harm(session, place):
        if place == 15_000:
            make(session)

    return harm


def break_detector(session):
    class Deaf:
        def score_many(self, states, windows):
            raise OSError("a bad detector")

    session.detector = Deaf()


def spoil_state(session):
    """The batch of all streams cannot be scored with this one in it."""
    session._detected = None


def set_retriever(make):
    return late(lambda session: setattr(session, "retriever", make()))


HARM = {
    "retriever": (set_retriever(BadRetriever), "ZeroDivisionError: a bad"),
    "no retriever at all": (set_retriever(lambda: "names"), "AttributeError"),
    "clock": (set_retriever(lambda: OtherClock([])), "frames"),
    "hint": (late(lambda s: setattr(s, "_hints", (None,))), "AttributeError"),
    "detector": (late(break_detector), "OSError: a bad detector"),
    "detector's state": (late(spoil_state), "AttributeError"),
    "take": (late(lambda s: setattr(s, "take", None)), "TypeError"),
}


def run_sixteen(listener, recordings, harm=lambda session, place: None, bad=5):
    """Sessions and their events, in packets, one of them harmed before each."""
    sessions, told = [listener.open() for _ in recordings], {}
    for place in range(0, max(map(len, recordings)), 5_000):
        for number, (session, samples) in enumerate(zip(sessions, recordings)):
            if number == bad:
                harm(session, place)
            if not session.failure:
                session.feed(samples[place : place + 5_000])
        pump(listener, told)
    for session in sessions:
        session.close()
    while any(slot and slot.session is not sessions[bad] for slot in listener._slots):
        pump(listener, told)
    return sessions, [told.get(session, []) for session in sessions]


@pytest.fixture(scope="module")
def sixteen(listener, spoken):
    """Recordings, and the events of all where none is bad."""
    recordings = [talk(spoken[n % 2 :][:1], 0.5 + 0.02 * n) for n in range(16)]
    sessions, good = run_sixteen(listener, recordings)
    while any(listener._slots):
        pump(listener, rest := {})
        good[5] += rest.get(sessions[5], [])
    assert all(isinstance(events[-1], Final) for events in good)
    return recordings, good


@pytest.mark.parametrize("kind", HARM)
def test_fifteen_of_sixteen_are_as_they_are_alone(listener, sixteen, kind):
    """Byte for byte, with a bad one among them or without it."""
    harm, message = HARM[kind]
    recordings, good = sixteen
    sessions, mixed = run_sixteen(listener, recordings, harm)
    failed = mixed[5][-1]
    assert isinstance(failed, Failed) and message in failed.error
    assert sessions[5].failure is not None
    assert mixed[5][:-1] == good[5][: len(mixed[5]) - 1]
    assert good[:5] + good[6:] == mixed[:5] + mixed[6:]
    with pytest.raises(StreamError, match="broke off"):
        sessions[5].feed(np.zeros(9, np.float32))
    assert not any(listener._slots)


def test_fifteen_of_sixteen_are_as_they_are_alone_beside_a_burst(listener, sixteen):
    """Ten minutes at once; and as many hints and names as the door lets in."""
    recordings, good = sixteen

    def burst(session, place):
        if place == 0:
            session.feed(np.zeros(600 * RATE, np.float32))
            session.hints = [f"name {n}" for n in range(256)]

    sessions, mixed = run_sixteen(listener, recordings, burst)
    assert good[:5] + good[6:] == mixed[:5] + mixed[6:]
    assert sessions[5].backlog > 500 and not sessions[5].failure
    listener.drop(sessions[5])


class Failing:
    """Programs that fail at one call, after they took the state."""

    def __init__(self, programs):
        self._programs, self.calls, self.bad, self.rows = programs, 0, -1, []

    def __getattr__(self, name):
        return getattr(self._programs, name)

    def tick(self, config, width, state, arrival):
        self.calls += 1
        self.rows.append(len(arrival.fresh))
        made = self._programs.tick(config, width, state, arrival)
        if self.calls == self.bad:
            raise MemoryError("RESOURCE_EXHAUSTED")
        return made


def test_a_device_error_ends_what_the_device_held_and_nothing_else(whole, spoken):
    programs = Failing(whole.programs)
    frail = dataclasses.replace(whole, programs=programs)
    listener = Listener(frail, streams=4, config=CONFIG, detector=DETECTOR)
    samples = talk(spoken[:1])
    expected = {}
    alone = listener.open()
    alone.feed(samples)
    alone.close()
    while any(listener._slots):
        pump(listener, expected)
    speaking, silent = listener.open(), listener.open()
    told = {}
    speaking.feed(samples[: 2 * RATE])
    silent.feed(samples[: RATE // 4])
    programs.bad = programs.calls + 3
    with pytest.raises(DeviceError, match=r"RESOURCE_EXHAUSTED.*Listener\.reset"):
        while True:
            pump(listener, told)
    with pytest.raises(DeviceError, match="failed before"):
        listener.advance()
    listener.reset()
    silent.feed(samples[RATE // 4 :])
    silent.close()
    while any(listener._slots):
        pump(listener, told)
    assert isinstance(told[speaking][-1], Failed)
    assert told[speaking][:-1] == expected[alone][: len(told[speaking]) - 1]
    assert len(told[speaking]) > 1
    assert told[silent] == expected[alone]


def test_rows_of_one_call_are_limited(whole, listener, spoken):
    programs = Failing(whole.programs)
    frail = dataclasses.replace(whole, programs=programs)
    few = Listener(frail, streams=3, config=CONFIG, detector=DETECTOR, most_rows=1)
    recordings = [talk(spoken[n % 2 :][:1], 0.5 + 0.1 * n) for n in range(3)]
    told = []
    for one in (few, listener):
        said = {}
        sessions = [one.open() for _ in recordings]
        for session, samples in zip(sessions, recordings):
            session.feed(samples)
            session.close()
        while any(one._slots):
            pump(one, said)
        texts = [[(type(e), getattr(e, "text", "")) for e in said[s]] for s in sessions]
        told.append(texts)
    assert told[0] == told[1] and set(programs.rows) == {1}
    with pytest.raises(ValueError, match="most_rows=0"):
        Listener(whole, config=CONFIG, detector=DETECTOR, most_rows=0)


def test_a_burst_is_heard_in_turns(listener):
    """However much one sends at once, an `advance` looks at two seconds of it."""
    burst, other = listener.open(), listener.open()
    burst.feed(np.zeros(600 * RATE, np.float32))
    other.feed(np.zeros(RATE, np.float32))
    listener.advance()
    assert burst.backlog > 590 and other.backlog < 0.1 and listener.pending
    burst.feed(np.zeros(300, np.float32))
    listener.advance()
    assert len(burst._audio._samples) < 3 * RATE  # an hour is not joined anew
    listener.drop(burst)
    assert not listener.pending
    listener.drop(other)


def test_what_a_stream_may_ask_for_is_limited(listener):
    session = listener.open(limits=Limits(hints=3, hint_length=5, waiting=2.0))
    session.hints = ["a", "b"]
    for bad, message in (
        (["a"] * 4, "4 hints; a prompt takes at most 3"),
        (["abcdef"], "at most 5 characters"),
        ([None], "no text"),
        ("abc", "sequence of texts"),
    ):
        with pytest.raises(StreamError, match=message):
            session.hints = bad
        with pytest.raises(StreamError, match=message):
            listener.open(hints=bad, limits=Limits(hints=3, hint_length=5))
    assert session.hints == ("a", "b")
    session.feed(np.zeros(2 * RATE, np.float32))
    with pytest.raises(StreamError, match="nothing of it was taken"):
        session.feed(np.zeros(RATE, np.float32))
    listener.advance()
    session.feed(np.zeros(RATE, np.float32))
    listener.drop(session)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=12), max_size=30), st.integers(0, 60))
def test_hints_fit_as_if_each_was_tried(whole, names, more):
    bare = len(prompt.encode_suffix(whole.tokenizer))
    names = tuple(name.strip() for name in names if name.strip())
    prompter = Prompter(whole.tokenizer, bare + more)
    wanted = prompt.fit_hints(whole.tokenizer, names, bare + more)
    assert prompter.choose(names, ()) == wanted
    ids, mask = prompt.pack_suffixes(whole.tokenizer, [wanted, ()], bare + more)
    packed = prompter.pack([wanted, ()])
    assert (packed.ids == ids).all() and (packed.mask == mask).all()


@settings(max_examples=5)
@given(st.lists(st.integers(1, 9_000), min_size=1, max_size=6), st.integers(0, 99))
def test_packets_from_other_threads_are_heard_whole(listener, spoken, sizes, seed):
    recordings = [talk(spoken[n % 2 :][:1], 0.5 + 0.05 * n) for n in range(6)]
    expected = [list_events(listener, samples) for samples in recordings]
    told, sessions = {}, [listener.open() for _ in recordings]

    def feed(number):
        place, session, samples = 0, sessions[number], recordings[number]
        random = np.random.default_rng(seed + number)
        for size in itertools.cycle(sizes):
            session.feed(samples[place : place + size])
            place += size
            if place >= len(samples):
                break
            if random.random() < 0.1:
                session.hints = ()
        session.close()

    threads = [threading.Thread(target=feed, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    while any(listener._slots):
        pump(listener, told)
    for thread in threads:
        thread.join()
    shorn = [[strip(event) for event in told[session]] for session in sessions]
    assert shorn == [[strip(event) for event in events] for events in expected]


def strip(event):
    """Without scores, which depend on the order of additions in a batch."""
    if isinstance(event, Final):
        return dataclasses.replace(event, log_prob=0.0, words=())
    return event


def list_events(listener, samples, **opened):
    told, session = {}, listener.open(**opened)
    session.feed(samples)
    session.close()
    while any(listener._slots):
        pump(listener, told)
    return told[session]


def test_a_buffer_loses_and_doubles_nothing_between_threads():
    """Reader and writer at once: all samples, in order, and the end behind them."""
    buffer, count = AudioBuffer(), 40_000
    samples = np.arange(count, dtype=np.float32)

    def write():
        sizes = itertools.cycle([1, 7, 160, 3])
        place = 0
        while place < count:
            size = next(sizes)
            buffer.append(samples[place : place + size], 1 << 40)
            place += size
        buffer.close("late")

    writer = threading.Thread(target=write)
    writer.start()
    read, got = 0, []
    while True:
        buffer.receive()
        got.append(buffer.read(read, buffer.end))
        read = buffer.end
        buffer.forget(read)
        if buffer.ended:
            break
    writer.join()
    np.testing.assert_array_equal(np.concatenate(got), samples)


def find_sounds(whole, samples, final) -> bytes:
    piece = samples[round(final.start * RATE) : round(final.end * RATE)]
    values = Frames(piece[None], np.ones((1, len(piece)), bool))
    (phonemes,) = whole.hear_phonemes(values)
    return bytes(phonemes)


def make_layer(sounds: bytes, text="Zork") -> Layer:
    layer = Layer(gate=Gate(min_phonemes=1, max_chance=np.inf))
    spelled = " ".join(INVENTORY[phoneme] for phoneme in sounds)
    layer.add([Name(text, pronunciation=spelled)])
    return layer


def test_keywords_that_come_late_find_what_was_said_and_go_when_they_are_taken_out(
    listener, whole, spoken
):
    samples = talk(spoken[:1])
    final = list_events(listener, samples)[-1]
    sounds = find_sounds(whole, samples, final)
    layer = make_layer(sounds[:4])
    for taken_out in (False, True):
        session, told = listener.open(), {}
        until = round(final.end * RATE) - 9_000
        session.feed(samples[:until])
        while listener.pending or session not in told:
            pump(listener, told)
        session.retriever = HotwordRetriever([layer])
        session.feed(samples[until : until + 3_000])
        pump(listener, told)
        while listener.pending:
            pump(listener, told)
        if taken_out:
            layer.remove(["Zork"])
        session.feed(samples[until + 3_000 :])
        session.close()
        while any(listener._slots):
            pump(listener, told)
        assert told[session][-1].hotwords == (() if taken_out else ("Zork",))
