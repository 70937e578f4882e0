r"""Score a model on data sets.

python launch/evaluate.py --model=runs/demo/stage4 --out=runs/demo/evaluation \
    --sets=bundled:commands:test,bundled:prompts:test --shuffle_audio

A model that has been through stage 1 only hears phonemes: add --phonemes.

Names in the prompt: --hints=said names what is said, misleading what is not, both both;
names that no transcript of the training has are counted apart with --seen. What a model
writes where nobody speaks: --sets=nonspeech:500. Two evaluations: nim4 compare.

Many at once, and peers beside them, in one report; killed anywhere, the same command
goes on:

nim4 evaluate --models=runs/demo/stage4,whisper-base --benchmarks=commands,prompts \
    --modes=offline,stream:640 --hotwords=none,list:names.txt --out=runs/demo/sweep
"""

from __future__ import annotations

from absl import app, flags

from nim4_jax.eval import hints, scoring
from nim4_jax.eval.reports import report
from nim4_jax.launch import program, sweeping


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or .safetensors file.")
    flags.DEFINE_list(
        "sets",
        None,
        "Sources, by commas: manifest.jsonl, bundled:NAME:SPLIT, tfds:…, or "
        "nonspeech:COUNT, audio without words.",
    )
    flags.DEFINE_string("out", None, "Folder of report.json, report.md, hyps.jsonl.")
    flags.DEFINE_bool("phonemes", False, "Score the phoneme head too.")
    flags.DEFINE_bool(
        "shuffle_audio", False, "Also score with another utterance's audio (a control)."
    )
    flags.DEFINE_integer("limit", 0, "Utterances per set, 0 for all.", lower_bound=0)
    flags.DEFINE_integer(
        "chunk_ms",
        0,
        "Length of chunks, 0 for the full pass (with --stream: 640).",
    )
    flags.DEFINE_integer("left", 4, "Chunks seen to the left of a chunk's own.")
    flags.DEFINE_bool(
        "stream", False, "Hear every recording as a stream: VAD, partials, finals."
    )
    flags.DEFINE_enum(
        "hints",
        "none",
        hints.MODES,
        "Names in the prompt: those said, misleading ones that are not, or both.",
    )
    flags.DEFINE_integer(
        "hint_count", 4, "Misleading names an utterance.", lower_bound=0
    )
    flags.DEFINE_string(
        "hint_names",
        None,
        "Further misleading names: a list, one a line, or the keywords of a bundled: "
        "or tfds: source.",
    )
    flags.DEFINE_integer("hint_seed", 0, "Of the draws of hints.", lower_bound=0)
    flags.DEFINE_list(
        "seen",
        None,
        "Transcripts of the training, by commas: sources or text files. Names in none "
        "of them are held out, and get a recall of their own.",
    )
    flags.DEFINE_bool(
        "find_keywords",
        False,
        "Find names by counting words, in sets none of whose records lists keywords.",
    )
    sweeping.define_flags()
    flags.adopt_module_key_flags(sweeping)  # --help shows them too


def main(_) -> None:
    """Entry point of `launch/evaluate.py` and `nim4 evaluate`."""
    given = flags.FLAGS
    if sweeping.is_asked(given):
        return sweeping.main(given)
    if not given.model or not given.sets:
        raise app.UsageError(
            "--model=WORKDIR|FILE and --sets=SOURCE,… are needed, or for a sweep "
            "--models=… or --config=configs/evaluate.py."
        )
    made = scoring.run(
        given.model,
        given.sets,
        given.out,
        scoring.Options(
            phonemes=given.phonemes,
            shuffle_audio=given.shuffle_audio,
            limit=given.limit,
            chunk_ms=given.chunk_ms,
            left=given.left,
            stream=given.stream,
            names=hints.configure(
                mode=given.hints,
                count=given.hint_count,
                names=given.hint_names,
                find=given.find_keywords,
                seen=given.seen,
                seed=given.hint_seed,
            ),
        ),
    )
    print(report.to_markdown(made), end="")


if __name__ == "__main__":
    program.launch(main, define_flags)
