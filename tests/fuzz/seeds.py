"""Whole files of every format, small ones, for accidents to happen to."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import formats
import numpy as np
from formats import CHECKPOINT, DATABASE, INDEX, SOUNDS, TENSORS, Target

from nim4_jax.retrieval import database
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.serving import manifest
from nim4_jax.text import tokenizer
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.weights import snapshot

GOLDENS = Path(__file__).parents[1] / "goldens"

MANIFEST = (
    b'{"audio": "a.wav", "text": "call anna", "lang": "en", "keywords": ["anna"]}\n'
    b'{"audio_filepath": "b.flac", "text": "\\u5317", "duration": 1.5, "x": {}}\n'
)
MANIFESTS = (MANIFEST, MANIFEST.decode().encode("utf-16"))
SEGMENTS = (
    b'{"audio": "sound.wav", "text": "a", "offset": 0.02, "duration": 0.05}\n'
    b'{"audio": "sound.wav", "text": "b", "begin": 0.01, "end": 0.07, "channel": 1}\n'
    b'{"audio": "sound.wav", "text": "c", "start": 0, "channel": "left"}\n'
)
NAMES = (
    "NIO :2.5\n蔚来中心\nAnna Reed\n".encode(),
    b"text\tpronunciation\tweight\ttag\ttenant\nNIO\tN IY OW\t2\tcar\tacme\n",
    b"NIO,N IY OW,2,car,acme\nAnna,,1.5\n",
    b'{"text": "NIO", "weight": 2, "tag": "car"}\n{"text": "Anna"}\n',
)
CMVN = json.dumps({"mean": [0.5] * 8, "std": [1.0] * 8, "frames": 10}).encode()
PICKLED = (
    b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x04tQK\x00K\x02K\x02\x86K\x02K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtRsX\x04\x00\x00\x00args"
)
PICKLED = PICKLED.replace(b"tRsX", b"tRs(X") + b"K\x03u."


def zip_pickle(pickled: bytes) -> bytes:
    """What torch.save writes: a pickle and a storage of four numbers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/data/0", np.arange(4, dtype=np.float32).tobytes())
    return file.getvalue()


def frame_header(header: bytes) -> bytes:
    """A safetensors file with a header of the length that it states."""
    return struct.pack("<Q", len(header)) + header + bytes(64)


def take_header(data: bytes) -> bytes:
    """The header of a safetensors file."""
    return data[8 : 8 + struct.unpack("<Q", data[:8])[0]]


def write_gguf(folder: Path) -> bytes:
    """A Qwen3 of one layer; the package gguf writes it."""
    import gguf

    path = folder / "seed.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(4)
    writer.add_feed_forward_length(8)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.ones((6, 8), np.float32))
    kind = gguf.GGMLQuantizationType.Q8_0
    halves = gguf.quants.quantize(np.ones((4, 32), np.float32), kind)
    writer.add_tensor("blk.0.attn_q.weight", halves, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def write_snapshot(folder: Path) -> bytes:
    path = folder / "seed.safetensors"
    params = {"a": {"kernel": np.ones((2, 3), np.float32)}}
    snapshot.write(str(path), params, {"stage": "stage1", "steps": 3})
    return path.read_bytes()


def write_bundle(folder: Path) -> bytes:
    """The manifest of a bundle with one program."""
    shape = manifest.Array("audio.values", ("b", 12_800), "float32")
    program = manifest.Program("programs/hear", ("a",), (shape,), (shape,), (0,))
    listed = (*manifest.NEEDED, program.file)
    made = manifest.Manifest(
        made_with={"nim4-jax": "1"}, model={}, licences={}, platforms=("cpu",),
        weights="float32", compute="float32", parts=("encoder",), features={}, rates={},
        phonemes="0", budget={}, bucket_seconds=(0.8,), rows=(1,), streams=({},),
        parameters={"a": "float32"}, programs={"hear": program},
        files={name: {"bytes": 1, "sha256": "0" * 64} for name in listed},
    )  # fmt: skip
    manifest.write(folder, made)
    return (folder / manifest.FILE).read_bytes()


def write_database(folder: Path) -> Sequence[bytes]:
    place = folder / "seed_hotwords"
    listed = [Name("NIO"), Name("anna reed", weight=2.0, tag="person")]
    readings = {name.text: pronounce(name) for name in listed}
    database.save(database.build(listed, readings), str(place))
    paths = sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size)
    DATABASE.update({str(p.relative_to(place)): p.read_bytes() for p in paths})
    return tuple(DATABASE.values())


def write_checkpoint(folder: Path) -> Sequence[bytes]:
    place = folder / "seed_run"
    kept, steps = Checkpoints(str(place), every=1), iter(formats.count_steps())
    next(steps)
    kept.save(formats.make_state(), steps, {"of": 1})
    kept.close()
    paths = sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size)
    CHECKPOINT.update({str(p.relative_to(place)): p.read_bytes() for p in paths})
    return tuple(CHECKPOINT.values())


def write_tokenizer(folder: Path) -> bytes:
    path = folder / "seed_tokenizer.json"
    tokenizer.train(["play", "北京"], 400).save(path)
    return path.read_bytes()


def make_targets(folder: Path) -> dict[str, Target]:
    """All formats by name.

    Args:
        folder: an empty one, in which seeds are written.
    """
    models = [GOLDENS / f"whisper_{kind}.bin" for kind in ("int8", "float16")]
    plain = {
        "manifest": (formats.read_manifest, MANIFESTS),
        "segments": (formats.read_segments, (SEGMENTS,)),
        "names": (formats.read_names, NAMES),
        "cmvn": (formats.read_cmvn, (CMVN,)),
        "tokenizer": (formats.read_tokenizer, (write_tokenizer(folder),)),
        "gguf": (formats.read_gguf, (write_gguf(folder),)),
        "ctranslate2": (formats.read_ctranslate2, [it.read_bytes() for it in models]),
        "database": (formats.read_database, write_database(folder)),
    }
    targets = {name: Target(seeds, read) for name, (read, seeds) in plain.items()}
    for form in SOUNDS:
        sounds = [formats.encode(form, channels) for channels in _channels(form)]
        targets[form] = Target(sounds, formats.read_audio, share=4)
    stored = write_checkpoint(folder)
    targets["checkpoint"] = Target(stored, formats.read_checkpoint, share=1)
    pickled = (PICKLED,)
    targets["torch"] = Target(
        (zip_pickle(PICKLED),), formats.read_torch, zip_pickle, pickled
    )
    kept, header = write_snapshot(folder), take_header(TENSORS)
    for name, read, first, part in (
        ("snapshot", formats.read_snapshot, kept, take_header(kept)),
        ("hf", formats.read_shards, INDEX, b""),
        ("bundle", formats.read_bundle, write_bundle(folder), b""),
    ):
        targets[name] = Target((first, TENSORS), read, frame_header, (part, header))
    return targets


def _channels(form: str) -> tuple[int, ...]:
    """Mono and stereo, where the format has both."""
    mono = ("gsm.wav", "sds", "wve", "htk", "svx", "xi", "nist")
    return (1,) if form in mono else (1, 2)
