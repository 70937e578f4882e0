"""Write specs_2b3.json: how every parameter of the full-size model lies on a mesh.

python tests/goldens/make_specs.py

Run it after a change that is meant to move a parameter, and read the difference.
"""

import json
from pathlib import Path

from nim4_jax import sharding
from nim4_jax.configs import stage4
from nim4_jax.model_files import loading
from nim4_jax.models.asr import param_shapes
from nim4_jax.train import placement

PATH = Path(__file__).with_name("specs_2b3.json")


def describe() -> dict[str, list]:
    """Path → [shape, mesh axes of each axis]."""
    config = loading.build_model_config(stage4.get_config("2b3").model.to_dict())
    axes = placement.find_axes(config)
    return {
        path: [list(shape), list(sharding.to_spec(axes[path]))]
        for path, shape in sorted(param_shapes(config).items())
    }


if __name__ == "__main__":
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in describe().items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf8")
