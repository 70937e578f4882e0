"""Additive noise for training examples, and examples without speech."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import mixing, noise_kinds
from nim4_jax.data.noise.noise_draws import Draw
from nim4_jax.data.noise.noise_files import NoiseFiles
from nim4_jax.data.pipeline.survey import Examples
from nim4_jax.data.sources import nonspeech

ReadVoice = Callable[[int], np.ndarray]

_NONSPEECH = 0x5EED  # stream of random numbers of its own


@dataclass
class Augmenter:
    """Makes what the plan has drawn heard; all randomness comes with the arguments.

    Attributes:
        examples: whose utterances babble is mixed from.
        files: recordings of noise, None to make noise from numbers.
        seed: of the audio of examples without speech.
        voices: int64, one usable example of each recording, in the order of these.
    """

    examples: Examples
    files: NoiseFiles | None
    seed: int
    voices: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        examples = self.examples
        speech = np.flatnonzero(examples.usable[: examples.num_speech])
        _, first = np.unique(examples.recordings[speech], return_index=True)
        self.voices = speech[first]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of noise that can be made, each entry as likely as any other.

        Babble needs two recordings of speech. Files stand in for what is synthetic.
        """
        return noise_kinds.choose(
            noise_kinds.BEHIND_SPEECH,
            voices=len(self.voices) > 1,
            recordings=self.files is not None,
        )

    def choose_voices(self, rng: np.random.Generator, index: int) -> np.ndarray:
        """Examples for babble behind example `index`: others, and no recording twice.

        Returns:
            int64 [3 … 7], fewer where there are not so many others.
        """
        recordings = self.examples.recordings
        own = np.searchsorted(recordings[self.voices], recordings[index])
        others = len(self.voices) - 1
        fewest, most = mixing.TALKERS
        count = min(int(rng.integers(fewest, most + 1)), others)
        places = rng.choice(others, count, replace=False)
        return self.voices[places + (places >= own)]

    def add_noise(
        self,
        speech: Float[np.ndarray, " S"],
        index: int,
        draw: Draw,
        size: int,
        read_voice: ReadVoice,
    ) -> Float[np.ndarray, " Z"]:
        """Speech with silence around it and noise over both.

        Args:
            speech: float32, the clean samples.
            index: of the example.
            draw: what it gets.
            size: most samples of the result.
            read_voice: index → the clean samples of another example, for babble.

        Returns:
            float32 samples in [-1, 1).

        Raises:
            AudioError: a recording of noise, or every voice, cannot be read.
            ValueError: an unknown kind, or one that needs files and there are none.
        """
        rng = np.random.default_rng(draw.seed)
        padded = mixing.pad_silence(speech, draw.lead, draw.tail, size)
        material = noise_kinds.Material(
            lambda rng: self._read_voices(self.choose_voices(rng, index), read_voice),
            self.files.read if self.files else None,
        )
        sound = noise_kinds.find(draw.kind).make(rng, len(padded), material)
        return mixing.mix(padded, sound, draw.snr)

    def _read_voices(self, chosen: np.ndarray, read_voice: ReadVoice) -> list:
        """The voices that can be read; those that cannot count in their own turn."""
        voices, failures = [], []
        for voice in chosen:
            try:
                voices.append(read_voice(int(voice)))
            except reading.AudioError as error:
                failures.append(error)
        if not voices:
            raise failures[0]
        return voices

    def make_nonspeech(
        self, epoch: int, index: int, size: int
    ) -> Float[np.ndarray, " S"]:
        """The audio of example `index`, which is without speech, in one epoch.

        Returns:
            float32 [size] in [-1, 1).

        Raises:
            AudioError: a recording of noise cannot be read.
        """
        rng = np.random.default_rng((self.seed, _NONSPEECH, epoch, index))
        return nonspeech.make(rng, size, self.files.read if self.files else None)
