"""Each stage of each size: its config builds, and its rules say what trains."""

import pytest

from nim4_jax.configs import stage1, stage2, stage4, warmup
from nim4_jax.model_files import loading
from nim4_jax.runs import run_settings
from nim4_jax.train import optim, parameter_count
from nim4_jax.train.losses import CrCtc, Transcribe
from nim4_jax.train.text_loss import ReadPhonemes

STAGES = {
    "stage1": (stage1, CrCtc, {"encoder", "ctc_head"}),
    "warmup": (warmup, ReadPhonemes, {"phoneme_reader", "llm"}),
    "stage2": (stage2, Transcribe, {"adaptor"}),
    "stage4": (stage4, Transcribe, {"encoder", "adaptor", "llm"}),
}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_builds_at_nano(stage):
    """The frozen dataclasses of a run, without reading any audio."""
    module, loss, _ = STAGES[stage]
    made = run_settings.build_settings(module.get_config("nano"))
    assert made.stage == stage and isinstance(made.recipe.loss, loss)
    assert made.recipe.steps > made.recipe.optimizer.warmup_steps


@pytest.mark.parametrize(
    "stage, size",
    [*((stage, "nano") for stage in STAGES), ("stage1", "2b3"), ("stage4", "2b3")],
)
def test_rules_train_what_the_stage_is_for(stage, size):
    """Every parameter of the whole model has a rule; the trained parts are these."""
    module, _, trained = STAGES[stage]
    config = module.get_config(size)
    params = parameter_count.trace_params(
        loading.build_model_config(config.model.to_dict())
    )
    params["phoneme_reader"] = {
        "project": {"kernel": params["adaptor"]["up"]["kernel"]}
    }
    trainable, frozen = optim.split_params(params, config.rules)
    assert {path.split("/")[0] for path in trainable} == trained
    assert not trained & {path.split("/")[0] for path in frozen}


def test_the_warm_up_of_base_reads_sentences_and_nano_is_left_as_it_was():
    """Written texts, misheard at rates of their own; their texts fit their LLM."""
    made = run_settings.build_settings(warmup.get_config("base"))
    assert made.data.style == "written" and made.recipe.loss.corrupt == (0.0, 0.4)
    assert made.model.llm.vocab_size == 9216
    assert made.recipe.loss.errors is not None
    nano = run_settings.build_settings(warmup.get_config("nano"))
    assert nano.data.style == "plain" and nano.recipe.loss.errors is None


def test_a_size_with_a_pretrained_llm_needs_no_warm_up():
    """The error says what to do instead."""
    with pytest.raises(ValueError, match="'2b3' needs no warm-up: start stage 2"):
        warmup.get_config("2b3")
