"""Train the letter-to-sound model for English words that the dictionary lacks.

    python launch/train_g2p.py --out=nim4_jax/text/resources/letter_to_sound.xz

Words whose CRC-32 is divisible by 20 (5 %) are held out, and the model that is written
has never seen them: the figures printed are those of the file itself.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from pathlib import Path

from nim4_jax.text import g2p, g2p_training, graphones


def is_held_out(word: str) -> bool:
    """Whether a word belongs to the 5 % that training never sees."""
    return zlib.crc32(word.encode()) % 20 == 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; argparse, so that commands may share names of options."""
    parser = argparse.ArgumentParser(description="Train letter-to-sound.")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--order", type=int, default=7, help="longest n-gram")
    parser.add_argument(
        "--cutoffs", default="", help="least count per order, 1,1,2: default all 1"
    )
    parser.add_argument("--rare", type=int, default=2, help="least graphone count")
    parser.add_argument("--limit", type=int, default=0, help="first words only; 0 all")
    parser.add_argument(
        "--sample", type=int, default=2000, help="held-out words to score; 0 all"
    )
    options = parser.parse_args(arguments)
    options.cutoffs = [int(c) for c in options.cutoffs.split(",") if c]
    options.cutoffs = options.cutoffs or [1] * options.order
    if len(options.cutoffs) != options.order:
        parser.error(
            f"--cutoffs has {len(options.cutoffs)} values for --order={options.order}: "
            "give one least count for each order from 1"
        )
    return options


def main(arguments: list[str] | None = None) -> None:
    """Trains, writes and scores a model; prints the figures as JSON."""
    options = parse_arguments(arguments)
    entries = [
        (word, reading)
        for word, reading in g2p.iterate_readings()
        if len(word) > 1 and all(c in graphones.LETTER_SET for c in word)
    ]
    entries = entries[: options.limit or None]
    started = time.monotonic()
    training = [entry for entry in entries if not is_held_out(entry[0])]
    model = g2p_training.train(training, options.order, options.cutoffs, options.rare)
    content = model.to_bytes()
    Path(options.out).write_bytes(content)
    held_out: dict[str, list[tuple[str, ...]]] = {}
    for word, reading in entries:
        if is_held_out(word):
            held_out.setdefault(word, []).append(reading)
    words = list(held_out)[: options.sample or None]
    figures = g2p_training.score(model, {word: held_out[word] for word in words})
    figures |= {
        "graphones": len(model.letters),
        "ngrams": len(model.symbols),
        "bytes": len(content),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
