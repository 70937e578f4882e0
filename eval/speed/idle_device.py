"""A server whose device costs nothing, so that what its host can carry is known.

Every program answers at once with as much text as speech has, and with even posteriors.
All else is the product's: network, resampling, detector of speech, prompts, batches,
tokenizer, times of words, JSON.

python -m nim4_jax.eval.speed.idle_device      settings by NIM4_SERVE_* alone
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import (
    HEARS,
    WRITES,
    Arrival,
    Budget,
    Generation,
    Heard,
    Request,
    Written,
)
from nim4_jax.decode.recogniser import BatchRecogniser, Loaded
from nim4_jax.model_files import loading
from nim4_jax.process import logs
from nim4_jax.rates import Rates
from nim4_jax.text import phonemes
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames, Labels

_TEXT = "please turn on the light in the kitchen and open the door of the garden "
_TOKENS_PER_SECOND = 4.7


@dataclasses.dataclass(frozen=True, eq=False)
class IdlePrograms:
    """Programs that do nothing but count chunks; see `decode.programs.Programs`.

    The state is how many tokens each stream has, int32 [streams + 1]; the last is
    nobody's.

    Attributes:
        text: tokens that every utterance consists of, again and again.
        parts: of a model that writes.
        rates: of the Conformer.
        budget: longest answers.
    """

    text: tuple[int, ...]
    parts: tuple[str, ...] = (*HEARS, *WRITES)
    rates: Rates = Rates()
    budget: Budget = Budget()

    def hear(self, audio: Frames) -> Heard:
        """Even posteriors, and no phoneme."""
        frames = self.rates.count_encoder_frames(audio.mask.shape[1])
        return _hear(np.asarray(audio.mask).any(axis=1), int(frames))

    def transcribe(
        self, audio: Frames, suffix: Labels | None
    ) -> tuple[Heard, Generation]:
        """The same, and a token."""
        tokens = np.full((len(audio.mask), 1), self.text[0], np.int32)
        scores = np.zeros(tokens.shape, np.float32)
        return self.hear(audio), Generation(tokens, tokens >= 0, scores)

    def start(self, config: StreamConfig, streams: int) -> np.ndarray:
        """Nothing has been said."""
        return np.zeros(streams + 1, np.int32)

    def tick(
        self, config: StreamConfig, width: int, state: np.ndarray, arrival: Arrival
    ) -> tuple[Any, Heard, Written]:
        """A chunk's worth of tokens more for each row that has audio."""
        active = np.asarray(arrival.audio.mask).any(axis=1)
        slots = np.arange(len(active))
        if arrival.slots is not None:
            slots = np.asarray(arrival.slots)
        slots = np.where(active, slots, len(state) - 1)
        limits = np.asarray(arrival.limits)
        before = np.where(np.asarray(arrival.fresh), 0, state[slots])
        more = np.where(limits, round(_TOKENS_PER_SECOND * config.seconds), 0)
        after = np.minimum(before + more, np.maximum(before, limits))
        state[slots] = after
        return state, _hear(active, config.chunk), self._write(config, after)

    def finish(
        self, config: StreamConfig, width: int, state: np.ndarray, request: Request
    ) -> tuple[Any, Written]:
        """What was written stays."""
        lengths = np.minimum(state[np.asarray(request.slots)], request.limits)
        return state, self._write(config, lengths)

    def _write(self, config: StreamConfig, lengths: np.ndarray) -> Written:
        rows, most = len(lengths), config.text_tokens
        tokens = np.broadcast_to(np.resize(self.text, most), (rows, most))
        return Written(
            tokens=tokens.astype(np.int32),
            length=lengths.astype(np.int32),
            stable=np.maximum(0, lengths - config.unstable_tokens).astype(np.int32),
            log_prob=np.full(rows, -1.0, np.float32),
            finished=np.ones(rows, bool),
            accepted=np.zeros(rows, np.int32),
            passes=np.int32(1),
        )


def _hear(active: np.ndarray, frames: int) -> Heard:
    classes = len(phonemes.INVENTORY)
    shape = len(active), frames
    even = np.float32(-np.log(classes))
    return Heard(
        log_probs=np.broadcast_to(even, (*shape, classes)),
        mask=np.broadcast_to(active[:, None], shape),
        ids=np.zeros(shape, np.int32),
        starts=np.zeros(shape, bool),
    )


def load() -> Loaded:
    """A recogniser of these programs, with the small tokenizer."""
    tokenizer = Tokenizer.from_file(loading.find_tokenizer("nano"))
    programs = IdlePrograms(tuple(tokenizer.encode(_TEXT)))
    return Loaded(BatchRecogniser(programs, tokenizer), (2.5,), (1,))


def main() -> None:
    """Serve it until a signal."""
    from nim4_jax.serving.server import config, running  # the extra `serve`

    logs.prepare()
    running.run(config.read(), load)


if __name__ == "__main__":
    main()
