r"""Stage 5, context fine-tuning: names in the prompt help, and mislead as little.

python launch/train.py --config=configs/stage5.py:nano --workdir=runs/stage5 \
    --config.init_from=runs/stage4
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base, stage4


def hints(size: str, **shares: float) -> dict:
    """How names are drawn for prompts, and the room that they have."""
    tiny = base.on_laptop(size)
    return {
        "draw": {
            "p_keyword": 0.8,
            "p_distractor": 0.5,
            "p_none": 0.2,
            "p_misleading": 0.25,
            "extra": 3 if tiny else 8,
            "most": 6 if tiny else 20,
            **shares,
        },
        # Lists of further names, and of names that count in rewards though no prompt
        # names them.
        "names": "",
        "important": "",
        "suffix_tokens": 48 if tiny else 192,
        "wanted_tokens": 0,
        # Names that distractors are drawn from, at most.
        "pool": 20_000,
    }


def get_config(size: str = "") -> ConfigDict:
    """Stage 5 at any size."""
    config = stage4.get_config(size)
    tiny = base.on_laptop(size)
    config.stage = "stage5"
    config.data.hints = ConfigDict(hints(size))
    # Long recordings say more names, and name them in more context.
    config.data.long_seconds = 3.0 if tiny else 10.0
    config.data.long_weight = 1.0
    config.optimizer.peak_rate = 1e-4 if tiny else 1e-6
    base.set_length(config, 300 if tiny else 100_000)
    return config
