"""Every format that the product reads: small files of it, and who reads them how.

A target writes what it is given where its reader looks for it, reads all of it, and
lets through only what that reader documents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import soundfile

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening, records
from nim4_jax.retrieval import database, names
from nim4_jax.serving import files, manifest
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.train import cmvn
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.state import TrainState
from nim4_jax.weights import snapshot, tensor_file
from nim4_jax.weights.ctranslate2_file import CTranslate2File
from nim4_jax.weights.gguf_file import GgufFile
from nim4_jax.weights.torch_file import TorchFile

SOUNDS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "ulaw.wav": ("WAV", "ULAW"),
    "gsm.wav": ("WAV", "GSM610"),
    "ima.wav": ("WAV", "IMA_ADPCM"),
    "ms.wav": ("WAV", "MS_ADPCM"),
    "wavex": ("WAVEX", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "alac.caf": ("CAF", "ALAC_16"),
    "avr": ("AVR", "PCM_16"),
    "htk": ("HTK", "PCM_16"),
    "ircam": ("IRCAM", "PCM_16"),
    "mat4": ("MAT4", "PCM_16"),
    "mat5": ("MAT5", "PCM_16"),
    "mpc2k": ("MPC2K", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
    "paf": ("PAF", "PCM_16"),
    "pvf": ("PVF", "PCM_16"),
    "sds": ("SDS", "PCM_16"),
    "svx": ("SVX", "PCM_16"),
    "voc": ("VOC", "PCM_16"),
    "wve": ("WVE", "ALAW"),
    "xi": ("XI", "DPCM_16"),
}
RATES = {"sds": 8000, "htk": 8000, "wve": 8000, "opus": 16_000}


class Undocumented(Exception):
    """An error of the right type that breaks its promise: no reason, no file's name."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        seeds: whole files; accidents happen to one of them.
        read: (folder for files, content, number of the seed); raises what is not
            documented.
        wrap: makes a file of a part that is hit behind its checksums, as a zip archive
            of its entry; None where nothing guards the content.
        parts: what `wrap` takes.
        share: of the inputs, against others.
    """

    seeds: Sequence[bytes]
    read: Callable[[Path, bytes, int], None]
    wrap: Callable[[bytes], bytes] | None = None
    parts: Sequence[bytes] = ()
    share: int = 8


def expect_named(path: Path | str, error: ValueError) -> None:
    """See that a message names its file."""
    if str(path) not in str(error):
        raise Undocumented(f"{error} does not name {path}") from error


TENSORS = safetensors.numpy.save(
    {"a/b": np.ones((2, 3), np.float32), "a/c": np.ones(4, np.float16)}, {"x": "y"}
)
INDEX = b'{"weight_map": {"a/b": "a.safetensors", "a/c": "a.safetensors"}}'
DATABASE: dict[str, bytes] = {}
"""Files of a hotword database, by path."""
CHECKPOINT: dict[str, bytes] = {}
"""Files of a checkpoint, by path."""


def make_state() -> TrainState:
    draws = jax.random.bits(jax.random.key(0), (2, 8, 8))
    params = {"a": {"kernel": draws[0]}}
    return TrainState(jnp.asarray(1, jnp.int32), params, ({"a/kernel": draws[1]},))


def count_steps() -> grain.IterDataset:
    return grain.MapDataset.range(9).to_iter_dataset(grain.ReadOptions(0, 0))


# --- audio


def encode(form: str, channels: int = 1) -> bytes:
    """A tenth of a second, a tone in noise."""
    container, subtype = SOUNDS[form]
    rate, file = RATES.get(form, 16_000), io.BytesIO()
    tone = 0.3 * np.sin(np.arange(rate // 10) * 0.1)
    tone += np.random.default_rng(0).normal(0, 0.02, len(tone))
    columns = np.repeat(tone[:, None], channels, axis=1)
    soundfile.write(file, columns, rate, format=container, subtype=subtype)
    return file.getvalue()


def read_audio(folder: Path, data: bytes, seed: int) -> None:
    """From a path or from memory: whole, by blocks, a piece, its length."""
    source: reading.Audio = data
    if len(data) % 2:
        path = folder / "audio"
        path.write_bytes(data)
        source = str(path)
    reads = (
        lambda: reading.decode(source, max_seconds=30.0),
        lambda: sum(map(len, reading.read_blocks(source, 1.0))),
        lambda: reading.read_duration(source),
        lambda: reading.decode_piece(source, 0.02, 0.05, channel="left"),
    )
    for number, read in enumerate(reads):
        try:
            made = read()
        except reading.AudioError as error:
            if error.reason not in reading.AUDIO_REASONS:
                raise Undocumented(f"reason {error.reason!r}") from error
            continue
        # A dump's header alone may state so much, which libsndfile fills with silence.
        dump = (1 << 23) * data.startswith(b"\xf0")
        if number == 1 and made > 4000 * len(data) + 16_000 + dump:
            raise Undocumented(f"{len(data)} bytes became {made} samples")
        if number == 2 and not made >= 0:
            raise Undocumented(f"a duration of {made} s")


# --- texts


def read_manifest(folder: Path, data: bytes, seed: int) -> None:
    path = folder / "manifest.jsonl"
    path.write_bytes(data)
    try:
        opened = list(opening.open_source(str(path)))
    except ValueError as error:
        expect_named(path, error)
        return
    for record in opened:
        f"{record['text']}{record['id']}{record['keywords']}".encode()


def read_segments(folder: Path, data: bytes, seed: int) -> None:
    """Segments of a recording that is whole."""
    sound = folder / "sound.wav"
    if not sound.exists():
        sound.write_bytes(encode("wav", 2))
    path = folder / "segments.jsonl"
    path.write_bytes(data)
    try:
        opened = list(opening.open_source(str(path)))
    except ValueError as error:
        expect_named(path, error)
        return
    for record in opened[:3]:
        try:
            records.measure(record)
            records.decode(record, 30.0)
        except reading.AudioError as error:
            if error.reason not in reading.AUDIO_REASONS:
                raise Undocumented(f"reason {error.reason!r}") from error


def read_names(folder: Path, data: bytes, seed: int) -> None:
    path = folder / f"names.{('txt', 'tsv', 'csv', 'jsonl')[seed]}"
    path.write_bytes(data)
    try:
        listed = list(names.read_names(str(path)))
    except ValueError as error:
        expect_named(path, error)
        return
    for name in listed:
        f"{name.text}{name.tag}{name.tenant}".encode()


def read_tokenizer(folder: Path, data: bytes, seed: int) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(data)
    try:
        made = Tokenizer.from_file(path)
    except ValueError as error:
        expect_named(path, error)
        return
    made.decode(made.encode("play 北京 \ud83d"))


def read_cmvn(folder: Path, data: bytes, seed: int) -> None:
    path = folder / "cmvn.json"
    path.write_bytes(data)
    try:
        statistics = cmvn.read(str(path))
    except ValueError as error:
        expect_named(path, error)
        return
    cmvn.to_params(statistics)


# --- weights


def read_snapshot(folder: Path, data: bytes, seed: int) -> None:
    path = folder / "snapshot.safetensors"
    path.write_bytes(data)
    try:
        snapshot.read(str(path))
    except ValueError as error:
        expect_named(path, error)


def read_shards(folder: Path, data: bytes, seed: int) -> None:
    """A folder of Hugging Face's; the index or a shard is hit."""
    place = folder / "hf"
    place.mkdir(exist_ok=True)
    kept = {tensor_file.INDEX: INDEX, "a.safetensors": TENSORS}
    for name, content in kept.items():
        hit = name == (tensor_file.INDEX, "a.safetensors")[seed]
        (place / name).write_bytes(data if hit else content)
    try:
        reader = tensor_file.Reader(str(place))
        for name in reader.specs:
            reader.get(name)
    except ValueError as error:
        expect_named(place, error)


def read_gguf(folder: Path, data: bytes, seed: int) -> None:
    path = folder / "model.gguf"
    path.write_bytes(data)
    try:
        file = GgufFile(str(path))
        for name in file.specs:
            file.get(name)
        made = file.make_tokenizer()
    except ValueError as error:
        expect_named(path, error)
        return
    with contextlib.suppress(ValueError):  # `from_file` names it, once it is written
        Tokenizer(made)


def read_ctranslate2(folder: Path, data: bytes, seed: int) -> None:
    path = folder / "model.bin"
    path.write_bytes(data)
    try:
        file = CTranslate2File([str(path)])
        for name in file.specs:
            file.get(name)
    except ValueError as error:
        expect_named(path, error)


def read_torch(folder: Path, data: bytes, seed: int) -> None:
    path = folder / "model.pth.tar"
    path.write_bytes(data)
    try:
        file = TorchFile(str(path))
        content = file.content if isinstance(file.content, dict) else {}
        for value in content.values():
            if hasattr(value, "entry"):
                float(file.get(value).astype(np.float64).sum())
    except ValueError as error:
        expect_named(path, error)


# --- folders with a manifest of their own


def read_bundle(folder: Path, data: bytes, seed: int) -> None:
    """The manifest, or weights behind it whose checksum nobody compares."""
    try:
        if seed:
            files.read_tensors(folder / manifest.WEIGHTS, memoryview(data))
            return
        (folder / manifest.FILE).write_bytes(data)
        manifest.read(str(folder))
    except manifest.BundleError as error:
        expect_named(folder, error)


def read_database(folder: Path, data: bytes, seed: int) -> None:
    """One file of a hotword database is hit."""
    place = folder / "hotwords"
    for number, (name, content) in enumerate(DATABASE.items()):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if number == seed else content)
    try:
        database.load(str(place))
    except ValueError as error:
        expect_named(place, error)


def read_checkpoint(folder: Path, data: bytes, seed: int) -> None:
    """One file of a training checkpoint is hit."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    for number, (name, content) in enumerate(CHECKPOINT.items()):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if number == seed else content)
    kept, steps = None, iter(count_steps())
    try:
        kept = Checkpoints(str(place), 1)
        wanted = dataclasses.replace(
            jax.eval_shape(make_state), params=kept.param_shapes()
        )
        kept.restore(wanted, steps)
        kept.read_meta()
    except ValueError as error:
        expect_named(place, error)
    finally:
        if kept is not None:
            kept.close()
