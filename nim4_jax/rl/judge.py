"""Rewards of sampled tokens, computed on the host."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from nim4_jax.rl import rewards
from nim4_jax.rl.rewards import RewardConfig, Sample
from nim4_jax.text import prompt


class Decoder(Protocol):
    """What turns tokens into text; `text.tokenizer.Tokenizer` does."""

    end_id: int

    def decode(self, ids) -> str:
        """Text of some ids."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Rewards of sampled tokens, on the host.

    Attributes:
        decoder: of the LLM's tokens.
        config: what counts how much.
    """

    decoder: Decoder
    config: RewardConfig = RewardConfig()

    def read(
        self, ids: Int[np.ndarray, "B L"], mask: Bool[np.ndarray, "B L"]
    ) -> list[str]:
        """Texts of rows of tokens, the end token left out."""
        rows = (row[real] for row, real in zip(np.asarray(ids), np.asarray(mask)))
        end = self.decoder.end_id
        return [self.decoder.decode([int(i) for i in r if i != end]) for r in rows]

    def read_names(
        self, ids: Int[np.ndarray, "G W"], mask: Bool[np.ndarray, "G W"]
    ) -> list[tuple[str, ...]]:
        """Names that each transcript should have, from `prompt.encode_names`."""
        decode, end = self.decoder.decode, self.decoder.end_id
        rows = (row[real] for row, real in zip(np.asarray(ids), np.asarray(mask)))
        return [tuple(prompt.decode_names(decode, row, end)) for row in rows]

    def __call__(
        self, ids, mask, said, said_mask, wanted=None, wanted_mask=None
    ) -> Float[np.ndarray, "G K"]:
        """Rewards of K samples of each of G utterances.

        Args:
            ids: int [G · K, L] of the samples, those of an utterance together.
            mask: bool [G · K, L].
            said: int [G, R], tokens of the references.
            said_mask: bool [G, R].
            wanted: int [G, W], names that the transcripts should have (R_context), as
                `prompt.encode_names` writes them; None for none.
            wanted_mask: bool [G, W].

        Returns:
            float32 totals.
        """
        names = [()] * len(said)
        if wanted is not None and wanted_mask is not None:
            names = self.read_names(wanted, wanted_mask)
        samples = [
            Sample(reference=text, prompted=named)
            for text, named in zip(self.read(said, said_mask), names)
        ]
        texts, count = self.read(ids, mask), len(ids) // len(said)
        groups = [texts[i : i + count] for i in range(0, len(texts), count)]
        scored = rewards.score_groups(samples, groups, self.config)
        return scored.total.astype(np.float32)
