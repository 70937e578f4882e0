r"""Transcribe millions of recordings on a Ray cluster, or on this machine.

nim4 transcribe_corpus --model=runs/demo/stage4 --files=FOLDER|LISTING --out=DIR
nim4 transcribe_corpus … --address=auto --workers=64 --worker_gpus=1

The files are dealt to shards; each worker holds a model and takes the next shard when
it is free. A shard is stored whole or not at all, so that the same command goes on
where the last one ended. Needs the extra: pip install 'nim4-jax[ray]'. On a cluster,
model, recordings and output must be at paths that all its machines see.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags
from tqdm import tqdm

from nim4_jax.launch import corpus, runtime, transcribe
from nim4_jax.launch.corpus import CorpusConfig, Shard

_STORE_BYTES = 128 << 20  # of Ray's object store here: it only holds listings


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
    flags.DEFINE_enum("vad", defaults.vad, transcribe.VADS, "How long audio is cut.")
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


def iterate(
    shards: Sequence[Shard],
    out: str,
    config: CorpusConfig,
    *,
    workers: int = 1,
    worker_cpus: float = 1.0,
    worker_gpus: float = 0.0,
) -> Iterator[dict[str, float]]:
    """Transcribe shards on the Ray that this process is connected to.

    Yields:
        What `corpus.Worker.transcribe` returns, of each shard when it is done.
    """
    import pyarrow
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    blocks = [
        pyarrow.table(
            {
                "shard": [it.number] * len(it.paths),
                "file": [os.fsencode(path) for path in it.paths],
            }
        )
        for it in shards
    ]
    done = ray.data.from_arrow(blocks).map_batches(
        corpus.Worker,
        fn_constructor_args=(out, config),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=worker_cpus,
        num_gpus=worker_gpus,
    )
    yield from done.iter_rows()


def run(
    listing: str,
    out: str,
    config: CorpusConfig,
    *,
    address: str | None = None,
    workers: int = 1,
    worker_cpus: float = 1.0,
    worker_gpus: float = 0.0,
) -> dict[str, float]:
    """Transcribe a corpus, but for the shards that are done already.

    Args:
        listing: see `corpus.list_files`.
        out: folder of the shards.
        config: how.
        address: of a Ray cluster; None starts one here, and ends it.
        workers: models at once.
        worker_cpus: of each.
        worker_gpus: of each.

    Returns:
        {"files", "errors", "seconds" of audio} of what was done now.

    Raises:
        ValueError: no Ray, no recordings, no usable model, or other shards in `out`.
        OSError: `out` cannot be written.
    """
    paths = corpus.list_files(listing)
    shards = corpus.plan(paths, out, config)
    total = {"files": 0, "errors": 0, "seconds": 0.0}
    if not shards:
        return total
    try:
        import ray.data
    except ImportError as error:
        raise ValueError(
            f"a corpus is transcribed by Ray Data, which is not installed ({error}): "
            "pip install 'nim4-jax[ray]'"
        ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = {
        "address": "local",
        "num_cpus": max(math.ceil(workers * worker_cpus), 1),
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
    }
    asked = {"address": address} if address else here
    ray.init(log_to_driver=False, logging_level="warning", **asked)
    try:
        with tqdm(total=len(shards), unit="shard", disable=None) as bar:
            for done in iterate(
                shards,
                out,
                config,
                workers=workers,
                worker_cpus=worker_cpus,
                worker_gpus=worker_gpus,
            ):
                for key in total:
                    total[key] += done[key]
                bar.update()
    except ray.exceptions.RayError as error:
        # The rest is a trace through Ray, which it has logged.
        told = str(error).rstrip().rpartition("\n")[2]
        raise ValueError(f"a worker failed: {told}") from error
    finally:
        ray.shutdown()
    return total


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
    done = run(
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
    runtime.launch(main, define_flags)
