"""Text ↔ token ids, from any `tokenizer.json`: Qwen3's own or a small one trained here.

The small one is a BPE with byte fall-back: every Chinese character of the training
texts is one token, Latin words are merged, any other character is spelled in bytes, so
that decode(encode(x)) == x for every text.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from etils import epath
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from nim4_jax.text import template

END_OF_TEXT = "<|endoftext|>"
SPECIALS = (END_OF_TEXT, template.IM_START, template.IM_END)

_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
# A Latin word with the space before it, or any single character.
_PIECES = Regex(r" ?[A-Za-z]+|[\s\S]")
_ALPHABET = string.ascii_letters + string.digits + string.punctuation + " \n"


class Tokenizer:
    """A tokenizer whose special tokens cannot be written by text.

    Attributes:
        vocab_size: highest id + 1, special tokens included.
        end_id: id of `<|im_end|>`, which ends an answer.
        pad_id: id of `<|endoftext|>`.
        sha256: of the file's content; checkpoints name the tokenizer by it.
    """

    def __init__(self, content: str) -> None:
        """A tokenizer from the content of a tokenizer.json.

        Raises:
            ValueError: no tokenizer.json, or it lacks one of SPECIALS.
        """
        try:
            spec = json.loads(content)
            added = spec.get("added_tokens") or []
            self._specials = {token["content"]: token["id"] for token in added}
            # Added tokens are cut out of any text before BPE sees it; without them
            # "<|im_end|>" inside a transcript is eleven ordinary characters.
            self._plain = tokenizers.Tokenizer.from_str(
                json.dumps(spec | {"added_tokens": []})
            )
        except Exception as error:
            raise ValueError(
                "expected the content of a Hugging Face tokenizer.json, got "
                f"{len(content)} characters that do not load: {error}"
            ) from error
        if any(type(number) is not int for number in self._specials.values()):
            raise ValueError(f"ids of added tokens are no integers: {self._specials}")
        missing = [name for name in SPECIALS if name not in self._specials]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the special tokens {missing}; a ChatML tokenizer "
                "with them (Qwen3's) or one of launch/train_tokenizer.py is expected"
            )
        self._content = content
        known = self._plain.get_vocab(with_added_tokens=False).values()
        self.vocab_size: int = max(*known, *self._specials.values()) + 1
        self.end_id: int = self._specials[template.IM_END]
        self.pad_id: int = self._specials[END_OF_TEXT]
        self.sha256: str = hashlib.sha256(content.encode("utf8")).hexdigest()
        self._special_ids = frozenset(self._specials.values())
        numbers = map(self._plain.token_to_id, _BYTES)
        self._byte_ids = frozenset(number for number in numbers if number is not None)

    def __getstate__(self) -> str:
        return self._content

    def __setstate__(self, content: str) -> None:
        self.__init__(content)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads a tokenizer.json.

        Raises:
            ValueError: not a ChatML tokenizer.json; the message names the file.
        """
        try:
            return cls(epath.Path(path).read_text(encoding="utf8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path, compact: bool = False) -> None:
        """Writes the tokenizer.json that `from_file` reads; compact: on one line."""
        content = self._content
        if compact:
            separators = (",", ":")
            spec = json.loads(content)
            content = json.dumps(spec, ensure_ascii=False, separators=separators)
        Path(path).write_text(content, encoding="utf8")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, never a special token; lone surrogates become "?"."""
        clean = text.encode("utf8", "replace").decode("utf8")
        return self._plain.encode(clean, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens and ids out of range are left out."""
        plain = [
            int(i)
            for i in ids
            if 0 <= i < self.vocab_size and int(i) not in self._special_ids
        ]
        return self._plain.decode(plain, skip_special_tokens=False)

    def measure(self, texts: Sequence[str]) -> dict[str, float]:
        """Characters a token, and the share of tokens that are bytes of a character."""
        ids = [self.encode(text) for text in texts]
        tokens = max(sum(map(len, ids)), 1)
        spelled = sum(i in self._byte_ids for row in ids for i in row)
        return {
            "texts": len(texts),
            "characters_per_token": round(sum(map(len, texts)) / tokens, 3),
            "byte_share": round(spelled / tokens, 6),
        }

    def special_id(self, name: str) -> int:
        """The id of a special token such as `<|im_start|>`.

        Raises:
            ValueError: no such special token; the message lists them.
        """
        if name not in self._specials:
            raise ValueError(
                f"unknown special token {name!r}; known are {sorted(self._specials)}"
            )
        return self._specials[name]


def list_common_chinese() -> str:
    """The 3,755 characters of everyday Mandarin: GB 2312's first level."""
    rows, cells = range(0xB0, 0xD8), range(0xA1, 0xFF)
    pairs = (bytes([row, cell]) for row in rows for cell in cells)
    return "".join(pair.decode("gb2312", "ignore") for pair in pairs)


def train(
    texts: Iterable[str], vocab_size: int, *, least: int = 1, listed: str = ""
) -> Tokenizer:
    """A small tokenizer from texts.

    Rule: ids 0–2 are SPECIALS, 3–258 the bytes, then the characters (ASCII, those
    listed and those of the texts), then merges of Latin letters until `vocab_size`. The
    prompt's words are learned before all others, for every prompt repeats them.

    Args:
        texts: transcripts, any language.
        vocab_size: greatest number of ids, at least specials + bytes + characters.
        least: times that a character must stand in the texts; rarer ones are spelled in
            bytes.
        listed: characters that are tokens however rare they are.

    Raises:
        ValueError: vocab_size leaves no room for every character.
    """
    collected = list(texts)
    counts = collections.Counter(itertools.chain.from_iterable(collected))
    rare = {c for c, count in counts.items() if count < least} - {*_ALPHABET, *listed}
    characters = sorted({*_ALPHABET, *listed, *counts} - rare)
    needed = len(SPECIALS) + len(_BYTES) + len(characters)
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: 3 special tokens, 256 bytes and "
            f"the texts' {len(characters)} characters need {needed}"
        )
    engine = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    engine.pre_tokenizer = pre_tokenizers.Split(_PIECES, "isolated")
    engine.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIALS, *_BYTES],
        initial_alphabet=characters,
        show_progress=False,
    )
    # What is not trained on becomes no token.
    left_out = str.maketrans(dict.fromkeys(rare, ""))
    spelled = (text.translate(left_out) for text in collected) if rare else collected
    repeated = itertools.chain.from_iterable(
        itertools.repeat(template.TEXTS, len(collected) + 2)
    )
    engine.train_from_iterator(itertools.chain(repeated, spelled), trainer)
    spec = json.loads(engine.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in SPECIALS]
    return Tokenizer(json.dumps(spec, ensure_ascii=False, indent=1))
