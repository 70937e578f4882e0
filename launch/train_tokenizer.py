"""Trains a small tokenizer from manifests, from the command grammar, or from both.

    python launch/train_tokenizer.py --grammar=100000 --out=tokenizer.json
    python launch/train_tokenizer.py --manifest=train.jsonl --out=tokenizer.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from nim4_jax.data import grammar
from nim4_jax.text import prompt, tokenizer

_MANIFEST = flags.DEFINE_multi_string("manifest", [], "JSON-lines file with text fields")
_DOMAIN = flags.DEFINE_string("domain", None, "take only manifest lines of this domain")
_GRAMMAR = flags.DEFINE_integer("grammar", 0, "commands to draw from the grammar")
_SEED = flags.DEFINE_integer("seed", 0, "of the drawn commands")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 2048, "greatest number of ids")
_OUT = flags.DEFINE_string("out", None, "tokenizer.json to write")
flags.mark_flag_as_required("out")


def read_texts(path: str, domain: str | None) -> Iterator[str]:
    """The texts of a manifest, or of its lines of one domain.

    Raises:
        ValueError: a line is no JSON object with a string "text"; names file and line.
    """
    with Path(path).open(encoding="utf8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                text = record["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: expected a JSON object with a field text, got "
                    f"{line.strip()[:80]!r}"
                ) from error
            if domain is None or record.get("domain") == domain:
                yield str(text)


def collect_texts() -> Iterator[str]:
    """All texts that the flags name."""
    for path in _MANIFEST.value:
        yield from read_texts(path, _DOMAIN.value)
    for command in grammar.iterate_texts(_SEED.value, _GRAMMAR.value):
        yield command.text


def main(_: list[str]) -> None:
    texts = list(collect_texts())
    if not texts:
        raise ValueError("no texts: give --manifest=FILE or --grammar=COUNT, or both")
    trained = tokenizer.train(texts, _VOCAB_SIZE.value)
    trained.save(_OUT.value)
    lengths = [len(trained.encode(text)) for text in texts]
    figures = {
        "texts": len(texts),
        "vocab_size": trained.vocab_size,
        "mean_tokens": round(sum(lengths) / len(lengths), 2),
        "longest_tokens": max(lengths),
        "prompt_tokens": len(prompt.encode_prefix(trained) + prompt.encode_suffix(trained)),
        "sha256": trained.sha256,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    app.run(main)
