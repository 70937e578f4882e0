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

from collections.abc import Sequence

from absl import app, flags
from tqdm import tqdm

from nim4_jax.decode.listener import Listener
from nim4_jax.decode.stream_config import StreamConfig
from nim4_jax.eval import evaluation, hints, report
from nim4_jax.eval.hints import HintConfig
from nim4_jax.eval.streaming import StreamedRecogniser
from nim4_jax.launch import recognition, runtime, sweeping


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


def run(
    model: str,
    sets: Sequence[str],
    out: str | None = None,
    *,
    phonemes: bool = False,
    shuffle_audio: bool = False,
    limit: int = 0,
    chunk_ms: int = 0,
    left: int = 4,
    stream: bool = False,
    names: HintConfig | None = None,
    show_progress: bool = True,
) -> report.Report:
    """Evaluate a model on sets.

    Args:
        model: workdir or .safetensors file. Without an LLM only phonemes are scored.
        sets: source specifications.
        out: folder for the files; None writes none.
        phonemes: whether the phoneme head is scored too.
        shuffle_audio: whether the control with other audio is scored too.
        limit: utterances per set, 0 for all.
        chunk_ms: length of chunks, 0 for the full pass.
        left: chunks seen to the left.
        stream: whether every recording is heard as a stream.
        names: which names the prompts hold, and which count; None for no hints.
        show_progress: whether a bar is drawn on stderr.

    Returns:
        What `report.build` makes.

    Raises:
        ValueError: no model, no LLM to write with, a set of no use, or no hints for it.
    """
    if stream:
        chunk_ms = chunk_ms or StreamConfig.of().chunk_ms
    loaded = recognition.load(model, chunk_ms=chunk_ms, left=left)
    rates = loaded.recogniser.programs.rates
    sizes = StreamConfig.of(chunk_ms, left, rates) if stream else None
    recogniser = loaded.recogniser
    if sizes:
        listener = Listener(recogniser, streams=max(loaded.rows), config=sizes)
        listener.warm_up()
        recogniser = StreamedRecogniser(recogniser, listener)
    if not phonemes:
        recogniser.check_writes()
    config = evaluation.EvalConfig(
        bucket_seconds=loaded.bucket_seconds,
        rows=loaded.rows,
        text=recogniser.writes,
        phonemes=phonemes,
        shuffle_audio=shuffle_audio,
        hints=names or HintConfig(),
        limit=limit,
    )
    results = []
    for spec in sets:
        with tqdm(desc=spec, unit="utt", disable=not show_progress) as bar:

            def advance(done: int, total: int, bar=bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            results.append(evaluation.evaluate_set(recogniser, spec, config, advance))
    made = report.build(model, results)
    if isinstance(recogniser, StreamedRecogniser):
        made["streaming"] = recogniser.latency.summary()
    if out:
        report.write(out, made, results)
    return made


def read_hints(given: flags.FlagValues) -> HintConfig:
    """The hints that the flags ask for.

    Raises:
        ValueError: a list of names or transcripts that cannot be read.
    """
    return HintConfig(
        mode=given.hints,
        count=given.hint_count,
        names=hints.read_names(given.hint_names) if given.hint_names else (),
        find=given.find_keywords,
        seen=hints.read_texts(given.seen) if given.seen else None,
        seed=given.hint_seed,
    )


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
    made = run(
        given.model,
        given.sets,
        given.out,
        phonemes=given.phonemes,
        shuffle_audio=given.shuffle_audio,
        limit=given.limit,
        chunk_ms=given.chunk_ms,
        left=given.left,
        stream=given.stream,
        names=read_hints(given),
    )
    print(report.to_markdown(made), end="")


if __name__ == "__main__":
    runtime.launch(main, define_flags)
