"""Operations by formula: the rule of 6, 4 and 2, and what the compiler counts."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from nim4_jax.models.asr import Asr, AsrConfig, param_shapes
from nim4_jax.ops.chunking import Chunking
from nim4_jax.train.flops import FlopCounter, Lengths
from nim4_jax.types import Frames

FREEZE_ALL = ((".*", None),)


def make_lengths(frames=40, answer=6, rows=3) -> Lengths:
    return Lengths(np.full(rows, frames), np.full(rows, answer))


def count(config: AsrConfig, loss, rules, lengths=None) -> dict[str, float]:
    return FlopCounter(config, loss, rules).count(lengths or make_lengths())


def weights(config: AsrConfig, part: str) -> float:
    """Scalars in the matrices of a part, counted another way."""
    return sum(
        np.prod(shape)
        for path, shape in param_shapes(config).items()
        if path.startswith(f"{part}/") and path.endswith("kernel")
    )


def test_trained_six_passing_four_frozen_two(tiny):
    """The adaptor alone has no attention, so its share is the plain rule."""
    config, loss = tiny.CONFIG, tiny.PLAIN_TRANSCRIBE
    lengths = make_lengths()
    basis = weights(config, "adaptor") * float(np.sum(lengths.speech))
    for rules, factor in (
        (((".*", 1.0),), 6),
        ((("encoder/.*", 1.0), (".*", None)), 4),
        ((("llm/.*", 1.0), (".*", None)), 2),
        (FREEZE_ALL, 2),
    ):
        assert count(config, loss, rules)["adaptor"] == factor * basis


def test_stages_differ_by_what_passes_a_gradient(tiny):
    """Stage 2: the frozen LLM passes gradients (4), the encoder before it none (2)."""
    config, loss = tiny.CONFIG, tiny.PLAIN_TRANSCRIBE
    frozen = count(config, loss, FREEZE_ALL)
    second = count(config, loss, (("adaptor/.*", 1.0), (".*", None)))
    assert second["encoder"] == frozen["encoder"]
    assert second["unembed"] == 2 * frozen["unembed"]
    fourth = count(config, loss, ((".*", 1.0),))
    for part in frozen:
        assert fourth[part] == 3 * frozen[part]


def test_two_views_cost_twice(tiny):
    """CR-CTC hears every utterance twice."""
    rules = ((".*", 1.0),)
    one = count(tiny.CONFIG, tiny.PLAIN_CTC, rules)
    two = count(tiny.CONFIG, dataclasses.replace(tiny.PLAIN_CTC, views=2), rules)
    assert two == {part: 2 * cost for part, cost in one.items()}


def test_rows_add_up(tiny):
    """A batch costs what its rows cost alone."""
    loss, rules = tiny.PLAIN_TRANSCRIBE, ((".*", 1.0),)
    frames, answer = np.array([10, 33, 80]), np.array([1, 9, 4])
    whole = count(tiny.CONFIG, loss, rules, Lengths(frames, answer))
    parts = [
        count(tiny.CONFIG, loss, rules, Lengths(frames[i : i + 1], answer[i : i + 1]))
        for i in range(3)
    ]
    for name, cost in whole.items():
        assert cost == pytest.approx(sum(part[name] for part in parts))


def compile_encoder(config: AsrConfig, frames: int) -> float:
    """The compiler's count of the encoder's forward pass, with one block."""
    model = Asr(config)

    def run(module: Asr, values) -> jax.Array:
        mask = jax.numpy.ones(values.shape[:2], bool)
        return module.encode(Frames(values, mask), Chunking.full()).values

    shape = (1, config.encoder.frame_stride * frames, config.features.num_mels)
    values = jax.ShapeDtypeStruct(shape, jax.numpy.float32)
    params = jax.eval_shape(nn.init(run, model), jax.random.key(0), values)
    params = nn.unbox(params)
    run_jit = jax.jit(nn.apply(run, model))
    return run_jit.lower(params, values).compile().cost_analysis()["flops"]


def test_the_encoder_costs_what_the_compiler_counts(tiny):
    """With one block nothing is under a scan twice; norms and softmax are the rest."""
    encoder = dataclasses.replace(
        tiny.CONFIG.encoder, width=64, num_heads=4, ffn_factor=4, conv_kernel=15
    )
    config = dataclasses.replace(tiny.CONFIG, encoder=encoder)
    frames = 64
    lengths = Lengths(np.array([frames]), np.array([0]))
    ours = count(config, tiny.PLAIN_CTC, FREEZE_ALL, lengths)["encoder"]
    assert compile_encoder(config, frames) == pytest.approx(ours, rel=0.2)
