r"""Transcribe millions of recordings on a Ray cluster, or on this machine.

nim4 transcribe_corpus --model=runs/demo/stage4 --files=FOLDER|LISTING --out=DIR
nim4 transcribe_corpus … --address=auto --workers=64 --worker_gpus=1

The files are dealt to shards; each worker holds a model and takes the next shard when
it is free. A shard is stored whole or not at all, so that the same command goes on
where the last one ended. Needs the extra: pip install 'nim4-jax[ray]'. On a cluster,
model, recordings and output must be at paths that all its machines see.
"""

from __future__ import annotations

import os
import sys

from absl import app, flags

from nim4_jax.decode import longform
from nim4_jax.launch import program
from nim4_jax.serving import corpus, corpus_on_ray
from nim4_jax.serving.corpus import CorpusConfig


def define_flags() -> None:
    """The command's flags."""
    defaults = CorpusConfig("")
    flags.DEFINE_string("model", None, "Workdir or .safetensors file.")
    flags.DEFINE_string(
        "files",
        None,
        "Folder of recordings, manifest (.jsonl), .parquet with a column audio, or "
        ".txt with a path a line.",
    )
    flags.DEFINE_string("out", None, "Folder for the shards.")
    flags.DEFINE_enum("format", defaults.form, corpus.FORMATS, "Of the shards.")
    flags.DEFINE_bool("segments", False, "Store times and words, too.")
    flags.DEFINE_enum("vad", defaults.vad, longform.VADS, "How long audio is cut.")
    flags.DEFINE_integer("batch", defaults.batch, "Most segments at once.", 1)
    flags.DEFINE_integer("shard_files", defaults.shard_files, "Files of a shard.", 1)
    flags.DEFINE_integer("chunk_ms", defaults.chunk_ms, "Of chunks, 0: all at once.")
    flags.DEFINE_integer("left", defaults.left, "Chunks seen to the left.")
    flags.DEFINE_string(
        "address",
        None,
        "Of a Ray cluster, 'auto' for the one of this machine; else "
        "Ray is started here and ended again.",
    )
    flags.DEFINE_integer("workers", 1, "Models at once.", lower_bound=1)
    flags.DEFINE_float("worker_cpus", 1.0, "CPUs of a worker.", lower_bound=0.0)
    flags.DEFINE_float("worker_gpus", 0.0, "GPUs of a worker.", lower_bound=0.0)


def main(_) -> None:
    """Entry point of `launch/transcribe_corpus.py` and `nim4 transcribe_corpus`."""
    given = flags.FLAGS
    if not given.model or not given.files or not given.out:
        raise app.UsageError("--model=…, --files=FOLDER|LISTING and --out=DIR needed.")
    config = CorpusConfig(
        model=os.path.abspath(given.model),
        batch=given.batch,
        vad=given.vad,
        chunk_ms=given.chunk_ms,
        left=given.left,
        segments=given.segments,
        form=given.format,
        shard_files=given.shard_files,
    )
    done = corpus_on_ray.run(
        given.files,
        os.path.abspath(given.out),
        config,
        address=given.address,
        workers=given.workers,
        worker_cpus=given.worker_cpus,
        worker_gpus=given.worker_gpus,
    )
    print(
        f"{done['files']} files, {done['seconds']:.0f} s of audio, {done['errors']} "
        "errors",
        file=sys.stderr,
    )


if __name__ == "__main__":
    program.launch(main, define_flags)
