"""Grouped-query attention against a plain loop over heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import attention


def random_operands(seed, batch=2, length=3, slots=5, kv_heads=2, groups=2, width=4):
    keys = jax.random.split(jax.random.key(seed), 4)
    kv_shape = (batch, kv_heads, slots, width)
    return (
        jax.random.normal(keys[0], (batch, length, kv_heads * groups, width)),
        jax.random.normal(keys[1], kv_shape),
        jax.random.normal(keys[2], kv_shape),
        jax.random.bernoulli(keys[3], 0.6, (batch, length, slots)),
    )


def attend_by_loop(queries, keys, values, mask, scale):
    queries, keys, values = (np.asarray(x, np.float64) for x in (queries, keys, values))
    groups = queries.shape[2] // keys.shape[1]
    outputs = np.zeros(queries.shape)
    for b, i, n in np.ndindex(*queries.shape[:3]):
        seen = np.flatnonzero(mask[b, i])
        if seen.size:
            logits = scale * keys[b, n // groups, seen] @ queries[b, i, n]
            weights = np.exp(logits - logits.max())
            outputs[b, i, n] = weights / weights.sum() @ values[b, n // groups, seen]
    return outputs


attend = jax.jit(attention.attend)


@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 2, 2), (4, 3, 1)])
@given(seed=st.integers(0, 2**20))
def test_attention_is_that_of_a_loop_over_heads(shape, seed):
    length, kv_heads, groups = shape
    operands = random_operands(seed, length=length, kv_heads=kv_heads, groups=groups)
    np.testing.assert_allclose(
        attend(*operands, 0.3), attend_by_loop(*operands, 0.3), atol=1e-5
    )


def test_a_query_that_sees_nothing_gets_zeros_and_a_finite_gradient():
    queries, keys, values, mask = random_operands(0)
    mask = mask.at[0, 1].set(False)
    assert not jnp.any(attend(queries, keys, values, mask, 1.0)[0, 1])

    def loss(*operands):
        return jnp.sum(attention.attend(*operands, mask, 1.0) ** 2)

    for gradient in jax.jit(jax.grad(loss, (0, 1, 2)))(queries, keys, values):
        assert jnp.all(jnp.isfinite(gradient))


def test_invisible_keys_have_no_effect():
    queries, keys, values, mask = random_operands(1)
    mask = mask.at[:, :, 2].set(False)
    outputs = attend(queries, keys, values, mask, 1.0)
    keys, values = keys.at[:, :, 2].set(1e8), values.at[:, :, 2].set(-1e8)
    np.testing.assert_array_equal(attend(queries, keys, values, mask, 1.0), outputs)


def test_softmax_stays_float32_under_bfloat16_operands():
    queries, keys, values, mask = random_operands(2, slots=64)
    short = [x.astype(jnp.bfloat16) for x in (queries, keys, values)]
    outputs = attend(*short, mask, 0.5)
    assert outputs.dtype == jnp.bfloat16
    expected = attend(queries, keys, values, mask, 0.5)
    np.testing.assert_allclose(outputs.astype(jnp.float32), expected, atol=0.05)


def test_causal_mask_follows_layout_order_and_skips_gaps():
    visible = attention.causal_mask(jnp.array([[True, False, True]]))
    assert visible.astype(int).tolist() == [[[1, 0, 0], [1, 0, 0], [1, 0, 1]]]


def test_shapes_that_do_not_fit_are_refused():
    queries, keys, values, mask = random_operands(3)
    with pytest.raises(ValueError, match="3 query heads do not divide"):
        attention.attend(queries[:, :, :3], keys, values, mask, 1.0)
    # TypeError where annotations are checked, as in tests.
    with pytest.raises((ValueError, TypeError), match="mask"):
        attention.attend(queries, keys, values, mask[:, :, :4], 1.0)


def test_masked_softmax_is_softmax_of_what_is_visible():
    """Values and gradient by row; rows that see nothing are zeros; weights are kept."""
    draw = np.random.default_rng(0)
    logits, gradient = draw.normal(size=(2, 2, 3, 4, 7)).astype(np.float32)
    visible = draw.random((2, 1, 4, 7)) < 0.6
    visible[0, 0, 1] = False
    seen_by = jnp.asarray(visible)
    got, pull = jax.vjp(
        lambda x: attention.masked_softmax(x, seen_by), jnp.asarray(logits)
    )
    (back,) = pull(gradient)
    for b, n, i in np.ndindex(2, 3, 4):
        row, seen = (b, n, i), visible[b, 0, i]
        assert not got[row][~seen].any() and not back[row][~seen].any()
        if seen.any():
            wanted, pull_row = jax.vjp(jax.nn.softmax, logits[row][seen])
            np.testing.assert_allclose(got[row][seen], wanted, atol=1e-6)
            (back_row,) = pull_row(gradient[row][seen])
            np.testing.assert_allclose(back[row][seen], back_row, atol=1e-6)
    assert [x.shape for x in jax.tree.leaves(pull) if x.size > 1] == [logits.shape]
