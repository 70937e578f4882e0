"""Train a small tokenizer from text files, manifests, or the command grammar.

python launch/train_tokenizer.py --grammar=100000 --out=tokenizer.json
python launch/train_tokenizer.py --manifest=train.jsonl --out=tokenizer.json
python launch/train_tokenizer.py --text=en.txt --text='zh.tsv.xz?tag=news' \
    --vocab_size=8192 --least=20 --common_chinese --out=tokenizer.json

Its figures are of the texts that it was trained on; of a text file's held-out ones,
where there is one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from nim4_jax import line_file
from nim4_jax.data.corpora import grammar
from nim4_jax.data.sources import text_files
from nim4_jax.eval.measures import error_rates
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


def measure_held_out(
    trained: tokenizer.Tokenizer, specs: list[str]
) -> dict[str, dict[str, float]]:
    """How it spells the held-out texts of the files, by language."""
    held_out = [f"{spec}{'&' if '?' in spec else '?'}split=dev" for spec in specs]
    found: dict[str, list[str]] = {}
    for lines in text_files.open_texts(held_out):
        for text in lines.choose(0):
            found.setdefault(error_rates.find_language(text, "auto"), []).append(text)
    return {lang: trained.measure(texts) for lang, texts in sorted(found.items())}


def main(arguments: list[str] | None = None) -> None:
    """Trains and writes a tokenizer; prints its figures as JSON."""
    parser = argparse.ArgumentParser(description="Train a small tokenizer.")
    parser.add_argument("--out", required=True, help="tokenizer.json to write")
    parser.add_argument("--manifest", action="append", default=[], help="JSON lines")
    parser.add_argument(
        "--text", action="append", default=[], help="text files: FILE[?tag=a|b]"
    )
    parser.add_argument("--most", type=int, default=0, help="texts of each --text")
    parser.add_argument("--domain", help="take only manifest lines of this domain")
    parser.add_argument("--grammar", type=int, default=0, help="commands to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn commands")
    parser.add_argument("--vocab_size", type=int, default=2048, help="most ids")
    parser.add_argument(
        "--least", type=int, default=1, help="times that a character must occur"
    )
    parser.add_argument(
        "--common_chinese", action="store_true", help="all 3,755 of GB 2312's level 1"
    )
    options = parser.parse_args(arguments)
    texts = collect_texts(
        options.manifest, options.domain, options.grammar, options.seed
    )
    for lines in text_files.open_texts(options.text):
        texts += lines.choose(options.most)
    if not texts:
        parser.error("no texts: give --manifest=FILE or --grammar=COUNT, or --text")
    listed = tokenizer.list_common_chinese() if options.common_chinese else ""
    trained = tokenizer.train(
        texts, options.vocab_size, least=options.least, listed=listed
    )
    trained.save(options.out, compact=bool(options.text))
    trained = tokenizer.Tokenizer.from_file(options.out)
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
    if options.text:
        figures["held_out"] = measure_held_out(trained, options.text)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
