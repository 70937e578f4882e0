"""Import weights of other implementations, and export them back.

nim4 convert --source=hf --path=Qwen3-1.7B --out=weights/qwen3
nim4 convert --source=gguf --path=SmolLM2.gguf --out=weights/smollm2
nim4 convert --source=firered --path=FireRedASR-AED-L --out=weights/firered
nim4 convert --source=whisper --path=whisper-large-v3 --out=weights/whisper
nim4 convert --to=hf --path=weights/qwen3 --out=qwen3-hf

The first writes model.safetensors (it stands wherever a workdir can:
--config.init_from=weights/qwen3/model.safetensors) and tokenizer.json
(--config.tokenizer=weights/qwen3/tokenizer.json). Of firered and whisper only the
encoder is read, and no tokenizer is written.
"""

from __future__ import annotations

import os

from absl import app, flags
from tqdm import tqdm

from nim4_jax.launch import program
from nim4_jax.weights import conversion, families


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_enum(
        "source",
        None,
        list(families.FAMILIES),
        f"What is read: {families.describe()}.",
    )
    flags.DEFINE_enum("to", None, ["hf"], "What is written from a converted model.")
    flags.DEFINE_string("path", None, "Folder or file to read.", required=True)
    flags.DEFINE_string("tokenizer", "", "tokenizer.json, if not the model's own.")
    flags.DEFINE_string("out", None, "Folder to make.", required=True)


def main(_) -> None:
    """Entry point of `launch/convert.py` and `nim4 convert`."""
    given = flags.FLAGS
    if (given.source is None) == (given.to is None):
        raise app.UsageError(
            "give --source=… to read weights, or --to=… to write them."
        )
    with tqdm(unit="tensor", disable=None) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if given.to:
            model = os.path.join(given.path, conversion.MODEL)
            tokenizer = os.path.join(given.path, conversion.TOKENIZER)
            conversion.export_llm(model, tokenizer, given.out, advance)
            print(f"{given.out}: written for transformers")
            return
        count = families.convert(
            given.source, given.path, given.out, given.tokenizer, advance
        )
    print(f"{given.out}: {count / 1e6:.1f} M parameters")


if __name__ == "__main__":
    program.launch(main, define_flags)
