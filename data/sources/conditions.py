"""Sets derived from other sets: in noise, in rooms, over the telephone, joined.

A specification of a condition stands before that of the set it changes,

    noisy:SNR[+KIND…][@NOISE]:SOURCE   noisy:10:bundled:commands:test
    room:RT60[+DISTANCE]:SOURCE        room:0.5+2:bundled:commands:test
    level:DB:SOURCE                    level:-20:bundled:commands:test
    telephone:LAW:SOURCE               telephone:mulaw:bundled:commands:test
    joined:SECONDS:SOURCE              joined:60:bundled:commands:test

and conditions may be put before one another; the one next to the source happens first:
`telephone:alaw:level:-20:noisy:10:room:0.5:…` is heard in a room, in noise, quietly,
over the telephone. What is drawn for an utterance hangs on its id alone, so that the
same audio comes out whenever a set is opened, all levels of noise have the same noise,
and all reverberation times the same rooms.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16

from nim4_jax.data.audio import reading
from nim4_jax.data.audio.reading import SAMPLE_RATE
from nim4_jax.data.noise import (
    channel,
    mixing,
    noise_kinds,
    noise_synthesis,
    rooms,
    telephone,
)
from nim4_jax.data.noise.noise_files import NoiseFiles
from nim4_jax.data.sources import examples, records, sample_cache
from nim4_jax.data.sources.examples import Opener, Record, Source
from nim4_jax.data.sources.skips import SkipReport

CONDITIONS = ("noisy", "room", "level", "telephone", "joined")
"""What may stand before a source."""

KINDS = noise_kinds.choose(noise_kinds.BEHIND_SPEECH, voices=True, recordings=False)
"""Kinds of noise of an evaluation: those that need no recordings of noise."""

IN_TEST_SETS = noise_kinds.list_in_test_sets(KINDS)
"""Those of a condition that names none."""

RECORDED = "recorded"
"""The kind that needs recordings: pieces of those that a condition names."""

PAUSE = (0.3, 1.5)
"""Shortest and longest pause between joined utterances, s."""

_HUSH = -70.0  # dB below full scale: the level of a pause
_CACHE_MB = 256.0  # of audio that is made once and asked for again
_NOISE, _PAUSES, _ROOM = 0x5E7, 0x10E6, 0x900  # streams of random numbers
_NUMBER = r"\d+(?:\.\d+)?"
_FORMS = {
    "noisy": re.compile(rf"(-?{_NUMBER})((?:\+[a-z]+)*)(?:@(.+))?"),
    "room": re.compile(rf"({_NUMBER})(?:\+({_NUMBER}))?"),
    "level": re.compile(rf"([-+]?{_NUMBER})"),
    "telephone": re.compile("|".join(telephone.LAWS)),
    "joined": re.compile(rf"({_NUMBER})"),
}


def find_origin(spec: str) -> str:
    """The specification without the conditions before it."""
    while spec.startswith(tuple(f"{name}:" for name in CONDITIONS)):
        spec = spec.partition(":")[2].partition(":")[2]
    return spec


def find_noise(spec: str) -> list[str]:
    """Folders and manifests of recorded noise that a specification names."""
    found = []
    while spec.startswith(tuple(f"{name}:" for name in CONDITIONS)):
        name, _, rest = spec.partition(":")
        setting, _, spec = rest.partition(":")
        if name == "noisy" and "@" in setting:
            found.append(setting.partition("@")[2])
    return found


def open_condition(spec: str, open_source: Opener) -> Source:
    """The set that a condition makes of another, which `open_source` opens.

    Raises:
        ValueError: a setting that cannot be read, kinds that there are not, no usable
            recording of noise, or whatever `open_source` says of the other set.
    """
    name, _, rest = spec.partition(":")
    setting, _, origin = rest.partition(":")
    read = _FORMS[name].fullmatch(setting)
    if not read or not origin:
        raise ValueError(_describe_form(spec))
    if name == "telephone":
        return Telephone(open_source(origin), setting)
    number = float(read[1])
    if name == "level":
        return Level(open_source(origin), number)
    if name == "noisy":
        kinds = tuple(read[2].split("+")[1:]) + ((RECORDED,) if read[3] else ())
        return Noisy(open_source(origin), number, kinds or IN_TEST_SETS, read[3])
    distance = float(read[2]) if name == "room" and read[2] else None
    if number <= 0 or distance == 0:
        raise ValueError(_describe_form(spec))
    if name == "room":
        return Reverberant(open_source(origin), number, distance)
    return Joined(open_source(origin), number)


def _describe_form(spec: str) -> str:
    return (
        f"cannot read the source {spec!r}; expected "
        f"'noisy:SNR[+KIND…][@NOISE]:SOURCE' with a ratio in dB, kinds of "
        f"{', '.join(KINDS)}, and a folder or a manifest of recordings without ':' in "
        "its name; 'room:RT60[+DISTANCE]:SOURCE' with s and m > 0; 'level:DB:SOURCE'; "
        f"'telephone:LAW:SOURCE' with {' or '.join(telephone.LAWS)}; or "
        "'joined:SECONDS:SOURCE' with seconds > 0"
    )


class Changed:
    """Every utterance of a source with other audio, as long as before.

    Audio that cannot be read stays as it is: whoever decodes it is told why.
    """

    def __init__(self, source: Source):
        """Nothing is made before a record is asked for."""
        self._source = source
        self._cache = sample_cache.SampleCache(_CACHE_MB)

    def __len__(self) -> int:
        return len(self._source)

    def describe(self, index: int) -> Record:
        """The record with its audio as it was, if any."""
        return examples.describe(self._source, index)

    def __getitem__(self, index: int) -> Record:
        """The record with audio of int16 at 16 kHz."""
        record = self._source[index]
        samples = self._cache.get(index)
        if samples is None:
            try:
                before = decode(record)
            except reading.AudioError:
                return record
            samples = reading.to_int16(self._change(before, record["id"], index))
            self._cache.put(index, samples)
        return {
            **record,
            "audio": samples,
            "sample_rate": SAMPLE_RATE,
            "duration": len(samples) / SAMPLE_RATE,
            "offset": None,
            "channel": "mix",
        }

    def _change(
        self, samples: Float[np.ndarray, " S"], name: str, index: int
    ) -> Float[np.ndarray, " S"]:
        """The audio of record `index`, whose id is `name`."""
        raise NotImplementedError


class Level(Changed):
    """Every utterance with another gain, stored in 16 bits: it may clip, or lose bits.

    `channel.amplify` says how.
    """

    def __init__(self, source: Source, gain: float):
        """`gain` is in dB."""
        super().__init__(source)
        self._gain = gain

    def _change(self, samples, name, index):
        return channel.amplify(samples, self._gain)


class Telephone(Changed):
    """Every utterance over a telephone line."""

    def __init__(self, source: Source, law: str):
        """`law` is of `telephone.LAWS`."""
        super().__init__(source)
        self._law = law

    def _change(self, samples, name, index):
        return telephone.transmit(samples, self._law)


class Reverberant(Changed):
    """Every utterance in a room of its own, with one reverberation time for all."""

    def __init__(self, source: Source, reverberation: float, distance: float | None):
        """Prepare.

        Args:
            source: the utterances.
            reverberation: RT60, s.
            distance: of the talker, m (nearer where the room is too small); None draws
                it, as training does.
        """
        super().__init__(source)
        self._reverberation, self._distance = reverberation, distance

    def _change(self, samples, name, index):
        rng = np.random.default_rng((_ROOM, _hash(name)))
        room = rooms.draw_room(rng, self._reverberation, self._distance)
        response = rooms.make_response(rng, room)
        return rooms.reverberate(samples, response, len(samples))


class Noisy(Changed):
    """Every utterance of a source in noise, at one signal-to-noise ratio.

    The ratio is that of `noise.mix`: power over the speech's active part. Babble is
    other utterances of the source. What stays as it is: digital silence, and a record
    in which nothing is said (its text is empty).
    """

    def __init__(
        self,
        source: Source,
        snr: float,
        kinds: Sequence[str] = IN_TEST_SETS,
        recordings: str | None = None,
    ):
        """Nothing is made before a record is asked for.

        Args:
            source: the clean utterances.
            snr: dB.
            kinds: of `KINDS` and "recorded"; each is as likely as any other, but babble
                needs two utterances.
            recordings: folder or manifest of the noise of kind "recorded"; its pieces
                are drawn, and are the same whenever the same recordings lie there.

        Raises:
            ValueError: unknown kinds, no recording, or one that cannot be used.
        """
        known = KINDS if recordings is None else (*KINDS, RECORDED)
        unknown = sorted(set(kinds) - set(known))
        if unknown or not kinds:
            raise ValueError(
                f"noise of the kinds {list(kinds)}; choose from {', '.join(known)}"
            )
        super().__init__(source)
        self._snr, self._kinds = snr, tuple(kinds)
        self._files = _open_noise(recordings) if recordings else None

    def __getitem__(self, index: int) -> Record:
        """The record with audio of int16 at 16 kHz.

        Raises:
            AudioError: a recording of noise cannot be read.
        """
        record = self.describe(index)
        said = record["text"].strip()
        return super().__getitem__(index) if said else self._source[index]

    def _change(self, samples, name, index):
        rng = np.random.default_rng((_NOISE, _hash(name)))
        alone = len(self) < 2
        kinds = [
            kind
            for kind in map(noise_kinds.find, self._kinds)
            if not (alone and kind.needs == "voices")
        ] or [noise_kinds.find(noise_kinds.FALLBACK)]
        # As much is drawn for one kind as for several: each sounds alike in both.
        share = rng.random()
        material = noise_kinds.Material(
            lambda rng: self._read_voices(rng, index),
            self._files.read if self._files else None,
        )
        sound = kinds[int(share * len(kinds))].make(rng, len(samples), material)
        return mixing.mix(samples, sound, self._snr)

    def _read_voices(self, rng: np.random.Generator, index: int) -> list[np.ndarray]:
        """Other utterances, those that can be read."""
        fewest, most = mixing.TALKERS
        count = min(int(rng.integers(fewest, most + 1)), len(self) - 1)
        places = rng.choice(len(self) - 1, count, replace=False)
        voices = []
        for place in places:
            try:
                voices.append(decode(self._source[int(place + (place >= index))]))
            except reading.AudioError:
                continue  # told where it is recognised itself
        return voices


def _open_noise(recordings: str) -> NoiseFiles:
    """Recordings of noise, all of which can be used: which piece is drawn hangs on it.

    Raises:
        ValueError: there is none, or one that cannot be used.
    """
    if not Path(recordings.partition("?")[0]).exists():
        raise ValueError(
            f"no noise at {recordings}; give a folder of recordings or a manifest"
        )
    report = SkipReport()
    files = NoiseFiles((recordings,), report)
    if report.counts:
        raise ValueError(
            f"noise of {recordings} that cannot be used:\n{report.summary()}\n"
            "an evaluation draws from all of it: mend these, or take them out"
        )
    return files


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
            record = examples.describe(source, index)
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
        joined = [examples.describe(self._source, member) for member in members]
        texts = (record["text"].strip() for record in joined)
        keywords = dict.fromkeys(word for row in joined for word in row["keywords"])
        return {
            "audio": np.zeros(0, np.int16),
            "sample_rate": SAMPLE_RATE,
            "text": " ".join(text for text in texts if text),
            "lang": self._langs[index],
            "keywords": tuple(keywords),
            "id": f"{self._name}-{joined[0]['id']}",
            "duration": sum(map(measure, joined)) + sum(pauses),
            "origin": f"{self._name} from {joined[0]['origin']}",
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
                samples = reading.to_int16(decode(joined))
            except reading.AudioError:
                return {
                    **record,
                    "audio": joined["audio"],
                    "sample_rate": joined["sample_rate"],
                    "offset": joined.get("offset"),
                    "channel": joined.get("channel", "mix"),
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
    return reading.to_int16(
        mixing.set_level(noise_synthesis.make_hush(rng, size), _HUSH)
    )


def decode(record: Record) -> Float[np.ndarray, " S"]:
    """Samples of a record at 16 kHz.

    Raises:
        AudioError: they cannot be read.
    """
    return records.decode(record)


def measure(record: Record) -> float:
    """Seconds of a record, from its field or its header; 0 where neither tells."""
    try:
        return records.measure(record)
    except reading.AudioError:
        return 0.0


def _hash(name: str) -> int:
    return zlib.crc32(name.encode("utf8", "surrogatepass"))
