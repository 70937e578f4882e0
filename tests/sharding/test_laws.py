"""Law 4: 8 devices in any mesh shape give what one device gives, in every stage.

Every stage on every mesh is a long test; two stages on one mesh each are not.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from nim4_jax import features, sharding
from nim4_jax.aot import collectives
from nim4_jax.configs import stage4
from nim4_jax.decode import offline
from nim4_jax.decode.programs import Budget
from nim4_jax.features import FeatureConfig, WhisperFeatures
from nim4_jax.model_files import loading
from nim4_jax.models.asr import Asr
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.ops.chunking import DynamicChunks
from nim4_jax.rl.objective import PARTS, Grpo
from nim4_jax.rl.worker import RolloutWorker, make_writer, outline
from nim4_jax.train import loop, placement
from nim4_jax.train import state as train_state
from nim4_jax.train.losses import CrCtc, Transcribe
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.step import make_train_step
from nim4_jax.types import Labels

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]
QUICK = {"stage5": (1, 4, 2), "stage6": (2, 2, 2)}
STAGES = [*(f"stage{number}" for number in range(1, 7)), "phoneme_head"]
ROWS, STEPS = 8, 2
CHUNKED = DynamicChunks(full_share=0.0, largest=4)


class Longest:
    """Rewards the share of one token."""

    class decoder:
        end_id = 1

    def __call__(self, ids, mask, said, said_mask):
        hits = np.sum((np.asarray(ids) == 7) & np.asarray(mask), axis=1)
        return hits.reshape(len(said), -1).astype(np.float32)


def make_recipes(tiny) -> dict[str, Recipe]:
    """What each stage minimises and trains."""
    answer = Transcribe(tiny.PROMPT, chunks=CHUNKED, vocab_chunk=2)
    budget = Budget(first=3, per_second=4.0, most=4)
    grpo = Grpo(tiny.PROMPT, Longest(), steps=10, samples=2, budget=budget)
    everything = (("cmvn/.*", None), (".*", 1.0))
    table = {
        "stage1": (CrCtc(chunks=CHUNKED), everything),
        "stage2": (answer, (("adaptor/.*", 1.0), (".*", None))),
        "stage3": (answer, (("(encoder|cmvn)/.*", None), (".*", 1.0))),
        "stage4": (answer, everything),
        "stage6": (grpo, (("reference/.*", None), *everything)),
        "phoneme_head": (CrCtc(), (("ctc_head/.*", 1.0), (".*", None))),
    }
    made = {
        name: tiny.make_recipe(loss, rules) for name, (loss, rules) in table.items()
    }
    # Rows with hints of their own, and the batch in two parts.
    made["stage5"] = dataclasses.replace(made["stage4"], micro_batches=2)
    made["stage6"] = dataclasses.replace(made["stage6"], reference=True)
    return made


@pytest.fixture(scope="module")
def config(tiny):
    """A tiny model that a tensor axis of 2 divides."""
    llm = dataclasses.replace(tiny.CONFIG.llm, num_kv_heads=2)
    return dataclasses.replace(tiny.CONFIG, llm=llm)


def make_batch(tiny, stage: str, seed: int):
    """Rows of several lengths; of stage 5 with a suffix each."""
    batch = tiny.make_batch(seed, rows=ROWS)
    if stage != "stage5":
        return batch
    ids = np.arange(2 * ROWS, dtype=np.int32).reshape(ROWS, 2)
    mask = np.ones((ROWS, 2), bool)
    mask[1, 1] = False
    return dataclasses.replace(batch, suffix=Labels(ids, mask))


def train(tiny, config, stage: str, shape: tuple[int, int, int]):
    """Parameters and metrics after two steps on a mesh.

    Plain gradient descent: Adam would blow the round-off of parameters that have no
    effect (a shift of all keys, say) up to whole steps.
    """
    recipe, tx = make_recipes(tiny)[stage], optax.sgd(0.1)
    params = train_state.add_reference(tiny.make_params(recipe, config), recipe)
    state = train_state.init_state(params, recipe, tx)
    prepare = loop.keep
    if isinstance(recipe.loss, Grpo):
        prepare = RolloutWorker(Asr(config), recipe).prepare
    with jax.set_mesh(sharding.make_mesh(shape)):
        state = placement.place(state, config)
        lies = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = jax.jit(
            make_train_step(Asr(config), recipe, tx),
            donate_argnums=0,
            out_shardings=(lies, sharding.replicated()),
        )
        metrics = {}
        for seed in range(STEPS):
            batch = prepare(state, make_batch(tiny, stage, seed))
            batch = sharding.put_batch(batch)
            state, metrics = step(state, batch)
        assert step._cache_size() == 1
        return jax.device_get((state.params, metrics))


close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)


def check_training(tiny, config, stage: str, shapes) -> None:
    """The same parameters and metrics to 1e-5."""
    expected = train(tiny, config, stage, (1, 1, 1))
    for shape in shapes:
        jax.tree.map(close, train(tiny, config, stage, shape), expected)


@pytest.mark.parametrize("stage", QUICK)
def test_a_mesh_trains_as_one_device(tiny, config, stage):
    """The two longest losses on a mesh of more than rows."""
    check_training(tiny, config, stage, [QUICK[stage]])


@pytest.mark.parametrize("kind", [FeatureConfig, WhisperFeatures])
def test_features_are_made_where_the_audio_lies(tiny, kind):
    """No device hears what lies on another, and the values are those of one device."""
    audio, made = tiny.make_batch(0, rows=16).audio, kind(num_mels=16)
    extract = jax.jit(lambda given: features.log_mel(given, made))
    expected = extract(audio)
    with jax.set_mesh(sharding.make_mesh((4, 2, 1))):
        placed = sharding.put_batch(audio)
        program = extract.lower(placed).compile()
        assert not collectives.read(program.as_text())
        jax.tree.map(close, jax.device_get(program(placed)), expected)


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "size"),
    [
        *itertools.product(("stage1", "stage2", "stage4"), ("tiny", "nano")),
        ("stage6", "tiny"),
    ],
)
def test_a_step_has_all_reduces_only(tiny, config, stage, size):
    """Where parameters are whole everywhere, each device keeps to its own rows."""
    if size == "nano":
        values = stage4.get_config("nano").model.to_dict()
        config = loading.build_model_config(values)
    recipe, tx = make_recipes(tiny)[stage], optax.sgd(0.1)
    params = train_state.add_reference(tiny.make_params(recipe, config), recipe)
    state = train_state.init_state(params, recipe, tx)
    with jax.set_mesh(sharding.make_mesh((8, 1, 1))):
        state = placement.place(state, config)
        lies = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = jax.jit(
            make_train_step(Asr(config), recipe, tx),
            out_shardings=(lies, sharding.replicated()),
        )
        batch = make_batch(tiny, stage, 0)
        if stage == "stage6":
            rolled = outline(Asr(config), recipe, state.params, batch)
            batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), rolled)
        program = step.lower(state, sharding.put_batch(batch)).compile().as_text()
    assert set(collectives.read(program)) == {"all-reduce"}


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1)])
def test_each_device_writes_its_own_rows(tiny, config, shape):
    """Nothing is sent but parameters, and these before the loop over tokens."""
    recipe = make_recipes(tiny)["stage6"]
    params = tiny.make_params(recipe, config)
    with jax.set_mesh(sharding.make_mesh(shape)):
        placed = placement.place({part: params[part] for part in PARTS}, config)
        batch = sharding.put_batch(make_batch(tiny, "stage6", 0))
        chosen = sharding.put_batch(np.ones(ROWS, bool))
        write = jax.jit(make_writer(Asr(config), recipe))
        start = np.int32(0)
        program = write.lower(placed, batch, start, start, chosen).compile()
        written = program(placed, batch, start, start, chosen)
    text = program.as_text()
    assert not collectives.read_open_loops(text)
    assert bool(collectives.read(text)) == (shape[1] > 1)
    assert written.tokens.sharding.is_equivalent_to(chosen.sharding, 3)


@pytest.fixture(scope="module")
def whisper(config):
    """The same behind Whisper's encoder, on its features."""
    encoder = WhisperEncoderConfig(
        num_layers=1, width=16, num_heads=2, num_mels=16, ffn_factor=2
    )
    return dataclasses.replace(
        config,
        features=WhisperFeatures(num_mels=16),
        encoder=encoder,
        speech_stride=8,
    )


def test_a_mesh_trains_another_encoder_as_one_device(tiny, whisper):
    check_training(tiny, whisper, "stage1", [(2, 2, 2)])


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_any_mesh_trains_another_encoder_as_one_device(tiny, whisper, stage):
    check_training(tiny, whisper, stage, MESHES[1:3])


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_any_mesh_trains_as_one_device(tiny, config, stage):
    """Every stage on the meshes that the quick test leaves."""
    left = [shape for shape in MESHES if shape != QUICK.get(stage)]
    check_training(tiny, config, stage, left)


@pytest.fixture(scope="module")
def decode(tiny, config):
    """Mesh shape → what the model writes there for one batch."""
    recipe = make_recipes(tiny)["stage4"]
    params = tiny.make_params(recipe, config)
    model, batch = Asr(config), tiny.make_batch(0, rows=ROWS)

    def listen(module: Asr, audio):
        chunks = CHUNKED.draw(jax.random.key(0), 8)
        frames = module.encode(module.extract(audio), chunks)
        return module.assemble(module.adapt(frames), tiny.PROMPT)

    def read(given, audio):
        return model.apply({"params": given}, audio, method=listen)

    @functools.cache
    def write(shape):
        with jax.set_mesh(sharding.make_mesh(shape)):
            placed = placement.place(params, config)
            audio = sharding.put_batch(batch.audio)
            sequence = jax.jit(read)(placed, audio)
            made = offline.generate(
                offline.qwen3.Qwen3(config.llm, config.policy),
                placed["llm"],
                sequence.frames(),
                offline.Stop(6, end_id=0),
            )
            return jax.device_get(made)

    return write


@pytest.mark.parametrize(
    "shape",
    [*(pytest.param(shape, marks=pytest.mark.long) for shape in MESHES[:3]), MESHES[3]],
)
def test_any_mesh_decodes_as_one_device(decode, shape):
    """The same tokens, and log-probabilities to 1e-5."""
    expected, made = decode((1, 1, 1)), decode(shape)
    assert expected.mask.sum() > ROWS
    np.testing.assert_array_equal(made.tokens, expected.tokens)
    close(made.log_probs, expected.log_probs)
