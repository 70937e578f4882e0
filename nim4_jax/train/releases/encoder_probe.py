"""Encoder outputs on a fixed evaluation set, for CKA."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax
import numpy as np
from rapidfuzz.distance import Levenshtein

from nim4_jax import sharding
from nim4_jax.models.asr import Asr
from nim4_jax.ops import ctc
from nim4_jax.ops.chunking import Chunking
from nim4_jax.train.releases import cka
from nim4_jax.types import AsrBatch, Frames, Labels, Params

PARTS = ("cmvn", "encoder", "ctc_head")
"""Parts of the parameters that stage 1 makes and that belong together."""


def take_parts(params: Params) -> Params:
    """Stage 1's share of the parameters."""
    return {name: params[name] for name in PARTS if name in params}


def spread(batches: Iterable[AsrBatch], count: int) -> tuple[AsrBatch, ...]:
    """At most `count` batches, evenly from first to last, in their order.

    Evaluation batches come shortest first, so the first few would be no fair sample. At
    most 2 · `count` are held at once.

    Raises:
        ValueError: there is none, or none is asked for.
    """
    if count < 1:
        raise ValueError(f"{count} batches to evaluate on; expected 1 or more.")
    kept: list[AsrBatch] = []
    stride = 1
    for number, batch in enumerate(batches):
        if number % stride == 0:
            kept.append(batch)
        if len(kept) == 2 * count:
            kept, stride = kept[::2], 2 * stride
    if not kept:
        raise ValueError("the evaluation set is empty; check its sources.")
    places = np.linspace(0, len(kept) - 1, min(count, len(kept)))
    return tuple(kept[place] for place in np.unique(places.round().astype(int)))


class EncoderProbe:
    """Runs encoders, which are only parameters, over a few fixed batches.

    Every process hears the whole set: on several hosts, all call its methods. Each
    shape compiles once.
    """

    def __init__(self, model: Asr, batches: Sequence[AsrBatch]):
        """Take a model without dropout, and batches on the host."""

        def hear(module: Asr, audio: Frames) -> Frames:
            return module.encode(module.extract(audio), Chunking.full())

        def spell(module: Asr, audio: Frames) -> tuple[jax.Array, jax.Array]:
            frames = hear(module, audio)
            return ctc.greedy(module.score_phonemes(frames), frames.mask)

        self._batches = tuple(batches)
        whole = sharding.replicated()
        self._hear = jax.jit(nn.apply(hear, model), out_shardings=whole)
        self._spell = jax.jit(nn.apply(spell, model), out_shardings=whole)

    def hear(self, params: Params) -> list[Frames]:
        """Encoder frames [B, U, D] of each batch, on the host.

        Args:
            params: "cmvn" and "encoder"; more is not looked at. On the host, or on
                the mesh.
        """
        variables = {"params": _place(take_parts(params))}
        return [
            jax.device_get(self._hear(variables, sharding.replicate(batch.audio)))
            for batch in self._batches
        ]

    def compare(self, first: Sequence[Frames], second: Sequence[Frames]) -> float:
        """CKA of two encoders from what `hear` gave.

        Raises:
            ValueError: one of them gives constant or no finite frames.
        """
        return cka.measure(zip(first, second, strict=True))

    def phoneme_error(self, params: Params) -> float:
        """Edits of the greedy CTC hypotheses over the number of phonemes.

        Args:
            params: "cmvn", "encoder" and "ctc_head"; more is not looked at.

        Raises:
            ValueError: the evaluation set has no phoneme.
        """
        variables = {"params": _place(take_parts(params))}
        edits, total = 0, 0
        for batch in self._batches:
            audio = sharding.replicate(batch.audio)
            ids, starts = jax.device_get(self._spell(variables, audio))
            for hypothesis, begins, label in zip(ids, starts, _rows(batch.phonemes)):
                edits += Levenshtein.distance(hypothesis[begins].tolist(), label)
                total += len(label)
        if total == 0:
            raise ValueError(
                "the evaluation set has no phonemes; use sources with transcripts."
            )
        return edits / total


def _place(params: Params) -> Params:
    """What is on the host goes to every device; the rest stays where it lies."""

    def place(leaf: jax.Array | np.ndarray) -> jax.Array:
        return leaf if isinstance(leaf, jax.Array) else sharding.replicate(leaf)

    return jax.tree.map(place, params)


def _rows(labels: Labels) -> list[list[int]]:
    """The ids of each row without padding."""
    return [ids[mask].tolist() for ids, mask in zip(labels.ids, labels.mask)]
