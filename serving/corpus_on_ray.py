"""A corpus transcribed by workers of Ray Data, on a cluster or on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from nim4_jax.serving import corpus
from nim4_jax.serving.corpus import CorpusConfig, Shard

_STORE_BYTES = 128 << 20  # of Ray's object store here: it only holds listings


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
        import ray.exceptions
    except ImportError as error:
        raise ValueError(
            f"a corpus is transcribed by Ray Data, which is not installed ({error}): "
            "pip install 'nim4-jax[ray]'"
        ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(math.ceil(workers * worker_cpus), 1),
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
    }
    asked: dict[str, Any] = {"address": address} if address else here
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
