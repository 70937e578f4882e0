"""Peers: what is not installed is named; those that are, recognise."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.eval.evaluation import EvalConfig, evaluate_set
from nim4_jax.eval.measures import error_rates
from nim4_jax.eval.sweep import peers
from nim4_jax.eval.sweep.peers import PEERS, PeerRecogniser
from nim4_jax.types import Frames


def need(name: str) -> PeerRecogniser:
    """A peer; its test is skipped where it is not installed."""
    try:
        PEERS[name].find_versions()
    except ValueError as error:
        pytest.skip(str(error))
    return PeerRecogniser.open(name)


def frame(recordings) -> Frames:
    """Recordings as rows of one batch."""
    width = max(map(len, recordings))
    values = np.zeros((len(recordings), width), np.float32)
    mask = np.zeros(values.shape, bool)
    for row, samples in enumerate(recordings):
        values[row, : len(samples)], mask[row, : len(samples)] = samples, True
    return Frames(jnp.asarray(values), jnp.asarray(mask))


def read(spec: str, numbers: range):
    """Recordings of a set and what they say."""
    records = [opening.open_source(spec)[number] for number in numbers]
    return [reading.decode(r["audio"]) for r in records], [r["text"] for r in records]


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch):
    packages = ("no-such-package-1", "numpy", "no-such-package-2")
    lacking = dataclasses.replace(PEERS["whisper-base"], packages=packages)
    monkeypatch.setitem(peers.PEERS, "whisper-base", lacking)
    with pytest.raises(ValueError, match=r"package-1, no-such-package-2.*eval-peers"):
        PeerRecogniser.open("whisper-base")
    with pytest.raises(ValueError, match=r"choose from whisper-base, whisper-tiny.en"):
        PeerRecogniser.open("whisper-huge")


@pytest.mark.long
@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny.en", "pocketsphinx"])
def test_human_english_is_mostly_right(name):
    peer = need(name)
    recordings, texts = read("bundled:prompts:test", range(5, 40, 12))
    made = peer.transcribe(frame([*recordings, np.zeros(0, np.float32)]))
    assert made[-1].text == ""
    counts = error_rates.add_up(
        error_rates.score_text(text, row.text, "en") for text, row in zip(texts, made)
    )
    assert counts.reference > 10
    assert counts.percent < {"pocketsphinx": 50.0}.get(name, 30.0)
    with pytest.raises(ValueError, match="tells no phonemes"):
        peer.hear_phonemes(frame(recordings))


@pytest.mark.long
def test_chinese_is_written_in_simplified_characters():
    """The recording's traditional forms differ: 慶, 麼."""
    peer = need("whisper-base")
    recordings, texts = read("bundled:commands:test?lang=zh", range(4, 5))
    detected = peer.transcribe(frame(recordings))[0].text
    told = dataclasses.replace(peer, lang="zh").transcribe(frame(recordings))
    assert detected == told[0].text
    assert error_rates.score_text(texts[0], detected, "zh").percent < 40.0


@pytest.mark.long
def test_what_it_writes_does_not_hang_on_what_came_before():
    peer = need("pocketsphinx")
    recordings, _ = read("bundled:prompts:test", range(6))
    forth = peer.transcribe(frame(recordings))
    back = peer.transcribe(frame(recordings[::-1]))
    assert [row.text for row in forth] == [row.text for row in back][::-1]
    with pytest.raises(ValueError, match="takes no names"):
        peer.transcribe(frame(recordings), hints=[()] * 6)


def test_a_peer_is_evaluated_as_a_model_is():
    peer = need("pocketsphinx")
    config = EvalConfig(bucket_seconds=(5.0,), rows=(1,), limit=3)
    result = evaluate_set(peer, "bundled:prompts:test", config)
    assert len(result.utterances) == 3 and result.real_time_factor > 0
    assert all(row.text is not None for row in result.utterances)
