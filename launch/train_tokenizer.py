"""Trains a small tokenizer from manifests, from the command grammar, or from both.

python launch/train_tokenizer.py --grammar=100000 --out=tokenizer.json
python launch/train_tokenizer.py --manifest=train.jsonl --out=tokenizer.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from nim4_jax import line_file
from nim4_jax.data.corpora import grammar
from nim4_jax.text import prompt, tokenizer


def read_texts(path: str, domain: str | None) -> Iterator[str]:
    """The texts of a manifest, or of its lines of one domain.

    Raises:
        ValueError: a line is no JSON object with a string "text"; names file and line.
    """
    for place, record in line_file.read_json(path):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ValueError(
                f"{place}: expected a JSON object with a field text, got "
                f"{str(record)[:80]!r}"
            )
        if domain is None or record.get("domain") == domain:
            yield line_file.replace_surrogates(record["text"])


def collect_texts(
    manifests: list[str], domain: str | None, commands: int, seed: int
) -> list[str]:
    """All texts of the manifests, and of commands drawn from the grammar."""
    texts = [text for path in manifests for text in read_texts(path, domain)]
    drawn = grammar.iterate_texts(seed, commands)
    return texts + [command.text for command in drawn]


def main(arguments: list[str] | None = None) -> None:
    """Trains and writes a tokenizer; prints its figures as JSON."""
    parser = argparse.ArgumentParser(description="Train a small tokenizer.")
    parser.add_argument("--out", required=True, help="tokenizer.json to write")
    parser.add_argument("--manifest", action="append", default=[], help="JSON lines")
    parser.add_argument("--domain", help="take only manifest lines of this domain")
    parser.add_argument("--grammar", type=int, default=0, help="commands to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn commands")
    parser.add_argument("--vocab_size", type=int, default=2048, help="most ids")
    options = parser.parse_args(arguments)
    texts = collect_texts(
        options.manifest, options.domain, options.grammar, options.seed
    )
    if not texts:
        parser.error("no texts: give --manifest=FILE or --grammar=COUNT, or both")
    trained = tokenizer.train(texts, options.vocab_size)
    trained.save(options.out)
    lengths = [len(trained.encode(text)) for text in texts]
    frame = prompt.encode_prefix(trained) + prompt.encode_suffix(trained)
    figures = {
        "texts": len(texts),
        "vocab_size": trained.vocab_size,
        "mean_tokens": round(sum(lengths) / len(lengths), 2),
        "longest_tokens": max(lengths),
        "prompt_tokens": len(frame),
        "sha256": trained.sha256,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
