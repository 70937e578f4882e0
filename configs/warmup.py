r"""Warm-up of an LLM that has no pretrained weights: text only, phonemes → transcript.

Only `nano` needs it; larger sizes start from Qwen3's weights.

python launch/train.py --config=configs/warmup.py:nano --workdir=runs/warmup
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base


def get_config(size: str = "") -> ConfigDict:
    """Warm-up at `nano`."""
    config = base.get_config(size)
    if base.check_size(size) != "nano":
        raise ValueError(
            f"size {size!r} needs no warm-up: start stage 2 from a pretrained LLM."
        )
    config.stage = "warmup"
    config.data = ConfigDict(
        {
            "kind": "text",
            "sources": ("grammar:commands",),
            "batch_size": 64,
            "max_phonemes": (14, 20, 28, 44),
            "max_tokens": 24,
            "seed": 0,
            # A pretrained LLM can spell names that it never met, and looks for them in
            # its prompt; this one has to learn so much of it here.
            "open_names": 0.5,
            "hints": {
                "p_keyword": 0.8,
                "p_none": 0.4,
                "p_misleading": 0.1,
                "extra": 4,
            },
            "suffix_tokens": 40,
        }
    )
    config.loss = ConfigDict({"kind": "read_phonemes", "corrupt": 0.12})
    config.rules = (("(llm|phoneme_reader)/.*", 1.0), (".*", None))
    config.optimizer = ConfigDict(
        {
            "peak_rate": 2e-3,
            "warmup_steps": 100,
            "weight_decay": 1e-2,
            "final_share": 0.05,
        }
    )
    base.set_length(config, 2_000)
    return config
