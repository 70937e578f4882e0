r"""Stage 2, alignment: the adaptor learns to speak the LLM's language.

python launch/train.py --config=configs/stage2.py:nano --workdir=runs/stage2 \
    --config.init_from=runs/warmup,runs/stage1

`smollm2` starts from SmolLM2-135M as `nim4 convert` writes it, and nano's stage 1:

python launch/train.py --config=configs/stage2.py:smollm2 --workdir=runs/stage2 \
    --config.init_from=weights/smollm2/model.safetensors,package:nano_stage1.safetensors
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base

_MAX_TOKENS = {
    "nano": (16, 24, 40),
    "smollm2": (24, 36, 48),  # two or three tokens a Chinese character
    "base": (32, 48, 72, 96, 128, 192),
    "small": (48, 80, 128, 256, 512),
    "2b3": (48, 80, 128, 256, 512),
}
_STEPS = {
    "nano": 1_200,
    "smollm2": 800,
    "base": 3_000,
    "small": 1_300_000,
    "2b3": 1_300_000,
}


def get_config(size: str = "") -> ConfigDict:
    """Stage 2 at any size."""
    config = base.get_config(size)
    tiny = base.on_laptop(size)
    # Only nano's LLM knows phonemes, from its warm-up.
    imitates = base.check_size(size) == "nano"
    config.stage = "stage2"
    config.meshes = ConfigDict(base.WHOLE_MESHES)
    config.data.needs = ("tokens",)
    if tiny:  # a third of the bundled commands is Mandarin, which has more to learn
        config.data.sources = (
            "bundled:commands:train",
            "bundled:commands:train?lang=zh|mixed",
        )
    config.data.max_tokens = _MAX_TOKENS[base.check_size(size)]
    config.loss = ConfigDict(
        {
            "kind": "transcribe",
            "imitate": 50.0 if imitates else 0.0,
            "imitate_steps": 900 if imitates else 0,
            "augment": base.augment(warp=0, freq_width=15, time_fraction=0.15),
            "chunks": base.chunks(size),
        }
    )
    config.rules = (("adaptor/.*", 1.0), (".*", None))
    config.optimizer = ConfigDict(
        {
            "peak_rate": 3e-3 if imitates else 1e-3,
            "warmup_steps": 30 if tiny else 10_000,
            "weight_decay": 0.0,
            "final_share": 0.1,
        }
    )
    base.set_length(config, _STEPS[base.check_size(size)])
    # A folder into which stage 1 publishes encoders, maybe still running; alignment
    # stays on the first one. Without a folder, the encoder of `init_from`.
    config.follow = ConfigDict(
        {
            "folder": "",
            "min_steps": 0,
            "last_steps": 0,
            "newest": False,
            "limit_seconds": 86_400.0 if tiny else 30 * 86_400.0,
            "poll_seconds": 5.0 if tiny else 60.0,
        }
    )
    return config
