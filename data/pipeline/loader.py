"""One planned batch to arrays: decode, augment, label, pad.

What the plan has drawn is done to a row in the order in which it happens to speech that
is recorded: speed or tempo, room, silence and noise, gain, telephone line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import channel, noise_draws
from nim4_jax.data.noise.augment import Augmenter
from nim4_jax.data.pipeline import transforms
from nim4_jax.data.pipeline.buckets import Batch, Bucket
from nim4_jax.data.pipeline.hints import HintDrawer
from nim4_jax.data.pipeline.survey import Examples
from nim4_jax.data.sources import sample_cache
from nim4_jax.data.sources.skips import TOO_SHORT_FOR_CTC


@dataclass
class BatchLoader:
    """Planned batch → arrays: this host's rows, decoded, labelled and padded.

    Attributes:
        examples: what the plan's indices mean.
        buckets: shapes.
        rank: number of this host.
        hosts: number of hosts.
        cache_mb: memory for clean samples, MB.
        check_ctc: whether CTC must be able to align the labels.
        augmenter: makes what the plan has drawn.
        hints: draws names for the prompts; None for none.
        cache: of clean samples.
    """

    examples: Examples
    buckets: tuple[Bucket, ...]
    rank: int
    hosts: int
    cache_mb: float
    check_ctc: bool
    augmenter: Augmenter
    hints: HintDrawer | None = None
    cache: sample_cache.SampleCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = sample_cache.SampleCache(self.cache_mb)
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
        places = range(mine.start, mine.stop)
        rows = [self._load_row(batch, place, bucket, skips) for place in places]
        samples, phonemes, tokens = zip(*rows)
        size = round(bucket.seconds * reading.SAMPLE_RATE)
        values, mask = transforms.pad_rows(samples, size, np.float32)
        arrays: dict[str, Any] = {"audio": values, "audio_mask": mask}
        for name, labels, width in (
            ("phonemes", phonemes, bucket.phonemes),
            ("tokens", tokens, bucket.tokens),
        ):
            values, mask = transforms.pad_rows(labels, width, np.int32)
            arrays |= {name: values, f"{name}_mask": mask}
        if self.hints:
            arrays |= self.hints.load(batch.epoch, indices)
        arrays["index"] = indices.astype(np.int32)
        arrays["valid"] = np.array([len(row) > 0 for row in samples])
        return {"arrays": arrays, "skips": skips, "repeated": batch.repeated}

    def _load_row(
        self, batch: Batch, row: int, bucket: Bucket, skips: list
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples, phonemes and tokens of one row; all empty if it cannot be used."""
        index, speed = int(batch.indices[row]), float(batch.speeds[row])
        samples = None
        if index >= self.examples.num_speech:
            samples = self._make_nonspeech(batch.epoch, index, speed, bucket, skips)
        elif index >= 0:
            keep_pitch = bool(batch.channels and batch.channels[row].tempo)
            samples = self._load_speech(index, speed, keep_pitch, bucket, skips)
        if samples is None:
            nothing = np.zeros(0, np.int32)
            return np.zeros(0, np.float32), nothing, nothing
        samples = self._augment(samples, batch, row, skips)
        examples, lengths = self.examples, self.examples.lengths
        phonemes = examples.phonemes[index][: lengths.phonemes[index]]
        tokens = examples.tokens[index][: lengths.tokens[index]]
        return samples, phonemes, tokens

    def _load_speech(
        self, index: int, speed: float, keep_pitch: bool, bucket: Bucket, skips: list
    ) -> np.ndarray | None:
        """Clean samples of an example, None if it cannot be used."""
        try:
            samples = self._read_clean(index, speed, bucket.seconds, keep_pitch)
        except reading.AudioError as error:
            skips.append((error.reason, index, str(error)))
            return None
        lengths = self.examples.lengths
        # The plan used the stated duration; the decoded one decides.
        frames = int(lengths.rates.count_encoder_frames(len(samples)))
        need = int(lengths.phonemes[index] + lengths.repeats[index])
        if self.check_ctc and frames < need:
            detail = f"{frames} encoder frames, its labels need {need}"
            skips.append((TOO_SHORT_FOR_CTC, index, detail))
            return None
        return samples

    def _read_clean(
        self, index: int, speed: float, max_seconds: float, keep_pitch: bool = False
    ) -> np.ndarray:
        """Clean samples, from the cache if it has them, and for it if it has room."""
        samples, kept = transforms.load_samples(
            self.examples.corpus[index],
            speed=speed,
            max_seconds=max_seconds,
            cached=self.cache.get(index),
            keep_pitch=keep_pitch,
        )
        self.cache.put(index, kept)
        return samples

    def _read_voice(self, index: int) -> np.ndarray:
        """Clean samples of an example that is heard in the background."""
        return self._read_clean(index, 1.0, self.buckets[-1].seconds)

    def _augment(
        self, samples: np.ndarray, batch: Batch, row: int, skips: list
    ) -> np.ndarray:
        """Samples of a row after room, silence and noise, gain and telephone line."""
        index = int(batch.indices[row])
        size = round(self.buckets[batch.bucket].seconds * reading.SAMPLE_RATE)
        draw = batch.draws[row] if batch.draws else None
        path = batch.channels[row] if batch.channels else None
        if path and path.room is not None:
            # The room is heard in the silence behind the speech, if there is some.
            tail = int(draw.tail * reading.SAMPLE_RATE) if draw else 0
            whole = min(len(samples) + tail, size)
            samples = channel.add_room(samples, path.room, whole)
            draw = draw and replace(draw, tail=0.0)
        if draw:
            samples = self._add_noise(samples, index, draw, size, skips)
        return channel.transmit(samples, path) if path else samples

    def _add_noise(
        self,
        samples: np.ndarray,
        index: int,
        draw: noise_draws.Draw,
        size: int,
        skips: list,
    ) -> np.ndarray:
        """Samples with noise, or as they are where the noise cannot be read."""
        try:
            return self.augmenter.add_noise(
                samples, index, draw, size, self._read_voice
            )
        except reading.AudioError as error:
            skips.append((f"noise left out: {error.reason}", index, str(error)))
            return samples

    def _make_nonspeech(
        self, epoch: int, index: int, speed: float, bucket: Bucket, skips: list
    ) -> np.ndarray | None:
        """Samples without speech, None if noise cannot be read."""
        seconds = min(self.examples.lengths.seconds[index] / speed, bucket.seconds)
        size = round(seconds * reading.SAMPLE_RATE)
        try:
            return self.augmenter.make_nonspeech(epoch, index, size)
        except reading.AudioError as error:
            skips.append((error.reason, index, str(error)))
            return None
