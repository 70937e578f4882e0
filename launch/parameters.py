"""Count a model by part: python launch/parameters.py --config=configs/stage4.py:2b3.

Nothing is allocated: the model is initialised abstractly, so any size counts anywhere.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from nim4_jax.launch import program
from nim4_jax.model_files import loading
from nim4_jax.train import parameter_count


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", lock_config=True)


def main(_) -> None:
    """Entry point of `nim4 parameters`."""
    if flags.FLAGS.config is None:
        raise ValueError("--config=configs/STAGE.py:SIZE is needed.")
    config = loading.build_model_config(flags.FLAGS.config.to_dict()["model"])
    print(
        parameter_count.format_table(
            parameter_count.count_parts(parameter_count.trace_params(config))
        )
    )


if __name__ == "__main__":
    program.launch(main, define_flags)
