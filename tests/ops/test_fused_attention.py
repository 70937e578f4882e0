"""The fused kernels against XLA's form: values and gradients, on meshes, on CUDA."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax import sharding
from nim4_jax.ops import attention, fused_attention

SCALE, WIDTH = 0.3, 8


def random_operands(seed, batch, length, kv_heads, groups, dtype=jnp.float32):
    """Queries, keys, values, mask and a gradient of the outputs, zero for padding."""
    rng = np.random.default_rng(seed)
    heads = kv_heads * groups

    def draw(count):
        values = rng.normal(size=(batch, length, count, WIDTH))
        return jnp.asarray(values, dtype)

    mask = rng.random((batch, length)) < rng.choice([0.2, 0.8, 1.0], (batch, 1))
    slope = jnp.where(mask[:, :, None, None], draw(heads), jnp.zeros((), dtype))
    return draw(heads), draw(kv_heads), draw(kv_heads), jnp.asarray(mask), slope


@functools.partial(jax.jit, static_argnums=0)
def differentiate(attend, queries, keys, values, mask, slope):
    """Outputs where the token is real, and the gradients of all three operands."""
    outputs, pull = jax.vjp(lambda *x: attend(*x, mask), queries, keys, values)
    return jnp.where(mask[:, :, None, None], outputs, 0), pull(slope), outputs


def attend_xla(queries, keys, values, mask):
    return attention.attend_causal(queries, keys, values, mask, SCALE, "xla")


def attend_splash(queries, keys, values, mask):
    return fused_attention.splash(queries, keys, values, mask, SCALE, interpret=True)


def attend_by_lengths(queries, keys, values, mask):
    """cuDNN's call, through JAX's own form for CPUs of the same arguments."""
    lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
    return fused_attention.cudnn(
        queries, keys, values, lengths, SCALE, implementation="xla"
    )


def check_same(attend, operands, tolerance=2e-5):
    expected, slopes, _ = differentiate(attend_xla, *operands)
    got, gradients, everywhere = differentiate(attend, *operands)
    close = functools.partial(np.testing.assert_allclose, atol=tolerance, rtol=1e-4)
    assert np.all(np.isfinite(everywhere))
    close(got, expected)
    jax.tree.map(close, gradients, slopes)


@pytest.mark.parametrize(
    "length, kv_heads, groups", [(7, 2, 2), (128, 1, 3), (700, 2, 1)]
)
@given(seed=st.integers(0, 2**20))
def test_splash_is_the_form_of_xla(length, kv_heads, groups, seed):
    """Any padding, in one block and in several, whole rows of it too."""
    operands = random_operands(seed, 2, length, kv_heads, groups)
    check_same(attend_splash, operands)
    nothing = (*operands[:3], jnp.zeros_like(operands[3]), operands[4] * 0)
    check_same(attend_splash, nothing)


@given(seed=st.integers(0, 2**20), kv_heads=st.sampled_from([1, 2]))
def test_lengths_say_what_the_mask_says_of_left_aligned_rows(seed, kv_heads):
    """The arguments of cuDNN's call; what stands behind the lengths has no effect."""
    operands = random_operands(seed, 3, 9, kv_heads, 2)
    mask = jnp.sort(operands[3], axis=1, descending=True).at[0].set(False)
    slope = jnp.where(mask[:, :, None, None], operands[4], 0)
    check_same(attend_by_lengths, (*operands[:3], mask, slope))
    behind = [jnp.where(mask[:, :, None, None], x, jnp.nan) for x in operands[:3]]
    outputs, gradients, everywhere = differentiate(
        attend_by_lengths, *behind, mask, slope
    )
    clean = differentiate(attend_by_lengths, *operands[:3], mask, slope)
    jax.tree.map(np.testing.assert_array_equal, (outputs, gradients, everywhere), clean)


@given(seed=st.integers(0, 2**20))
def test_left_alignment_puts_real_tokens_first_and_back(seed):
    """order and places are each other's inverse on real tokens, in the same order."""
    mask = np.random.default_rng(seed).random((4, 11)) < 0.5
    order, places = attention.left_align(jnp.asarray(mask))
    slots = np.broadcast_to(np.arange(11), mask.shape)
    moved = np.take_along_axis(slots, np.asarray(order), 1)
    for row, real in enumerate(mask):
        assert moved[row, : real.sum()].tolist() == np.flatnonzero(real).tolist()
    back = np.take_along_axis(moved, np.asarray(places), 1)
    np.testing.assert_array_equal(back[mask], slots[mask])


@pytest.mark.parametrize("length", [1, 128, 640, 641, 1000, 1280, 1281, 4000])
def test_blocks_cover_the_tokens(length):
    """Whole register widths, no block of padding only, none too large."""
    count, block = fused_attention.count_blocks(length)
    assert block % 128 == 0 and block <= 640
    assert (count - 1) * block < length <= count * block


@pytest.mark.parametrize(
    "shape, rows", [((2, 2, 2), 4), ((1, 2, 4), 4), ((8, 1, 1), 6)]
)
def test_splash_on_a_mesh_is_splash_on_one_device(shape, rows):
    """Law 4; rows and heads that do not divide are computed whole."""
    operands = random_operands(0, rows, 20, 2, 2)
    expected = differentiate(attend_splash, *operands)
    with jax.set_mesh(sharding.make_mesh(shape)):
        got = differentiate(attend_splash, *operands)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5), got, expected
    )


def test_kernels_are_chosen_by_platform(monkeypatch):
    """The truth table of `choose_kernel`; here devices are CPUs."""
    choose = attention.choose_kernel
    assert choose("auto", jnp.bfloat16, 128) == "xla" == choose("xla", jnp.float32, 8)
    with pytest.raises(ValueError, match=r"'splash' does not run on 'cpu'.*set_mesh"):
        choose("splash", jnp.bfloat16, 128)
    monkeypatch.setattr(attention, "platform_in_use", lambda: "tpu")
    for wanted in ("auto", "splash"):
        assert choose(wanted, jnp.float32, 60) == "splash"
    assert choose("xla", jnp.bfloat16, 128) == "xla"
    monkeypatch.setattr(attention, "platform_in_use", lambda: "gpu")
    for dtype, width in ((jnp.float32, 128), (jnp.bfloat16, 60), (jnp.bfloat16, 256)):
        assert choose("auto", dtype, width) == "xla"
        with pytest.raises(ValueError, match="cuDNN takes bfloat16 heads"):
            choose("cudnn", dtype, width)
    assert choose("auto", jnp.bfloat16, 128) == "cudnn"


def test_cudnn_is_called_for_both_passes(monkeypatch):
    """Lowered for CUDA without a GPU: causal, by lengths, no [B, 1, L, L] operand.

    cuDNN itself is not here; only its version, which JAX asks for, is given.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(
        fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000
    )
    operands = random_operands(0, 2, 24, 2, 2, jnp.bfloat16)

    def step(queries, keys, values, mask, slope):
        attend = functools.partial(
            attention.attend_causal, mask=mask, scale=SCALE, kernel="cudnn"
        )
        return jax.vjp(attend, queries, keys, values)[1](slope)

    lowered = jax.jit(step).trace(*operands).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    for name in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        assert f'@"{name}"' in text or f"@{name}(" in text, name
    assert "PADDING_CAUSAL" in text and "fmhaScaleBias" not in text
    assert "24x24" not in text


@pytest.mark.skipif(
    not Path("/dev/nvidia0").exists(), reason="cuDNN's numbers need an NVIDIA GPU"
)
def test_cudnn_is_the_form_of_xla():
    """In a process of its own: this one has been told to use CPUs."""
    script = Path(__file__).with_name("compare_cudnn.py")
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    subprocess.run([sys.executable, str(script)], env=environment, check=True)
