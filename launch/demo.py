"""Train, evaluate and try the nano model on the speech that comes with the package.

make demo, or: nim4 demo --workdir=runs/demo. An interrupted demo goes on where it was.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from absl import flags, logging

from nim4_jax.configs import pipeline as pipeline_config
from nim4_jax.data.sources import builders
from nim4_jax.decode import longform
from nim4_jax.eval import scoring
from nim4_jax.eval.reports import curves
from nim4_jax.eval.reports.report import Report
from nim4_jax.launch import program
from nim4_jax.model_files import loading
from nim4_jax.runs import pipeline
from nim4_jax.serving import recognisers
from nim4_jax.train import optim


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", "runs/demo", "Folder of the demo.")
    flags.DEFINE_bool(
        "from_scratch", False, "Start from random weights: hours instead of minutes."
    )


SETS = ("bundled:commands:test", "bundled:prompts:test")
_SHOWN = 3  # recordings of each set that are transcribed at the end


def save_examples(folder: str) -> list[str]:
    """Write a few bundled test recordings as files; returns their paths."""
    paths = []
    for name in ("commands", "prompts"):
        records = builders.open_bundled(name, "test")
        for index in itertools.islice(range(0, len(records), 7), _SHOWN):
            record = records[index]
            path = Path(folder, f"{name}-{index}.ogg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record["audio"])
            path.with_suffix(".txt").write_text(record["text"] + "\n", encoding="utf8")
            paths.append(str(path))
    return paths


def format_summary(
    report: Report, seconds: dict[str, float], parameters: int, total: float
) -> str:
    """The table that the demo ends with, in Markdown."""
    lines = ["| what | figure |", "| --- | --- |"]
    for part in report["sets"]:
        for kind, scored in part["scores"].items():
            mark = ", fed another utterance's audio" if kind == "shuffled" else ""
            for language, row in scored["languages"].items():
                name = f"{row['metric']} {language}, {part['set']}{mark}"
                lines.append(f"| {name} | {row['percent']:.1f} % |")
            if len(scored["languages"]) > 1 and scored["mean_percent"] is not None:
                name = f"mean error, {part['set']}{mark}"
                lines.append(f"| {name} | {scored['mean_percent']:.1f} % |")
        speed = f"real-time factor, {part['set']}"
        lines.append(f"| {speed} | {part['real_time_factor']:.3f} |")
    lines.append(f"| parameters | {parameters / 1e6:.2f} M |")
    for stage, spent in seconds.items():
        lines.append(f"| time of {stage} | {spent / 60:.1f} min |")
    lines.append(f"| time of this run of the demo | {total / 60:.1f} min |")
    return "\n".join(lines)


def show_transcripts(model: str, paths: list[str]) -> None:
    """Print what the model writes beside what was said."""
    loaded = recognisers.load(model)
    for recording in longform.transcribe_files(
        loaded, paths, longform.Options(timings=False)
    ):
        said = Path(recording.path).with_suffix(".txt").read_text(encoding="utf8")
        print(f"  {recording.path}\n    said:  {said.strip()}")
        print(f"    heard: {recording.text}")


def run(workdir: str, from_scratch: bool) -> None:
    """The whole demo; whatever is finished already is not done again."""
    began = time.perf_counter()
    kind = "scratch" if from_scratch else "demo"
    config = pipeline_config.get_config(kind)
    seconds = pipeline.run(config, workdir)
    stages = [entry.name for entry in config.stages]
    model = os.path.join(workdir, stages[-1])
    logging.info("evaluating %s", model)
    options = scoring.Options(shuffle_audio=True)
    report = scoring.run(model, SETS, os.path.join(workdir, "evaluation"), options)
    params, _ = loading.load_model(model)
    used = {name: part for name, part in params.items() if name != "phoneme_reader"}
    picture = curves.plot_losses(workdir, stages, os.path.join(workdir, "losses.png"))
    print("\nA few recordings that the model has never heard:")
    paths = save_examples(os.path.join(workdir, "examples"))
    show_transcripts(model, paths)
    total = time.perf_counter() - began
    summary = format_summary(report, seconds, optim.count_parameters(used), total)
    Path(workdir, "summary.md").write_text(summary + "\n", encoding="utf8")
    print(f"\n{summary}\n\nloss curves: {picture}")
    print("\nTranscribe a recording of your own (wav, flac, ogg, mp3; any rate):")
    print(f"  .venv/bin/nim4 transcribe --model={model} YOUR_FILE.wav")


def main(_) -> None:
    """Entry point of `launch/demo.py` and `nim4 demo`."""
    run(flags.FLAGS.workdir, flags.FLAGS.from_scratch)


if __name__ == "__main__":
    program.launch(main, define_flags)
