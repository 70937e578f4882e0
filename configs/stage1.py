r"""Stage 1, encoder pre-training: phoneme CR-CTC under dynamic chunks.

python launch/train.py --config=configs/stage1.py:nano --workdir=runs/stage1
"""

from ml_collections import ConfigDict

from nim4_jax.configs import base


def get_config(size: str = "") -> ConfigDict:
    """Stage 1 at any size."""
    config = base.get_config(size)
    tiny = base.on_laptop(size)
    # Encoders of others have heard people before.
    pretrained = "+" in size or base.check_size(size) == "base"
    config.stage = "stage1"
    config.meshes = ConfigDict(base.WHOLE_MESHES)
    config.data.needs = ("phonemes",)
    config.loss = ConfigDict(
        {
            "kind": "cr_ctc",
            "views": 2,
            "alpha": 0.2,
            "alpha_warmup": 500 if tiny else 10_000,
            "flat_start": 0,
            "augment": base.augment(warp=40 if tiny else 80),
            "chunks": base.chunks(size),
            # One view without chunks beside one with: for an encoder that hears whole
            # utterances well already.
            "dual": pretrained,
        }
    )
    # A tuple in place of a rate has one for each layer of a stack.
    config.rules = (
        ("(encoder|ctc_head)/.*", 1.0),
        (".*", None),
    )
    if size == "base":  # adapted already; the weights of others: `nim4 convert`
        config.init_from = "package:base_stage1.safetensors"
    if pretrained:  # the head is not
        config.rules = (("ctc_head/.*", 5.0), ("encoder/.*", 1.0), (".*", None))
    config.optimizer = ConfigDict(
        {
            "peak_rate": 1e-4 if pretrained else 2e-3 if tiny else 5e-4,
            "warmup_steps": 300 if tiny else 10_000,
            "weight_decay": 1e-2,
            "final_share": 0.05,
        }
    )
    base.set_length(config, 6_000 if tiny else 2_000_000)
    # Encoders for stages 2 and 3 to train on meanwhile; without a folder, none.
    config.publish = ConfigDict(
        {
            "folder": "",
            "from_step": 1_000 if tiny else 500_000,
            "every": 200 if tiny else 10_000,
            "threshold": 0.975,
            "sources": base.held_out(size),
            "batches": 4,
        }
    )
    return config
