"""Measure the mean and variance of the features of a corpus.

python launch/cmvn.py --source=train.jsonl --out=cmvn.json
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from absl import app, flags
from tqdm import tqdm

from nim4_jax.data import pipeline, sources
from nim4_jax.data.config import DataConfig
from nim4_jax.data.skips import SkipReport
from nim4_jax.features import FeatureConfig
from nim4_jax.launch import runtime
from nim4_jax.train import cmvn
from nim4_jax.types import Frames

_BUCKETS = (2.5, 4.0, 6.5, 15.0, 30.0)
_ROWS = (32, 20, 12, 6, 3)


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list("source", None, "Sources, by commas: manifest.jsonl, …")
    flags.DEFINE_string("out", None, "JSON file to write.")
    flags.DEFINE_integer("num_mels", 80, "Mel channels.", lower_bound=1)


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
    total = len(sources.open_sources(config.sources)[0])
    with tqdm(total=total, desc="cmvn", unit="utt") as bar:
        for arrays in pipeline.iterate_eval(config, report=report):
            yield Frames(arrays["audio"], arrays["audio_mask"])
            bar.update(int(arrays["valid"].sum()))


def main(_) -> None:
    """Entry point of `launch/cmvn.py` and `nim4 cmvn`."""
    given = flags.FLAGS
    if not given.source or not given.out:
        raise app.UsageError("--source=SOURCE,… and --out=FILE are needed.")
    statistics = run(given.source, given.out, given.num_mels)
    print(f"{given.out}: {statistics['frames']} frames of {given.num_mels} channels")


if __name__ == "__main__":
    runtime.launch(main, define_flags)
