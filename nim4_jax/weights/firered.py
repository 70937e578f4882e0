"""FireRedASR-AED and FireRedASR2 encoders → our Conformer.

Source: `fireredasr` `ConformerEncoder` (names of tensors), `CMVN` (statistics).
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any

import numpy as np

from nim4_jax.models.conformer import ConformerConfig
from nim4_jax.weights.rules import (
    CONV2D,
    DEPTHWISE,
    POINTWISE,
    Layout,
    Rule,
    linear,
)
from nim4_jax.weights.tensor_file import Spec
from nim4_jax.weights.torch_file import Arguments, TensorPlace, TorchFile

WEIGHTS, CMVN = "model.pth.tar", "cmvn.ark"

_OURS = "encoder/stack/blocks/"
_THEIRS = "encoder.layer_stack.{layer}."
# Their last layer of subsampling reads [channel, band], ours [band, channel].
_FLATTENED = Layout(
    "flattened convolution",
    lambda array, shape: array.reshape(shape[2], shape[1], shape[0]).transpose(2, 1, 0),
    lambda array: array.transpose(2, 1, 0).reshape(array.shape[2], -1),
)


def _norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{ours}/scale", f"{theirs}.weight"),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    )


def _linear(ours: str, theirs: str, layout: Layout | None = None) -> tuple[Rule, Rule]:
    return (
        Rule(f"{ours}/kernel", f"{theirs}.weight", layout or linear()),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    )


def _feed_forward(name: str) -> tuple[Rule, ...]:
    ours, theirs = f"{_OURS}{name}", f"{_THEIRS}{name}.net."
    return (
        *_norm(f"{ours}/norm", f"{theirs}0"),
        *_linear(f"{ours}/up", f"{theirs}1"),
        *_linear(f"{ours}/down", f"{theirs}4"),
    )


def _attention() -> tuple[Rule, ...]:
    ours, theirs = f"{_OURS}attention/", f"{_THEIRS}mhsa."
    projections = {"query": "w_qs", "key": "w_ks", "value": "w_vs"}
    return (
        *(
            rule
            for name in "qkv"
            for rule in _norm(f"{ours}norm_{name}", f"{theirs}layer_norm_{name}")
        ),
        *(
            Rule(f"{ours}{name}/kernel", f"{theirs}{other}.weight", linear())
            for name, other in (*projections.items(), ("position", "linear_pos"))
        ),
        Rule(f"{ours}output/kernel", f"{theirs}fc.weight", linear(inputs=2)),
        Rule(f"{ours}bias_u", f"{theirs}pos_bias_u"),
        Rule(f"{ours}bias_v", f"{theirs}pos_bias_v"),
    )


def _convolution() -> tuple[Rule, ...]:
    ours, theirs = f"{_OURS}conv/", f"{_THEIRS}conv."
    return (
        *_norm(f"{ours}norm", f"{theirs}pre_layer_norm"),
        Rule(
            f"{ours}pointwise_in/kernel", f"{theirs}pointwise_conv1.weight", POINTWISE
        ),
        Rule(f"{ours}depthwise", f"{theirs}depthwise_conv.weight", DEPTHWISE),
        # Named after the batch norm that it replaced.
        *_norm(f"{ours}depthwise_norm", f"{theirs}batch_norm"),
        Rule(
            f"{ours}pointwise_out/kernel", f"{theirs}pointwise_conv2.weight", POINTWISE
        ),
    )


RULES = (
    *_linear("encoder/subsampling/conv1", "encoder.input_preprocessor.conv.0", CONV2D),
    *_linear("encoder/subsampling/conv2", "encoder.input_preprocessor.conv.2", CONV2D),
    *_linear(
        "encoder/subsampling/output", "encoder.input_preprocessor.out", _FLATTENED
    ),
    *_feed_forward("ffn1"),
    *_attention(),
    *_convolution(),
    *_feed_forward("ffn2"),
    *_norm(f"{_OURS}norm", f"{_THEIRS}layer_norm"),
)

_ARGUMENTS = ("idim", "n_layers_enc", "n_head", "d_model", "kernel_size")


class Weights:
    """The tensors of model.pth.tar by name, unread, and its arguments.

    Attributes:
        specs: shape and dtype of each tensor.
        config: the encoder's shape.
    """

    def __init__(self, path: str):
        """Open the file.

        Raises:
            ValueError: not such a file, or not of such a model.
        """
        self._file = TorchFile(path)
        content = self._file.content
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds {type(content).__name__}, expected a dict.")
        state, arguments = content.get("model_state_dict"), content.get("args")
        if not isinstance(state, dict) or not isinstance(arguments, Arguments):
            raise ValueError(
                f"{path} has the entries {sorted(map(str, content))}; a FireRedASR "
                "model has args (a Namespace) and model_state_dict."
            )
        self._places = {
            name: place
            for name, place in state.items()
            if isinstance(place, TensorPlace)
        }
        self.specs: dict[str, Spec] = {
            name: (place.shape, place.dtype) for name, place in self._places.items()
        }
        self.config = _to_config(vars(arguments), path)

    def get(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._file.get(self._places[name])


def _to_config(arguments: dict[str, Any], path: str) -> ConformerConfig:
    missing = [name for name in _ARGUMENTS if name not in arguments]
    if missing:
        raise ValueError(f"{path}: its args lack {missing}.")
    return ConformerConfig(
        num_layers=arguments["n_layers_enc"],
        width=arguments["d_model"],
        num_heads=arguments["n_head"],
        num_mels=arguments["idim"],
        conv_kernel=arguments["kernel_size"],
    )


def is_ignored(name: str) -> bool:
    """Their decoder, CTC layer and table of sinusoids."""
    return not name.startswith("encoder.") or name.endswith("positional_encoding.pe")


def read_cmvn(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Kaldi's binary CMVN statistics as (mean, 1 / standard deviation), float32 [M].

    The matrix has two rows: sums and the number of frames, then sums of squares.

    Raises:
        ValueError: the file is missing, cut off, or holds something else.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error
    start = raw.find(b"\0B")
    dtype = {b"FM ": "<f4", b"DM ": "<f8"}.get(raw[start + 2 : start + 5])
    if start < 0 or dtype is None or len(raw) < start + 15:
        raise ValueError(f"{path} holds no binary Kaldi matrix (\\0BFM or \\0BDM).")
    rows, columns = struct.unpack("<xixi", raw[start + 5 : start + 15])
    body = raw[start + 15 :]
    size = rows * columns * np.dtype(dtype).itemsize
    if rows != 2 or columns < 2 or len(body) < size:
        raise ValueError(
            f"{path} holds a matrix of {rows} × {columns} in {len(body)} bytes; "
            "CMVN statistics have 2 rows of mels + 1, complete."
        )
    stats = np.frombuffer(body[:size], dtype).astype(np.float64).reshape(2, columns)
    count = stats[0, -1]
    if not math.isfinite(count) or count < 1:
        raise ValueError(f"{path} was measured on {count} frames.")
    mean = stats[0, :-1] / count
    variance = np.maximum(stats[1, :-1] / count - mean**2, 1e-20)
    return mean.astype(np.float32), (1.0 / np.sqrt(variance)).astype(np.float32)


def find_files(folder: str) -> tuple[str, str]:
    """Paths of the weights and of the statistics.

    Raises:
        ValueError: one is missing.
    """
    paths = os.path.join(folder, WEIGHTS), os.path.join(folder, CMVN)
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not found.")
    return paths
