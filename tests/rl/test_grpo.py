"""GRPO against hand computation: advantages, clipping, KL, and what must not matter."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.rl import grpo
from nim4_jax.rl.grpo import GrpoConfig

CONFIGS = (
    GrpoConfig(),
    GrpoConfig(clip_low=0.1, clip_high=0.28, beta=0.0),
    GrpoConfig(clip_low=0.05, clip_high=0.07, ratio="sequence"),
)
BATCH, LENGTH = 6, 5


def make_inputs(seed: int, apart: float = 0.3) -> dict[str, np.ndarray]:
    """Random rows, at least one token each; three kinds of log-probabilities."""
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1.0, (BATCH, LENGTH))
    lengths = rng.integers(1, LENGTH + 1, BATCH)
    inputs = {
        "log_probs": log_probs,
        "old_log_probs": log_probs + apart * rng.normal(size=log_probs.shape),
        "reference_log_probs": log_probs + apart * rng.normal(size=log_probs.shape),
        "advantages": rng.normal(size=BATCH),
        "rewards": rng.normal(size=BATCH),
    }
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    return {**inputs, "mask": np.arange(LENGTH) < lengths[:, None]}


@functools.cache
def make_loss(config: GrpoConfig):
    """Jitted inputs → (Loss, gradient of its total by the log-probabilities)."""

    def total(log_probs, inputs):
        loss = grpo.token_loss(**{**inputs, "log_probs": log_probs}, config=config)
        return loss.total, loss

    def run(inputs):
        gradient, loss = jax.grad(total, has_aux=True)(inputs["log_probs"], inputs)
        return loss, gradient

    return jax.jit(run)


def define(inputs: dict[str, np.ndarray], config: GrpoConfig):
    """Loss and gradient token by token, from the definition, in float64."""
    total, gradient = 0.0, np.zeros((BATCH, LENGTH))
    sums = dict.fromkeys(("ratio", "clip_fraction", "entropy", "kl"), 0.0)
    for b in range(BATCH):
        row = np.flatnonzero(inputs["mask"][b])
        new, old, reference = (
            inputs[name][b].astype(np.float64)
            for name in ("log_probs", "old_log_probs", "reference_log_probs")
        )
        gain = float(inputs["advantages"][b])
        for t in row:
            change = new[t] - old[t]
            if config.ratio == "sequence":
                change = np.mean(new[row] - old[row])
            ratio = math.exp(change)
            bound = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            cut = bound * gain < ratio * gain
            total -= bound * gain if cut else ratio * gain
            gradient[b, t] -= 0.0 if cut else ratio * gain
            r = reference[t] - new[t]
            total += config.beta * (math.exp(r) - r - 1)
            gradient[b, t] += config.beta * (1 - math.exp(r))
            sums["ratio"] += ratio
            sums["clip_fraction"] += cut
            sums["entropy"] -= new[t]
            sums["kl"] += math.exp(r) - r - 1
    return total, gradient, sums


def test_advantages_by_hand():
    rewards = jnp.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    got = grpo.advantages(rewards, 0.5)
    np.testing.assert_allclose(got, [[-0.5, 0.5], [-2 / 3, 2 / 3], [0.0, 0.0]])
    assert grpo.find_flat(rewards).tolist() == [False, False, True]
    got = grpo.advantages(jnp.array([[0.0, 0.0, 3.0]]))
    root = math.sqrt(2.0)
    np.testing.assert_allclose(got, [[-1 / root, -1 / root, root]], rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1.25, -0.7, 1e-8, 1e8])
@pytest.mark.parametrize("samples", [1, 3, 7])
def test_equal_rewards_have_exactly_no_advantage(value, samples):
    """Though the float32 mean of seven times 0.1 is not 0.1."""
    rewards = np.full((2, samples), value, np.float32)
    for epsilon in (1e-6, 0.0):
        assert not np.any(jax.jit(grpo.advantages)(rewards, epsilon))
    assert grpo.find_flat(rewards).all()


@given(st.integers(0, 2**20), st.integers(2, 8))
def test_advantages_are_centred_and_of_unit_size(seed, samples):
    rewards = np.random.default_rng(seed).normal(size=(4, samples)).astype(np.float32)
    rewards[1] = rewards[1, 0]
    got = grpo.advantages(jnp.asarray(rewards))
    kept = ~np.asarray(grpo.find_flat(jnp.asarray(rewards)))
    assert kept.tolist() == [True, False, True, True]
    np.testing.assert_allclose(np.mean(got, axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.std(got, axis=1), kept, atol=1e-3)
    moved = grpo.advantages(jnp.asarray(3.0 * rewards + 5.0))
    np.testing.assert_allclose(moved, got, atol=2e-3)


def test_one_token_by_hand():
    """Ratio 1.5 and 0.5 under either sign of the advantage, clipped to [0.8, 1.3]."""
    config = GrpoConfig(clip_low=0.2, clip_high=0.3, beta=0.0)
    table = [
        # ratio, advantage, loss, gradient by log π, cut
        (1.5, 2.0, -2.6, 0.0, 1.0),
        (1.5, -2.0, 3.0, 3.0, 0.0),
        (0.5, 2.0, -1.0, -1.0, 0.0),
        (0.5, -2.0, 1.6, 0.0, 1.0),
        (1.1, 2.0, -2.2, -2.2, 0.0),
        (1.0, 0.0, 0.0, 0.0, 0.0),
    ]
    for ratio, gain, expected, slope, cut in table:

        def compute(log_probs, gain=gain):
            loss = grpo.token_loss(
                log_probs,
                jnp.array([[-1.0]]),
                None,
                jnp.array([gain]),
                jnp.array([[True]]),
                config,
            )
            return loss.total, loss

        log_probs = jnp.array([[-1.0 + math.log(ratio)]])
        gradient, loss = jax.grad(compute, has_aux=True)(log_probs)
        np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, [[slope]], rtol=1e-5)
        np.testing.assert_allclose(loss.metrics["ratio"][0], ratio, rtol=1e-5)
        assert float(loss.metrics["clip_fraction"][0]) == cut
        assert float(loss.weight) == 1.0
        assert set(loss.metrics) == {"ratio", "clip_fraction", "entropy"}


@pytest.mark.parametrize("config", CONFIGS)
@given(seed=st.integers(0, 2**20))
def test_loss_and_gradient_are_the_definition(config, seed):
    """Of every token, with both kinds of ratio and with KL."""
    inputs = make_inputs(seed)
    loss, gradient = make_loss(config)(inputs)
    total, slopes, sums = define(inputs, config)
    np.testing.assert_allclose(loss.total, total, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-5)
    assert float(loss.weight) == inputs["mask"].sum()
    assert set(loss.metrics) == {*sums, "reward"}
    for name, value in sums.items():
        np.testing.assert_allclose(loss.metrics[name][0], value, rtol=1e-4, atol=1e-5)
        assert float(loss.metrics[name][1]) == inputs["mask"].sum()


@pytest.mark.parametrize("config", CONFIGS)
@given(seed=st.integers(0, 2**20))
def test_the_first_step_is_plain_policy_gradient(config, seed):
    """log π = log π_old = log π_ref: ratio 1, nothing cut, no KL, all exactly."""
    inputs = make_inputs(seed)
    same = dict.fromkeys(("old_log_probs", "reference_log_probs"), inputs["log_probs"])
    loss, gradient = make_loss(config)({**inputs, **same})
    total, count = loss.metrics["ratio"]
    assert float(total) == float(count) == float(loss.weight)
    assert float(loss.metrics["clip_fraction"][0]) == 0.0
    assert float(loss.metrics["kl"][0]) == 0.0
    expected = -inputs["advantages"][:, None] * inputs["mask"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_allclose(loss.total, expected.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_ratio_is_exactly_one_where_nothing_changed(config):
    inputs = make_inputs(0)
    ratios = grpo.find_ratios(
        *(jnp.asarray(inputs["log_probs"]),) * 2,
        jnp.asarray(inputs["mask"]),
        config.ratio,
    )
    assert np.all(np.asarray(ratios) == 1.0)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_micro_batches_add_up(config, parts):
    """Totals, weights, metrics and gradients, whatever the rows' lengths."""
    inputs = make_inputs(5)
    whole, whole_gradient = make_loss(config)(inputs)
    pieces = [
        make_loss(config)({name: value[rows] for name, value in inputs.items()})
        for rows in np.split(np.arange(BATCH), parts)
    ]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *(loss for loss, _ in pieces))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        summed,
        whole,
    )
    gradient = np.concatenate([gradient for _, gradient in pieces])
    np.testing.assert_allclose(gradient, whole_gradient, rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
@given(
    seed=st.integers(0, 2**20),
    columns=st.integers(0, 3),
    rows=st.integers(0, 3),
    filling=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e30]),
)
def test_padding_does_not_matter(config, seed, columns, rows, filling):
    """More columns, empty rows, and anything behind the mask."""
    inputs = make_inputs(seed)
    expected, slopes = make_loss(config)(inputs)
    padded = {}
    for name, value in inputs.items():
        fill = False if name == "mask" else filling
        if value.ndim == 2 and name != "mask":
            value = np.where(inputs["mask"], value, np.float32(filling))
        widths = ((0, rows), (0, columns))[: value.ndim]
        padded[name] = np.pad(value, widths, constant_values=fill)
    loss, gradient = make_loss(config)(padded)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        loss,
        expected,
    )
    np.testing.assert_allclose(gradient[:BATCH, :LENGTH], slopes, rtol=1e-5, atol=1e-6)
    assert not np.any(gradient[BATCH:]) and not np.any(gradient[:, LENGTH:])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_real_nan_is_not_hidden(config):
    """Not even in a row without advantage."""
    inputs = make_inputs(0)
    inputs["log_probs"][2, 0] = np.nan
    inputs["advantages"][2] = 0.0
    loss, _ = make_loss(config)(inputs)
    assert np.isnan(float(loss.total))


def test_groups_of_equal_rewards_teach_nothing():
    """Neither loss nor gradient, but for the KL; their tokens are counted."""
    inputs = make_inputs(1)
    rewards = np.full((2, 3), 0.1, np.float32)
    flat = grpo.advantages(jnp.asarray(rewards))
    config = GrpoConfig(beta=0.0)
    inputs["advantages"] = np.asarray(flat).reshape(-1)
    loss, gradient = make_loss(config)(inputs)
    assert float(loss.total) == 0.0 and not np.any(gradient)
    assert float(loss.weight) == inputs["mask"].sum()


def test_sequence_ratios_by_hand():
    """The geometric mean over a row's own tokens, whatever its length."""
    log_probs = jnp.log(jnp.array([[0.8, 0.2, 0.5], [0.9, 1.0, 1.0]]))
    old = jnp.log(jnp.array([[0.4, 0.4, 0.1], [0.6, 0.1, 0.2]]))
    mask = jnp.array([[True, True, False], [True, False, False]])
    ratios = grpo.find_ratios(log_probs, old, mask, "sequence")
    np.testing.assert_allclose(ratios, [[1, 1, 1], [1.5, 1, 1]], rtol=1e-6)
    ratios = grpo.find_ratios(log_probs, old, mask, "token")
    np.testing.assert_allclose(ratios, [[2, 0.5, 1], [1.5, 1, 1]], rtol=1e-6)


def test_sequence_clipping_cuts_whole_rows():
    inputs = make_inputs(3)
    config = GrpoConfig(clip_low=3e-4, clip_high=4e-4, beta=0.0, ratio="sequence")
    inputs["advantages"] = np.ones(BATCH, np.float32)
    inputs["old_log_probs"] = inputs["log_probs"] + np.float32(0.1)
    inputs["old_log_probs"][:2] = inputs["log_probs"][:2] - np.float32(0.1)
    loss, gradient = make_loss(config)(inputs)
    mask = inputs["mask"]
    assert not np.any(gradient[:2])
    np.testing.assert_allclose(gradient[2:], -math.exp(-0.1) * mask[2:], rtol=1e-4)
    assert float(loss.metrics["clip_fraction"][0]) == mask[:2].sum()


@given(st.integers(0, 2**20), st.sampled_from([1e-7, 1e-4, 0.1, 3.0, 50.0]))
def test_kl_is_never_negative_and_zero_only_when_equal(seed, apart):
    inputs = make_inputs(seed, apart)
    log_probs, reference, mask = (
        jnp.asarray(inputs[name])
        for name in ("log_probs", "reference_log_probs", "mask")
    )
    got = np.asarray(grpo.kl_divergence(log_probs, reference, mask))
    assert np.isfinite(got).all() and (got >= 0).all() and not np.any(got[~mask])
    if apart >= 0.1:
        assert (got[mask] > 0).all()
    assert not np.any(grpo.kl_divergence(log_probs, log_probs, mask))


def test_kl_estimates_the_divergence():
    """Its mean over draws from π is KL(π ‖ π_ref)."""
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    rows = [np.log(p)[None].astype(np.float32) for p in (policy, reference)]
    got = grpo.kl_divergence(*map(jnp.asarray, rows), jnp.ones((1, 3), bool))
    expected = np.sum(policy * np.log(policy / reference))
    np.testing.assert_allclose(np.sum(policy * np.asarray(got)), expected, rtol=1e-5)


def test_enormous_changes_stay_finite():
    """A ratio of e¹⁰⁰ would overflow."""
    inputs = make_inputs(0)
    for name in ("old_log_probs", "reference_log_probs"):
        for shift in (-100.0, 100.0):
            moved = {**inputs, name: inputs[name] + np.float32(shift)}
            for config in CONFIGS:
                loss, gradient = make_loss(config)(moved)
                assert np.isfinite(float(loss.total)) and np.isfinite(gradient).all()


def test_no_gradient_flows_into_what_sampled():
    """The same traced array may be passed as policy, sampler and reference."""
    inputs = make_inputs(2)

    def total(log_probs):
        same = dict.fromkeys(
            ("log_probs", "old_log_probs", "reference_log_probs"), log_probs
        )
        return grpo.token_loss(**{**inputs, **same}, config=GrpoConfig()).total

    gradient = jax.jit(jax.grad(total))(jnp.asarray(inputs["log_probs"]))
    expected = -inputs["advantages"][:, None] * inputs["mask"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_rewards_are_averaged_over_rows_with_tokens():
    inputs = make_inputs(2)
    inputs["mask"][3:] = False
    total, count = make_loss(CONFIGS[0])(inputs)[0].metrics["reward"]
    np.testing.assert_allclose(total, inputs["rewards"][:3].sum(), rtol=1e-6)
    assert float(count) == 3.0


def test_low_precision_is_computed_in_float32():
    inputs = make_inputs(4)
    half = {
        name: value if name == "mask" else jnp.asarray(value, jnp.bfloat16)
        for name, value in inputs.items()
    }
    widened = {
        name: value if name == "mask" else jnp.asarray(value, jnp.float32)
        for name, value in half.items()
    }
    got, _ = make_loss(CONFIGS[0])(half)
    expected, _ = make_loss(CONFIGS[0])(widened)
    assert got.total.dtype == jnp.float32
    np.testing.assert_allclose(got.total, expected.total, rtol=1e-6)


def test_a_pull_without_reference_is_refused():
    inputs = {**make_inputs(0), "reference_log_probs": None}
    with pytest.raises(ValueError, match=r"grpo\.beta=0.04 but .* set grpo\.beta=0"):
        grpo.token_loss(**inputs, config=GrpoConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 0.0}, r"grpo\.clip_low=0.0 must lie in \(0, 1\)"),
        ({"clip_low": 1.0}, r"grpo\.clip_low=1.0 must lie"),
        ({"clip_high": 0.0}, r"grpo\.clip_high=0.0 must be a number > 0"),
        ({"beta": -0.1}, r"grpo\.beta=-0.1 must be a number ≥ 0"),
        ({"beta": math.nan}, r"grpo\.beta=nan must be"),
        ({"ratio": "word"}, r"grpo\.ratio='word'; choose from \('token', 'sequence'\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GrpoConfig(**settings)


def test_an_unknown_ratio_lists_the_known():
    array = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match=r"'word'; choose from \('token', 'sequence'"):
        grpo.find_ratios(array, array, array == 0, "word")


def test_the_temperature_falls_by_half_a_cosine():
    expected = {0: 1.0, 25: 0.85 + 0.15 * math.sqrt(0.5), 50: 0.85, 100: 0.7, 900: 0.7}
    for step, value in expected.items():
        assert float(grpo.temperature(step, 100)) == pytest.approx(value)
    half = grpo.temperature(jnp.int32(1), 2, start=0.5, end=0.9)
    assert float(half) == pytest.approx(0.7)
    steps = [float(grpo.temperature(step, 100)) for step in range(101)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 0), "a stage of 0 steps"),
        ((0, 10, 1.0, 0.0), "from 1.0 to 0.0 must be positive"),
        ((0, 10, math.inf, 0.7), "from inf to 0.7 must be positive"),
    ],
)
def test_temperatures_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        grpo.temperature(*values)


def test_drift_by_hand():
    """The mean is over tokens; what stands behind the mask does not count."""
    sampler = jnp.array([[-1.0, -2.0, jnp.nan], [-0.5, jnp.inf, 3.0]])
    recomputed = jnp.array([[-1.5, -2.0, 0.0], [-0.4, 1.0, jnp.nan]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    measure = jax.jit(functools.partial(grpo.drift, limit=0.2))
    found = measure(sampler, recomputed, mask)
    np.testing.assert_allclose(found.largest, 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.total, 0.6, rtol=1e-6)
    assert (float(found.beyond), float(found.count)) == (1.0, 3.0)
    nothing = measure(sampler, recomputed, mask & False)
    assert not any(map(float, jax.tree.leaves(nothing)))
    lost = measure(sampler, recomputed, mask | True)
    assert np.isnan(float(lost.largest)) and float(lost.beyond) == 4.0


def test_what_is_not_finite_is_found():
    """Only where the mask is."""
    inputs = make_inputs(0)
    log_probs, mask = inputs["log_probs"], np.ones((BATCH, LENGTH), bool)
    mask[0, 3:] = False
    log_probs[0, 4] = np.nan
    assert not np.any(grpo.find_broken(jnp.asarray(log_probs), jnp.asarray(mask)))
    log_probs[3, 2], log_probs[5, 1] = np.nan, -np.inf
    broken = grpo.find_broken(jnp.asarray(log_probs), jnp.asarray(mask))
    assert np.flatnonzero(broken).tolist() == [3, 5]
