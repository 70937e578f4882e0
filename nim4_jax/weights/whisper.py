"""Whisper's encoder, of Hugging Face's folders and of CTranslate2's files → ours.

Both come under Hugging Face's names without "model.", so that one table serves.

Sources: transformers `WhisperModel` (names, config.json); ctranslate2 `WhisperSpec`,
`WhisperLoader` (names; query, key and value joined in linear_0).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from nim4_jax.models.whisper_encoder import WhisperEncoderConfig, sinusoids
from nim4_jax.weights import hf
from nim4_jax.weights.ctranslate2_file import CTranslate2File
from nim4_jax.weights.rules import BIAS, CONV1D, Layout, Rule, linear
from nim4_jax.weights.tensor_file import INDEX, SINGLE, Reader, Spec

BINARY, PIECE = "model.bin", "model.bin.part"
POSITIONS = "encoder.embed_positions.weight"

_OURS, _THEIRS = "encoder/stack/blocks/", "encoder.layers.{layer}."


def _norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{ours}/scale", f"{theirs}.weight"),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    )


def _affine(ours: str, theirs: str, layout: Layout) -> tuple[Rule, Rule]:
    return (
        Rule(f"{ours}/kernel", f"{theirs}.weight", layout),
        Rule(f"{ours}/bias", f"{theirs}.bias", BIAS),
    )


RULES = (
    *_affine("encoder/stem/conv1", "encoder.conv1", CONV1D),
    *_affine("encoder/stem/conv2", "encoder.conv2", CONV1D),
    *_norm(f"{_OURS}attention/norm", f"{_THEIRS}self_attn_layer_norm"),
    *_affine(f"{_OURS}attention/query", f"{_THEIRS}self_attn.q_proj", linear()),
    Rule(f"{_OURS}attention/key/kernel", f"{_THEIRS}self_attn.k_proj.weight", linear()),
    *_affine(f"{_OURS}attention/value", f"{_THEIRS}self_attn.v_proj", linear()),
    *_affine(f"{_OURS}attention/output", f"{_THEIRS}self_attn.out_proj", linear(2)),
    *_norm(f"{_OURS}ffn/norm", f"{_THEIRS}final_layer_norm"),
    *_affine(f"{_OURS}ffn/up", f"{_THEIRS}fc1", linear()),
    *_affine(f"{_OURS}ffn/down", f"{_THEIRS}fc2", linear()),
    *_norm("encoder/norm", "encoder.layer_norm"),
)

# What config.json and preprocessor_config.json call a size of ours.
_SIZES = {
    "num_mel_bins": lambda config: config.num_mels,
    "feature_size": lambda config: config.num_mels,
    "d_model": lambda config: config.width,
    "encoder_layers": lambda config: config.num_layers,
    "encoder_attention_heads": lambda config: config.num_heads,
    "encoder_ffn_dim": lambda config: config.width * config.ffn_factor,
    "max_source_positions": lambda config: config.max_frames,
}
_HEAD_DIM = 64  # of every published Whisper
_REVISIONS = (2, 3)  # of WhisperSpec; they differ in the decoder alone
_SPEC = "WhisperSpec"
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class HuggingFaceWeights:
    """A folder with config.json and safetensors.

    Attributes:
        specs: shape and dtype of each tensor, without "model.".
        config: the encoder's shape.
        origin: for messages.
    """

    def __init__(self, folder: str):
        """Look at the headers.

        Raises:
            ValueError: a file is missing or damaged, or is no Whisper's.
        """
        self.origin = folder
        self._reader = Reader(folder)
        self._names = {name.removeprefix("model."): name for name in self._reader.specs}
        if len(self._names) < len(self._reader.specs):
            raise ValueError(f"{folder} holds tensors with and without 'model.'.")
        self.specs: dict[str, Spec] = {
            short: self._reader.specs[name] for short, name in self._names.items()
        }
        facts = hf.read_config(folder)
        path = os.path.join(folder, "config.json")
        for key, expected in (
            ("model_type", "whisper"),
            ("activation_function", "gelu"),
        ):
            if facts.get(key, expected) != expected:
                raise ValueError(f"{path}: {key} is {facts[key]!r}, not {expected!r}.")
        heads = facts.get("encoder_attention_heads")
        if type(heads) is not int:
            raise ValueError(
                f"{path}: encoder_attention_heads is {heads!r}, expected a number."
            )
        self.config = _measure(self.specs, heads, folder)
        _compare_beside(folder, self.config)

    def get(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._reader.get(self._names[name])

    @staticmethod
    def is_ignored(name: str) -> bool:
        """The decoder and other heads, positions, and keys' biases.

        A key's bias adds the same to all scores of a query: softmax forgets it.
        """
        return (
            not name.startswith("encoder.")
            or name == POSITIONS
            or name.endswith(".k_proj.bias")
        )


# CTranslate2's part of a name, and Hugging Face's.
_PARTS = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.layer_norm",
    "encoder/position_encodings": "encoder.embed_positions",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_LEAVES = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}
_LAYER = re.compile(r"encoder/layer_(0|[1-9]\d{0,5})/(.+)", re.ASCII)
_JOINED = "self_attention/linear_0"
_HEADS = "encoder/num_heads"


class CTranslate2Weights:
    """A model.bin, whole or in pieces, under Hugging Face's names.

    Attributes:
        specs: shape and dtype of each tensor but the decoder's.
        config: the encoder's shape.
        origin: for messages.
    """

    def __init__(self, paths: list[str]):
        """Read the table.

        Raises:
            ValueError: a file is damaged, or is no Whisper's.
        """
        self._file = CTranslate2File(paths)
        found = self._file.spec, self._file.revision
        if found not in [(_SPEC, revision) for revision in _REVISIONS]:
            raise ValueError(
                f"{self._file.path} holds a {found[0]} of revision {found[1]}, "
                f"expected a {_SPEC} of {' or '.join(map(str, _REVISIONS))}."
            )
        self.origin = f"{self._file.path} (names as Hugging Face's)"
        self._places: dict[str, tuple[str, int, int | None]] = {}
        self.specs: dict[str, Spec] = {}
        for name, (shape, dtype) in self._file.specs.items():
            if name == _HEADS or name.startswith("decoder/"):
                continue
            parts = self._rename(name, shape)
            for part, (start, stop) in parts.items():
                size = shape if stop is None else (stop - start, *shape[1:])
                self._places[part] = name, start, stop
                self.specs[part] = size, dtype
        self._check_dtypes()
        self.config = _measure(self.specs, self._read_heads(), self.origin)
        _compare_beside(os.path.dirname(paths[0]), self.config)

    def get(self, name: str) -> np.ndarray:
        """One tensor, in float32 if it is quantised."""
        return self._file.get(*self._places[name])

    @staticmethod
    def is_ignored(name: str) -> bool:
        """Positions and keys' biases, see `HuggingFaceWeights`."""
        return name == POSITIONS or name.endswith(".k_proj.bias")

    def _rename(
        self, name: str, shape: tuple[int, ...]
    ) -> dict[str, tuple[int, int | None]]:
        """Hugging Face's names of a tensor, and the rows of each; unknown ones stay."""
        prefix, rest = "", name
        if matched := _LAYER.fullmatch(name):
            prefix, rest = f"encoder.layers.{matched[1]}.", matched[2]
        part, _, leaf = rest.rpartition("/")
        layered = not part.startswith("encoder/")
        if leaf in _LEAVES and part in _PARTS and layered == bool(prefix):
            return {f"{prefix}{_PARTS[part]}.{_LEAVES[leaf]}": (0, None)}
        if prefix and part == _JOINED and leaf in ("weight", "bias") and shape:
            if shape[0] % 3:
                raise ValueError(
                    f"{self._file.path}: {name} has {shape[0]} rows; query, key and "
                    "value are joined in it, three equal parts."
                )
            size = shape[0] // 3
            return {
                f"{prefix}self_attn.{which}_proj.{leaf}": (n * size, (n + 1) * size)
                for n, which in enumerate("qkv")
            }
        return {name: (0, None)}

    def _read_heads(self) -> int | None:
        """Attention heads, None where the file does not say."""
        if _HEADS not in self._file.specs:
            return None
        shape, dtype = self._file.specs[_HEADS]
        if shape or dtype.kind != "i":
            raise ValueError(
                f"{self._file.path}: {_HEADS} is {dtype} {shape}, expected one integer."
            )
        return int(self._file.get(_HEADS))

    def _check_dtypes(self) -> None:
        """Refuse dtypes that CTranslate2 would not have written.

        It gives all tensors that are not quantised one dtype: another one is a damaged
        byte in the table.
        """
        plain = {}
        for name, (_, dtype) in self.specs.items():
            stored = self._places[name][0]
            if not self._file.is_quantised(stored):
                plain.setdefault(str(dtype), stored)
        if len(plain) > 1:
            shown = ", ".join(f"{name} is {dtype}" for dtype, name in plain.items())
            raise ValueError(
                f"{self._file.path}: {shown}; all tensors without a scale have one "
                "dtype. Damaged: fetch it again."
            )


Weights = HuggingFaceWeights | CTranslate2Weights


def open_weights(path: str) -> Weights:
    """The encoder's tensors, unread.

    Args:
        path: folder with model.safetensors, its shards, model.bin, or model.bin.part1,
            .part2 and so on; or one of these files.

    Raises:
        ValueError: nothing of that kind is there, or it is damaged.
    """
    if os.path.isfile(path):
        folder, name = os.path.split(path)
        if name in (SINGLE, INDEX):
            return HuggingFaceWeights(folder or ".")
        whole = not name.startswith(PIECE)
        return CTranslate2Weights([path] if whole else _find_pieces(folder))
    if not os.path.isdir(path):
        raise ValueError(f"{path} is not there; name a folder or file of a Whisper.")
    names = set(os.listdir(path))
    if names & {SINGLE, INDEX}:
        return HuggingFaceWeights(path)
    if BINARY in names:
        return CTranslate2Weights([os.path.join(path, BINARY)])
    if any(name.startswith(PIECE) for name in names):
        return CTranslate2Weights(_find_pieces(path))
    raise ValueError(
        f"{path} holds none of {SINGLE}, {INDEX} (Hugging Face), {BINARY}, {PIECE}1 "
        "(CTranslate2); other formats must become one of these first."
    )


def check_positions(source: Weights) -> None:
    """Hold the file's table of positions against the one that our encoder computes.

    Raises:
        ValueError: it is another one, as after training it.
    """
    table = source.get(POSITIONS)
    # bfloat16 rounds a number near 1 by up to 0.002.
    bound = 4e-3 if table.dtype.name == "bfloat16" else 1e-3
    expected = sinusoids(source.config.max_frames, source.config.width)
    worst = np.abs(table.astype(np.float32) - expected).max()
    if not worst <= bound:
        raise ValueError(
            f"{source.origin}: {POSITIONS} {table.shape} differs from Whisper's "
            f"sinusoids by {worst:.3g}, expected at most {bound}; our encoder computes "
            "them and cannot take others."
        )


def _find_pieces(folder: str) -> list[str]:
    pieces: list[str] = []
    while True:
        path = os.path.join(folder, f"{PIECE}{len(pieces) + 1}")
        if not os.path.exists(path):
            break
        pieces.append(path)
    if not pieces:
        raise ValueError(f"{path} not found beside the other pieces.")
    return pieces


def _measure(
    specs: Mapping[str, Spec], heads: int | None, origin: str
) -> WhisperEncoderConfig:
    """The shape of the encoder that tensors belong to.

    Args:
        specs: the tensors, by Hugging Face's names.
        heads: of attention; None for width / 64.
        origin: for messages.

    Raises:
        ValueError: there is no encoder, or of an impossible shape.
    """
    needed = {"encoder.conv1.weight": 3, POSITIONS: 2, "encoder.layers.0.fc1.weight": 2}
    for name, rank in needed.items():
        if name not in specs:
            raise ValueError(
                f"{origin} lacks {name}: no encoder of a Whisper is there."
            )
        shape, _ = specs[name]
        if len(shape) != rank or 0 in shape:
            raise ValueError(
                f"{origin}: {name} has shape {shape}, expected {rank} sizes above 0."
            )
    for name, (_, dtype) in specs.items():
        if name.startswith("encoder.") and dtype.name not in _FLOATS:
            raise ValueError(
                f"{origin}: {name} is {dtype}, expected one of {', '.join(_FLOATS)}."
            )
    width, num_mels, _ = specs["encoder.conv1.weight"][0]
    wide = specs["encoder.layers.0.fc1.weight"][0][0]
    if heads is None:
        heads = width // _HEAD_DIM if width % _HEAD_DIM == 0 else 0
    if heads < 1 or width % heads or wide % width:
        raise ValueError(
            f"{origin}: {heads or 'an unknown number of'} heads and a feed-forward "
            f"width of {wide} do not fit an encoder of width {width}."
        )
    layers = {
        name.split(".")[2] for name in specs if name.startswith("encoder.layers.")
    }
    try:
        return WhisperEncoderConfig(
            num_layers=len(layers),
            width=width,
            num_heads=heads,
            num_mels=num_mels,
            ffn_factor=wide // width,
            max_frames=specs[POSITIONS][0][0],
        )
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def _compare_beside(folder: str, config: WhisperEncoderConfig) -> None:
    """Hold the sizes in the files beside the weights against those of the tensors.

    Raises:
        ValueError: they are another model's, or a file is damaged.
    """
    for name in ("config.json", "preprocessor_config.json"):
        if not os.path.exists(os.path.join(folder, name)):
            continue
        facts = hf.read_config(folder, name)
        wrong = [
            f"{key}={facts[key]!r}, but the tensors have {find(config)}"
            for key, find in _SIZES.items()
            if key in facts and facts[key] != find(config)
        ]
        if wrong:
            raise ValueError(
                f"{os.path.join(folder, name)} says {'; '.join(wrong)}. It is that of "
                "another model."
            )
