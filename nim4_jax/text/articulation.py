"""Articulatory features of phonemes, and the similarity that follows from them.

Consonants are places and manners; vowels are paths through height, backness and
rounding; finals end in a nasal or not and carry a pitch contour. The scales are ours,
the categories are the International Phonetic Association's.
"""

from __future__ import annotations

import functools

import numpy as np

from nim4_jax.text import g2p, mandarin
from nim4_jax.text.phonemes import BLANK, INVENTORY

_PLACES = {
    "bilabial": 0.0,
    "labiodental": 0.1,
    "dental": 0.3,
    "alveolar": 0.4,
    "postalveolar": 0.55,
    "retroflex": 0.6,
    "palatal": 0.7,
    "velar": 0.85,
    "glottal": 1.0,
}
_MANNERS = {  # stop, friction, nasal, approximant
    "stop": (1.0, 0.0, 0.0, 0.0),
    "affricate": (0.6, 0.6, 0.0, 0.0),
    "fricative": (0.0, 1.0, 0.0, 0.0),
    "nasal": (0.0, 0.0, 1.0, 0.0),
    "approximant": (0.0, 0.0, 0.0, 1.0),
    "lateral": (0.2, 0.0, 0.3, 0.8),
}
# Each place and manner: voiceless unaspirated, voiceless aspirated, voiced.
_CONSONANTS = """
    bilabial stop: b; p P; B
    alveolar stop: d; t T; D
    velar stop: g; k K; G
    alveolar affricate: z; c; -
    postalveolar affricate: -; CH; JH
    retroflex affricate: zh; ch; -
    palatal affricate: j; q; -
    labiodental fricative: f F; -; V
    dental fricative: TH; -; DH
    alveolar fricative: s S; -; Z
    postalveolar fricative: SH; -; ZH
    retroflex fricative: sh; -; -
    palatal fricative: x; -; -
    velar fricative: h; -; -
    glottal fricative: HH; -; -
    bilabial nasal: -; -; m M
    alveolar nasal: -; -; n N
    velar nasal: -; -; NG
    alveolar lateral: -; -; l L
    postalveolar approximant: -; -; R
    retroflex approximant: -; -; r
    palatal approximant: -; -; Y
    bilabial approximant: -; -; W
"""
_VOICES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0))  # voiced, aspirated

_VOWELS = {  # height, backness, rounding
    "i": (1.0, 0.0, 0.0),
    "ɪ": (0.8, 0.15, 0.0),
    "ɛ": (0.5, 0.1, 0.0),
    "æ": (0.2, 0.1, 0.0),
    "a": (0.0, 0.5, 0.0),
    "ɑ": (0.0, 0.8, 0.0),
    "ɔ": (0.35, 1.0, 0.7),
    "o": (0.6, 1.0, 0.9),
    "ʊ": (0.8, 0.85, 0.7),
    "u": (1.0, 1.0, 1.0),
    "ə": (0.45, 0.55, 0.0),
    "ɤ": (0.55, 0.9, 0.0),
    "y": (1.0, 0.0, 1.0),
}
_PATHS = """
    AA ɑ, AE æ, AH ə, AO ɔ, AW aʊ, AY aɪ, EH ɛ, ER ər, EY ɛɪ, IH ɪ, IY i, OW oʊ, OY ɔɪ,
    UH ʊ, UW u, a a, ai aɪ, an an, ang ɑŋ, ao ɑʊ, e ɤ, ei ɛɪ, en ən, eng əŋ, er ər, i i,
    ia ia, ian iɛn, iang iɑŋ, iao iɑʊ, ie iɛ, in in, ing iŋ, io iɔ, iong yʊŋ, iu ioʊ,
    o ɔ, ong ʊŋ, ou oʊ, u u, ua ua, uai uaɪ, uan uan, uang uɑŋ, ueng uəŋ, ui uɛɪ,
    un uən, uo uɔ, v y, van yɛn, ve yɛ, vn yn
"""
_CODAS = {"n": (1.0, 0.0, 0.0), "ŋ": (1.0, 0.6, 0.0), "r": (0.0, 0.0, 1.0)}
_PITCHES = {  # start and end of the contour
    "1": (1.0, 1.0),
    "2": (0.5, 1.0),
    "3": (0.3, 0.3),
    "4": (1.0, 0.0),
    "5": (0.5, 0.4),
}

_KIND = 2.0  # a vowel is no consonant
_TONAL = 1.0  # neither is English Mandarin
_SIZE = 24


def _place_consonants() -> dict[str, np.ndarray]:
    features = {}
    for line in _CONSONANTS.strip().splitlines():
        way, names = line.split(":")
        place, manner = way.split()
        for voice, group in zip(_VOICES, names.split(";"), strict=True):
            for name in group.replace("-", "").split():
                vector = np.zeros(_SIZE)
                vector[0] = 1.5 * _PLACES[place]
                vector[1:5] = _MANNERS[manner]
                vector[5:7] = 0.6 * np.array(voice)
                vector[7] = 0.5 * _TONAL * (name in mandarin.INITIALS)
                features[name] = vector
    return features


def _place_vowels() -> dict[str, np.ndarray]:
    features = {}
    for entry in _PATHS.replace("\n", " ").split(","):
        name, sounds = entry.split()
        points = np.array([_VOWELS[sound] for sound in sounds if sound in _VOWELS])
        along = np.linspace(0, len(points) - 1, 3)
        path = [np.interp(along, range(len(points)), axis) for axis in points.T]
        vector = np.zeros(_SIZE)
        vector[8:17] = np.ravel(path)
        vector[17:20] = 0.7 * np.array(_CODAS.get(sounds[-1], (0.0, 0.0, 0.0)))
        vector[20] = _KIND
        if name in g2p.ARPABET:
            features[name] = vector
            continue
        for tone, pitch in _PITCHES.items():
            toned = vector.copy()
            toned[21:23] = 0.6 * np.array(pitch)
            toned[23] = _TONAL
            features[name + tone] = toned
    return features


@functools.cache
def features() -> np.ndarray:
    """Articulatory coordinates of every phoneme, float64 [P, 24]; zeros for the blank.

    Euclidean distance between two rows tells how different they sound: 0.2 to 0.7 for
    another tone or voicing, more than 2 between a vowel and a consonant.
    """
    placed = {BLANK: np.zeros(_SIZE), **_place_consonants(), **_place_vowels()}
    return np.stack([placed[name] for name in INVENTORY])


def confusions(sharpness: float = 6.0) -> np.ndarray:
    """How likely each phoneme is taken for each other one, float32 [P, P].

    Row a holds p(b | a heard wrongly) ∝ exp(−sharpness · distance²); neither the
    phoneme itself nor the blank is among them, and the blank's row is zero.
    """
    points = features()
    distances = np.sum(np.square(points[:, None] - points[None]), axis=-1)
    weights = np.exp(-sharpness * distances) * (1.0 - np.eye(len(points)))
    blank = INVENTORY.index(BLANK)
    weights[blank] = weights[:, blank] = 0.0
    totals = weights.sum(axis=1, keepdims=True)
    return (weights / np.where(totals > 0, totals, 1.0)).astype(np.float32)
