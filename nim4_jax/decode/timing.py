"""Word times and confidences from forced alignment with the phoneme head.

The transcript's phonemes are aligned with the CTC posteriors; a word lasts from its
first phoneme's first frame to its last phoneme's last frame. The LLM that wrote the
text takes no part: a word that it made up aligns badly and gets a low confidence.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata

import numpy as np
from jaxtyping import Float

from nim4_jax.decode import alignment
from nim4_jax.text import phonemes

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
# A Chinese character with the marks behind it, or what stands between spaces.
_WORD = re.compile(rf"[{_HAN}][^\w\s]*|[^\s{_HAN}]+")


@dataclasses.dataclass(frozen=True)
class Word:
    """An English word or a Chinese character, with the punctuation that clings to it.

    Attributes:
        text: as written in the transcript.
        start: seconds from the start of the audio.
        end: seconds, ≥ start.
        confidence: geometric mean of the posteriors of its phonemes' frames, 0 … 1; 0
            where no sound could be aligned.
    """

    text: str
    start: float
    end: float
    confidence: float


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Words as (text, first character, character behind the last)."""
    return [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]


def spell_words(text: str) -> list[tuple[str, list[int]]]:
    """Words of a text with the phoneme ids of each, [] for those without sound."""
    # G2P reads the NFKC form; where that moves characters, words are cut from it.
    plain = unicodedata.normalize("NFKC", text)
    spans = split_words(text if len(text) == len(plain) else plain)
    spoken: list[list[int]] = [[] for _ in spans]
    starts = np.array([start for _, start, _ in spans])
    position = 0
    for unit, sounds in phonemes.phonemize_words(text):
        found = plain.find(unit, position)
        if found < 0 or not len(starts):
            continue
        word = max(0, int(np.searchsorted(starts, found, side="right")) - 1)
        spoken[word].extend(phonemes.PHONEME_IDS[sound] for sound in sounds)
        position = found + len(unit)
    return [(word, ids) for (word, _, _), ids in zip(spans, spoken)]


def warm_up() -> None:
    """Load and compile now what the first words to be timed would wait for.

    These are dictionaries and the letter-to-sound model, which every new installation
    compiles once: up to some ten seconds.
    """
    # In the dictionary, in none, and Chinese.
    text = "ready zblorf 准备"
    even = np.full((4 * len(text), len(phonemes.INVENTORY)), -5.0, np.float32)
    time_words(text, even, 0.04 * len(even), 0.04)


def time_words(
    text: str,
    log_probs: Float[np.ndarray, "U P"],
    duration: float,
    frame_seconds: float,
) -> tuple[Word, ...]:
    """Words of a transcript with times from the forced alignment of their phonemes.

    Words without sound share the gap between their neighbours. When the audio is too
    short for the phonemes the words are spread evenly, with confidence 0.

    Args:
        text: transcript.
        log_probs: log posteriors of the phoneme head over the valid frames.
        duration: seconds of audio; no word ends later.
        frame_seconds: from one frame of the posteriors to the next.
    """
    words = spell_words(text)
    if not words:
        return ()
    spans = _align_words([ids for _, ids in words], log_probs, frame_seconds)
    times = _fill_gaps([span[:2] if span else None for span in spans], duration)
    return tuple(
        Word(word, start, end, span[2] if span else 0.0)
        for (word, _), (start, end), span in zip(words, times, spans)
    )


def _align_words(
    spoken: list[list[int]], log_probs: np.ndarray, frame_seconds: float
) -> list[tuple[float, float, float] | None]:
    """(start s, end s, confidence) of each word with sounds, None for the others."""
    labels = [label for ids in spoken for label in ids]
    if len(log_probs) < alignment.count_needed_frames(labels):
        return [None] * len(spoken)
    path, _ = alignment.align(log_probs, labels)
    classes = np.append(np.asarray(labels, np.int64), 0)[path]
    scores = log_probs[np.arange(len(path)), classes]
    spans: list[tuple[float, float, float] | None] = []
    sounding = np.flatnonzero(path != alignment.BLANK)
    # Labels follow each other along the path: a word's frames are neighbours.
    borders = np.cumsum([0, *map(len, spoken)])
    places = np.searchsorted(path[sounding], borders)
    for begin, end in itertools.pairwise(places):
        frames = sounding[begin:end]
        if not len(frames):
            spans.append(None)
            continue
        confidence = float(np.clip(np.exp(scores[frames].mean()), 0.0, 1.0))
        first, last = frames[0] * frame_seconds, (frames[-1] + 1) * frame_seconds
        spans.append((float(first), float(last), confidence))
    return spans


def _fill_gaps(
    spans: list[tuple[float, float] | None], duration: float
) -> list[tuple[float, float]]:
    """Times for all words: clipped, monotone, unknown ones spread over their gap."""
    times: list[tuple[float, float]] = []
    index = 0
    while index < len(spans):
        known = spans[index]
        if known is not None:
            times.append((min(known[0], duration), min(known[1], duration)))
            index += 1
            continue
        stop = index
        while stop < len(spans) and spans[stop] is None:
            stop += 1
        low = times[-1][1] if times else 0.0
        following = spans[stop] if stop < len(spans) else None
        high = max(low, min(duration, following[0] if following else duration))
        edges = np.linspace(low, high, stop - index + 1).tolist()
        times.extend(itertools.pairwise(edges))
        index = stop
    return times
