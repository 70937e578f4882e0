"""Loading of an exported bundle as a recogniser, without Flax or the model's code.

    loaded = bundle.load("BUNDLE")
    loaded.recogniser.transcribe(Frames(samples, mask))

It stands wherever a live model can: whole recordings, streams, hotwords.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array

from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import (
    Arrival,
    Budget,
    Generation,
    Heard,
    Request,
    Written,
)
from nim4_jax.decode.recogniser import BatchRecogniser, Loaded
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.ops.chunking import Chunking
from nim4_jax.rates import Rates
from nim4_jax.serving import manifest
from nim4_jax.serving.files import Files, read_tensors
from nim4_jax.serving.manifest import BundleError, Manifest
from nim4_jax.text import phonemes, prompt, template
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames, Labels

_HEARD = len(dataclasses.fields(Heard))
_WRITTEN = len(dataclasses.fields(Written))

State = list[Array]
"""Leaves of a `StreamState`, in the order of the programs."""


def load(
    folder: str, *, chunk_ms: int = 0, left: int = 4, check: bool = True
) -> Loaded:
    """A recogniser from a bundle. Programs are read when they are first needed.

    Args:
        folder: of the bundle.
        chunk: encoder frames (40 ms) per chunk in whole recordings, as in streaming; 0
            for the full pass.
        left: chunks that a chunk sees to its left.
        check: whether every file's SHA-256 is compared with the manifest: at once,
            and again of the very bytes of a program when it is first needed.

    Raises:
        BundleError: no bundle, one of another schema, phoneme inventory or prompt, a
            file that is corrupt or that the manifest does not list, or programs for
            other platforms than this one.
    """
    if chunk_ms < 0 or left < 0:
        raise BundleError(f"chunks of {chunk_ms} ms, {left} to the left, must be ≥ 0.")
    facts = manifest.read(folder)
    check_platform(folder, facts)
    if facts.phonemes != phonemes.INVENTORY_HASH:
        raise BundleError(
            f"{folder} has phoneme inventory {facts.phonemes[:12]}, this package has "
            f"{phonemes.INVENTORY_HASH[:12]}; use the version of the package that made "
            f"it ({facts.made_with.get('nim4-jax')})."
        )
    files = Files(folder, facts, check)
    files.verify()
    tokenizer = _read_tokenizer(files)
    _check_texts(files, tokenizer)
    rates = Rates(**facts.rates)
    chunking = Chunking.full()
    if chunk_ms:
        chunking = Chunking.of(rates.frames_of_chunk(chunk_ms), left)
    programs = BundlePrograms(files, _read_weights(files), chunking)
    return Loaded(
        BatchRecogniser(programs, tokenizer), facts.bucket_seconds, facts.rows
    )


def check_platform(folder: str, facts: Manifest) -> None:
    """Refuse a bundle that has no programs for the devices in use.

    Raises:
        BundleError: naming both.
    """
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in facts.platforms:
        raise BundleError(
            f"{folder} was exported for {', '.join(facts.platforms)}; the devices in "
            f"use are {platform}. Export it with --platforms={platform}, or set "
            f"JAX_PLATFORMS={facts.platforms[0]}."
        )


def _read_tokenizer(files: Files) -> Tokenizer:
    try:
        return Tokenizer(files.read(manifest.TOKENIZER).decode("utf8"))
    except BundleError:
        raise
    except ValueError as error:
        path = Path(files.folder, manifest.TOKENIZER)
        raise BundleError(f"{path}: {error}") from error


def _check_texts(files: Files, tokenizer: Tokenizer) -> None:
    """Refuse phonemes and a prompt that the programs would read as something else.

    Raises:
        BundleError: naming the file, what it says and what this package does.
    """
    here = {
        manifest.PHONEMES: list(phonemes.INVENTORY),
        manifest.PROMPT: {
            "texts": list(template.TEXTS),
            "prefix": prompt.encode_prefix(tokenizer),
            "suffix": prompt.encode_suffix(tokenizer),
            "end_id": tokenizer.end_id,
        },
    }
    for name, wanted in here.items():
        found = files.read_json(name)
        if isinstance(found, dict):
            found.pop("layout", None)
        if found != wanted:
            raise BundleError(
                f"{Path(files.folder, name)} says {str(found)[:200]}…, this package "
                f"uses {str(wanted)[:200]}…: the programs were exported with another "
                "one. Use the version of the package that made the bundle "
                f"({files.facts.made_with.get('nim4-jax')}), or export it again."
            )


def _read_weights(files: Files) -> dict[str, Array]:
    """Parameters on the device, in the dtypes that the programs take."""
    path = Path(files.folder, manifest.WEIGHTS)
    tensors, found = read_tensors(path, files.map(manifest.WEIGHTS)), {}
    for name, dtype in files.facts.parameters.items():
        if name not in tensors:
            raise BundleError(f"{path} has no {name}; export the bundle again.")
        # A copy: on a CPU the device would go on using the mapped file.
        array = np.array(tensors[name], jnp.dtype(dtype))
        found[name] = jax.device_put(array)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class BundlePrograms:
    """The programs of a bundle as `decode.programs.Programs`.

    Attributes:
        files: of the bundle.
        params: path → parameter, on the device.
        chunking: how far the encoder sees in whole recordings.
    """

    files: Files
    params: dict[str, Array]
    chunking: Chunking

    @property
    def folder(self) -> str:
        """Of the bundle."""
        return self.files.folder

    @property
    def facts(self) -> Manifest:
        """Its manifest."""
        return self.files.facts

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the model that there are."""
        return self.facts.parts

    @functools.cached_property
    def rates(self) -> Rates:
        """How samples, frames and tokens follow each other."""
        return Rates(**self.facts.rates)

    @functools.cached_property
    def streams(self) -> tuple[StreamConfig, ...]:
        """Sizes of streams that there are programs for.

        Raises:
            BundleError: sizes that this version does not know, or that do not fit.
        """
        return tuple(
            manifest.read_stream(self.folder, sizes, self.rates)
            for sizes in self.facts.streams
        )

    @functools.cached_property
    def budget(self) -> Budget:
        """Longest answers."""
        return Budget(**self.facts.budget)

    def hear(self, audio: Frames) -> Heard:
        """See `Programs.hear`.

        Raises:
            BundleError: a length that the bundle has no program for.
        """
        name = f"hear-{self._find_length(audio)}"
        return Heard(*self.call(name, audio, self.chunking))

    def transcribe(
        self, audio: Frames, suffix: Labels | None
    ) -> tuple[Heard, Generation]:
        """See `Programs.transcribe`.

        Raises:
            BundleError: a length that the bundle has no program for.
        """
        length = self._find_length(audio)
        if suffix is None:
            made = self.call(f"transcribe-{length}", audio, self.chunking)
        else:
            name = f"transcribe_hinted-{length}"
            made = self.call(name, audio, self.chunking, suffix)
        return Heard(*made[:_HEARD]), Generation(*made[_HEARD:])

    def start(self, config: StreamConfig, streams: int) -> State:
        """See `Programs.start`.

        Raises:
            BundleError: sizes that the bundle has no programs for.
        """
        name = self._find_stream(config)
        if streams < 1:
            raise BundleError(f"streams={streams} must be ≥ 1.")
        return self.call(f"start-{name}", jnp.zeros(streams, jnp.int32))

    def tick(
        self, config: StreamConfig, width: int, state: State, arrival: Arrival
    ) -> tuple[State, Heard, Written]:
        """See `Programs.tick`."""
        name = f"tick-{self._find_stream(config)}-{width}"
        # Programs for any number of rows and streams know no row by its place.
        made = self.call(name, state, arrival.number_rows())
        heard, written = Heard(*made[:_HEARD]), Written(*made[-_WRITTEN:])
        return made[_HEARD:-_WRITTEN], heard, written

    def finish(
        self,
        config: StreamConfig,
        width: int,
        state: State,
        request: Request,
    ) -> tuple[State, Written]:
        """See `Programs.finish`."""
        name = f"finish-{self._find_stream(config)}-{width}"
        made = self.call(name, state, request)
        return made[:-_WRITTEN], Written(*made[-_WRITTEN:])

    def call(self, name: str, *arguments: Any) -> list[Array]:
        """Run a program; leaves of its results, as the manifest names them.

        Args:
            name: of the program.
            arguments: structs of arrays, as the manifest names their leaves.

        Raises:
            BundleError: no such program.
        """
        run, names = self._programs(name)
        params = [self.params[path] for path in names]
        return run(params, *jax.tree.leaves(arguments))

    @functools.cached_property
    def _programs(self) -> Callable[[str], tuple[Any, tuple[str, ...]]]:
        return functools.cache(self._open)

    def _open(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """A program, compiled when called, and the parameters that it takes."""
        if name not in self.facts.programs:
            raise BundleError(
                f"{self.folder} has no program {name!r}; it has "
                f"{', '.join(sorted(self.facts.programs))}."
            )
        facts = self.facts.programs[name]
        path, content = Path(self.folder, facts.file), self.files.read(facts.file)
        try:
            exported = export.deserialize(bytearray(content))
        except Exception as error:
            raise BundleError(
                f"{path} cannot be read by jax {jax.__version__} (the bundle was made "
                f"with jax {self.facts.made_with.get('jax')}): {error}"
            ) from error
        # Parameters are the first argument.
        donated = tuple(number + 1 for number in facts.donated)
        return jax.jit(exported.call, donate_argnums=donated), facts.parameters

    def _find_length(self, audio: Frames) -> str:
        """Name of the length of whole recordings that this batch has."""
        seconds = np.shape(audio.values)[1] / SAMPLE_RATE
        for length in self.facts.bucket_seconds:
            if round(length * SAMPLE_RATE) == np.shape(audio.values)[1]:
                return f"{length:g}s"
        raise BundleError(
            f"a batch of {seconds:g} s: {self.folder} has programs for "
            f"{_list(self.facts.bucket_seconds)} s; pad the audio to one of these, or "
            f"export with --seconds={seconds:g}."
        )

    def _find_stream(self, config: StreamConfig) -> str:
        """Name of the sizes of a stream."""
        if config in self.streams:
            names = manifest.name_streams(self.streams)
            return names[self.streams.index(config)]
        chunks = [sizes.seconds * 1000 for sizes in self.streams]
        raise BundleError(
            f"streams with chunks of {1000 * config.seconds:g} ms and {config}: "
            f"{self.folder} has programs for chunks of {_list(chunks)} ms, with "
            f"{self.streams}; export with --stream_ms={1000 * config.seconds:g}."
        )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "no"
