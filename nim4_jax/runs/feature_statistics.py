"""CMVN statistics of a corpus, read by the training pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.sources import opening
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.features import FeatureConfig
from nim4_jax.train import cmvn
from nim4_jax.types import Frames

_BUCKETS = (2.5, 4.0, 6.5, 15.0, 30.0)


_ROWS = (32, 20, 12, 6, 3)


def run(specs: Sequence[str], out: str, num_mels: int = 80) -> cmvn.Statistics:
    """Measure over all audio of the sources and write the JSON file.

    Args:
        specs: source specifications.
        out: file to write.
        num_mels: mel channels of the front end.

    Raises:
        ValueError: no source, or no usable audio in them.
    """
    report = SkipReport()
    statistics = cmvn.measure(_read(specs, report), FeatureConfig(num_mels=num_mels))
    cmvn.write(out, statistics)
    if report.total:
        print(report.summary())
    return statistics


def _read(specs: Sequence[str], report: SkipReport) -> Iterator[Frames]:
    config = DataConfig(
        sources=tuple(specs), batch_size=_ROWS, bucket_seconds=_BUCKETS, needs=()
    )
    total = len(opening.open_sources(config.sources)[0])
    with tqdm(total=total, desc="cmvn", unit="utt") as bar:
        for arrays in iterators.iterate_eval(config, report=report):
            yield Frames(arrays["audio"], arrays["audio_mask"])
            bar.update(int(arrays["valid"].sum()))
