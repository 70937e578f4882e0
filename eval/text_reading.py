"""Evaluation of an LLM that reads phonemes: perplexity and error rates on text.

Before any speech there is a warm-up on text: phonemes, misheard as a recogniser does,
to sentences. Here the same is done with sentences that were held out, by language and
by share of wrong phonemes: how surprising the text is to the LLM, and what it writes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.data.pipeline import transforms
from nim4_jax.data.sources import text_files
from nim4_jax.decode import offline
from nim4_jax.eval.measures import error_rates
from nim4_jax.eval.measures.error_rates import Counts
from nim4_jax.model_files import loading
from nim4_jax.models.asr import Asr
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import cross_entropy
from nim4_jax.text import articulation, confusions, phonemes, prompt
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.train.text_loss import ReadPhonemes
from nim4_jax.types import Labels, Params

_ROWS = 16
_WIDTHS = (64, 136)  # phonemes of the batch shapes
_TOKENS = 0.75  # of a phoneme: width of the answers; longer texts are left out
_VOCAB_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class _Text:
    """A held-out text and what is expected of it."""

    written: str
    lang: str
    phonemes: list[int]
    tokens: list[int]


@dataclasses.dataclass
class _Sums:
    """What a language came to."""

    texts: int = 0
    characters: int = 0
    tokens: float = 0.0
    nats: float = 0.0
    normalised: Counts = Counts()
    raw: Counts = Counts()

    def report(self) -> dict[str, float]:
        """Perplexity a token, bits a character, error rates."""
        return {
            "texts": self.texts,
            "perplexity": math.exp(min(self.nats / max(self.tokens, 1.0), 50.0)),
            "bits_per_character": self.nats / math.log(2) / max(self.characters, 1),
            "error_rate": self.normalised.errors / max(self.normalised.reference, 1),
            "raw_error_rate": self.raw.errors / max(self.raw.reference, 1),
        }


def measure(
    model: str,
    texts: Sequence[str],
    *,
    rates: Sequence[float] = (0.0, 0.15, 0.3),
    errors: str = "",
    limit: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Read held-out texts from misheard phonemes.

    Args:
        model: workdir or snapshot with an LLM and a phoneme reader.
        texts: text files; `split=dev` is added where no split is asked for.
        rates: shares of wrong phonemes.
        errors: statistics of `nim4 confusions`; "" for what sounds alike.
        limit: texts of each language, spread over the files; 0 for all.
        seed: of the errors.

    Returns:
        Rate → language → texts, perplexity a token, bits_per_character, error_rate (WER
        of en, CER of zh, both in mixed), raw_error_rate (with case and punctuation).

    Raises:
        ValueError: a model without these parts, or nothing to read.
    """
    params, meta = loading.load_model(model)
    missing = [part for part in ("llm", "phoneme_reader") if part not in params]
    if missing:
        raise ValueError(
            f"{model} has no {' and no '.join(missing)}; give a warm-up's workdir "
            "(configs/warmup.py)."
        )
    tokenizer = Tokenizer.from_file(loading.find_tokenizer(meta["tokenizer"]))
    asr = Asr(loading.build_model_config(meta["model"]))
    loading.check_vocabulary(tokenizer, asr.config)
    chosen = _choose(_read(texts), tokenizer, limit)
    if not chosen:
        raise ValueError(f"{', '.join(texts)}: no held-out text fits")
    statistics = confusions.read(errors).estimate() if errors else None
    made = {}
    for rate in rates:
        loss = ReadPhonemes(
            loading.make_prompt(tokenizer),
            articulation.confusions(),
            corrupt=float(rate),
            errors=statistics,
        )
        sums = _measure(asr, loss, params, tokenizer, (chosen, seed))
        made[f"{rate:g}"] = {lang: sums[lang].report() for lang in sorted(sums)}
    return made


def _read(specs: Sequence[str]) -> list[list[str]]:
    """The held-out texts of each file."""
    asked = [
        spec
        if "split=" in spec.partition("?")[2]
        else f"{spec}{'&' if '?' in spec else '?'}split=dev"
        for spec in specs
    ]
    return [lines.choose(0) for lines in text_files.open_texts(asked)]


def _choose(
    files: Sequence[Sequence[str]], tokenizer: Tokenizer, limit: int
) -> list[_Text]:
    """Texts of every language that fit the shapes, short ones first."""
    found: dict[str, list[str]] = {}
    for lines in files:
        for text in lines:
            found.setdefault(error_rates.find_language(text, "auto"), []).append(text)
    chosen = []
    for lang, lines in found.items():
        count = min(limit or len(lines), len(lines))
        for place in range(count):
            text = lines[place * len(lines) // count]
            spoken = phonemes.encode_phonemes(text)
            tokens = prompt.encode_answer(tokenizer, text)
            width = _find_width(len(spoken))
            if spoken and width and len(tokens) <= _TOKENS * width:
                chosen.append(_Text(text, lang, spoken, tokens))
    return sorted(chosen, key=lambda text: len(text.phonemes))


def _find_width(count: int) -> int:
    return next((width for width in _WIDTHS if width >= count), 0)


def _measure(
    asr: Asr,
    loss: ReadPhonemes,
    params: Params,
    tokenizer: Tokenizer,
    job: tuple[Sequence[_Text], int],
) -> dict[str, _Sums]:
    """One rate, by language."""
    texts, seed = job
    read = jax.jit(functools.partial(_read_batch, asr, loss, tokenizer.end_id))
    sums: dict[str, _Sums] = {}
    for number, (batch, spoken, answer) in enumerate(_batch(texts)):
        key = jax.random.fold_in(jax.random.key(seed), number)
        nats, tokens, lengths = jax.device_get(read(params, spoken, answer, key))
        for row, text in enumerate(batch):
            one = sums.setdefault(text.lang, _Sums())
            written = tokenizer.decode(tokens[row, : lengths[row]].tolist())
            one.texts += 1
            one.characters += len(text.written)
            one.tokens += len(text.tokens)
            one.nats += float(nats[row])
            one.normalised += error_rates.score_text(text.written, written, text.lang)
            one.raw += error_rates.score_text(text.written, written, text.lang, "raw")
    return sums


def _batch(texts: Sequence[_Text]) -> Iterator[tuple[Sequence[_Text], Labels, Labels]]:
    """Texts of one width together, padded to whole batches."""
    for width in _WIDTHS:
        fitting = [text for text in texts if _find_width(len(text.phonemes)) == width]
        for first in range(0, len(fitting), _ROWS):
            batch = fitting[first : first + _ROWS]
            full = [*batch, *batch[:1] * (_ROWS - len(batch))]
            spoken = transforms.pad_rows(
                [np.array(text.phonemes) for text in full], width, np.int32
            )
            answer = transforms.pad_rows(
                [np.array(text.tokens) for text in full],
                int(_TOKENS * width),
                np.int32,
            )
            yield batch, Labels(*spoken), Labels(*answer)


def _read_batch(
    asr: Asr,
    loss: ReadPhonemes,
    end_id: int,
    params: Params,
    spoken: Labels,
    answer: Labels,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Nats of each answer, and what is written greedily: tokens and how many."""

    def prepare(model: Asr):
        classes = loss.imitate(key, spoken, loss.count_fine(model.config))
        speech = model.read_phonemes(classes).masked()
        hidden = model.answer_states(speech, loss.prompt, answer)
        log_probs, _ = cross_entropy.token_log_probs(
            hidden, answer.ids, model.unembed, _VOCAB_CHUNK
        )
        nats = -jnp.sum(jnp.where(answer.mask, log_probs, 0.0), axis=1)
        return nats, model.assemble(speech, loss.prompt)

    nats, sequence = cast(Any, asr.apply({"params": params}, method=prepare))
    config = asr.config
    written = offline.generate(
        Qwen3(config.llm, config.policy),
        params["llm"],
        sequence.frames(),
        offline.Stop(answer.ids.shape[1], end_id),
    )
    return nats, written.tokens, written.lengths()
