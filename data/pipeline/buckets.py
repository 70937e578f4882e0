"""Length buckets and the plan of batches: which examples form which batch, when.

The plan of an epoch is a pure function of (seed, epoch) and of the examples' lengths.
It knows no hosts, workers or threads: they slice a batch that is already decided. Hence
step s holds the same global examples whatever the number of hosts (law 3), and the
whole state of the input pipeline is one integer, the step (law 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nim4_jax.data.noise import channel, noise_draws
from nim4_jax.rates import Rates

# Streams of random numbers.
_SPEED, _ORDER, _BATCHES, _SOURCE, _NOISE, _CHANNEL = range(6)


@dataclass(frozen=True)
class Bucket:
    """One fixed batch shape.

    Attributes:
        seconds: longest audio that fits, after speed perturbation.
        batch: rows of the global batch.
        phonemes: width of the phoneme labels.
        tokens: width of the token labels.
    """

    seconds: float
    batch: int
    phonemes: int
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """Lengths and label counts of all examples: arrays of [examples].

    Attributes:
        seconds: float64, length of the audio at speed 1.
        phonemes: int64, number of phoneme labels.
        repeats: int64, neighbouring equal phonemes (each costs CTC one more frame).
        tokens: int64, number of token labels.
        rates: of the model that shall hear them.
    """

    seconds: np.ndarray
    phonemes: np.ndarray
    repeats: np.ndarray
    tokens: np.ndarray
    rates: Rates = Rates()

    def take(self, indices: np.ndarray) -> Lengths:
        """The same for the examples `indices`."""
        return Lengths(
            self.seconds[indices],
            self.phonemes[indices],
            self.repeats[indices],
            self.tokens[indices],
            self.rates,
        )


@dataclass(frozen=True)
class Batch:
    """One planned global batch.

    Attributes:
        epoch: epoch that it belongs to.
        bucket: index of its bucket, which fixes its shape.
        indices: int64 [rows], examples; -1 is an empty row (evaluation only).
        speeds: float64 [rows], speed factors.
        repeated: rows at the end that repeat examples of the same epoch to fill it.
        draws: noise of the rows; None without any.
        channels: tempo, rooms, gains and telephone lines of the rows; None without any.
    """

    epoch: int
    bucket: int
    indices: np.ndarray
    speeds: np.ndarray
    repeated: int = 0
    draws: noise_draws.Draws | None = None
    channels: channel.Draws | None = None


@dataclass(frozen=True)
class Perturbations:
    """What is drawn for each example of an epoch.

    Attributes:
        speeds: factors, all equally likely.
        noise: its distribution; None for none.
        channels: distribution of tempo, rooms, gains, telephone lines; None for none.
    """

    speeds: tuple[float, ...] = (1.0,)
    noise: noise_draws.Distribution | None = None
    channels: channel.Distribution | None = None


@dataclass(frozen=True)
class _Rows:
    """Drawn examples of an epoch and what was drawn for each, as in `Batch`."""

    indices: np.ndarray
    speeds: np.ndarray
    draws: noise_draws.Draws | None
    channels: channel.Draws | None

    def take(self, places: np.ndarray) -> _Rows:
        """The same for the rows at `places`."""
        return _Rows(
            self.indices[places],
            self.speeds[places],
            self.draws and self.draws.take(places),
            self.channels and self.channels.take(places),
        )


def assign_buckets(lengths: Lengths, buckets: tuple[Bucket, ...]) -> np.ndarray:
    """Smallest bucket whose shape holds each example; len(buckets) where none does.

    Args:
        lengths: of [examples], seconds after speed perturbation.
        buckets: in growing order.

    Returns:
        int64 [examples].
    """
    chosen = np.full(len(lengths.seconds), len(buckets), np.int64)
    for number in reversed(range(len(buckets))):
        bucket = buckets[number]
        fits = (
            (lengths.seconds <= bucket.seconds)
            & (lengths.phonemes <= bucket.phonemes)
            & (lengths.tokens <= bucket.tokens)
        )
        chosen[fits] = number
    return chosen


def is_ctc_feasible(lengths: Lengths) -> np.ndarray:
    """Whether a CTC path exists: encoder frames ≥ labels + repeated neighbours.

    Returns:
        bool [examples].
    """
    samples = np.floor(lengths.seconds * 16000).astype(np.int64)
    frames = lengths.rates.count_encoder_frames(samples)
    return frames >= lengths.phonemes + lengths.repeats


class TrainPlan:
    """Random access from a step to its global batch, over endless epochs.

    An epoch's rule, all of it drawn from (seed, epoch):

    1. draw: source k with weight w and n examples gives the entries ⌊e·w·n⌋ …
       ⌊(e+1)·w·n⌋ of an endless row of its permutations: each example once an epoch for
       w = 1, twice for 2, once in two epochs for ½;
    2. one speed factor per drawn example; one that then fits no bucket or no CTC path
       keeps speed 1, at which the caller knows that it fits;
    3. with noise, one draw of it per drawn example (`noise.draw`), its silences cut to
       what the largest bucket has room for; they count as audio from here on;
    4. with channels, one draw of them per drawn example (`channel.draw`); no length
       hangs on it;
    5. a global shuffle; each example goes to the smallest bucket that holds it;
    6. each bucket is cut into batches; what is left over moves up into the next larger
       bucket in use, and the largest one's last batch is filled by repeating that
       bucket's first rows (fewer than one batch an epoch, counted in `Batch.repeated`);
    7. the batches are shuffled.
    """

    def __init__(
        self,
        groups: list[np.ndarray],
        weights: list[float],
        lengths: Lengths,
        buckets: tuple[Bucket, ...],
        perturbations: Perturbations = Perturbations(),
        *,
        seed: int = 0,
        num_speech: int | None = None,
    ):
        """Prepare the plan.

        Args:
            groups: usable example indices of each source, int64.
            weights: passes over each source an epoch.
            lengths: of all examples (usable or not) at speed 1.
            buckets: in growing order; every usable example fits one at speed 1.
            perturbations: what is drawn for each example.
            seed: of everything random.
            num_speech: examples from this index on hold no speech, and get no noise;
                None: all do.

        Raises:
            ValueError: a usable example fits no bucket.
        """
        usable = np.concatenate(groups)
        unfit = usable[assign_buckets(lengths.take(usable), buckets) == len(buckets)]
        if len(unfit) or not len(usable):
            raise ValueError(
                f"{len(unfit)} of {len(usable)} examples fit no bucket of {buckets}, "
                f"first {unfit[:3].tolist()}; leave them out, give at least one"
            )
        self.groups = groups
        self.weights = weights
        self.lengths = lengths
        self.buckets = buckets
        self.speeds = np.asarray(perturbations.speeds, np.float64)
        self.seed = seed
        self.distribution = perturbations.noise
        self.channels = perturbations.channels
        self.num_speech = len(lengths.seconds) if num_speech is None else num_speech
        self._starts = [0]  # step at which each epoch starts, as far as known
        self._epochs: dict[int, list[Batch]] = {}

    def __getitem__(self, step: int) -> Batch:
        epoch = self.find_epoch(step)
        return self.epoch(epoch)[step - self._starts[epoch]]

    def epoch(self, epoch: int) -> list[Batch]:
        """All batches of one epoch, in order."""
        batches = self._epochs.get(epoch)
        if batches is None:
            batches = self._build_epoch(epoch)
            # Two are kept: prefetch threads stand on both sides of a border. The dict
            # is replaced, never changed: threads need no lock, workers can pickle it.
            newest = dict(list(self._epochs.items())[-1:])
            self._epochs = {**newest, epoch: batches}
        return batches

    def find_epoch(self, step: int) -> int:
        """The epoch that a step belongs to."""
        while self._starts[-1] <= step:
            self.count_steps(len(self._starts))
        return int(np.searchsorted(self._starts, step, side="right")) - 1

    def count_steps(self, epochs: int) -> int:
        """Number of batches of the first `epochs` epochs."""
        starts = self._starts
        while len(starts) <= epochs:
            # A local copy keeps threads that extend the list together consistent.
            known = list(starts)
            known.append(known[-1] + len(self.epoch(len(known) - 1)))
            starts = known
            if len(known) > len(self._starts):
                self._starts = known
        return starts[epochs]

    def _random(self, *path: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *path))

    def _draw(self, epoch: int) -> np.ndarray:
        """Example indices of one epoch, source after source."""
        drawn = []
        for number, (group, weight) in enumerate(zip(self.groups, self.weights)):
            size = len(group)
            if not size:
                continue
            start = int(np.floor(epoch * weight * size))
            stop = int(np.floor((epoch + 1) * weight * size))
            positions = np.arange(start, stop)
            for turn in range(start // size, -(-stop // size)):
                order = self._random(_SOURCE, number, turn).permutation(size)
                inside = positions[positions // size == turn] % size
                drawn.append(group[order[inside]])
        return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)

    def _build_epoch(self, epoch: int) -> list[Batch]:
        drawn = self._draw(epoch)
        lengths = self.lengths.take(drawn)
        random = self._random(_SPEED, epoch)
        speeds = self.speeds[random.integers(len(self.speeds), size=len(drawn))]
        fast = replace(lengths, seconds=lengths.seconds / speeds)
        buckets = assign_buckets(fast, self.buckets)
        unfit = (buckets == len(self.buckets)) | ~is_ctc_feasible(fast)
        speeds = np.where(unfit, 1.0, speeds)
        buckets = np.where(unfit, assign_buckets(lengths, self.buckets), buckets)
        draws = None
        if self.distribution:
            draws, buckets = self._draw_noise(epoch, drawn, speeds)
        channels = None
        if self.channels:
            random, speech = self._random(_CHANNEL, epoch), drawn < self.num_speech
            channels = channel.draw(random, speech, self.channels)
        order = self._random(_ORDER, epoch).permutation(len(drawn))
        rows = _Rows(drawn, speeds, draws, channels).take(order)
        batches = self._cut(epoch, rows, buckets[order])
        shuffled = self._random(_BATCHES, epoch).permutation(len(batches))
        return [batches[number] for number in shuffled]

    def _draw_noise(
        self, epoch: int, drawn: np.ndarray, speeds: np.ndarray
    ) -> tuple[noise_draws.Draws, np.ndarray]:
        """Noise of the drawn examples, and their buckets with its silences."""
        lengths = self.lengths.take(drawn)
        seconds = lengths.seconds / speeds
        largest = self.buckets[-1].seconds
        random, allowed = self._random(_NOISE, epoch), drawn < self.num_speech
        draws = noise_draws.draw(random, allowed, self.distribution).fit(
            largest - seconds
        )
        # The minimum takes away what rounding may have put on top.
        seconds = np.minimum(seconds + draws.lead + draws.tail, largest)
        longer = replace(lengths, seconds=seconds)
        return draws, assign_buckets(longer, self.buckets)

    def _cut(self, epoch: int, drawn: _Rows, buckets: np.ndarray) -> list[Batch]:
        """Cut the shuffled examples into batches, bucket by bucket."""
        batches = []
        left = np.zeros(0, np.int64)
        used = np.unique(buckets)
        for number in used:
            size = self.buckets[number].batch
            rows = np.concatenate([left, np.flatnonzero(buckets == number)])
            whole = len(rows) // size * size
            left = rows[whole:]
            repeated = 0
            if number == used[-1] and len(left):
                repeated = size - len(left)
                rows = np.concatenate([rows, np.resize(rows, repeated)])
                whole += size
            for start in range(0, whole, size):
                chosen = drawn.take(rows[start : start + size])
                last = start + size == whole
                batches.append(
                    Batch(
                        epoch,
                        int(number),
                        chosen.indices,
                        chosen.speeds,
                        repeated if last else 0,
                        chosen.draws,
                        chosen.channels,
                    )
                )
        return batches


def plan_evaluation(
    indices: np.ndarray, lengths: Lengths, buckets: tuple[Bucket, ...]
) -> list[Batch]:
    """Batches that hold every example once, by length; short last ones hold -1 rows.

    Args:
        indices: int64, examples, each of which fits a bucket.
        lengths: of all examples.
        buckets: in growing order.
    """
    order = indices[np.argsort(lengths.seconds[indices], kind="stable")]
    chosen = assign_buckets(lengths.take(order), buckets)
    batches = []
    for number in np.unique(chosen):
        rows = order[chosen == number]
        size = buckets[number].batch
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            padded = np.full(size, -1, np.int64)
            padded[: len(part)] = part
            batches.append(Batch(0, int(number), padded, np.ones(size)))
    return batches
