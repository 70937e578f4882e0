"""Record → arrays: labels from the transcript, samples from the audio, padding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import tempo
from nim4_jax.data.sources import records
from nim4_jax.data.sources.examples import Record
from nim4_jax.text import phonemes

_LENGTH_SLACK = 0.02  # seconds: manifests round durations, resamplers round lengths


class Ragged:
    """Many integer sequences in one flat array (a list of arrays costs 10 × more)."""

    def __init__(self, rows: Iterable[Sequence[int]]):
        kept = [np.asarray(row, np.int32) for row in rows]
        self.lengths = np.array([len(row) for row in kept], np.int64)
        self._ends = np.cumsum(self.lengths)
        self._flat = np.concatenate([*kept, np.zeros(0, np.int32)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        end = self._ends[index]
        return self._flat[end - self.lengths[index] : end]

    def join(self, other: Ragged) -> Ragged:
        """The rows of this one, then those of the other."""
        joined = Ragged(())
        joined.lengths = np.concatenate([self.lengths, other.lengths])
        joined._ends = np.cumsum(joined.lengths)
        joined._flat = np.concatenate([self._flat, other._flat])
        return joined

    def count_repeats(self) -> np.ndarray:
        """Neighbouring equal ids within each row, int64 [rows]."""
        row = np.repeat(np.arange(len(self)), self.lengths)
        equal = (self._flat[1:] == self._flat[:-1]) & (row[1:] == row[:-1])
        return np.bincount(row[1:][equal], minlength=len(self)).astype(np.int64)


def encode_text(
    texts: Sequence[str | None], needs: Sequence[str], tokenizer: str | None
) -> tuple[Ragged, Ragged]:
    """Phoneme ids and answer tokens of transcripts.

        text            phonemes   tokens
        "hello"         HH AH …    hello <|im_end|>
        "" (unknown)    none       none
        None (silence)  none       <|im_end|>

    Args:
        texts: transcripts; an empty one is missing and gives no label at all, None says
            that there is nothing to write.
        needs: of "phonemes" and "tokens"; what is not needed is left empty.
        tokenizer: path to a tokenizer.json; None leaves the tokens empty.

    Returns:
        Phoneme ids, and the tokens of each transcript followed by `<|im_end|>`.
    """
    encode = _open_encoder(tokenizer) if tokenizer and "tokens" in needs else None
    spoken, written = [], []
    for text in texts:
        filled = bool(text and text.strip())
        ids = phonemes.encode_phonemes(text) if filled and "phonemes" in needs else ()
        spoken.append(ids)
        known = filled or text is None
        written.append(encode(text or "") if known and encode else ())
    return Ragged(spoken), Ragged(written)


def _open_encoder(tokenizer: str) -> Callable[[str], list[int]]:
    # Imported on demand: training on phonemes alone needs no tokenizer library.
    from nim4_jax.text import prompt
    from nim4_jax.text.tokenizer import Tokenizer

    model = Tokenizer.from_file(os.fspath(tokenizer))
    return lambda text: prompt.encode_answer(model, text)


def load_samples(
    record: Record,
    *,
    speed: float,
    max_seconds: float,
    cached: np.ndarray | None,
    keep_pitch: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a record, decoded (or from the cache) and changed in speed.

    Decoded samples are rounded to int16 whether or not a cache keeps them: a run that
    resumes with an empty cache must see the very bits that it would have seen.

    Args:
        record: as `sources` describes it.
        speed: factor; the result is 1 / speed as long.
        max_seconds: longest result.
        cached: what the cache has.
        keep_pitch: whether the speed changes the tempo alone.

    Returns:
        float32 [S] samples after the speed change, and int16 samples for the cache.

    Raises:
        AudioError: as `reading.decode`; "too long" if the result exceeds `max_seconds`.
    """
    limit = max_seconds + _LENGTH_SLACK
    kept = cached
    if kept is None:
        kept = reading.to_int16(records.decode(record, limit * speed))
    elif len(kept) > limit * speed * reading.SAMPLE_RATE:
        # Read before for a larger bucket: what a cache holds must not show.
        name, seconds = records.name(record), len(kept) / reading.SAMPLE_RATE
        detail = f"{seconds:.2f} s, the limit is {limit * speed:.2f} s"
        raise reading.AudioError("too long", name, detail)
    change = tempo.change_tempo if keep_pitch else reading.change_speed
    samples = change(reading.to_float32(kept), speed)
    size = round(max_seconds * reading.SAMPLE_RATE)
    return samples[:size], kept


def pad_rows(
    rows: Sequence[np.ndarray], width: int, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    """Left-aligned rows [B, width] with zeros behind, and their mask (True = real)."""
    values = np.zeros((len(rows), width), dtype)
    mask = np.zeros((len(rows), width), bool)
    for number, row in enumerate(rows):
        values[number, : len(row)] = row
        mask[number, : len(row)] = True
    return values, mask
