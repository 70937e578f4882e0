"""A session cuts speech alike, whichever detector hears it; no speech is lost.

The device is a stand-in: a frame is speech where its audio is loud.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.decode.endpoint import BlankDetector, EndpointConfig
from nim4_jax.decode.live import detection, events
from nim4_jax.decode.live.events import SpeechStarted, SpeechStopped
from nim4_jax.decode.live.session import Session
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.live.utterance import Ending, Piece
from nim4_jax.decode.silero import Silero
from nim4_jax.text.phonemes import INVENTORY

RATE, FRAME = 16_000, 640
CONFIG = StreamConfig(chunk=4, left=4, chunks=20, text_tokens=64, suffix_tokens=40)
BOUNDARIES = EndpointConfig(end_silence=0.4)
LOUD = 0.1


class Amplitude(Silero):
    """Silero's form, without its model: speech is what is loud."""

    def __init__(self):
        pass

    def start(self):
        return None

    def score_many(self, states, windows):
        loud = [np.abs(own).mean(axis=1) > LOUD for own in windows]
        return [(None, own.astype(np.float32)) for own in loud]


DETECTORS = {"early": Amplitude(), "late": BlankDetector(hold=0.04, frame=FRAME)}


def hear(samples):
    """Posteriors of whole frames."""
    count = len(samples) // FRAME
    loud = np.abs(samples[: count * FRAME]).reshape(count, FRAME).mean(axis=1) > LOUD
    log_probs = np.full((count, len(INVENTORY)), -20.0, np.float32)
    log_probs[:, 0] = np.where(loud, -20.0, -1e-7)
    return log_probs


def cut(samples, detector, sizes=(10**9,), config=CONFIG):
    """Events, and (utterance, pieces' samples) of each utterance."""
    session = Session(config, BOUNDARIES, detector)
    told, pieces, place = [], {}, 0
    for size in itertools.cycle(sizes):
        session.feed(samples[place : place + size])
        place += size
        if place >= len(samples):
            session.close()
        while True:
            try:
                step = session.advance()
            except StopIteration:
                return told, pieces
            if step is None and session.paused:
                assert not detection.detect([session])
            elif step is None:
                break
            elif isinstance(step, Piece):
                own = take(session, step, samples, config)
                if step.utterance.begun:
                    pieces.setdefault(step.utterance.number, []).append(own)
            elif not isinstance(step, Ending):
                told.append(step)


def take(session, piece, samples, config):
    """Give a piece back; its chunk, which must be the stream's."""
    place = piece.utterance.start + piece.utterance.chunks * config.hop
    before = config.rates.samples_before - piece.missing
    seen = piece.samples[before:]
    np.testing.assert_array_equal(seen, samples[place : place + len(seen)])
    chunk = seen[: piece.until - place]
    nothing = np.zeros(0, np.uint8), np.zeros(0, np.int64)
    session.take(piece, hear(chunk)[: config.chunk], *nothing)
    return chunk


def speak(runs, seed=0):
    """(seconds of silence, seconds of speech) after each other; and where speech is."""
    random, parts, spoken, place = np.random.default_rng(seed), [], [], 0
    for quiet, loud in runs:
        parts.append(np.zeros(round(quiet * RATE), np.float32))
        place += len(parts[-1])
        signs = random.choice([-0.5, 0.5], round(loud * RATE)).astype(np.float32)
        parts.append(signs)
        spoken.append((place, place + len(signs)))
        place += len(signs)
    return np.concatenate([*parts, np.zeros(0, np.float32)]), spoken


def list_utterances(told):
    starts = [round(e.start * RATE) for e in told if isinstance(e, SpeechStarted)]
    stops = [round(e.end * RATE) for e in told if isinstance(e, SpeechStopped)]
    reasons = [e.reason for e in told if isinstance(e, SpeechStopped)]
    return list(zip(starts, stops, reasons, strict=True))


RUNS = st.lists(
    st.tuples(
        st.sampled_from([0.05, 0.2, 0.5, 1.0, 3.0]) | st.floats(0.0, 2.0),
        st.sampled_from([0.02, 0.1, 0.3, 1.0, 3.2, 4.0, 9.0]) | st.floats(0.0, 4.0),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", DETECTORS)
@settings(max_examples=60)
@given(runs=RUNS, tail=st.floats(0.0, 1.0), seed=st.integers(0, 9))
def test_no_speech_is_lost_and_nothing_else_is_an_utterance(kind, runs, tail, seed):
    samples, spoken = speak([*runs, (tail, 0.0)], seed)
    told, pieces = cut(samples, DETECTORS[kind])
    found = list_utterances(told)
    inside = np.zeros(len(samples), bool)
    speech = np.zeros(len(samples), bool)
    for begin, end in spoken:
        speech[begin:end] = True
    for number, (start, end, _) in enumerate(found):
        assert not inside[start:end].any()
        inside[start:end] = True
        own = np.concatenate(pieces[number])
        # What was encoded is not taken back: a late detector knows the end late.
        np.testing.assert_array_equal(own[: end - start], samples[start:end])
        assert len(own) - (end - start) < (1 if kind == "early" else CONFIG.hop)
        assert end - start <= (CONFIG.chunks + 1) * CONFIG.hop
        # It begins with speech, at most a pre-roll before.
        head = speech[start : start + round(0.3 * RATE) + 2 * FRAME]
        assert head.any() and speech[start:end].sum() > 0.1 * RATE - 2 * FRAME
    heard = [event.heard for event in told]
    assert heard == sorted(heard)
    # Bursts too short to be speech, and what is left of a word behind a full utterance.
    short = round(0.1 * RATE) + 4 * FRAME
    for begin, end in spoken:
        missed = ~inside[begin:end]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], missed, [0]])))
        assert all(b - a <= short for a, b in zip(edges[::2], edges[1::2]))


@pytest.mark.parametrize("kind", DETECTORS)
@settings(max_examples=25)
@given(runs=RUNS, sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=5))
def test_packets_change_no_boundary(kind, runs, sizes):
    samples, _ = speak(runs)
    assert cut(samples, DETECTORS[kind], sizes)[0] == cut(samples, DETECTORS[kind])[0]


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_full_utterance_ends_in_a_pause_where_there_is_one(kind):
    samples, spoken = speak([(0.5, 2.75), (0.25, 2.0), (2.0, 0.0)])
    (_, middle, reason), (start, _, _) = list_utterances(
        cut(samples, DETECTORS[kind])[0]
    )
    assert reason == events.FULL and middle <= start
    # A late detector has heard a chunk when it knows of the pause.
    late = 0 if kind == "early" else CONFIG.hop
    assert spoken[0][1] <= middle <= spoken[1][0] + late
    assert start <= max(spoken[1][0], middle)


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("more", [0.0, 0.02, 0.08, 0.5])
def test_what_is_left_of_a_word_is_no_utterance(kind, more):
    """Speech that goes on a little longer than the longest utterance."""
    longest = CONFIG.chunks * CONFIG.hop / RATE
    samples, _ = speak([(0.3, longest - 0.3 + more), (1.5, 0.0)])
    found = list_utterances(cut(samples, DETECTORS[kind])[0])
    assert found[0][2] == events.FULL
    assert [end - start > 0.15 * RATE for start, end, _ in found] == [True] * len(found)
    assert len(found) == (2 if more == 0.5 else 1)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_click_in_the_silence_does_not_take_the_end_back(kind):
    for gap in np.arange(0.3, 0.7, 0.03):
        samples, spoken = speak([(0.5, 1.0), (gap, 0.03), (2.0, 1.0), (1.0, 0.0)])
        found = list_utterances(cut(samples, DETECTORS[kind])[0])
        assert len(found) == 2 and found[0][1] < spoken[1][0] + RATE
        assert spoken[2][0] - 0.4 * RATE < found[1][0] <= spoken[2][0]
