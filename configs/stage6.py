r"""Stage 6, reinforcement learning: GRPO on the model's own transcripts.

python launch/train.py --config=configs/stage6.py:nano --workdir=runs/stage6 \
    --config.init_from=runs/stage5
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base, stage4, stage5


def get_config(size: str = "") -> ConfigDict:
    """Stage 6 at any size."""
    config = stage4.get_config(size)
    tiny = base.on_laptop(size)
    config.stage = "stage6"
    # On four devices about 20,000 utterances, of which each is sampled several times.
    base.set_length(config, 80 if tiny else 1_500)
    config.reference = True
    config.rules = (("reference/.*", None), *config.rules)
    config.loss = ConfigDict(
        {
            "kind": "grpo",
            "samples": 6 if tiny else 8,
            "hottest": 1.0,
            "coolest": 0.7,
            # One update of each rollout: every ratio is 1, so there is nothing to clip.
            "objective": {"beta": 0.04},
            "rewards": {"accuracy": 1.0, "hallucination": 0.5, "context": 0.5},
            "budget": {"first": 8, "per_second": 8.0, "most": 64 if tiny else 448},
            "chunks": base.chunks(size),
            "vocab_chunk": 128,
            # DAPO's dynamic sampling: roll flat groups out again, drop those that stay.
            "oversample": 1,
            "drop_flat": False,
            # Nats between sampler and trainer that 0.5 % of a step's tokens may exceed
            # before the run stops; 0: by the dtype.
            "drift_limit": 0.0,
        }
    )
    # The last devices sample and the others train; 0: all do both, by turns.
    config.rollout_devices = 0
    config.data.noise_share = 0.0
    if not tiny:
        config.data.device_seconds = 30.0
    config.data.nonspeech_share = 0.2
    # A random part of the names that are said, and few that are not.
    shares = {"p_keyword": 0.5, "p_distractor": 0.3, "p_none": 0.3, "most": 4}
    config.data.hints = ConfigDict(stage5.hints(size, **shares))
    config.data.hints.wanted_tokens = 32 if tiny else 64
    config.optimizer.peak_rate = 3e-5 if tiny else 2e-6
    config.optimizer.warmup_steps = 0
    return config
