"""Word times and confidences from posteriors whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode import timing
from nim4_jax.text import g2p, letter_to_sound, mandarin, phonemes

CLASSES = len(phonemes.INVENTORY)


def say(units: list[tuple[str, int]], sure: float = 0.9) -> np.ndarray:
    """Posteriors of words in a row, `gap` blank frames before each.

    Args:
        units: (word, blank frames before it); each phoneme lasts 2 frames.
        sure: posterior of the right class.
    """
    ids = []
    for word, gap in units:
        ids += [0] * gap
        for phoneme in phonemes.encode_phonemes(word):
            ids += [phoneme, phoneme]
    probabilities = np.full((len(ids), CLASSES), (1 - sure) / (CLASSES - 1))
    probabilities[np.arange(len(ids)), ids] = sure
    return np.log(probabilities)


def test_words_are_where_they_were_said():
    log_probs = say([("open", 10), ("windows", 5)])
    words = timing.time_words("Open windows.", log_probs, 4.0, 0.04)
    assert [word.text for word in words] == ["Open", "windows."]
    length = 2 * len(phonemes.encode_phonemes("open"))
    assert words[0].start == pytest.approx(0.4)
    assert words[0].end == pytest.approx(0.4 + 0.04 * length)
    assert words[1].start == pytest.approx(0.6 + 0.04 * length)
    assert all(word.confidence == pytest.approx(0.9) for word in words)


def test_characters_and_words_of_a_mixed_text():
    log_probs = say([("播", 3), ("放", 0), ("yesterday", 4)])
    words = timing.time_words("播放，Yesterday！", log_probs, 9.0, 0.04)
    assert [word.text for word in words] == ["播", "放，", "Yesterday！"]
    assert [round(word.start / 0.04) for word in words[:1]] == [3]
    assert all(word.confidence > 0.8 for word in words)


def test_a_word_that_was_not_said_has_low_confidence():
    heard = say([("open", 4), ("windows", 4)])
    said, made_up = timing.time_words("open mountain", heard, 3.0, 0.04)
    assert said.confidence > 0.8 > 0.3 > made_up.confidence


def test_a_word_without_sound_fills_the_gap():
    log_probs = say([("open", 0), ("windows", 10)])
    words = timing.time_words("open — windows", log_probs, 5.0, 0.04)
    assert words[1].text == "—" and words[1].confidence == 0.0
    assert (words[1].start, words[1].end) == (words[0].end, words[2].start)


def test_too_little_audio_spreads_the_words():
    words = timing.time_words("open the windows", say([("a", 0)]), 0.3, 0.04)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == pytest.approx([0.0, 0.1, 0.1, 0.2, 0.2, 0.3])
    assert {word.confidence for word in words} == {0.0}


@pytest.mark.parametrize("text", ["", "  "])
def test_no_text_has_no_words(text):
    assert timing.time_words(text, np.zeros((0, CLASSES)), 0.0, 0.04) == ()


@given(
    text=st.text(alphabet="ab c，。!1打开窗é½ \u3000'-", max_size=20),
    frames=st.integers(0, 80),
    seed=st.integers(0, 2**31),
)
def test_times_are_monotone_and_inside_the_audio(text, frames, seed):
    logits = np.random.default_rng(seed).normal(0, 1, (frames, CLASSES))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    duration = frames * 0.04 * 0.97
    words = timing.time_words(text, log_probs, duration, 0.04)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0.0 <= time <= duration for time in times)
    assert all(0.0 <= word.confidence <= 1.0 for word in words)
    assert all(not any(c.isspace() for c in word.text) for word in words)


def test_what_the_first_words_wait_for_is_loaded_beforehand():
    """Behind the warm-up no dictionary and no model is read, whatever is spelt."""
    loaders = g2p.load_dictionary, letter_to_sound.load_model, mandarin.load_corrections
    spellers = g2p.pronounce, phonemes._pronounce_units, mandarin.pronounce_characters
    for cached in (*loaders, *spellers):
        cached.cache_clear()
    timing.warm_up()
    before = [loader.cache_info().misses for loader in loaders]
    assert before == [1] * len(loaders)
    timing.time_words("kitchen qwfzz 你好 15", np.zeros((80, CLASSES)), 3.2, 0.04)
    assert [loader.cache_info().misses for loader in loaders] == before
