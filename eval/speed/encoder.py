"""The encoder's forward pass: ours against FireRedASR's torch module, same weights."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.eval.speed import measure
from nim4_jax.layers import Policy
from nim4_jax.models.conformer import Conformer, ConformerConfig
from nim4_jax.ops.chunking import Chunking
from nim4_jax.text.phonemes import INVENTORY_HASH
from nim4_jax.types import Frames, Params
from nim4_jax.weights import conversion, firered, rules, snapshot
from nim4_jax.weights.tensor_file import Spec

_CONFIG = ConformerConfig(num_layers=8, width=512, num_heads=8)
_ROWS, _SECONDS, _FRAMES_PER_SECOND = 4, 20, 100
_TOLERANCE = 1e-3


def load_reference() -> ModuleType:
    """FireRedASR's `conformer_encoder.py` alone; its package wants much more.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec("fireredasr2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "FireRedASR's code is not installed; "
            "pip install --no-deps fasr-asr-firered==0.5.8 brings it."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / "models" / "module" / "conformer_encoder.py"
    source = importlib.util.spec_from_file_location("firered_encoder", path)
    if source is None or source.loader is None:
        raise ValueError(f"{path} is not there; install fasr-asr-firered==0.5.8.")
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module


class _State:
    """The tensors of a torch module, as `conversion` reads them."""

    def __init__(self, module: Any):
        self._tensors = {f"encoder.{k}": v for k, v in module.state_dict().items()}
        self.specs: dict[str, Spec] = {
            name: (tuple(tensor.shape), np.dtype(np.float32))
            for name, tensor in self._tensors.items()
        }

    def get(self, name: str) -> np.ndarray:
        return self._tensors[name].numpy()


def _convert(module: Any) -> Params:
    """Their parameters as ours."""
    shapes = conversion.encoder_shapes(_CONFIG)
    moves = rules.plan(firered.RULES, shapes)
    meta = {"model": {}, "phonemes": INVENTORY_HASH}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, conversion.MODEL)
        conversion.move_in(_State(module), moves, shapes, path, meta, lambda *_: None)
        params, _ = snapshot.read(path)
    return params["encoder"]


def run(full: bool, threads: int) -> list[measure.Row]:
    """Log-mel [4, 2000, 80] of which all frames are real → encoder frames.

    Raises:
        ValueError: the two give different numbers.
    """
    torch = measure.need("torch")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = load_reference().ConformerEncoder(
        idim=_CONFIG.num_mels,
        n_layers=_CONFIG.num_layers,
        n_head=_CONFIG.num_heads,
        d_model=_CONFIG.width,
        kernel_size=_CONFIG.conv_kernel,
    )
    peer = module.eval()
    params = jax.device_put(_convert(peer))
    model = Conformer(_CONFIG, Policy())
    apply = jax.jit(model.apply)
    shape = (_ROWS, _SECONDS * _FRAMES_PER_SECOND, _CONFIG.num_mels)
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    frames = Frames(jnp.asarray(features), jnp.ones(shape[:2], bool))
    tensor = torch.from_numpy(features)
    lengths = torch.full((_ROWS,), shape[1])

    def ours() -> np.ndarray:
        outputs = apply({"params": params}, frames, Chunking.full())
        return np.asarray(outputs.values)

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            return peer(tensor, lengths)[0].numpy()

    difference = np.abs(ours() - theirs()).max()
    if difference > _TOLERANCE:
        raise ValueError(f"the two differ by {difference}; a ratio would mean nothing.")
    return [
        measure.compare(
            "encoder_8x512_20s_batch4_ms",
            "ms",
            ours,
            theirs,
            peer_name="FireRedASR ConformerEncoder, torch",
            runs=15 if full else 5,
        )
    ]
