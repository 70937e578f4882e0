"""Leaf modules with logical axis names, and the dtype policy."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nim4_jax import sharding
from nim4_jax.ops import attention, norm, product
from nim4_jax.types import Params

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
WEIGHTS = ("float", "int8")
OPERANDS = ("compute", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which dtype parameters, matrix products and statistics use.

    Norm statistics, softmax and losses are float32 whatever the policy says.

    Attributes:
        params: dtype in which parameters are stored.
        compute: dtype of activations and of matrix product operands.
        weights: "float", or "int8" for kernels and embedding tables that were
            quantised for inference; they are multiplied in the compute dtype.
        kernels: of the LLM's attention in training, one of `attention.KERNELS`; "auto":
            by the devices in use, see `attention.choose_kernel`.
        operands: "compute", or "bfloat16" to round what a projection multiplies in
            training, forward and backward; sums and activations keep the compute
            dtype. With float32 that halves a step on a CPU that has bfloat16 products.
    """

    params: str = "float32"
    compute: str = "float32"
    weights: str = "float"
    kernels: str = "auto"
    operands: str = "compute"

    def __post_init__(self):
        if self.kernels not in attention.KERNELS:
            raise ValueError(
                f"policy.kernels={self.kernels!r} is unknown; use one of "
                f"{attention.KERNELS}."
            )
        if self.weights not in WEIGHTS:
            raise ValueError(
                f"policy.weights={self.weights!r} is unknown; use one of {WEIGHTS}."
            )
        if self.operands not in OPERANDS:
            raise ValueError(
                f"policy.operands={self.operands!r} is unknown; use one of {OPERANDS}."
            )
        for role in ("params", "compute"):
            if (name := getattr(self, role)) not in DTYPES:
                raise ValueError(
                    f"policy.{role}={name!r} is unknown; use one of {sorted(DTYPES)}."
                )

    @property
    def param_dtype(self) -> jnp.dtype:
        """dtype of stored parameters."""
        return jnp.dtype(DTYPES[self.params])

    @property
    def dtype(self) -> jnp.dtype:
        """dtype of activations."""
        return jnp.dtype(DTYPES[self.compute])

    @property
    def operand_dtype(self) -> jnp.dtype:
        """dtype of what a projection multiplies."""
        return self.dtype if self.operands == "compute" else jnp.dtype(jnp.bfloat16)

    def cast(self, array: Array) -> Array:
        """The array in the compute dtype."""
        return array.astype(self.dtype)


def add_bias(array: Float[Array, "..."], bias: Float[Array, "..."]) -> Array:
    """array + bias over its last axes, in the array's dtype.

    Added in float32, for the gradient of the bias is a sum over everything else, and
    JAX would take it in the dtype that the two are added in.
    """
    bias = bias.reshape((1,) * (array.ndim - bias.ndim) + bias.shape)
    total = array.astype(jnp.float32) + bias.astype(jnp.float32)
    return total.astype(array.dtype)


_MATRICES = ("kernel", "table", "lora_a", "lora_b")


def cast_matrices(params: Params, policy: Policy) -> Params:
    """Kernels and tables in the compute dtype, which they are multiplied in anyway.

    Numbers stay the same to the bit. For parameters that are read many times, or that
    are gathered from other devices: half of the bytes under bfloat16.
    """

    def convert(route: tuple[Any, ...], leaf: Array) -> Array:
        return policy.cast(leaf) if route[-1].key in _MATRICES else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


REMATS = ("none", "dots", "full")
"""What the backward pass recomputes: nothing, all but matrix products with parameters,
everything."""


def rematerialise(module: type[nn.Module], kind: str) -> type[nn.Module]:
    """The module class under a recomputation rule, for use inside `nn.scan`.

    A product with a gradient of its own (`ops/product.py`) is opaque to JAX's rules, so
    its results are saved by the name that it gives them.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in REMATS:
        raise ValueError(f"remat={kind!r} is unknown; use one of {REMATS}.")
    if kind == "none":
        return module
    rules = jax.checkpoint_policies
    saved = rules.save_from_both_policies(
        rules.dots_with_no_batch_dims_saveable,
        rules.save_only_these_names(product.SAVED),
    )
    return nn.remat(module, prevent_cse=False, policy=saved if kind == "dots" else None)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation: kernel + α/r · A·B, of which only A and B are trained.

    Attributes:
        rank: r; 0 for none.
        alpha: α.
        targets: regular expression that a projection's name must match whole.

    Source: arXiv 2106.09685.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = "query|key|value|output|gate|up|down"

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"lora.rank={self.rank} must be ≥ 0.")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"lora.targets={self.targets!r} is no regular expression: {error}."
            ) from error

    def rank_of(self, name: str) -> int:
        """Rank for the projection of that name, 0 when it is no target."""
        return self.rank if re.fullmatch(self.targets, name) else 0

    @property
    def scale(self) -> float:
        """α / r."""
        return self.alpha / max(self.rank, 1)


NO_LORA = LoraConfig()


class Projection(nn.Module):
    """y = x · kernel + bias over the last axes of x, the kernel kept in its true shape.

    Where `lora` has a rank for the module's name, (x·A)·B · α/r is added; B begins as
    zeros. Under a policy with int8 weights the kernel is `kernel_int8` and
    `kernel_scale` (`models/quantisation.py` makes them), in place of `kernel`.

    Attributes:
        size_in: axes of x that the kernel contracts.
        size_out: axes of y in their place.
        axes: one logical axis name per axis of the kernel, which is size_in + size_out.
        policy: dtypes.
        bias: whether a vector over size_out is added.
        gain: variance of the outputs at initialisation, for inputs of unit variance.
        bias_init: initialiser of the bias.
        lora: low-rank adaptation.
        float32: outputs are the float32 sums, for scores that go into a softmax.
    """

    size_in: Sequence[int]
    size_out: Sequence[int]
    axes: Sequence[str | None]
    policy: Policy
    bias: bool = False
    gain: float = 1.0
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    lora: LoraConfig = NO_LORA
    float32: bool = False

    def _init(self, name: str, init, shape, axes, dtype=None) -> Array:
        placed = nn.with_logical_partitioning(init, tuple(axes))
        dtype = dtype or self.policy.param_dtype
        return cast(Array, self.param(name, placed, tuple(shape), dtype))

    @property
    def _depth(self) -> int:
        return math.prod(self.size_in)

    def _multiply(self, inputs: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """x · kernel, both flattened: two axes contracted at once may be transposed."""
        shape = (*self.size_in, *self.size_out)
        ins = tuple(range(len(self.size_in)))
        to_compute = self.policy.cast
        if self.policy.weights == "int8":
            ones, zeros = nn.initializers.ones, nn.initializers.zeros
            kernel = self._init("kernel_int8", zeros, shape, self.axes, jnp.int8)
            scale = self._init(
                "kernel_scale",
                ones,
                (*(1 for _ in ins), *self.size_out),
                (*(None for _ in ins), *self.axes[len(ins) :]),
                jnp.float32,
            )
            outputs = inputs @ to_compute(kernel).reshape(self._depth, -1)
            return outputs * to_compute(scale).reshape((1,) * (inputs.ndim - 1) + (-1,))
        outs = tuple(range(len(ins), len(shape)))
        init = nn.initializers.variance_scaling(
            self.gain, "fan_in", "truncated_normal", ins, outs
        )
        kernel = self._init("kernel", init, shape, self.axes)
        kernel = to_compute(kernel).reshape(self._depth, -1)
        if self.float32:
            return product.einsum("...i,io->...o", inputs, kernel)
        return product.multiply(inputs, kernel, self.policy.operand_dtype)

    def _adapt(self, inputs: Float[Array, "*B I"], rank: int) -> Float[Array, "*B O"]:
        """(x·A)·B · α/r."""
        ins = tuple(range(len(self.size_in)))
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", ins, -1)
        axes_in, axes_out = self.axes[: len(ins)], self.axes[len(ins) :]
        shapes = (*self.size_in, rank), (rank, *self.size_out)
        down = self._init("lora_a", init, shapes[0], (*axes_in, None))
        zeros = nn.initializers.zeros
        up = self._init("lora_b", zeros, shapes[1], (None, *axes_out))
        to_compute = self.policy.cast
        hidden = inputs @ to_compute(down).reshape(self._depth, rank)
        hidden = hidden * to_compute(jnp.asarray(self.lora.scale))
        return hidden @ to_compute(up).reshape(rank, -1)

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        lead = inputs.shape[: inputs.ndim - len(self.size_in)]
        flat = self.policy.cast(inputs).reshape(*lead, self._depth)
        outputs = self._multiply(flat)
        if rank := self.lora.rank_of(self.name or ""):
            outputs = outputs + self._adapt(flat, rank)
        outputs = outputs.reshape(*lead, *self.size_out)
        if not self.bias:
            return outputs
        axes = self.axes[len(self.size_in) :]
        bias = self._init("bias", self.bias_init, self.size_out, axes)
        return add_bias(outputs, bias)


def linear(
    features_in: int,
    features_out: int,
    axes: tuple[str | None, str | None],
    policy: Policy,
    *,
    bias: bool = True,
    **options: Any,
) -> Projection:
    """A `Projection` of the last axis: [..., in] → [..., out].

    Args:
        features_in: size of the last axis.
        features_out: its new size.
        axes: logical names of the kernel's two axes.
        policy: dtypes.
        bias: whether a vector is added.
        options: further fields of `Projection` (gain, lora, float32), and its name.
    """
    return Projection(
        (features_in,), (features_out,), axes, policy, bias=bias, **options
    )


class LayerNorm(nn.Module):
    """(x − mean) / √(var + ε) · scale + bias over the last axis, statistics in fp32."""

    policy: Policy
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        width = inputs.shape[-1]
        partition = nn.with_logical_partitioning
        dtype = self.policy.param_dtype
        scale = self.param(
            "scale", partition(nn.initializers.ones, ("norm",)), (width,), dtype
        )
        bias = self.param(
            "bias", partition(nn.initializers.zeros, ("norm",)), (width,), dtype
        )
        return self.policy.cast(norm.layer_norm(inputs, scale, bias, self.epsilon))


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · scale over the last axis, statistics in fp32."""

    policy: Policy
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        width = inputs.shape[-1]
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            (width,),
            self.policy.param_dtype,
        )
        return self.policy.cast(norm.rms_norm(inputs, scale, self.epsilon))


_TABLE_PIECES = 16
"""Pieces of an int8 table that are converted one after the other."""


class Embed(nn.Module):
    """A table of vectors by id; `attend` gives logits with the same (tied) table.

    Under a policy with int8 weights the table is `table_int8` and `table_scale`, one
    scale per id, in place of `table`.
    """

    vocab_size: int
    width: int
    policy: Policy

    def setup(self):
        def init(name, initialiser, width, dtype) -> Any:
            axes = ("vocab", "embed" if width > 1 else None)
            placed = nn.with_logical_partitioning(initialiser, axes)
            return self.param(name, placed, (self.vocab_size, width), dtype)

        if self.policy.weights == "int8":
            self.table = init("table_int8", nn.initializers.zeros, self.width, jnp.int8)
            self.scale = init("table_scale", nn.initializers.ones, 1, jnp.float32)
        else:
            dtype = self.policy.param_dtype
            self.table = init("table", nn.initializers.normal(0.02), self.width, dtype)
            self.scale = None

    def __call__(self, ids: Int[Array, "*B L"]) -> Float[Array, "*B L D"]:
        vectors = self.policy.cast(jnp.take(self.table, ids, axis=0))
        if self.scale is None:
            return vectors
        return vectors * self.policy.cast(jnp.take(self.scale, ids, axis=0))

    def attend(self, hidden: Float[Array, "*B L D"]) -> Float[Array, "*B L V"]:
        """Logits in float32: hidden · tableᵀ."""
        if self.scale is None:
            # Said here too: the gradient of each chunk of a loss takes this form.
            table = sharding.constrain(self.table, "vocab", "embed")
            return self._score(hidden, table)
        # Piece by piece, or a whole table in the compute dtype stands in memory.
        pieces = math.gcd(self.vocab_size, _TABLE_PIECES)
        table = self.table.reshape(pieces, -1, self.width)
        logits = jax.lax.map(lambda piece: self._score(hidden, piece), table)
        logits = jnp.moveaxis(logits, 0, -2)
        logits = logits.reshape(*hidden.shape[:-1], self.vocab_size)
        return logits * self.scale.reshape((1,) * (logits.ndim - 1) + (-1,))

    def _score(self, hidden: Array, table: Array) -> Array:
        to_compute = self.policy.cast
        return product.einsum("...d,vd->...v", to_compute(hidden), to_compute(table))
