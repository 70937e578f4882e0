r"""Warm-up of an LLM that has no pretrained weights: text only, phonemes → transcript.

`nano` and `base` need it; larger sizes start from Qwen3's weights. `nano` reads the
texts of the command grammar; `base` reads whole sentences, so give it text files:

python launch/train.py --config=configs/warmup.py:nano --workdir=runs/warmup
python launch/train.py --config=configs/warmup.py:base --workdir=runs/warmup_base \
    "--config.data.sources=(('en.tsv.xz?tag=novels',0.1),('zh.txt',0.5))"
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base

_HINTS = {"p_keyword": 0.8, "p_none": 0.4, "p_misleading": 0.1, "extra": 4}


def get_config(size: str = "") -> ConfigDict:
    """Warm-up at `nano` or `base`."""
    config = base.get_config(size)
    size = base.check_size(size)
    if size not in ("nano", "base"):
        raise ValueError(
            f"size {size!r} needs no warm-up: start stage 2 from a pretrained LLM."
        )
    config.stage = "warmup"
    config.rules = (("(llm|phoneme_reader)/.*", 1.0), (".*", None))
    if size == "base":
        _set_base(config)
    else:
        _set_nano(config)
    return config


def _set_nano(config: ConfigDict) -> None:
    """Commands, in lower case; names drawn from lists without end."""
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
            "hints": _HINTS,
            "suffix_tokens": 40,
        }
    )
    config.loss = ConfigDict({"kind": "read_phonemes", "corrupt": 0.12})
    config.optimizer = ConfigDict(
        {
            "peak_rate": 2e-3,
            "warmup_steps": 100,
            "weight_decay": 1e-2,
            "final_share": 0.05,
        }
    )
    base.set_length(config, 2_000)


def _set_base(config: ConfigDict) -> None:
    """Sentences with case and punctuation, misheard as the packaged encoder does."""
    config.data = ConfigDict(
        {
            "kind": "text",
            # Text files with weights: "sentences.tsv.xz?tag=a|b"; see data.md.
            "sources": ("grammar:commands",),
            "style": "written",
            "batch_size": 48,
            "max_phonemes": (32, 48, 64, 96, 136),
            "max_tokens": (24, 32, 42, 60, 80),
            "window": 16,
            "seed": 0,
            # Of the sentences, so many have a name that nobody can guess.
            "open_names": 0.25,
            "hints": _HINTS,
            "suffix_tokens": 40,
        }
    )
    config.loss = ConfigDict(
        {
            "kind": "read_phonemes",
            # The head hears 10 to 30 % of people's phonemes wrong, in noise 40 %.
            "corrupt": (0.0, 0.4),
            # Of the packaged encoder's head; "" for what sounds alike.
            "confusions": "base",
            "frames_per_phoneme": 3,
            "pace": (1.3, 2.8),
        }
    )
    # With what is computed again, 48 rows fit into less than 8 GB.
    config.update_from_flattened_dict(
        {"model.policy.operands": "bfloat16", "model.remat": "dots"}
    )
    config.optimizer = ConfigDict(
        {
            "peak_rate": 1.5e-3,
            "warmup_steps": 400,
            "weight_decay": 5e-2,
            "final_share": 0.02,
        }
    )
    base.set_length(config, 12_000)
