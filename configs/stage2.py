r"""Stage 2, alignment: the adaptor learns to speak the LLM's language.

python launch/train.py --config=configs/stage2.py:nano --workdir=runs/stage2 \
    --config.init_from=runs/warmup,runs/stage1
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base


def get_config(size: str = "") -> ConfigDict:
    """Stage 2 at `nano`, `small` or `2b3`."""
    config = base.get_config(size)
    tiny = base.check_size(size) == "nano"
    config.stage = "stage2"
    config.data.needs = ("tokens",)
    if tiny:  # a third of the bundled commands is Mandarin, which has more to learn
        config.data.sources = (
            "bundled:commands:train",
            "bundled:commands:train?lang=zh|mixed",
        )
    config.data.max_tokens = (16, 24, 40) if tiny else (48, 80, 128, 256, 512)
    config.loss = ConfigDict(
        {
            "kind": "transcribe",
            # Only nano's LLM knows phonemes, from its warm-up.
            "imitate": 50.0 if tiny else 0.0,
            "imitate_steps": 900 if tiny else 0,
            "augment": base.augment(warp=0, freq_width=15, time_fraction=0.15),
            "chunks": {"full_share": 0.5, "largest": 25, "unlimited_left": 0.5},
        }
    )
    config.rules = (("adaptor/.*", 1.0), (".*", None))
    config.optimizer = ConfigDict(
        {
            "peak_rate": 3e-3 if tiny else 1e-3,
            "warmup_steps": 30 if tiny else 10_000,
            "weight_decay": 0.0,
            "final_share": 0.1,
        }
    )
    config.steps = 1_200 if tiny else 1_300_000
    return config
