"""An exported bundle gives what the live model gives, and needs neither it nor Flax."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.decode.endpoint import BlankDetector
from nim4_jax.decode.live.listener import Listener
from nim4_jax.eval import streaming
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.model_files import packing
from nim4_jax.models.asr import Asr
from nim4_jax.ops.chunking import Chunking
from nim4_jax.serving import bundle, bundle_source, export, recognisers
from nim4_jax.types import Frames

BUCKETS = (0.8, 1.6)  # of the tiny model


@pytest.fixture(scope="module")
def live(model_files):
    return recognisers.load(model_files[0]).recogniser


@pytest.fixture(scope="module")
def bundled(bundle_folder):
    return bundle.load(bundle_folder).recogniser


def make_batch(seconds: float, rows: int, seed: int) -> Frames:
    """Noise; rows of all lengths, one of them silent."""
    random, size = np.random.default_rng(seed), round(seconds * SAMPLE_RATE)
    values = random.normal(0, 0.1, (rows, size)).astype(np.float32)
    lengths = random.integers(0, size + 1, rows)
    mask = np.arange(size)[None] < lengths[:, None]
    values[-1] = np.where(rows > 1, 0.0, values[-1])
    return Frames(np.where(mask, values, np.nan).astype(np.float32), mask)


def assert_same(one, other):
    assert one.text == other.text and one.tokens == other.tokens
    assert one.phonemes == other.phonemes and one.finished == other.finished
    assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5 * 30)
    assert one.words == other.words


@settings(max_examples=6)
@given(
    st.sampled_from(BUCKETS),
    st.sampled_from([1, 3]),
    st.integers(0, 99),
    st.sampled_from([(), ("Nova",), ("Nova", "上海")]),
    st.sampled_from([(0, 4), (160, 1)]),
)
def test_whole_recordings(
    model_files, bundle_folder, seconds, rows, seed, hints, chunks
):
    chunk, left = chunks
    audio = make_batch(seconds, rows, seed)
    asked = [hints] * rows if hints else None
    made = [
        recognisers.load(origin, chunk_ms=chunk, left=left).recogniser.transcribe(
            audio, hints=asked
        )
        for origin in (model_files[0], bundle_folder)
    ]
    assert len(made[0]) == rows
    for one, other in zip(*made):
        assert_same(one, other)


def test_posteriors(live, bundled):
    audio = make_batch(1.6, 3, seed=5)
    pairs = zip(live.score_phonemes(audio), bundled.score_phonemes(audio))
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert live.hear_phonemes(audio) == bundled.hear_phonemes(audio)


def tell(recogniser, sizes):
    """Every event of three streams, two of them at once, one with hints."""
    random = np.random.default_rng(3)
    audios = [
        random.normal(0, 0.1, size).astype(np.float32) for size in (9_000, 14_000, 3)
    ]
    detector = BlankDetector(hold=0.04, frame=sizes.rates.frame_samples)
    listener = Listener(recogniser, streams=2, config=sizes, detector=detector)
    return streaming.transcribe(listener, audios, [("Nova",), (), ()])


def test_streams(live, bundled, stream_sizes):
    """In company and alone, with and without hints."""
    told = [tell(recogniser, stream_sizes) for recogniser in (live, bundled)]
    assert told[0] == told[1]
    assert any(getattr(event, "text", "") for events in told[0] for event in events)


def test_another_encoder(whisper_files, whisper_bundle):
    """Whole recordings and streams of a model with Whisper's encoder and features."""
    folder, sizes = whisper_bundle
    live = recognisers.load(whisper_files[0]).recogniser
    bundled = bundle.load(folder).recogniser
    assert bundled.programs.rates == live.programs.rates
    audio = make_batch(1.6, 3, seed=5)
    for one, other in zip(live.score_phonemes(audio), bundled.score_phonemes(audio)):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(live.transcribe(audio), bundled.transcribe(audio)):
        assert_same(one, other)
    assert tell(live, sizes) == tell(bundled, sizes)


def test_features_and_encoder_alone(live, bundled, stream_sizes):
    programs, made = live.programs, bundled.programs
    audio = make_batch(0.8, 2, seed=8)
    model, variables = programs.model, {"params": programs.params}
    wanted = jax.tree.leaves(model.apply(variables, audio, method=Asr.extract))
    got = made.call("features-0.8s", audio)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(got, wanted, strict=True))
    config = stream_sizes
    encoder = model.config.encoder.build(model.config.policy)
    state = encoder.init_state(2, config.left * config.chunk)
    window = config.window
    piece = Frames(audio.values[:, :window], audio.mask[:, :window])

    def encode(asr):
        return asr.encode_chunk(asr.extract_piece(piece), state, config.chunking)

    wanted = jax.tree.leaves(model.apply(variables, method=encode))
    got = made.call("encode_chunk-160ms", piece, jax.tree.map(jnp.copy, state))
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_small_weights(model_files, tmp_path, dtype):
    """The bundle of a rounded model is the rounded model, live."""
    live = str(tmp_path / "rounded.safetensors")
    packing.run(model_files[0], live, dtype, [])
    source = bundle_source.make_source(model_files[0], dtype=dtype, seconds=(0.8,))
    export.write(str(tmp_path / "bundle"), source, platforms=("cpu",))
    audio = make_batch(0.8, 2, seed=2)
    wanted = recognisers.load(live).recogniser.transcribe(audio)
    loaded = bundle.load(str(tmp_path / "bundle"))
    assert loaded.bucket_seconds == (0.8,)
    for one, other in zip(loaded.recogniser.transcribe(audio), wanted, strict=True):
        assert_same(one, other)


def test_bfloat16_throughout(model_files, tmp_path):
    """Matrices stay bfloat16 on the device; posteriors are near those of float32."""
    source = bundle_source.make_source(
        model_files[0], dtype="bfloat16", compute="bfloat16", seconds=(0.8,)
    )
    export.write(str(tmp_path / "bundle"), source, platforms=("cpu",))
    loaded = bundle.load(str(tmp_path / "bundle")).recogniser
    kinds = {leaf.dtype.name for leaf in loaded.programs.params.values()}
    assert kinds == {"bfloat16", "float32"}
    audio = make_batch(0.8, 2, seed=2)
    wanted = recognisers.load(model_files[0]).recogniser.score_phonemes(audio)
    for one, other in zip(loaded.score_phonemes(audio), wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=0.3)
    assert len(loaded.transcribe(audio)) == 2


def test_without_flax_and_without_the_model(bundle_folder, live, tmp_path):
    """Whole recordings and streams, in a process that may import neither."""
    audio = make_batch(0.8, 2, seed=11)
    np.savez(tmp_path / "audio.npz", values=audio.values, mask=audio.mask)
    code = """
        import json, sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                wrong = ("flax", "optax", "orbax", "nim4_jax.models", "nim4_jax.train")
                if any(name == it or name.startswith(it + ".") for it in wrong):
                    raise ImportError(f"{name} is not to be had here")

        sys.meta_path.insert(0, Refuse())
        import numpy as np
        from nim4_jax.decode.endpoint import BlankDetector
        from nim4_jax.decode.live.listener import Listener
        from nim4_jax.decode.live.stream_config import StreamConfig
        from nim4_jax.serving import bundle
        from nim4_jax.types import Frames

        recogniser = bundle.load(sys.argv[1]).recogniser
        audio = Frames(**np.load(sys.argv[2]))
        rows = recogniser.transcribe(audio)
        sizes = recogniser.programs.streams[0]
        listener = Listener(recogniser, config=sizes, detector=BlankDetector(hold=0.04))
        session = listener.open()
        session.feed(audio.values[0][audio.mask[0]])
        session.close()
        events = [type(event).__name__ for _, event in listener.drain()]
        print(json.dumps({"tokens": [row.tokens for row in rows], "events": events}))
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(code),
            bundle_folder,
            tmp_path / "audio.npz",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    wanted = [list(row.tokens) for row in live.transcribe(audio)]
    assert made["tokens"] == wanted
    assert made["events"]


def test_a_shape_compiles_once(bundled):
    audio = make_batch(0.8, 2, seed=1)
    bundled.transcribe(audio)
    run, _ = bundled.programs._programs("transcribe-0.8s")
    before = run._cache_size()
    bundled.transcribe(make_batch(0.8, 2, seed=4))
    assert run._cache_size() == before


def test_sizes_that_are_not_there(bundled, bundle_folder, stream_sizes):
    with pytest.raises(ValueError, match=r"a batch of 1 s: .* programs for 0\.8, 1\.6"):
        bundled.transcribe(make_batch(1.0, 1, seed=0))
    with pytest.raises(ValueError, match=r"chunks of 640 ms.*chunks of 160 ms"):
        Listener(bundled, detector=BlankDetector())
    with pytest.raises(ValueError, match="streams=0 must be ≥ 1"):
        bundled.programs.start(stream_sizes, 0)
    with pytest.raises(ValueError, match="no program 'sing'; it has encode_chunk"):
        bundled.programs.call("sing")
    with pytest.raises(ValueError, match="must be ≥ 0"):
        bundle.load(bundle_folder, chunk_ms=-1)


def test_chunks_are_those_that_were_asked_for(bundle_folder):
    programs = bundle.load(bundle_folder, chunk_ms=640, left=2).recogniser.programs
    assert int(programs.chunking.size) == 16 and int(programs.chunking.left) == 2
    full = bundle.load(bundle_folder).recogniser.programs.chunking
    assert int(full.size) == int(Chunking.full().size)
