"""One planned batch to arrays: decode, change the speed, label, pad."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nim4_jax.data import audio, buckets, transforms
from nim4_jax.data.buckets import Batch, Bucket
from nim4_jax.data.skips import TOO_SHORT_FOR_CTC
from nim4_jax.data.survey import Examples


@dataclass
class BatchLoader:
    """Planned batch → arrays: this host's rows, decoded, labelled and padded."""

    examples: Examples
    buckets: tuple[Bucket, ...]
    rank: int
    hosts: int
    cache_mb: float
    check_ctc: bool
    cache: transforms.SampleCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = transforms.SampleCache(self.cache_mb)
        for bucket in self.buckets:
            if bucket.batch % self.hosts or not 0 <= self.rank < self.hosts:
                raise ValueError(
                    f"rank {self.rank} of {self.hosts} hosts and a global batch of "
                    f"{bucket.batch}: expected a rank below hosts, a multiple of hosts"
                )

    def load(self, batch: Batch) -> dict[str, Any]:
        """Arrays of this host's contiguous block of rows.

        Hosts own contiguous blocks because that is how JAX concatenates local arrays
        into a global one: the global array does not depend on the number of hosts.
        """
        bucket = self.buckets[batch.bucket]
        share = bucket.batch // self.hosts
        mine = slice(self.rank * share, (self.rank + 1) * share)
        indices = batch.indices[mine]
        skips: list[tuple[str, int, str]] = []
        rows = [
            self._load_row(int(index), float(speed), bucket, skips)
            for index, speed in zip(indices, batch.speeds[mine])
        ]
        samples, phonemes, tokens = zip(*rows)
        size = round(bucket.seconds * audio.SAMPLE_RATE)
        values, mask = transforms.pad_rows(samples, size, np.float32)
        arrays: dict[str, Any] = {"audio": values, "audio_mask": mask}
        for name, labels, width in (
            ("phonemes", phonemes, bucket.phonemes),
            ("tokens", tokens, bucket.tokens),
        ):
            values, mask = transforms.pad_rows(labels, width, np.int32)
            arrays |= {name: values, f"{name}_mask": mask}
        arrays["index"] = indices.astype(np.int32)
        arrays["valid"] = np.array([len(row) > 0 for row in samples])
        return {"arrays": arrays, "skips": skips, "repeated": batch.repeated}

    def _load_row(
        self, index: int, speed: float, bucket: Bucket, skips: list
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples, phonemes and tokens of one row; all empty if it cannot be used."""
        nothing = np.zeros(0, np.float32)
        empty = (nothing, np.zeros(0, np.int32), np.zeros(0, np.int32))
        if index < 0:
            return empty
        examples = self.examples
        try:
            samples, kept = transforms.load_samples(
                examples.corpus[index],
                speed=speed,
                max_seconds=bucket.seconds,
                cached=self.cache.get(index),
            )
        except audio.AudioError as error:
            skips.append((error.reason, index, str(error)))
            return empty
        self.cache.put(index, kept)
        lengths = examples.lengths
        # The plan used the stated duration; the decoded one decides.
        frames = int(buckets.count_encoder_frames(len(samples)))
        need = int(lengths.phonemes[index] + lengths.repeats[index])
        if self.check_ctc and frames < need:
            detail = f"{frames} encoder frames, its labels need {need}"
            skips.append((TOO_SHORT_FOR_CTC, index, detail))
            return empty
        phonemes = examples.phonemes[index][: lengths.phonemes[index]]
        tokens = examples.tokens[index][: lengths.tokens[index]]
        return samples, phonemes, tokens
