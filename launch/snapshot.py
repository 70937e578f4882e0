"""Pack a trained model into one file: nim4 snapshot --model=WORKDIR --out=FILE.

The file can stand wherever a workdir can: --model, --config.init_from.
"""

from __future__ import annotations

from absl import flags

from nim4_jax.launch import program
from nim4_jax.model_files import packing


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or snapshot.", required=True)
    flags.DEFINE_string("out", None, "File to write, *.safetensors.", required=True)
    flags.DEFINE_enum(
        "dtype",
        "bfloat16",
        ["bfloat16", "float32", "int8"],
        "Of matrices; vectors stay whole. int8: kernels and tables, for inference.",
    )
    flags.DEFINE_bool("merge_lora", False, "Put LoRA's products into the kernels.")
    flags.DEFINE_list("parts", [], "Parts to keep, as encoder,ctc_head; all if empty.")


def main(_) -> None:
    """Entry point of `nim4 snapshot`."""
    given = flags.FLAGS
    packing.run(given.model, given.out, given.dtype, given.parts, given.merge_lora)


if __name__ == "__main__":
    program.launch(main, define_flags)
