"""Leaf modules with logical axis names, and the dtype policy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which dtype parameters, matrix products and statistics use.

    Norm statistics, softmax and losses are float32 whatever the policy says.

    Attributes:
        params: dtype in which parameters are stored.
        compute: dtype of activations and of matrix product operands.
    """

    params: str = "float32"
    compute: str = "float32"

    def __post_init__(self):
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

    def cast(self, array: Array) -> Array:
        """The array in the compute dtype."""
        return array.astype(self.dtype)


REMATS = ("none", "dots", "full")
"""What the backward pass recomputes: nothing, all but matrix products, everything."""


def rematerialise(module: type[nn.Module], kind: str) -> type[nn.Module]:
    """The module class under a recomputation rule, for use inside `nn.scan`.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in REMATS:
        raise ValueError(f"remat={kind!r} is unknown; use one of {REMATS}.")
    if kind == "none":
        return module
    rule = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(module, prevent_cse=False, policy=rule if kind == "dots" else None)


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


class Einsum(nn.Module):
    """y = einsum(equation, x, kernel) + bias, the kernel kept in its true shape.

    Where `lora` has a rank for the module's name, (x·A)·B · α/r is added; B begins as
    zeros.

    Attributes:
        equation: two-operand einsum, as "BTD,DNH->BTNH".
        shape: kernel shape.
        axes: one logical axis name per kernel dimension.
        bias_axes: kernel dimensions that the bias spans, None for no bias.
        fan_in_dims: kernel dimensions that the equation contracts.
        gain: variance of the outputs at initialisation, for inputs of unit variance.
        bias_init: initialiser of the bias.
        lora: low-rank adaptation.
    """

    equation: str
    shape: Sequence[int]
    axes: Sequence[str | None]
    policy: Policy
    bias_dims: Sequence[int] | None = None
    fan_in_dims: Sequence[int] = (0,)
    gain: float = 1.0
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    lora: LoraConfig = NO_LORA

    def _adapt(self, inputs: Array, rank: int) -> Array:
        """(x·A)·B, by the equation cut in two."""
        first, outputs = self.equation.split("->")
        left, kernel = first.split(",")
        size_in = [d for d in range(len(self.shape)) if d in self.fan_in_dims]
        size_out = [d for d in range(len(self.shape)) if d not in self.fan_in_dims]
        letters_in = "".join(kernel[d] for d in size_in)
        letters_out = "".join(kernel[d] for d in size_out)
        kept = "".join(letter for letter in outputs if letter not in letters_out)
        down = self.param(
            "lora_a",
            nn.with_logical_partitioning(
                nn.initializers.variance_scaling(
                    1.0, "fan_in", "normal", tuple(range(len(size_in))), -1
                ),
                (*(self.axes[d] for d in size_in), None),
            ),
            (*(self.shape[d] for d in size_in), rank),
            self.policy.param_dtype,
        )
        up = self.param(
            "lora_b",
            nn.with_logical_partitioning(
                nn.initializers.zeros, (None, *(self.axes[d] for d in size_out))
            ),
            (rank, *(self.shape[d] for d in size_out)),
            self.policy.param_dtype,
        )
        cast = self.policy.cast
        hidden = jnp.einsum(f"{left},{letters_in}Z->{kept}Z", inputs, cast(down))
        hidden = hidden * cast(jnp.asarray(self.lora.scale))
        return jnp.einsum(f"{kept}Z,Z{letters_out}->{outputs}", hidden, cast(up))

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        fan_out = tuple(d for d in range(len(self.shape)) if d not in self.fan_in_dims)
        init = nn.initializers.variance_scaling(
            self.gain, "fan_in", "truncated_normal", tuple(self.fan_in_dims), fan_out
        )
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(init, tuple(self.axes)),
            tuple(self.shape),
            self.policy.param_dtype,
        )
        outputs = jnp.einsum(
            self.equation, self.policy.cast(inputs), self.policy.cast(kernel)
        )
        if rank := self.lora.rank_of(self.name or ""):
            outputs = outputs + self._adapt(self.policy.cast(inputs), rank)
        if self.bias_dims is None:
            return outputs
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(
                self.bias_init, tuple(self.axes[d] for d in self.bias_dims)
            ),
            tuple(self.shape[d] for d in self.bias_dims),
            self.policy.param_dtype,
        )
        bias = self.policy.cast(bias)
        return outputs + bias.reshape((1,) * (outputs.ndim - bias.ndim) + bias.shape)


def linear(
    features_in: int,
    features_out: int,
    axes: tuple[str | None, str | None],
    policy: Policy,
    *,
    bias: bool = True,
    gain: float = 1.0,
    lora: LoraConfig = NO_LORA,
    name: str | None = None,
) -> Einsum:
    """An `Einsum` over the last axis: [..., in] → [..., out]."""
    return Einsum(
        "...i,io->...o",
        (features_in, features_out),
        axes,
        policy,
        bias_dims=(1,) if bias else None,
        gain=gain,
        lora=lora,
        name=name,
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
        x = inputs.astype(jnp.float32)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        x = x - mean
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + self.epsilon)
        lead = (1,) * (x.ndim - 1)
        x = x * scale.astype(jnp.float32).reshape(*lead, width)
        return self.policy.cast(x + bias.astype(jnp.float32).reshape(*lead, width))


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
        x = inputs.astype(jnp.float32)
        x = x * jax.lax.rsqrt(
            jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon
        )
        lead = (1,) * (x.ndim - 1)
        return self.policy.cast(x * scale.astype(jnp.float32).reshape(*lead, width))


class Embed(nn.Module):
    """A table of vectors by id; `attend` gives logits with the same (tied) table."""

    vocab_size: int
    width: int
    policy: Policy

    def setup(self):
        self.table = self.param(
            "table",
            nn.with_logical_partitioning(
                nn.initializers.normal(0.02), ("vocab", "embed")
            ),
            (self.vocab_size, self.width),
            self.policy.param_dtype,
        )

    def __call__(self, ids: Int[Array, "*B L"]) -> Float[Array, "*B L D"]:
        return self.policy.cast(jnp.take(self.table, ids, axis=0))

    def attend(self, hidden: Float[Array, "*B L D"]) -> Float[Array, "*B L V"]:
        """Logits in float32: hidden · tableᵀ."""
        return jnp.einsum(
            "...d,vd->...v",
            self.policy.cast(hidden),
            self.policy.cast(self.table),
            preferred_element_type=jnp.float32,
        )
