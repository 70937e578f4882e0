"""Recordings as streams: in any company what each gives alone."""

import dataclasses

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.hotwords import Prompted
from nim4_jax.decode.live.events import Final, Partial, SpeechStarted, SpeechStopped
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.session import StreamError
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.eval import streaming
from nim4_jax.retrieval import database
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.serving import recognisers
from nim4_jax.text.phonemes import INVENTORY
from nim4_jax.types import Frames

# 160 ms chunks, utterances of 1.28 s: much happens in little audio.
CONFIG = StreamConfig(
    chunk=4,
    left=2,
    unstable_tokens=3,
    draft_tokens=4,
    chunks=8,
    text_tokens=32,
    suffix_tokens=40,
)


@pytest.fixture(scope="module")
def listener(model_files):
    loaded = recognisers.load(
        model_files[0], chunk_ms=CONFIG.chunk_ms, left=CONFIG.left
    )
    return Listener(loaded.recogniser, streams=2, config=CONFIG)


@pytest.fixture(scope="module")
def recordings():
    records = opening.open_source("bundled:commands:test")
    return [reading.decode(records[number]["audio"]) for number in (0, 3, 5)]


def split(events):
    """What must be equal, and scores that rounding may move."""
    scores = [
        score
        for event in events
        if isinstance(event, Final)
        for score in (event.log_prob, *(word.confidence for word in event.words))
    ]
    plain = [
        dataclasses.replace(event, log_prob=0.0, words=())
        if hasattr(event, "words")
        else event
        for event in events
    ]
    times = [
        (word.text, word.start, word.end)
        for event in events
        if isinstance(event, Final)
        for word in event.words
    ]
    return plain, times, scores


def test_recordings_together_give_what_each_gives_alone(listener, recordings):
    """Three recordings in two places, the third in that of the first to end."""
    together = streaming.transcribe(listener, recordings)
    alone = [streaming.transcribe(listener, [one])[0] for one in recordings]
    for one, other in zip(together, alone, strict=True):
        (plain, times, scores), expected = split(one), split(other)
        assert (plain, times) == expected[:2]
        np.testing.assert_allclose(scores, expected[2], atol=1e-4)
        kinds = {type(event) for event in one}
        assert kinds == {SpeechStarted, Partial, SpeechStopped, Final}
    assert streaming.transcribe(listener, []) == []


def test_a_bad_recording_leaves_no_stream_behind(listener, recordings):
    bad = np.full(4000, np.nan, np.float32)
    with pytest.raises(StreamError, match="sample 0 of a packet"):
        streaming.transcribe(listener, [recordings[0], bad])
    others = [listener.open() for _ in range(listener.streams)]
    with pytest.raises(StreamError, match="all 2 streams are taken"):
        streaming.transcribe(listener, recordings)
    for session in others:
        listener.drop(session)


def test_finals_are_joined_as_subtitles_are():
    """A space between, none beside a Chinese character; other events say nothing."""

    def final(number, text):
        return Final(number, text, (), 0.0, 1.0, "speech ended", (), 0.0, True, 1.0)

    events = [
        SpeechStarted(0, 0.0, 0.1),
        final(0, "open"),
        Partial(1, "the", 0, (), 1.2),
        final(1, "the window"),
        final(2, ""),
        final(3, "打开"),
        final(4, "车窗"),
    ]
    assert streaming.join_finals(events) == "open the window打开车窗"
    assert streaming.join_finals([]) == ""


def test_a_streamed_recogniser_stands_where_a_recogniser_can(listener, recordings):
    streamed = streaming.StreamedRecogniser(listener._recogniser, listener)
    size = max(map(len, recordings))
    values = np.zeros((4, size), np.float32)
    mask = np.zeros((4, size), bool)
    for row, samples in enumerate(recordings):
        values[row, : len(samples)] = samples
        mask[row, : len(samples)] = True
    hints = [("perth",), (), ("anna",), ()]
    made = streamed.transcribe(Frames(values, mask), hints=hints)
    told = streaming.transcribe(listener, recordings, hints)
    for transcript, events in zip(made, told):
        finals = [event for event in events if isinstance(event, Final)]
        assert transcript.text == streaming.join_finals(events)
        assert transcript.words == tuple(w for f in finals for w in f.words)
    assert next(f for f in told[0] if isinstance(f, Final)).hotwords == ("perth",)
    assert (made[3].text, made[3].words) == ("", ())
    measured = streamed.latency.summary()
    assert measured["streams"] == 3 and measured["stable_violations"] == 0
    assert measured["early"] == 0


def test_names_found_in_a_stream_are_in_its_prompts(listener, recordings, monkeypatch):
    """A name that sounds as what the random model hears first, behind the given one."""
    heard = bytearray()
    scan = HotwordRetriever.scan

    def listen(self, state, phonemes, posteriors, times):
        heard.extend(phonemes.tobytes())
        return scan(self, state, phonemes, posteriors, times)

    with monkeypatch.context() as patch:
        patch.setattr(HotwordRetriever, "scan", listen)
        nobody = HotwordRetriever([Layer()])
        streaming.transcribe(listener, recordings[:1], retriever=nobody)
    name = Name("Rotterdam", " ".join(INVENTORY[unit] for unit in heard[:6]))
    base = database.build([name], {name.text: pronounce(name)})
    streamed = streaming.StreamedRecogniser(
        listener._recogniser, listener, retriever=HotwordRetriever([Layer(base)])
    )
    samples = recordings[0][None]
    audio = Frames(samples, np.ones(samples.shape, bool))
    (found,) = streamed.transcribe(audio, hints=[("perth",)])
    assert isinstance(found, Prompted) and found.hints == ("perth", "Rotterdam")
