r"""Stage 7, the phoneme head for hotword retrieval: trained anew on the final encoder.

python launch/train.py --config=configs/phoneme_head.py:nano --workdir=runs/head \
    --config.init_from=runs/stage6

It begins as stage 1's CTC head; the encoder, which has changed since, is frozen.
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base, stage1


def get_config(size: str = "") -> ConfigDict:
    """The phoneme head at any size."""
    config = stage1.get_config(size)
    tiny = base.on_laptop(size)
    config.stage = "phoneme_head"
    config.rules = (
        ("ctc_head/.*", 1.0),
        (".*", None),
    )
    config.loss.alpha_warmup = 1
    config.optimizer.peak_rate = 1e-3 if tiny else 2e-4
    config.optimizer.warmup_steps = 20 if tiny else 2_000
    base.set_length(config, 300 if tiny else 100_000)
    return config
