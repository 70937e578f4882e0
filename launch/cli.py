"""The console script: `nim4 COMMAND …` runs the launcher of the same name."""

from __future__ import annotations

import runpy
import sys

from nim4_jax.process import memory, output

COMMANDS = {
    "train": "train one stage",
    "pipeline": "train a list of stages, each from the last; skips what is finished",
    "job": "write the job description of a stage for Kubernetes, XPK or SLURM",
    "evaluate": "error rates of a model on test sets",
    "evaluate_text": "perplexity and errors of an LLM on held-out text",
    "compare": "two evaluations: which is better, and is it luck",
    "curves": "metrics of runs over their steps, as a picture",
    "transcribe": "recordings to text, JSON or subtitles",
    "serve": "streams over WebSockets and files over OpenAI's API",
    "transcribe_corpus": "millions of recordings to text, on a Ray cluster or here",
    "demo": "train, evaluate and try the nano model",
    "average": "the mean of several models, as one",
    "snapshot": "pack a trained model into one .safetensors file",
    "export": "a model as programs and weights that run without Flax",
    "convert": "weights of other implementations in, and back out",
    "scale": "what full-size stages take of TPUs and GPUs, compiled without them",
    "parameters": "count a model's parameters by part",
    "cmvn": "measure mean and variance of features over a corpus",
    "make_corpus": "synthesise a corpus of spoken commands",
    "keywords": "write the keywords of each text into a manifest, for stages 5 and 6",
    "build_hotwords": "make a hotword database from a list of names",
    "fetch_prompts": "fetch the human recordings",
    "fetch_names": "fetch a million names, to benchmark hotwords",
    "train_tokenizer": "train a small tokenizer",
    "confusions": "measure what a phoneme head hears for what is said",
    "train_g2p": "train the letter-to-sound model",
    "bench": "measure speed against peers",
}


def usage() -> str:
    """What `nim4 --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nim4 COMMAND [FLAGS]",
            "",
            *lines,
            "",
            "nim4 COMMAND --help: its flags",
        ]
    )


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    command = arguments[0].replace("-", "_")
    if command not in COMMANDS:
        print(
            f"error: nim4 has no command {arguments[0]!r}\n\n{usage()}", file=sys.stderr
        )
        sys.exit(2)
    memory.keep()  # before the imports of the command start threads
    output.accept_any_text()
    sys.argv = [f"nim4 {command}", *arguments[1:]]
    try:
        module = f"nim4_jax.launch.{command}"
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        output.end_interrupted()  # while it was imported


if __name__ == "__main__":
    main()
