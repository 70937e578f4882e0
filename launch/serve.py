"""Serve a model: streams over WebSockets, files over OpenAI's API.

python launch/serve.py --model=runs/demo/stage4
python launch/serve.py --bundle=BUNDLE --host=0.0.0.0 --config=serve.toml

Settings are those of a TOML file, over them NIM4_SERVE_NAME=VALUE, over them the flags.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import app, flags

from nim4_jax.launch import program
from nim4_jax.serving import manifest

_SETTINGS = ("host", "port", "streams", "wyoming_port")


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir or .safetensors file.")
    flags.DEFINE_string("bundle", None, "Instead of a model, what `export` made of it.")
    flags.DEFINE_string("config", "", "TOML file with settings.")
    flags.DEFINE_string("host", None, "Address to listen at.")
    flags.DEFINE_integer("port", None, "Port to listen at.", lower_bound=0)
    flags.DEFINE_integer(
        "wyoming_port", None, "Port of Wyoming, for Home Assistant.", lower_bound=0
    )
    flags.DEFINE_integer("streams", None, "Most streams at once.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Entry point of `launch/serve.py` and `nim4 serve`."""
    given = flags.FLAGS
    if len(argv) > 1 or (given.model and given.bundle):
        raise app.UsageError("Either --model=WORKDIR|FILE or --bundle=BUNDLE, no more.")
    try:
        from nim4_jax.serving.server import config, running
    except ImportError as error:
        raise ValueError(
            f"the server needs {error.name}; install it: pip install -e '.[serve]'."
        ) from error
    if given.bundle:
        manifest.read(given.bundle)
    told = {name: getattr(given, name) for name in _SETTINGS}
    told["model"] = given.model or given.bundle
    told = {name: value for name, value in told.items() if value is not None}
    running.run(config.read(given.config, flags=told))


if __name__ == "__main__":
    program.launch(main, define_flags)
