"""The train step: what it moves, what it leaves alone, and how often it compiles."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nim4_jax.models.asr import Asr
from nim4_jax.ops.chunking import DynamicChunks
from nim4_jax.ops.spec_augment import SpecAugmentConfig
from nim4_jax.train import optim
from nim4_jax.train import state as train_state
from nim4_jax.train.losses import CrCtc
from nim4_jax.train.step import make_train_step
from nim4_jax.train.text_loss import ReadPhonemes

RULES = (("encoder/stack/.*", 1.0), ("ctc_head/.*", 0.5), (".*", None))


def test_frozen_parameters_keep_their_bits(tiny):
    """Three steps with weight decay: frozen leaves are the same, all others moved."""
    recipe = tiny.make_recipe(CrCtc(), RULES)
    tx, state = tiny.make_state(recipe)
    before = jax.tree.map(np.array, state.params)
    step = jax.jit(make_train_step(Asr(tiny.CONFIG), recipe, tx))
    for seed in range(3):
        state, metrics = step(state, tiny.make_batch(seed))
    rates = optim.match_rules(sorted(optim.flatten(before)), RULES)
    after = optim.flatten(state.params)
    for path, leaf in optim.flatten(before).items():
        same = np.array_equal(leaf, after[path])
        assert same == (rates[path] is None), path
    assert int(state.step) == 3
    assert all(np.isfinite(value) for value in metrics.values())
    slots = [np.shape(leaf) for leaf in jax.tree.leaves(state.opt_state)]
    trainable, _ = optim.split_params(before, RULES)
    shapes = [leaf.shape for leaf in trainable.values()]
    assert sorted(s for s in slots if s) == sorted(2 * shapes)


def test_randomness_is_of_the_step_alone(tiny):
    """The same step gives the same bits; another step draws another augmentation."""
    recipe = tiny.make_recipe(CrCtc(), RULES)
    tx, state = tiny.make_state(recipe)
    step = jax.jit(make_train_step(Asr(tiny.CONFIG), recipe, tx))
    batch = tiny.make_batch(0)
    first, again = step(state, batch), step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    later = dataclasses.replace(state, step=jnp.asarray(5, jnp.int32))
    other = step(later, batch)[1]
    assert float(other["ctc"]) != float(first[1]["ctc"])


def test_one_trace_for_each_bucket_shape(tiny):
    """Law 8: after each shape was seen once, nothing is traced or compiled again."""
    recipe = tiny.make_recipe(tiny.PLAIN_CTC, RULES)
    tx, state = tiny.make_state(recipe)
    inner = make_train_step(Asr(tiny.CONFIG), recipe, tx)
    traces, compiled = [], []

    def count(state, batch):
        traces.append(batch.audio.values.shape)
        return inner(state, batch)

    step = jax.jit(count, donate_argnums=0)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            compiled.append(name) if "backend_compile" in name else None
        )
    )
    lengths = (4_800, 3_200)
    for seed in range(4):
        state, _ = step(state, tiny.make_batch(seed, samples=lengths[seed % 2]))
    seen = len(compiled)
    for seed in range(4, 10):
        state, _ = step(state, tiny.make_batch(seed, samples=lengths[seed % 3 % 2]))
    assert traces == [(4, 4_800), (4, 3_200)]
    assert len(compiled) == seen


def test_fresh_parameters_are_of_the_parts_that_the_loss_reaches(tiny):
    """Stage 1 makes no LLM, transcription no phoneme head; both share the encoder."""
    batch = tiny.make_batch(0)
    made = {}
    for name, loss in (("ctc", tiny.PLAIN_CTC), ("text", tiny.PLAIN_TRANSCRIBE)):
        recipe = tiny.make_recipe(loss)
        made[name] = jax.eval_shape(
            lambda r=recipe: train_state.init_params(Asr(tiny.CONFIG), r, batch, 0)
        )
    assert set(made["ctc"]) == {"cmvn", "encoder", "ctc_head"}
    assert set(made["text"]) == {"cmvn", "encoder", "adaptor", "llm"}
    assert made["ctc"]["encoder"] == made["text"]["encoder"]


def test_fresh_parameters_come_from_the_seed(tiny):
    """The same seed gives the same bits, another seed others; all are finite."""
    recipe = tiny.make_recipe(tiny.PLAIN_CTC)
    made = [
        flax.traverse_util.flatten_dict(
            train_state.init_params(Asr(tiny.CONFIG), recipe, tiny.make_batch(0), seed)
        )
        for seed in (0, 0, 1)
    ]
    assert all(np.isfinite(leaf).all() for leaf in made[0].values())
    assert all(np.array_equal(made[0][path], made[1][path]) for path in made[0])
    kernels = [path for path in made[0] if path[-1] == "kernel"]
    assert all(not np.array_equal(made[0][path], made[2][path]) for path in kernels)


def update(tiny, loss, parts, config=None, rows=4):
    """(parameters, metrics) after one step of plain gradient descent."""
    config = config or tiny.CONFIG
    recipe = dataclasses.replace(tiny.make_recipe(loss), micro_batches=parts)
    params = jax.tree.map(jnp.asarray, tiny.make_params(recipe, config))
    tx = optax.sgd(0.1)
    state = train_state.init_state(params, recipe, tx)
    step = jax.jit(make_train_step(Asr(config), recipe, tx))
    state, metrics = step(state, tiny.make_batch(0, rows=rows, samples=12_000))
    return jax.device_get((state.params, metrics))


def test_micro_batches_are_the_whole_batch(tiny):
    """Dropout, SpecAugment and dynamic chunks on: 2 and 4 parts give what 1 gives."""
    encoder = dataclasses.replace(tiny.CONFIG.encoder, dropout=0.2)
    config = dataclasses.replace(tiny.CONFIG, encoder=encoder)
    augment = SpecAugmentConfig(warp=10, freq_width=4, time_width=5)
    loss = CrCtc(augment=augment, alpha_warmup=0, chunks=DynamicChunks(full_share=0.0))
    params, metrics = update(tiny, loss, 1, config)
    _, plain = update(tiny, loss, 1)
    assert plain["loss"] != metrics["loss"]  # dropout does something
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for parts in (2, 4):
        got, seen = update(tiny, loss, parts, config)
        jax.tree.map(close, got, params)
        assert set(seen) == set(metrics)
        for name, value in metrics.items():
            np.testing.assert_allclose(seen[name], value, rtol=2e-5, err_msg=name)


def test_frozen_parts_run_without_dropout(tiny):
    """What is learnt on top of a frozen encoder meets the encoder as it will be."""
    encoder = dataclasses.replace(tiny.CONFIG.encoder, dropout=0.5)
    config = dataclasses.replace(tiny.CONFIG, encoder=encoder)
    heard = {}
    for trained in ("adaptor", "encoder/subsampling"):
        for name, shapes in (("noisy", config), ("plain", tiny.CONFIG)):
            rules = ((f"{trained}/.*", 1.0), (".*", None))
            recipe = tiny.make_recipe(tiny.PLAIN_TRANSCRIBE, rules)
            tx, state = tiny.make_state(recipe, shapes)
            step = jax.jit(make_train_step(Asr(shapes), recipe, tx))
            heard[trained, name] = float(step(state, tiny.make_batch(0))[1]["loss"])
    assert heard["adaptor", "noisy"] == heard["adaptor", "plain"]
    trained = "encoder/subsampling"
    assert heard[trained, "noisy"] != heard[trained, "plain"]


def test_rows_that_do_not_divide_are_refused(tiny):
    """The error names both numbers and what to set."""
    message = r"6 rows cannot be cut into micro_batches=4 .* make every data\.batch"
    with pytest.raises(ValueError, match=message):
        update(tiny, tiny.PLAIN_CTC, 4, rows=6)


def test_losses_that_are_no_sums_are_not_cut(tiny):
    """By the setting that couples the rows."""
    coupled = dataclasses.replace(tiny.PLAIN_TRANSCRIBE, imitate=1.0)
    recipe = tiny.make_recipe(coupled)
    with pytest.raises(ValueError, match=r"with loss\.imitate the loss is no sum"):
        dataclasses.replace(recipe, micro_batches=2)
    with pytest.raises(ValueError, match="micro_batches=0 must be ≥ 1"):
        dataclasses.replace(recipe, micro_batches=0)
    reader = ReadPhonemes(tiny.PROMPT, np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match="read_phonemes"):
        dataclasses.replace(tiny.make_recipe(reader), micro_batches=2)
