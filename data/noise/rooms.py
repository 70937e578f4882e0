"""Simulated rooms: impulse responses by the image method, and reverberation.

The first 50 ms are the image sources of a shoebox, one by one; behind them so many
arrive that only their density and their decay can be heard, and noise of that decay
stands for them. The density is the room's own, hence so is the ratio of direct to
reverberant sound.

Source: Allen and Berkley 1979 (image sources); Lehmann and Johansson 2008 (negative
reflection coefficients, without which low frequencies pile up), 2010 (the diffuse
tail); Ko et al. 2017 (drawn rooms as augmentation of speech recognisers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import fft

from nim4_jax.data.audio.reading import SAMPLE_RATE
from nim4_jax.data.noise import mixing

SPEED_OF_SOUND = 343.0
"""m / s."""

SIZES = ((3.0, 10.0), (2.5, 8.0), (2.4, 4.0))
"""Smallest and largest length, width and height of a drawn room, m."""

REVERBERATION = (0.15, 0.9)
"""Shortest and longest drawn reverberation time (RT60), s."""

DISTANCES = (0.3, 4.0)
"""Nearest and farthest drawn talker, m; every octave is equally likely."""

_MARGIN = 0.3  # m, from the walls to a talker and to a microphone
_ELEVATION = 0.3  # most of a talker's height over the microphone, of the distance
_EARLY = 0.05  # s of image sources
_FADE = 0.01  # s, over which the tail takes over
_REACH = 16  # samples on either side of a reflection: a windowed sinc
_DECAY = 6 * np.log(10)  # nepers of energy in one reverberation time: 60 dB

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Room:
    """A shoebox with a talker and a microphone in it.

    Attributes:
        size: length, width and height, m.
        reverberation: RT60, the time in which sound decays by 60 dB, s.
        talker: position from a corner, m.
        microphone: the same.
    """

    size: Point
    reverberation: float
    talker: Point
    microphone: Point

    @property
    def distance(self) -> float:
        """From talker to microphone, m."""
        return float(np.linalg.norm(np.subtract(self.talker, self.microphone)))


def draw_room(
    rng: np.random.Generator,
    reverberation: float | None = None,
    distance: float | None = None,
) -> Room:
    """A room with somebody in it.

    Args:
        rng: consumed by the same amount whatever is given.
        reverberation: RT60, s; None draws it from `REVERBERATION`.
        distance: from talker to microphone, m; None draws it from `DISTANCES`.

    Returns:
        A room in which both stand away from the walls; where it is too small for the
        distance in the drawn direction, the talker stands nearer.
    """
    low, high = np.array(SIZES).T
    size = rng.uniform(low, high)
    drawn_time = rng.uniform(*REVERBERATION)
    drawn_distance = np.exp(rng.uniform(*np.log(DISTANCES)))
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(-_ELEVATION, _ELEVATION)
    share = rng.random(3)
    level = np.sqrt(1 - height**2)
    direction = np.array([level * np.cos(angle), level * np.sin(angle), height])
    inside = size - 2 * _MARGIN
    wanted = drawn_distance if distance is None else distance
    offset = direction * min(wanted, np.min(inside / np.maximum(abs(direction), 1e-9)))
    # The microphone is anywhere from where the talker is inside as well.
    corner = _MARGIN + np.maximum(-offset, 0)
    microphone = corner + share * (inside - np.abs(offset))
    time = float(drawn_time) if reverberation is None else reverberation
    places = (tuple(map(float, place)) for place in (microphone + offset, microphone))
    return Room(tuple(map(float, size)), time, *places)


def make_response(rng: np.random.Generator, room: Room) -> Float[np.ndarray, " R"]:
    """The impulse response of a room.

    Direct sound is the first sample, and 1: what is convolved with it keeps its timing.
    Everything later is as loud beside it as the room and the distance make it, and
    decays by 60 dB in the reverberation time.

    Args:
        rng: draws the samples of the tail.
        room: with talker and microphone at different places.

    Returns:
        float32 [R], of about the reverberation time.
    """
    size = max(1, int(room.reverberation * SAMPLE_RATE))
    response = np.zeros(size, np.float32)
    early = _make_early(room)[:size]
    response[: len(early)] = early
    first = int((_EARLY - _FADE) * SAMPLE_RATE)
    if size > first:
        tail = _make_tail(rng, room, size - first, first / SAMPLE_RATE)
        rise = np.ones(len(tail), np.float32)
        ramp = int(_FADE * SAMPLE_RATE)
        # Sine against the cosine of the early part: the energy of both is steady.
        angles = np.pi / 2 * np.arange(ramp, dtype=np.float32) / ramp
        rise[:ramp] = np.sin(angles)[: len(tail)]
        response[first:] += rise * tail
    return response


def _absorb(room: Room) -> float:
    """Share β of the amplitude that a wall reflects, by Eyring.

    ln β = −12 ln 10 · V / (c · S · T)
    """
    length, width, height = room.size
    surface = 2 * (length * width + width * height + height * length)
    volume = length * width * height
    paths = SPEED_OF_SOUND * surface * room.reverberation / (4 * volume)
    return float(np.exp(-_DECAY / (2 * paths)))


def _make_early(room: Room) -> Float[np.ndarray, " E"]:
    """Direct sound and image sources of the first 50 ms, faded out at their end.

    Along an axis of length L the images of a talker at x stand at 2 n L + x, after |2n|
    reflections, and at 2 n L − x, after |2n − 1|.
    """
    reach = room.distance + SPEED_OF_SOUND * _EARLY
    offsets, counts = [], []
    for length, talker, microphone in zip(room.size, room.talker, room.microphone):
        most = int(np.ceil(reach / (2 * length)))
        turns = np.arange(-most, most + 1)
        even, odd = 2 * turns * length + talker, 2 * turns * length - talker
        places = np.concatenate([even, odd])
        hits = np.concatenate([np.abs(2 * turns), np.abs(2 * turns - 1)])
        near = np.abs(places - microphone) <= reach
        offsets.append(np.square(places - microphone)[near])
        counts.append(hits[near])
    square = offsets[0][:, None, None] + offsets[1][:, None] + offsets[2]
    heard = np.nonzero(square <= reach**2)
    hits = sum(count[places] for count, places in zip(counts, heard))
    distances = np.sqrt(square[heard])
    amplitudes = (-_absorb(room)) ** hits * room.distance / distances
    delays = (distances - room.distance) * SAMPLE_RATE / SPEED_OF_SOUND
    early = _place(delays, amplitudes, int(_EARLY * SAMPLE_RATE))
    early[0] = 1.0  # without what the nearest reflections ring before they come
    ramp = int(_FADE * SAMPLE_RATE)
    early[-ramp:] *= np.cos(np.pi / 2 * np.arange(ramp) / ramp)
    return early.astype(np.float32)


def _place(delays: np.ndarray, amplitudes: np.ndarray, size: int) -> np.ndarray:
    """Pulses between samples: each a sinc under a Hann window, float64 [size].

    A pulse at delay 0 is one sample; what would come before the direct sound is lost.
    """
    whole = np.floor(delays).astype(np.int64)
    taps = np.arange(1 - _REACH, _REACH + 1)
    offsets = taps - (delays - whole)[:, None]
    pulses = np.sinc(offsets) * np.cos(np.pi / 2 * offsets / _REACH) ** 2
    pulses *= amplitudes[:, None]
    places = whole[:, None] + taps
    inside = (places >= 0) & (places < size)
    return np.bincount(places[inside], pulses[inside], minlength=size)


def _make_tail(
    rng: np.random.Generator, room: Room, size: int, start: float
) -> Float[np.ndarray, " R"]:
    """Late reverberation: noise of the energy that the images of a room would have.

    Images arrive at 4 π c³ t² / V a second, each with the energy (d / c t)² beside the
    direct sound's at distance d, less 60 dB in a reverberation time T:

        energy a second = 4 π c d² / V · exp(−6 ln 10 · t / T),  t from the emission

    Args:
        rng: draws every sample.
        room: whose tail it is.
        size: samples.
        start: of the first one, s behind the direct sound.
    """
    distance, volume = room.distance, float(np.prod(room.size))
    time = start + distance / SPEED_OF_SOUND + np.arange(size) / SAMPLE_RATE
    energy = 4 * np.pi * SPEED_OF_SOUND * distance**2 / volume / SAMPLE_RATE
    level = np.sqrt(energy) * np.exp(-_DECAY / 2 * time / room.reverberation)
    return rng.standard_normal(size, dtype=np.float32) * level.astype(np.float32)


def reverberate(
    speech: Float[np.ndarray, " S"], response: Float[np.ndarray, " R"], size: int
) -> Float[np.ndarray, " Z"]:
    """Speech as it is heard in a room, as loud as it was.

    Args:
        speech: float32 samples.
        response: float32, as `make_response` makes it.
        size: samples of the result; of those behind the speech its echo is heard.

    Returns:
        float32 [size] in [-1, 1). Where the speech is active the power is that of the
        speech before, unless its peaks would then clip: it is quieter in that case.
    """
    # scipy's transforms take half the time of numpy's.
    length = int(fft.next_fast_len(len(speech) + len(response), real=True))
    spectrum = np.asarray(fft.rfft(speech, length))
    spectrum *= np.asarray(fft.rfft(response, length))
    whole = np.asarray(fft.irfft(spectrum, length))
    heard = np.pad(whole[:size], (0, max(0, size - length)))
    active = mixing.find_active(speech)
    if not active.any():
        return heard
    places = np.flatnonzero(active[:size])
    gain = mixing.measure_power(speech[places]) / mixing.measure_power(heard[places])
    return mixing.limit_peak(heard * np.float32(np.sqrt(gain)))
