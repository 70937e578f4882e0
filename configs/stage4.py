r"""Stage 4, late joint supervised fine-tuning: everything trains.

python launch/train.py --config=configs/stage4.py:nano --workdir=runs/stage4 \
    --config.init_from=runs/stage2
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base, stage2


def get_config(size: str = "") -> ConfigDict:
    """Stage 4 at `nano`, `small` or `2b3`."""
    config = stage2.get_config(size)
    tiny = base.check_size(size) == "nano"
    config.stage = "stage4"
    config.loss.imitate = 0.0
    config.rules = (
        # The phoneme head and the feature statistics stay as stage 1 left them.
        ("(ctc_head|cmvn|phoneme_reader)/.*", None),
        ("(encoder|adaptor)/.*", 1.0),
        # An hour of commands is soon learnt by heart; nano's LLM should not.
        ("llm/.*", 0.2 if tiny else 1.0),
    )
    config.optimizer = ConfigDict(
        {
            "peak_rate": 4e-4 if tiny else 1e-5,
            "warmup_steps": 30 if tiny else 10_000,
            "weight_decay": 1e-2,
            "final_share": 0.05,
        }
    )
    config.steps = 400 if tiny else 1_000_000
    return config
