"""Batches of text without speech, for warming up an LLM that has no pretrained weights.

Step s holds texts s·B … (s+1)·B − 1 of an endless sequence that (seed, index)
determines, so a step number is the whole state, and hosts only divide the rows (laws 2
and 3). Texts are sorted by length within a window of steps, so that a batch is padded
little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from nim4_jax.context import choose
from nim4_jax.context.choose import HintConfig
from nim4_jax.data.corpora import grammar, open_names
from nim4_jax.data.pipeline import transforms
from nim4_jax.data.sources import opening
from nim4_jax.data.sources.skips import (
    EMPTY_TRANSCRIPT,
    NO_PHONEME,
    TOO_MANY_LABELS,
    SkipReport,
)
from nim4_jax.text import phonemes, prompt
from nim4_jax.text.tokenizer import Tokenizer

GRAMMAR = "grammar:commands"
_TRIES = 100
_CHINESE = 0.45  # share of the names drawn for prompts


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """What is read, and in which shapes.

    Attributes:
        sources: "grammar:commands" for texts drawn from the command grammar, or
            specifications of `opening.open_source`, whose texts are drawn at random.
        tokenizer: path to a tokenizer.json.
        batch_size: rows of a global batch.
        max_phonemes: label width of each shape, growing; longer texts are skipped.
        max_tokens: token width of every shape.
        window: steps whose texts are sorted by length together.
        seed: of all that is random.
        open_names: share of the grammar's texts with names from `open_names` instead of
            those of the lists.
        hints: how hints are drawn from the names of a text and others; None for none.
        suffix_tokens: width of the prompts behind the speech, with hints only; what has
            no room is left out.
    """

    sources: tuple[str, ...]
    tokenizer: str
    batch_size: int = 64
    max_phonemes: tuple[int, ...] = (14, 20, 28, 44)
    max_tokens: int = 20
    window: int = 8
    seed: int = 0
    open_names: float = 0.0
    hints: HintConfig | None = None
    suffix_tokens: int = 48


@dataclasses.dataclass(frozen=True)
class _Example:
    index: int
    phonemes: list[int]
    tokens: list[int]
    hints: tuple[str, ...]


class _Texts:
    """Endless texts by index."""

    def __init__(self, config: TextConfig):
        self._open_names = config.open_names
        named = [spec for spec in config.sources if spec != GRAMMAR]
        self._opened = [opening.open_source(spec) for spec in named]
        self._grammar = GRAMMAR in config.sources
        if not self._opened and not self._grammar:
            raise ValueError(
                f"sources {config.sources} name no text; use {GRAMMAR!r} or a manifest."
            )

    def draw(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        """A text and the names in it; every source is as likely as any other."""
        choice = int(rng.integers(len(self._opened) + self._grammar))
        if choice == len(self._opened):
            langs, shares = zip(*grammar.LANGUAGE_MIX.items())
            lang = str(rng.choice(langs, p=np.array(shares) / sum(shares)))
            # Without open names nothing is drawn for them: texts stay what they were.
            opened = self._open_names and rng.random() < self._open_names
            names = open_names.sample if opened else None
            command = grammar.sample(rng, lang, held_out=False, draw_name=names)
            return command.text, command.keywords
        records = self._opened[choice]
        record = records[int(rng.integers(len(records)))]
        return record["text"], record["keywords"]

    def draw_name(self, rng: np.random.Generator) -> str:
        """A name for the prompt that has nothing to do with the text."""
        if rng.random() < self._open_names:
            return open_names.sample(rng, "zh" if rng.random() < _CHINESE else "en")
        lists = tuple(grammar.NAME_SLOTS.values())
        names = grammar.load_wordlist(lists[int(rng.integers(len(lists)))])
        return names[int(rng.integers(len(names)))]


class TextLoader:
    """Step → this host's rows of a batch of labels."""

    def __init__(self, config: TextConfig, report: SkipReport, rank: int, hosts: int):
        if config.batch_size % hosts:
            raise ValueError(
                f"batch_size {config.batch_size} does not divide over {hosts} hosts"
            )
        self._config, self._report = config, report
        self._texts = _Texts(config)
        self._tokenizer = Tokenizer.from_file(config.tokenizer)
        share = config.batch_size // hosts
        self._mine = slice(rank * share, (rank + 1) * share)
        self._kept: tuple[int, list[_Example]] = (-1, [])

    def _label(self, index: int) -> _Example:
        """The text of an index; one that does not fit is counted and drawn again."""
        for attempt in range(_TRIES):
            rng = np.random.default_rng([self._config.seed, index, attempt])
            text, names = self._texts.draw(rng)
            spoken = phonemes.encode_phonemes(text)
            tokens = prompt.encode_answer(self._tokenizer, text)
            reason = self._refuse(text, spoken, tokens)
            if reason is None:
                return _Example(index, spoken, tokens, self._draw_hints(rng, names))
            self._report.add(reason, hash(text), "text", text[:80])
        raise ValueError(
            f"{_TRIES} texts in a row do not fit {max(self._config.max_phonemes)} "
            f"phonemes and {self._config.max_tokens} tokens; raise max_phonemes or "
            f"max_tokens, or look at the sources {self._config.sources}"
        )

    def _draw_hints(self, rng: np.random.Generator, names) -> tuple[str, ...]:
        """The hints of one text that have room."""
        config = self._config
        if config.hints is None:
            return ()
        hints = choose.mix_hints(names, self._texts.draw_name, rng, config.hints)
        return prompt.fit_hints(self._tokenizer, hints, config.suffix_tokens)

    def _refuse(self, text: str, spoken: list[int], tokens: list[int]) -> str | None:
        if not text.strip():
            return EMPTY_TRANSCRIPT
        if not spoken:
            return NO_PHONEME
        config = self._config
        too_long = (
            len(spoken) > config.max_phonemes[-1] or len(tokens) > config.max_tokens
        )
        return TOO_MANY_LABELS if too_long else None

    def _window(self, number: int) -> list[_Example]:
        """The sorted examples of one window of steps."""
        if self._kept[0] != number:
            size = self._config.window * self._config.batch_size
            examples = [self._label(number * size + place) for place in range(size)]
            examples.sort(key=lambda example: (len(example.phonemes), example.index))
            self._kept = (number, examples)
        return self._kept[1]

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        config = self._config
        number, place = divmod(step, config.window)
        order = np.random.default_rng([config.seed, number, _TRIES]).permutation(
            config.window
        )
        first = int(order[place]) * config.batch_size
        batch = self._window(number)[first : first + config.batch_size]
        longest = max(len(example.phonemes) for example in batch)
        width = next(size for size in config.max_phonemes if size >= longest)
        mine = batch[self._mine]
        spoken, spoken_mask = transforms.pad_rows(
            [np.array(example.phonemes) for example in mine], width, np.int32
        )
        tokens, tokens_mask = transforms.pad_rows(
            [np.array(example.tokens) for example in mine], config.max_tokens, np.int32
        )
        rows = len(mine)
        arrays = {
            "audio": np.zeros((rows, 0), np.float32),
            "audio_mask": np.zeros((rows, 0), bool),
            "phonemes": spoken,
            "phonemes_mask": spoken_mask,
            "tokens": tokens,
            "tokens_mask": tokens_mask,
            "index": np.array([example.index for example in mine], np.int64),
        }
        if config.hints is not None:
            arrays["suffix"], arrays["suffix_mask"] = prompt.pack_suffixes(
                self._tokenizer,
                [example.hints for example in mine],
                config.suffix_tokens,
            )
        return arrays


class TextIterator(grain.DatasetIterator):
    """Text batches as a Grain iterator; its state is the step.

    Attributes:
        report: the `SkipReport`.
        step: number of batches delivered.
    """

    def __init__(self, loader: TextLoader, report: SkipReport):
        super().__init__()
        self.report = report
        self.step = 0
        self._loader = loader

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._loader(self.step)
        self.step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The step to come."""
        return {"step": self.step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a saved step."""
        self.step = int(state["step"])


def make_text_iterator(
    config: TextConfig, *, rank: int = 0, hosts: int = 1
) -> TextIterator:
    """Endless batches of this host: the speech pipeline's keys, audio of width 0."""
    report = SkipReport()
    return TextIterator(TextLoader(config, report, rank, hosts), report)
