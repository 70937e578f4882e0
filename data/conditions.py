"""Sets made from other sets: the same utterances in noise, or joined to long audio.

A specification of a condition stands before that of the set it changes,

    noisy:SNR[+KIND…]:SOURCE     noisy:10:bundled:commands:test
    joined:SECONDS:SOURCE        joined:60:bundled:commands:test

and conditions may be put before one another. What is drawn for an utterance hangs on
its id alone, so that the same audio comes out whenever a set is opened, and all levels
of noise have the same noise.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int16

from nim4_jax.data import audio, noise, noise_synthesis, sources, transforms
from nim4_jax.data.audio import SAMPLE_RATE
from nim4_jax.data.sources import Record, Source

CONDITIONS = ("noisy", "joined")
"""What may stand before a source."""

KINDS = ("babble", "vehicle", "music")
"""Kinds of noise of an evaluation: those that need no recordings of noise."""

PAUSE = (0.3, 1.5)
"""Shortest and longest pause between joined utterances, s."""

_HUSH = -70.0  # dB below full scale: the level of a pause
_CACHE_MB = 256.0  # of audio that is made once and asked for again
_NOISE, _PAUSES = 0x5E7, 0x10E6  # streams of random numbers
_NOISY = re.compile(r"(-?\d+(?:\.\d+)?)((?:\+[a-z]+)*)")
_SECONDS = re.compile(r"\d+(?:\.\d+)?")


def find_origin(spec: str) -> str:
    """The specification without the conditions before it."""
    while spec.startswith(tuple(f"{name}:" for name in CONDITIONS)):
        spec = spec.partition(":")[2].partition(":")[2]
    return spec


def open_condition(spec: str) -> Source:
    """The set that a condition makes of another.

    Raises:
        ValueError: a setting that cannot be read, kinds that there are not, or whatever
            `sources.open_source` says of the other set.
    """
    name, _, rest = spec.partition(":")
    setting, _, origin = rest.partition(":")
    seconds, noisy = _SECONDS.fullmatch(setting), _NOISY.fullmatch(setting)
    if name == "joined" and seconds and float(setting) > 0 and origin:
        return Joined(sources.open_source(origin), float(setting))
    if name == "noisy" and noisy and origin:
        kinds = tuple(noisy[2].split("+")[1:]) or KINDS
        return Noisy(sources.open_source(origin), float(noisy[1]), kinds)
    raise ValueError(_describe_form(spec))


def _describe_form(spec: str) -> str:
    return (
        f"cannot read the source {spec!r}; expected 'noisy:SNR[+KIND…]:SOURCE' with a "
        f"ratio in dB and kinds of {', '.join(KINDS)}, or 'joined:SECONDS:SOURCE' with "
        "seconds > 0"
    )


class Noisy:
    """Every utterance of a source in noise, at one signal-to-noise ratio.

    The ratio is that of `noise.mix`: power over the speech's active part. Lengths stay.
    Babble is other utterances of the source. What stays as it is: digital silence, a
    record in which nothing is said (its text is empty), audio that cannot be read.
    """

    def __init__(self, source: Source, snr: float, kinds: Sequence[str] = KINDS):
        """Nothing is made before a record is asked for.

        Args:
            source: the clean utterances.
            snr: dB.
            kinds: of `KINDS`; each is as likely as any other, but babble needs two
                utterances.

        Raises:
            ValueError: unknown kinds.
        """
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or not kinds:
            raise ValueError(
                f"noise of the kinds {list(kinds)}; choose from {', '.join(KINDS)}"
            )
        self._source, self._snr, self._kinds = source, snr, tuple(kinds)
        self._cache = transforms.SampleCache(_CACHE_MB)

    def __len__(self) -> int:
        return len(self._source)

    def describe(self, index: int) -> Record:
        """The record with its clean audio, if any."""
        return sources.describe(self._source, index)

    def __getitem__(self, index: int) -> Record:
        """The record with audio of int16 at 16 kHz."""
        record = self._source[index]
        if not record["text"].strip():
            return record
        samples = self._cache.get(index)
        if samples is None:
            try:
                samples = audio.to_int16(self._mix(record, index))
            except audio.AudioError:
                return record  # whoever decodes it is told the same
            self._cache.put(index, samples)
        return {
            **record,
            "audio": samples,
            "sample_rate": SAMPLE_RATE,
            "duration": len(samples) / SAMPLE_RATE,
        }

    def _mix(self, record: Record, index: int) -> Float[np.ndarray, " S"]:
        speech = decode(record)
        rng = np.random.default_rng((_NOISE, _hash(record["id"])))
        kinds = [kind for kind in self._kinds if kind != "babble" or len(self) > 1]
        # As much is drawn for one kind as for several: each sounds alike in both.
        share = rng.random()
        kind = kinds[int(share * len(kinds))] if kinds else "vehicle"
        if kind == "vehicle":
            sound = noise_synthesis.make_vehicle(rng, len(speech))
        elif kind == "music":
            sound = noise_synthesis.make_music(rng, len(speech))
        else:
            sound = noise.mix_babble(rng, self._read_voices(rng, index), len(speech))
        return noise.mix(speech, sound, self._snr)

    def _read_voices(self, rng: np.random.Generator, index: int) -> list[np.ndarray]:
        """Other utterances, those that can be read."""
        fewest, most = noise.TALKERS
        count = min(int(rng.integers(fewest, most + 1)), len(self) - 1)
        places = rng.choice(len(self) - 1, count, replace=False)
        voices = []
        for place in places:
            try:
                voices.append(decode(self._source[int(place + (place >= index))]))
            except audio.AudioError:
                continue  # told where it is recognised itself
        return voices


class Joined:
    """Utterances of one language, one after the other, with pauses between.

    They are taken in the order of the source, each language for itself, as many as fit;
    one that is longer is alone. The transcript is theirs, with spaces between.
    """

    def __init__(self, source: Source, seconds: float):
        """Read every record's length; no audio is made before it is asked for.

        Args:
            source: the utterances.
            seconds: most of a joined recording.
        """
        self._source, self._name = source, f"joined-{seconds:g}"
        self._groups: list[tuple[list[int], list[float]]] = []
        self._langs: list[str] = []
        open_groups: dict[str, tuple[list[int], list[float]]] = {}
        used: dict[str, float] = {}
        for index in range(len(source)):
            record = sources.describe(source, index)
            lang, length = record["lang"], measure(record)
            rng = np.random.default_rng((_PAUSES, _hash(record["id"])))
            pause = float(rng.uniform(*PAUSE))
            if lang not in used or used[lang] + pause + length > seconds:
                open_groups[lang] = ([], [])
                self._groups.append(open_groups[lang])
                self._langs.append(lang)
                used[lang], pause = 0.0, 0.0
            members, pauses = open_groups[lang]
            members.append(index)
            pauses.append(pause)
            used[lang] += pause + length

    def __len__(self) -> int:
        return len(self._groups)

    def describe(self, index: int) -> Record:
        """The record without its audio, which is then empty."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} joined ones")
        members, pauses = self._groups[index]
        records = [sources.describe(self._source, member) for member in members]
        texts = (record["text"].strip() for record in records)
        keywords = dict.fromkeys(word for row in records for word in row["keywords"])
        return {
            "audio": np.zeros(0, np.int16),
            "sample_rate": SAMPLE_RATE,
            "text": " ".join(text for text in texts if text),
            "lang": self._langs[index],
            "keywords": tuple(keywords),
            "id": f"{self._name}-{records[0]['id']}",
            "duration": sum(map(measure, records)) + sum(pauses),
            "origin": f"{self._name} from {records[0]['origin']}",
        }

    def __getitem__(self, index: int) -> Record:
        """The record with audio of int16 at 16 kHz.

        If an utterance's audio cannot be read, it stands for the whole: whoever decodes
        that is told what is wrong with it.
        """
        record = self.describe(index)
        members, pauses = self._groups[index]
        pieces = []
        for member, pause in zip(members, pauses):
            joined = self._source[member]
            try:
                samples = audio.to_int16(decode(joined))
            except audio.AudioError:
                return {
                    **record,
                    "audio": joined["audio"],
                    "sample_rate": joined["sample_rate"],
                }
            pieces += [_make_pause(joined["id"], pause), samples]
        samples = np.concatenate(pieces)
        return {**record, "audio": samples, "duration": len(samples) / SAMPLE_RATE}


def _make_pause(name: str, seconds: float) -> Int16[np.ndarray, " S"]:
    """The murmur of a quiet room before the utterance of this id."""
    rng = np.random.default_rng((_PAUSES, _hash(name), 1))
    size = round(seconds * SAMPLE_RATE)
    if not size:
        return np.zeros(0, np.int16)
    return audio.to_int16(noise.set_level(noise_synthesis.make_hush(rng, size), _HUSH))


def decode(record: Record) -> Float[np.ndarray, " S"]:
    """Samples of a record at 16 kHz.

    Raises:
        AudioError: they cannot be read.
    """
    return audio.decode(
        record["audio"],
        sample_rate=record.get("sample_rate"),
        name=transforms.name_record(record),
        duration=record.get("duration"),
    )


def measure(record: Record) -> float:
    """Seconds of a record, from its field or its header; 0 where neither tells."""
    seconds = record.get("duration")
    if seconds is not None:
        return float(seconds)
    try:
        return audio.read_duration(
            record["audio"], sample_rate=record.get("sample_rate")
        )
    except audio.AudioError:
        return 0.0


def _hash(name: str) -> int:
    return zlib.crc32(name.encode("utf8", "surrogatepass"))
