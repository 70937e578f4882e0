"""The batch recogniser: padded audio to transcripts with phonemes and timings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from nim4_jax import features
from nim4_jax.decode import timing
from nim4_jax.decode.programs import WRITES, Budget, Programs
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames, Labels


@dataclasses.dataclass(frozen=True)
class Transcript:
    """The transcript of one row of audio, with tokens, words and phonemes.

    Attributes:
        text: transcript, "" for silence.
        tokens: ids that the LLM wrote, without the end token.
        log_prob: of tokens and end token, nats.
        finished: False when the budget ended the answer.
        words: with times and confidences; () when they were not asked for.
        phonemes: greedy CTC hypothesis.
        duration: seconds of audio.
        token_log_probs: nats, of each of the tokens.
    """

    text: str
    tokens: tuple[int, ...]
    log_prob: float
    finished: bool
    words: tuple[timing.Word, ...]
    phonemes: tuple[int, ...]
    duration: float
    token_log_probs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class BatchRecogniser:
    """A loaded model with its tokenizer, for batches of audio.

    Attributes:
        programs: of the model.
        tokenizer: of the LLM.
    """

    programs: Programs
    tokenizer: Tokenizer

    @property
    def budget(self) -> Budget:
        """Longest answers."""
        return self.programs.budget

    @property
    def writes(self) -> bool:
        """Whether there is an LLM behind the encoder."""
        return all(part in self.programs.parts for part in WRITES)

    def check_writes(self) -> None:
        """Refuse a model that can hear but not write.

        Raises:
            ValueError: it holds no LLM or no adaptor.
        """
        if not self.writes:
            missing = [
                WRITES[part] for part in WRITES if part not in self.programs.parts
            ]
            raise ValueError(
                f"the model holds no {' and no '.join(missing)}: train stages 2 and 4 "
                "from it to get text. Its phonemes can be evaluated already "
                "(`nim4 evaluate --phonemes`)."
            )

    def hear_phonemes(self, audio: Frames) -> list[tuple[int, ...]]:
        """Greedy CTC phoneme ids of each row; needs no LLM.

        Args:
            audio: samples in [-1, 1), Float [B, S] at 16 kHz.
        """
        heard = self.programs.hear(audio)
        return _collapse(*jax.device_get((heard.ids, heard.starts)))

    def score_phonemes(self, audio: Frames) -> list[np.ndarray]:
        """Natural log of the phoneme posteriors of each row, float32 [U, P]; no LLM.

        Args:
            audio: samples in [-1, 1), Float [B, S] at 16 kHz.
        """
        heard = self.programs.hear(audio)
        scores, mask = jax.device_get((heard.log_probs, heard.mask))
        return [row[valid] for row, valid in zip(scores, mask)]

    def transcribe(
        self,
        audio: Frames,
        *,
        hints: Sequence[Sequence[str]] | None = None,
        timings: bool = True,
    ) -> list[Transcript]:
        """Transcripts of a batch, greedily decoded; a row is the same in any batch.

        Args:
            audio: samples in [-1, 1), Float [B, S] at 16 kHz. Rows without sound, or
                shorter than one frame (25 ms), become "".
            hints: hotwords for the prompt of each row; None for none at all.
            timings: whether words get times and confidences.

        Raises:
            ValueError: the model holds no LLM, or not one list of hints per row.
        """
        self.check_writes()
        suffix = None if hints is None else self._pack_suffixes(hints, len(audio.mask))
        heard, written = self.programs.transcribe(audio, suffix)
        written, ids, starts = jax.device_get((written, heard.ids, heard.starts))
        durations = np.asarray(audio.mask).sum(axis=1) / features.SAMPLE_RATE
        rows = zip(
            written.tokens,
            written.mask,
            written.log_probs,
            _collapse(ids, starts),
            durations,
        )
        transcripts = [self._read_row(*row) for row in rows]
        if not timings:
            return transcripts
        scores, frames = jax.device_get((heard.log_probs, heard.mask))
        timed = []
        for row, transcript in enumerate(transcripts):
            words = timing.time_words(
                transcript.text,
                scores[row][frames[row]],
                transcript.duration,
                self.programs.rates.frame_seconds,
            )
            timed.append(dataclasses.replace(transcript, words=words))
        return timed

    def _pack_suffixes(self, hints: Sequence[Sequence[str]], rows: int) -> Labels:
        """Each row's instruction with its hints; few widths, so that few compile."""
        if len(hints) != rows:
            raise ValueError(f"{len(hints)} lists of hints for {rows} rows of audio.")
        return Labels(*prompt.pack_suffixes(self.tokenizer, hints))

    def _read_row(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        log_probs: np.ndarray,
        spoken: tuple[int, ...],
        seconds: float,
    ) -> Transcript:
        """One row of what the LLM wrote, as a transcript without times."""
        end_id = self.tokenizer.end_id
        kept = [int(token) for token in tokens[mask]]
        answer = tuple(token for token in kept if token != end_id)
        scored = zip(kept, log_probs[mask].tolist())
        return Transcript(
            text=self.tokenizer.decode(answer).strip(),
            tokens=answer,
            log_prob=float(log_probs[mask].sum()),
            finished=not kept or kept[-1] == end_id,
            words=(),
            phonemes=spoken,
            duration=float(seconds),
            token_log_probs=tuple(own for token, own in scored if token != end_id),
        )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A recogniser and the batch shapes that its model was trained in.

    Attributes:
        recogniser: the model.
        bucket_seconds: lengths of the shapes, growing.
        rows: rows of each shape.
    """

    recogniser: BatchRecogniser
    bucket_seconds: tuple[float, ...]
    rows: tuple[int, ...]


def _collapse(ids: np.ndarray, starts: np.ndarray) -> list[tuple[int, ...]]:
    """Ids at the places where a label starts, row by row."""
    return [tuple(row[begin].tolist()) for row, begin in zip(ids, starts)]
