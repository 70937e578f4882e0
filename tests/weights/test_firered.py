"""FireRedASR's encoder: the reference's numbers, and files that are not trusted.

The numbers are the goldens of tests/goldens/make_firered.py.
"""

import argparse
import collections
import functools
import io
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.layers import Policy
from nim4_jax.model_files import loading
from nim4_jax.models import conformer
from nim4_jax.ops import relative
from nim4_jax.ops.chunking import Chunking, chunk_mask
from nim4_jax.train import optim
from nim4_jax.types import Frames
from nim4_jax.weights import conversion, families, firered, rules

FOLDER = Path(__file__).parents[1] / "goldens"
GOLDENS = dict(np.load(FOLDER / "firered.npz"))
SAVED = FOLDER / "firered.pth.tar"
CONFIG = conformer.ConformerConfig(
    num_layers=2, width=16, num_heads=2, num_mels=20, conv_kernel=5
)
_SOURCE = firered.Weights(str(SAVED))
WEIGHTS = {
    name: np.array(_SOURCE.get(name))
    for name in _SOURCE.specs
    if not firered.is_ignored(name)
}
POLICY = Policy()
TOLERANCE = 1e-4


class Storage:
    """A torch storage as the pickle of a saved file refers to it."""

    def __init__(self, kind, entry):
        self.kind, self.entry = kind, entry


class Global:
    """A name of a module that need not be installed."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("only its name is pickled")


class TorchPickler(pickle._Pickler):
    """Writes what torch.save writes, without torch."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return "storage", Global("torch", obj.kind), obj.entry, "cpu", 0
        return None

    def save_global_name(self, obj):
        self.write(f"c{obj.module}\n{obj.name}\n".encode())

    dispatch = pickle._Pickler.dispatch | {Global: save_global_name}

    def reducer_override(self, obj):
        if isinstance(obj, np.ndarray):
            arguments = (
                Storage("FloatStorage", self.entries[id(obj)]),
                0,
                obj.shape,
                tuple(step // obj.itemsize for step in obj.strides),
                False,
                collections.OrderedDict(),
            )
            return Global("torch._utils", "_rebuild_tensor_v2"), arguments
        return NotImplemented


def save_torch(path, content, tensors):
    """A zip file as torch.save's."""
    stream = io.BytesIO()
    pickler = TorchPickler(stream, protocol=2)
    pickler.entries = {id(tensor): str(n) for n, tensor in enumerate(tensors)}
    pickler.dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", stream.getvalue())
        for number, tensor in enumerate(tensors):
            archive.writestr(f"model/data/{number}", tensor.tobytes())


def write_folder(folder, weights=None, arguments=None, extra=None):
    """A FireRedASR folder: weights of the goldens, decoder and statistics made up."""
    os.makedirs(folder)
    state = collections.OrderedDict(WEIGHTS if weights is None else weights)
    state["decoder.embedding.weight"] = np.zeros((2, 2), np.float32)
    namespace = {
        "idim": 20,
        "n_layers_enc": 2,
        "n_head": 2,
        "d_model": 16,
        "kernel_size": 5,
    }
    content = {
        "args": argparse.Namespace(**(namespace | (arguments or {}))),
        "model_state_dict": state,
        **(extra or {}),
    }
    save_torch(folder / "model.pth.tar", content, list(state.values()))
    stats = np.ones((2, 21))
    stats[0, :-1], stats[0, -1] = 30.0, 10.0
    stats[1, :-1], stats[1, -1] = 10.0 * (9.0 + 4.0), 0.0
    raw = b"\0BDM " + struct.pack("<bibi", 4, 2, 4, 21) + stats.tobytes()
    (folder / "cmvn.ark").write_bytes(raw)


@functools.cache
def load():
    """Our parameters of the goldens' encoder."""
    shapes = conversion.encoder_shapes(CONFIG)
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    for move in rules.plan(firered.RULES, shapes):
        array = move.to_ours(WEIGHTS[move.theirs])
        flat[move.ours][... if move.layer is None else move.layer] = array
    return jax.tree.map(jnp.asarray, optim.unflatten(flat)["encoder"])


def assert_close(got, expected, mask):
    """Largest difference over valid frames."""
    assert np.abs(np.asarray(got) - expected)[np.asarray(mask)].max() <= TOLERANCE


def test_the_encoder_gives_the_references_numbers():
    """Subsampling, each sub-layer, each block, and the whole, on a padded batch."""
    params = load()
    features = Frames(jnp.asarray(GOLDENS["features"]), jnp.asarray(GOLDENS["mask"]))
    model = conformer.Conformer(CONFIG, POLICY)
    frames = model.apply(
        {"params": params}, features, method=lambda m, x: m.subsampling(x)
    )
    mask = np.asarray(frames.mask)
    np.testing.assert_array_equal(mask.sum(axis=1), GOLDENS["lengths"])
    assert_close(frames.values, GOLDENS["subsampling"], mask)
    length = mask.shape[1]
    chunking = Chunking.full()
    context = conformer.BlockContext(
        frames.mask,
        chunk_mask(length, 0, chunking)[None] & frames.mask[:, None],
        jnp.asarray(relative.sinusoids(length, length, CONFIG.width)),
        chunking,
    )
    stack = conformer.ConformerStack(CONFIG, POLICY)
    state = jax.tree.map(lambda x: x[0], stack.init_state(len(mask), 0).blocks)
    hidden = jnp.where(mask[..., None], GOLDENS["subsampling"], 0.0)
    kinds = {
        "ffn1": (conformer.FeedForward, (True,)),
        "attention": (conformer.RelativeAttention, (state, context, True)),
        "conv": (conformer.ConvModule, (state, context, True)),
        "ffn2": (conformer.FeedForward, (True,)),
    }
    for index in range(CONFIG.num_layers):
        own = jax.tree.map(lambda leaf, i=index: leaf[i], params["stack"]["blocks"])
        x = hidden
        for name, (kind, arguments) in kinds.items():
            out = kind(CONFIG, POLICY).apply({"params": own[name]}, x, *arguments)
            out = out[0] if isinstance(out, tuple) else out
            theirs = "mhsa" if name == "attention" else name
            assert_close(out, GOLDENS[f"{theirs}{index}"], mask)
            x = 0.5 * x + 0.5 * out if name.startswith("ffn") else out
        block, _ = conformer.Block(CONFIG, POLICY).apply(
            {"params": own}, hidden, state, context
        )
        assert_close(block, GOLDENS[f"block{index}"], mask)
        hidden = jnp.where(mask[..., None], GOLDENS[f"block{index}"], 0.0)
    whole = model.apply({"params": params}, features, chunking)
    assert_close(whole.values, GOLDENS["output"], mask)


@pytest.mark.parametrize("saved_by", ["torch", "this test"])
def test_a_folder_is_imported(tmp_path, saved_by):
    """Weights to the bit, statistics as mean and inverse deviation."""
    write_folder(tmp_path / "theirs")
    if saved_by == "torch":
        shutil.copyfile(SAVED, tmp_path / "theirs" / "model.pth.tar")
    count = families.convert(
        "firered", str(tmp_path / "theirs"), str(tmp_path / "ours")
    )
    assert count == sum(array.size for array in WEIGHTS.values())
    params, meta = loading.load_model(str(tmp_path / "ours" / conversion.MODEL))
    assert meta["model"]["encoder"]["width"] == 16
    flat, expected = optim.flatten(params["encoder"]), optim.flatten(load())
    assert flat.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(flat[name], array)
    np.testing.assert_allclose(params["cmvn"]["mean"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(params["cmvn"]["scale"], 0.5, rtol=1e-6)


class Harmful:
    """Runs a command when it is unpickled by the wrong hands."""

    def __reduce__(self):
        return os.system, ("touch harm",)


def cut(path, size):
    """Keep the first bytes only."""
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("make", "harm", "message"),
    [
        ({"extra": {"hook": Harmful()}}, None, "posix.system, which is refused"),
        ({"arguments": {"d_model": 32}}, None, "another size"),
        ({"arguments": {"n_layers_enc": 3}}, None, "lacks encoder.layer_stack.2"),
        ({"weights": {}}, None, "lacks encoder"),
        ({}, lambda f: cut(f / "model.pth.tar", 500), "torch.save"),
        ({}, lambda f: cut(f / "cmvn.ark", 100), "complete"),
        ({}, lambda f: cut(f / "cmvn.ark", 0), "no binary Kaldi matrix"),
        ({}, lambda f: (f / "cmvn.ark").unlink(), "cmvn.ark not found"),
    ],
)
def test_bad_files_are_refused(tmp_path, monkeypatch, make, harm, message):
    """Each is named, nothing is run and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "theirs", **make)
    if harm:
        harm(tmp_path / "theirs")
    with pytest.raises(ValueError, match=message):
        families.convert("firered", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert os.listdir(tmp_path) == ["theirs"]


def test_the_large_encoder_has_its_published_size():
    """FireRedASR-AED-L: 16 layers of 1280, 710.5 M parameters."""
    shapes = conversion.encoder_shapes(conformer.ConformerConfig())
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert round(count / 1e6, 1) == 710.5
