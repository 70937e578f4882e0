r"""Stage 4, late joint supervised fine-tuning: everything trains.

python launch/train.py --config=configs/stage4.py:nano --workdir=runs/stage4 \
    --config.init_from=runs/stage2

At `smollm2` an hour of commands would spoil the pretrained LLM: it gets LoRA matrices.
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base, stage2

# An hour of commands is soon learnt by heart; nano's LLM should not.
_LLM_RATES = {"nano": 0.2, "smollm2": None, "base": 1.0, "small": 1.0, "2b3": 1.0}
_STEPS = {
    "nano": 400,
    "smollm2": 300,
    "base": 6_000,
    "small": 1_000_000,
    "2b3": 1_000_000,
}


def get_config(size: str = "") -> ConfigDict:
    """Stage 4 at any size."""
    config = stage2.get_config(size)
    size = base.check_size(size)
    tiny = base.on_laptop(size)
    config.stage = "stage4"
    config.meshes = ConfigDict(base.CUT_MESHES)
    # Where nobody speaks there is nothing to write.
    config.data.nonspeech_share = 0.1
    config.loss.imitate = 0.0
    config.rules = (
        # The phoneme head and the feature statistics stay as stage 1 left them.
        ("(ctc_head|cmvn|phoneme_reader)/.*", None),
        ("(encoder|adaptor)/.*", 1.0),
        ("llm/.*lora_[ab]", 1.0),
        ("llm/.*", _LLM_RATES[size]),
    )
    if size == "smollm2":
        config.model.llm.lora.rank = 16
    config.optimizer = ConfigDict(
        {
            "peak_rate": 4e-4 if tiny else 1e-5,
            "warmup_steps": 30 if tiny else 10_000,
            "weight_decay": 1e-2,
            "final_share": 0.05,
        }
    )
    config.probe = base.probe(size)
    base.set_length(config, _STEPS[size])
    return config
