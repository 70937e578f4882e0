r"""Stage 3, IA-SFT: adaptor and LLM learn on an encoder that is exchanged meanwhile.

python launch/train.py --config=configs/stage3.py:nano --workdir=runs/stage3 \
    --config.init_from=runs/stage2 --config.follow.folder=runs/stage1/releases

Stage 1 publishes the encoders (config.publish.folder) and may still be running.
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base, stage2

_LLM_RATES = {"nano": 0.2, "smollm2": None, "small": 1.0, "2b3": 1.0}
# All steps, least steps on an encoder, steps on the final one.
_STEPS = {
    "nano": (300, 60, 100),
    "smollm2": (300, 60, 100),
    "small": (4_000_000, 1_000_000, 2_000_000),
    "2b3": (4_000_000, 1_000_000, 2_000_000),
}


def get_config(size: str = "") -> ConfigDict:
    """Stage 3 at any size."""
    config = stage2.get_config(size)
    size = base.check_size(size)
    tiny = base.on_laptop(size)
    config.stage = "stage3"
    config.loss.imitate = 0.0
    config.rules = (
        ("(encoder|ctc_head|cmvn|phoneme_reader)/.*", None),
        ("adaptor/.*", 1.0),
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
    config.steps, config.follow.min_steps, config.follow.last_steps = _STEPS[size]
    if tiny:  # decisions are taken at checkpoints
        config.checkpoint_every = 20
    return config
