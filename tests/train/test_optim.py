"""The optimizer's rules: who trains, how fast, and who must be named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.train import optim
from nim4_jax.train.optim import OptimizerConfig

PARAMS = {
    "encoder": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "llm": {"table": jnp.ones((4, 2)), "scale": jnp.ones(2)},
}
CONFIG = OptimizerConfig(peak_rate=0.1, warmup_steps=0, weight_decay=0.0)


def update_once(rules, config=CONFIG, gradient=0.5):
    """(updates, optimizer state) of one step with equal gradients everywhere."""
    trainable, _ = optim.split_params(PARAMS, rules)
    tx = optim.make_optimizer(config, rules, steps=10)
    grads = {path: jnp.full(leaf.shape, gradient) for path, leaf in trainable.items()}
    return tx.update(grads, tx.init(trainable), trainable)


def test_leftovers_raise_by_name():
    """A parameter without a rule is named, together with the rules that there are."""
    with pytest.raises(
        ValueError, match=r"\['encoder/\.\*'\].*\['llm/scale', 'llm/table"
    ):
        optim.split_params(PARAMS, (("encoder/.*", 1.0),))


def test_rules_match_whole_paths_and_the_first_wins():
    """A later, wider rule does not take back what an earlier one decided."""
    rules = ((".*/kernel", None), ("encoder/.*", 2.0), ("llm/tab", 9.0), (".*", 1.0))
    rates = optim.match_rules(sorted(optim.flatten(PARAMS)), rules)
    assert rates == {
        "encoder/bias": 2.0,
        "encoder/kernel": None,
        "llm/scale": 1.0,
        "llm/table": 1.0,
    }


def test_layers_of_a_stack_have_rates_of_their_own():
    """Each slice of the leading axis moves by its rate; another number is refused."""
    rules = (("encoder/kernel", (0.5, 2.0)), (".*", 1.0))
    updates, _ = update_once(rules)
    plain, _ = update_once(((".*", 1.0),))
    for layer, rate in enumerate((0.5, 2.0)):
        moved, whole = updates["encoder/kernel"][layer], plain["encoder/kernel"][layer]
        np.testing.assert_allclose(moved, rate * whole, rtol=1e-6)
    np.testing.assert_array_equal(updates["llm/table"], plain["llm/table"])
    wrong = (("encoder/kernel", (0.5, 2.0, 1.0)), (".*", 1.0))
    with pytest.raises(ValueError, match=r"3 rates.*encoder/kernel of shape \(2, 3\)"):
        update_once(wrong)


def test_frozen_parameters_have_no_slots():
    """Moments exist for trainable paths only, and take their shapes."""
    rules = (("encoder/.*", None), (".*", 1.0))
    trainable, frozen = optim.split_params(PARAMS, rules)
    assert set(trainable) == {"llm/table", "llm/scale"}
    assert set(frozen) == {"encoder/kernel", "encoder/bias"}
    _, slots = update_once(rules)
    named = [
        path[-1].key
        for path, _ in jax.tree_util.tree_leaves_with_path(slots)
        if hasattr(path[-1], "key")
    ]
    assert sorted(named) == ["llm/scale"] * 2 + ["llm/table"] * 2


def test_rates_are_multiples():
    """Equal gradients move parameters by the ratio of their rules."""
    updates, _ = update_once((("encoder/.*", 0.25), (".*", 1.0)))
    for path in ("encoder/kernel", "encoder/bias"):
        np.testing.assert_allclose(
            updates[path].ravel()[:2], 0.25 * updates["llm/scale"], rtol=1e-6
        )
    assert (updates["llm/scale"] < 0).all()


def test_weight_decay_is_for_matrices():
    """Without a gradient only kernels and tables shrink."""
    config = OptimizerConfig(peak_rate=0.1, warmup_steps=0, weight_decay=0.5)
    updates, _ = update_once(((".*", 1.0),), config, gradient=0.0)
    moved = {path for path, update in updates.items() if update.any()}
    assert moved == {"encoder/kernel", "llm/table"}


def test_schedule_warms_up_and_decays():
    """0 → peak over the warm-up, then down to the final share at the last step."""
    schedule = OptimizerConfig(peak_rate=2.0, warmup_steps=4, final_share=0.1).schedule(
        20
    )
    rates = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(rates[:5], [0.0, 0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    np.testing.assert_allclose(rates[20], 0.2, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_warmup_longer_than_the_run_still_ends(steps):
    """The schedule of a run shorter than its warm-up is finite and not negative."""
    schedule = OptimizerConfig(peak_rate=1.0, warmup_steps=500).schedule(steps)
    rates = [float(schedule(step)) for step in range(steps + 1)]
    assert all(np.isfinite(rates)) and min(rates) >= 0


def test_global_norm_and_count():
    """√Σ x² over all leaves, and how many there are."""
    assert optim.count_parameters(PARAMS) == 6 + 3 + 8 + 2
    np.testing.assert_allclose(optim.global_norm(optim.flatten(PARAMS)), 19**0.5)
