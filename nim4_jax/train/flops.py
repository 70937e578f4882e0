"""Floating-point operations of a step, by formula.

The compiler's own count is of no use under `lax.scan`, of which it counts the body
once. Counted is what the mathematics needs, not what is computed again to save memory,
and real frames and tokens, not padding:

    a parameter of a matrix | operations for each token
    trained                 | 6: outputs, gradient of inputs, gradient of the parameter
    frozen, gradient passes | 4: outputs, gradient of inputs
    frozen before all that  | 2: outputs
    is trained, or sampling |

Attention's products have no parameters: 2 operations per multiplication, three times
where a gradient passes. The encoder's are over all pairs of an utterance (chunk masks
save nothing there), the LLM's over the causal half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nim4_jax.models.asr import AsrConfig, Prompt, param_shapes
from nim4_jax.rates import Rates
from nim4_jax.train import optim

Counts = np.ndarray
"""A number per row of a batch, int64 or float64."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Real lengths of the rows of a batch.

    Attributes:
        frames: U, encoder frames.
        answer: tokens of the transcript.
        suffix: tokens of a row's own suffix; None where it is the prompt's.
        rates: of the model.
    """

    frames: Counts
    answer: Counts
    suffix: Counts | None = None
    rates: Rates = Rates()

    @classmethod
    def of(cls, samples: Counts, answer: Counts, suffix: Counts | None, rates: Rates):
        """From audio samples of a row."""
        frames = -(-(samples // rates.hop) // rates.frame_stride)
        return cls(frames, answer, suffix, rates)

    @property
    def speech(self) -> Counts:
        """Speech tokens."""
        return -(-self.frames // self.rates.speech_stride)

    def prompt(self, around: Prompt) -> Counts:
        """Tokens before the answer: prefix, speech and suffix."""
        suffix = len(around.suffix) if self.suffix is None else self.suffix
        return len(around.prefix) + self.speech + suffix


@dataclasses.dataclass(frozen=True)
class Pass:
    """One run of a part of the model over the rows of a batch.

    Attributes:
        part: "encoder", "ctc_head", "adaptor", "phoneme_reader", "llm" or "unembed".
        tokens: positions of each row that go through it.
        pairs: queries times the keys that each sees.
        learns: whether a gradient may pass; False when sampling and for a reference.
    """

    part: str
    tokens: Counts
    pairs: Counts | float = 0.0
    learns: bool = True

    @classmethod
    def causal(cls, tokens: Counts, learns: bool = True) -> Pass:
        """The LLM over whole sequences."""
        return cls("llm", tokens, tokens * (tokens + 1) / 2, learns)

    @classmethod
    def encoder(cls, frames: Counts, learns: bool = True) -> Pass:
        """The encoder over whole utterances."""
        return cls("encoder", frames, np.square(frames), learns)


class Costed(Protocol):
    """A loss that says which passes it makes; all of `train.losses` do."""

    def passes(self, lengths: Lengths) -> Sequence[Pass]:
        """In the order in which data flows."""
        ...


_TABLES = ("llm/embedding/table", "llm/head/table")


class FlopCounter:
    """Operations of the steps of one recipe.

    Attributes:
        loss: whose passes are counted.
    """

    def __init__(self, config: AsrConfig, loss: Costed, rules: optim.Rules):
        self.loss = loss
        self._sizes = _count_weights(config, rules)
        self._pair = _cost_of_pair(config)

    def count(self, lengths: Lengths) -> dict[str, float]:
        """Operations of one step on rows of these lengths, by part."""
        return self.add_up(self.loss.passes(lengths))

    def add_up(self, passes: Sequence[Pass]) -> dict[str, float]:
        """Operations of some passes, in the order in which data flows, by part."""
        total: dict[str, float] = {}
        upstream = False
        for one in passes:
            trained, frozen = self._sizes[one.part]
            passing = one.learns and (upstream or trained > 0)
            upstream = upstream or passing
            per_token = 2.0 * (trained + frozen)
            if passing:
                per_token = 6.0 * trained + 4.0 * frozen
                # Nothing before this part asks for the gradient of its inputs, but
                # layers within it do; the first one's share is not worth a case.
            pairs = float(np.sum(one.pairs)) * self._pair.get(one.part, 0.0)
            cost = per_token * float(np.sum(one.tokens))
            cost += pairs * (3.0 if passing else 1.0)
            total[one.part] = total.get(one.part, 0.0) + cost
        return total


def _count_weights(
    config: AsrConfig, rules: optim.Rules
) -> dict[str, tuple[float, float]]:
    """Part → multiplications for a token (by trained, by frozen parameters)."""
    rates = {path: None for path in param_shapes(config)}
    rates |= optim.match_known(sorted(rates), rules)
    sizes: dict[str, list[float]] = {}
    unembed = _TABLES[0] if config.llm.tie_embeddings else _TABLES[1]
    for path, shape in param_shapes(config).items():
        if path == unembed:
            part, uses = "unembed", 1.0
        else:
            part, uses = path.split("/")[0], _uses_per_token(path, config)
        size = sizes.setdefault(part, [0.0, 0.0])
        size[rates[path] is None] += uses * float(np.prod(shape))
    return {part: (size[0], size[1]) for part, size in sizes.items()}


def _uses_per_token(path: str, config: AsrConfig) -> float:
    """How often a parameter is multiplied for a token of its part; 0 where it adds."""
    name = path.rsplit("/", 1)[-1]
    if "/position/" in path or name not in ("kernel", "depthwise", "lora_a", "lora_b"):
        return 0.0  # positions are projected once for all rows
    mels = config.features.num_mels
    # Two convolutions of stride 2 in time and in mel, before the frame rate is reached.
    if path.endswith("subsampling/conv1/kernel"):
        return 2.0 * ((mels - 1) // 2)
    if path.endswith("subsampling/conv2/kernel"):
        return float(((mels - 1) // 2 - 1) // 2)
    if path.endswith("stem/conv1/kernel"):
        return float(config.encoder.frame_stride)
    return 1.0


def _cost_of_pair(config: AsrConfig) -> dict[str, float]:
    """Part → operations for one query and one key, all layers and heads together."""
    encoder, llm = config.encoder, config.llm
    return {
        "encoder": 2.0 * encoder.products_per_pair * encoder.num_layers * encoder.width,
        "llm": 2.0 * 2 * llm.num_layers * llm.num_heads * llm.head_dim,
    }
