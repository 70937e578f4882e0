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
from nim4_jax.data.pipeline import transforms
from nim4_jax.data.pipeline.iterators import OtherDataError
from nim4_jax.data.pipeline.text_draws import TextDraws
from nim4_jax.data.sources.skips import (
    EMPTY_TRANSCRIPT,
    NO_PHONEME,
    TOO_MANY_LABELS,
    SkipReport,
)
from nim4_jax.data.sources.text_files import STYLES
from nim4_jax.text import phonemes, prompt
from nim4_jax.text.tokenizer import Tokenizer

_TRIES = 100


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """What is read, and in which shapes.

    Attributes:
        sources: "grammar:commands" for texts drawn from the command grammar, text files
            (`text_files.py`), or specifications of `opening.open_source`, whose texts
            are drawn at random; each alone, or with its weight: sources are drawn as
            often as their weights say, each 1 where none is given.
        tokenizer: path to a tokenizer.json.
        batch_size: rows of a global batch.
        max_phonemes: label width of each shape, growing; longer texts are skipped.
        max_tokens: token width of every shape, or of each; a text has the first shape
            that holds its phonemes and its tokens.
        window: steps whose texts are sorted by length together.
        seed: of all that is random.
        open_names: share of the grammar's texts with names from `open_names` instead of
            those of the lists, and of the files' with such names put in.
        hints: how hints are drawn from the names of a text and others; None for none.
        suffix_tokens: width of the prompts behind the speech, with hints only; what has
            no room is left out.
        style: "plain" for commands as the grammar writes them, in lower case, "written"
            for sentences with case and punctuation as those of text files.
    """

    sources: tuple[str | tuple[str, float], ...]
    tokenizer: str
    batch_size: int = 64
    max_phonemes: tuple[int, ...] = (14, 20, 28, 44)
    max_tokens: int | tuple[int, ...] = 20
    window: int = 8
    seed: int = 0
    open_names: float = 0.0
    hints: HintConfig | None = None
    suffix_tokens: int = 48
    style: str = "plain"

    def __post_init__(self):
        if self.style not in STYLES:
            raise ValueError(
                f"data.style={self.style!r} must be one of {', '.join(STYLES)}."
            )
        tokens = self.max_tokens
        several = (tokens,) * len(self.max_phonemes) if type(tokens) is int else tokens
        grow = [list(each) == sorted(each) for each in (self.max_phonemes, several)]
        if len(several) != len(self.max_phonemes) or not all(grow):
            raise ValueError(
                f"data.max_tokens={tokens} must be one width, or one for each of "
                f"data.max_phonemes={self.max_phonemes}; both must grow."
            )

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Phonemes and tokens that each shape holds."""
        tokens = self.max_tokens
        if isinstance(tokens, int):
            tokens = (tokens,) * len(self.max_phonemes)
        return tuple(zip(self.max_phonemes, tokens))

    def find_shape(self, phonemes: int, tokens: int) -> int | None:
        """The first shape that holds so many, None where none does."""
        fitting = (
            place
            for place, (most_phonemes, most_tokens) in enumerate(self.shapes)
            if phonemes <= most_phonemes and tokens <= most_tokens
        )
        return next(fitting, None)


@dataclasses.dataclass(frozen=True)
class _Example:
    index: int
    phonemes: list[int]
    tokens: list[int]
    hints: tuple[str, ...]
    shape: int


class TextLoader:
    """Step → this host's rows of a batch of labels.

    Attributes:
        fingerprint: of the text files' lines; 0 where there is none.
    """

    def __init__(self, config: TextConfig, report: SkipReport, rank: int, hosts: int):
        if config.batch_size % hosts:
            raise ValueError(
                f"batch_size {config.batch_size} does not divide over {hosts} hosts"
            )
        self._config, self._report = config, report
        self._texts = TextDraws(config.sources, config.open_names, config.style, report)
        self.fingerprint = self._texts.fingerprint
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
            shape = self._config.find_shape(len(spoken), len(tokens))
            reason = _refuse(text, spoken, shape)
            if reason is None and shape is not None:
                hints = self._draw_hints(rng, names)
                return _Example(index, spoken, tokens, hints, shape)
            self._report.add(str(reason), hash(text), "text", text[:80])
        raise ValueError(
            f"{_TRIES} texts in a row do not fit the shapes of (phonemes, tokens) "
            f"{self._config.shapes}; raise max_phonemes or "
            f"max_tokens, or look at the sources {self._config.sources}"
        )

    def _draw_hints(self, rng: np.random.Generator, names) -> tuple[str, ...]:
        """The hints of one text that have room."""
        config = self._config
        if config.hints is None:
            return ()
        hints = choose.mix_hints(names, self._texts.draw_name, rng, config.hints)
        return prompt.fit_hints(self._tokenizer, hints, config.suffix_tokens)

    def _window(self, number: int) -> list[_Example]:
        """The sorted examples of one window of steps."""
        if self._kept[0] != number:
            size = self._config.window * self._config.batch_size
            examples = [self._label(number * size + place) for place in range(size)]
            examples.sort(key=lambda e: (e.shape, len(e.phonemes), e.index))
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
        width, most = config.shapes[max(example.shape for example in batch)]
        mine = batch[self._mine]
        spoken, spoken_mask = transforms.pad_rows(
            [np.array(example.phonemes) for example in mine], width, np.int32
        )
        tokens, tokens_mask = transforms.pad_rows(
            [np.array(example.tokens) for example in mine], most, np.int32
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


def _refuse(text: str, spoken: list[int], shape: int | None) -> str | None:
    """Why a text is of no use, None where it is."""
    if not text.strip():
        return EMPTY_TRANSCRIPT
    if not spoken:
        return NO_PHONEME
    return TOO_MANY_LABELS if shape is None else None


class TextIterator(grain.DatasetIterator):
    """Text batches as a Grain iterator; its state is the step, and which text files.

    Attributes:
        report: the `SkipReport`.
        step: number of batches delivered.
        epoch: texts are drawn at random: there is but one.
    """

    epoch = 0

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
        """The step to come; and what the text files held, where there are some."""
        texts = self._loader.fingerprint
        return {"step": self.step, **({"texts": texts} if texts else {})}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a saved step.

        Raises:
            OtherDataError: the text files held other lines.
        """
        if state.get("texts", 0) != self._loader.fingerprint:
            raise OtherDataError(
                "the lines of the text files, or which of them config.data.sources "
                "names, are not those of the checkpoint. Go on with --force_config: "
                "weights, optimizer and step stay; or begin a new run from these "
                "weights: --workdir=NEW --config.init_from=OLD."
            )
        self.step = int(state["step"])

    def begin_epoch(self, state: Mapping[str, Any]) -> None:
        """Go to a step saved of other data."""
        self.step = int(state["step"])


def make_text_iterator(
    config: TextConfig, *, rank: int = 0, hosts: int = 1
) -> TextIterator:
    """Endless batches of this host: the speech pipeline's keys, audio of width 0."""
    report = SkipReport()
    return TextIterator(TextLoader(config, report, rank, hosts), report)
