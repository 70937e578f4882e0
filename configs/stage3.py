r"""Stage 3, IA-SFT: adaptor and LLM learn on an encoder that is exchanged meanwhile.

python launch/train.py --config=configs/stage3.py:nano --workdir=runs/stage3 \
    --config.init_from=runs/stage2 --config.follow.folder=runs/stage1/releases

Stage 1 publishes the encoders (config.publish.folder) and may still be running.
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base, stage4

# All steps, least steps on an encoder, steps on the final one.
_STEPS = {
    "nano": (300, 60, 100),
    "smollm2": (300, 60, 100),
    "base": (3_000, 600, 1_000),
    "small": (4_000_000, 1_000_000, 2_000_000),
    "2b3": (4_000_000, 1_000_000, 2_000_000),
}


def get_config(size: str = "") -> ConfigDict:
    """Stage 3 at any size: as stage 4, but that the encoder is somebody else's."""
    config = stage4.get_config(size)
    size = base.check_size(size)
    config.stage = "stage3"
    config.rules = (("encoder/.*", None), *config.rules)
    config.data.nonspeech_share = 0.0
    config.probe.every = 0
    steps, config.follow.min_steps, config.follow.last_steps = _STEPS[size]
    base.set_length(config, steps)
    if base.on_laptop(size):  # decisions are taken at checkpoints
        config.checkpoint_every = 20
    return config
