r"""Measure an LLM after its warm-up on text: from misheard phonemes to held-out text.

python launch/evaluate_text.py --model=runs/warmup_base --rates=0,0.15,0.3 \
    --texts=en.tsv.xz,zh.tsv.xz --confusions=base --out=report.json

Perplexity a token, bits a character, and error rates of what is written greedily (WER
of English, CER of Mandarin; raw: with case and punctuation), by language.
"""

from __future__ import annotations

import json

from absl import app, flags
from etils import epath

from nim4_jax import whole_file
from nim4_jax.eval import text_reading
from nim4_jax.launch import program


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or .safetensors file of a warm-up.")
    flags.DEFINE_list(
        "texts", None, "Text files, by commas: FILE[?tag=a|b]; their held-out texts."
    )
    flags.DEFINE_list("rates", ["0", "0.15", "0.3"], "Shares of wrong phonemes.")
    flags.DEFINE_string(
        "confusions", "", "Statistics of nim4 confusions, or base; none: what is alike."
    )
    flags.DEFINE_integer("limit", 200, "Texts of each language; 0: all.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of the errors.", lower_bound=0)
    flags.DEFINE_string("out", None, "JSON file to write.")


def main(_) -> None:
    """Entry point of `launch/evaluate_text.py` and `nim4 evaluate_text`."""
    given = flags.FLAGS
    if not given.model or not given.texts:
        raise app.UsageError("--model=WORKDIR|FILE and --texts=FILE,… are needed.")
    try:
        rates = [float(rate) for rate in given.rates]
    except ValueError as error:
        raise app.UsageError(f"--rates={given.rates}: no numbers") from error
    made = text_reading.measure(
        given.model,
        given.texts,
        rates=rates,
        errors=given.confusions,
        limit=given.limit,
        seed=given.seed,
    )
    print(
        "| wrong phonemes | language | texts | perplexity | bits a character | error |"
    )
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for rate, langs in made.items():
        for lang, row in langs.items():
            print(
                f"| {100 * float(rate):g} % | {lang} | {row['texts']} | "
                f"{row['perplexity']:.2f} | {row['bits_per_character']:.3f} | "
                f"{100 * row['error_rate']:.1f} % (raw "
                f"{100 * row['raw_error_rate']:.1f} %) |"
            )
    if given.out:
        text = json.dumps(made, indent=1) + "\n"
        whole_file.write_text(epath.Path(given.out), text)


if __name__ == "__main__":
    program.launch(main, define_flags)
