"""Bundles that are broken, foreign or of another time are refused by name."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.rates import Rates
from nim4_jax.serving import (
    bundle,
    bundle_source,
    export,
    exporting,
    manifest,
    recognisers,
)
from nim4_jax.serving.manifest import BundleError


@pytest.fixture
def folder(bundle_folder, tmp_path) -> Path:
    """A copy, to be broken."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy"))


def change(folder: Path, **facts) -> None:
    """Write other facts into the manifest."""
    path = folder / manifest.FILE
    values = json.loads(path.read_text(encoding="utf8"))
    path.write_text(json.dumps(values | facts), encoding="utf8")


def test_the_manifest_says_what_is_there(bundle_folder):
    facts = manifest.read(bundle_folder)
    assert facts.schema == manifest.SCHEMA and facts.platforms == manifest.PLATFORMS
    found = {
        path.relative_to(bundle_folder).as_posix()
        for path in Path(bundle_folder).rglob("*")
        if path.is_file()
    }
    assert found == {*facts.files, manifest.FILE}
    assert {program.file for program in facts.programs.values()} <= found
    transcribe = facts.programs["transcribe-0.8s"]
    values = transcribe.arguments[0]
    assert (values.name, values.shape) == ("audio.values", ("b", 12_800))
    assert transcribe.results[0].name == "heard.log_probs"
    assert set(transcribe.parameters) == set(facts.parameters)
    tick = facts.programs["tick-160ms-32"]
    names = [argument.name.split(".")[0] for argument in tick.arguments]
    assert {names[number] for number in tick.donated} == {"state"}
    assert len(tick.donated) == names.count("state") > 0
    assert facts.made_with["jax"] and facts.licences["weights"] == "not stated"


@pytest.mark.parametrize(
    "name",
    [
        manifest.WEIGHTS,
        manifest.TOKENIZER,
        manifest.PHONEMES,
        manifest.PROMPT,
        "programs/tick-160ms-32.stablehlo",
    ],
)
@pytest.mark.parametrize(
    ("harm", "message"),
    [("flip", "is corrupt"), ("cut", "was cut off"), ("lose", "is missing")],
)
def test_every_file_is_checked(folder, name, harm, message):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "lose":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flip" else data[:-1])
    with pytest.raises(BundleError, match=rf"{name}.*{message}"):
        recognisers.load(str(folder))


@pytest.mark.parametrize("name", [*manifest.NEEDED, "programs/tick-160ms-32.stablehlo"])
def test_what_is_not_listed_is_not_loaded(folder, name):
    facts = json.loads((folder / manifest.FILE).read_text(encoding="utf8"))
    del facts["files"][name]
    change(folder, files=facts["files"])
    for check in (True, False):
        with pytest.raises(BundleError, match=rf"does not list '{name}'"):
            bundle.load(str(folder), check=check)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "programs/../../x"])
def test_no_program_lies_outside_of_the_bundle(folder, path):
    facts = json.loads((folder / manifest.FILE).read_text(encoding="utf8"))
    facts["programs"]["hear-0.8s"]["file"] = path
    facts["files"][path] = {"bytes": 1, "sha256": "0" * 64}
    change(folder, **facts)
    for check in (True, False):
        with pytest.raises(BundleError, match=r"outside of the bundle"):
            bundle.load(str(folder), check=check)


@pytest.mark.parametrize("key", ["texts", "prefix", "suffix", "end_id"])
def test_another_prompt_is_refused(folder, key):
    """Listed with its own sum, as an exporter of another version would."""
    path = folder / manifest.PROMPT
    values = json.loads(path.read_text(encoding="utf8"))
    values[key] = [1, 2, 3]
    path.write_text(json.dumps(values), encoding="utf8")
    change(folder, files=manifest.list_files(folder))
    with pytest.raises(BundleError, match=r"prompt.json says .* this package uses"):
        bundle.load(str(folder))


def test_a_program_that_changes_after_loading_is_not_run(folder):
    loaded = bundle.load(str(folder)).recogniser
    other = (folder / "programs/hear-1.6s.stablehlo").read_bytes()
    (folder / "programs/hear-0.8s.stablehlo").write_bytes(other)
    with pytest.raises(BundleError, match=r"hear-0.8s.stablehlo has .* manifest says"):
        loaded.programs._open("hear-0.8s")


@pytest.mark.parametrize("cut", [0, 4, 100, -7])
def test_weights_that_are_cut_are_refused_even_unchecked(folder, cut):
    path = folder / manifest.WEIGHTS
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BundleError, match=r"weights.safetensors cannot be read"):
        bundle.load(str(folder), check=False)


def test_streams_of_one_chunk_have_names_of_their_own():
    sizes = [
        StreamConfig(left=4),
        StreamConfig(left=8),
        StreamConfig(chunk=8, chunks=96),
        StreamConfig(left=8, text_tokens=64),
    ]
    names = manifest.name_streams(sizes)
    assert names == ("640ms-left4", "640ms-left8", "320ms", "640ms-left8-no2")
    assert manifest.name_streams(sizes[:1]) == ("640ms",)


OLD_STREAM = {
    "chunk": 16,
    "left": 4,
    "rollback": 3,
    "free_chunks": 2,
    "draft": 7,
    "new_tokens": 32,
    "chunks": 48,
    "text_tokens": 192,
    "suffix_tokens": 64,
    "rates": dataclasses.asdict(Rates()),
}


def test_sizes_of_streams_keep_their_names_in_the_file():
    """Those of schema 3: bundles of all its time are read, and read these ones."""
    sizes = manifest.read_stream("b", OLD_STREAM, Rates())
    assert sizes == StreamConfig(unstable_tokens=3, draft_tokens=7)
    assert manifest.record_stream(sizes) == OLD_STREAM
    assert list(manifest.record_stream(sizes)) == list(OLD_STREAM)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"unstable_tokens": 3},
            r"b/manifest.json .* unstable_tokens, .* draft, free_",
        ),
        ({"draft": 2}, "draft_tokens=2 must be at least 1 and unstable_tokens"),
        ({"draft": None}, "export the model again"),
    ],
)
def test_sizes_of_streams_that_cannot_be_used_are_named(change, message):
    with pytest.raises(BundleError, match=message):
        manifest.read_stream("b", OLD_STREAM | change, Rates())


def test_another_schema_names_both(folder):
    change(folder, schema=99)
    with pytest.raises(BundleError, match=r"schema 99, .* reads schema 3.*nim4-jax"):
        bundle.load(str(folder))


def test_another_platform_names_both(folder):
    change(folder, platforms=["tpu"])
    with pytest.raises(BundleError, match=r"exported for tpu; .* use are cpu.*--plat"):
        bundle.load(str(folder))


def test_other_phonemes_are_refused(folder):
    change(folder, phonemes="0" * 64)
    with pytest.raises(BundleError, match="phoneme inventory 000000000000, this"):
        bundle.load(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": null}'])
def test_a_damaged_manifest(folder, text):
    (folder / manifest.FILE).write_text(text, encoding="utf8")
    with pytest.raises(BundleError, match=r"damaged|schema"):
        bundle.load(str(folder))


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"is no bundle.*nim4 export"):
        bundle.load(str(tmp_path))


def test_a_program_of_another_time(folder):
    """A file that checks out and that this jax cannot read names both versions."""
    name = "programs/hear-0.8s.stablehlo"
    (folder / name).write_bytes(b"no program")
    facts = json.loads((folder / manifest.FILE).read_text(encoding="utf8"))
    files = facts["files"] | {name: manifest.list_files(folder)[name]}
    change(folder, files=files)
    loaded = bundle.load(str(folder)).recogniser
    with pytest.raises(BundleError, match=r"cannot be read by jax .*made with jax"):
        loaded.programs._open("hear-0.8s")


def test_what_cannot_be_exported(model_files, tmp_path, bundle_folder):
    def write(out="new", platforms=("cpu",), model=0, **sizes):
        source = bundle_source.make_source(model_files[model], **sizes)
        export.write(str(tmp_path / out), source, platforms)

    with pytest.raises(BundleError, match=r"platforms \['abacus'\]: use some of"):
        write(platforms=("cpu", "abacus"))
    with pytest.raises(BundleError, match=r"has no adaptor, llm: .* stage 2"):
        write(model=1)
    with pytest.raises(BundleError, match="--seconds=-1 is no length"):
        write(seconds=(-1.0,))
    with pytest.raises(ValueError, match=r"chunk of 100 ms .* multiple of 160 ms"):
        options = exporting.Options(stream_ms=(100,))
        exporting.run(model_files[0], str(tmp_path / "new"), options)
    with pytest.raises(BundleError, match="exists; remove it"):
        export.write(bundle_folder, bundle_source.make_source(model_files[0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["\ud83d", "a\0b", "x" * 5_000])
def test_names_that_no_file_can_have_are_missing(bundle_folder, tmp_path, name):
    """A manifest may hold any string: half of a surrogate pair, a zero byte, …"""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    path = folder / manifest.FILE
    facts = json.loads(path.read_text(encoding="utf8"))
    facts["files"][name] = facts["files"][manifest.TOKENIZER]
    path.write_text(json.dumps(facts), encoding="utf8")
    with pytest.raises(BundleError, match="is missing or cannot be read"):
        bundle.load(str(folder))


def test_a_full_disk_leaves_nothing_behind(model_files, tmp_path):
    code = """
        import resource, signal, sys
        from nim4_jax.serving import exporting
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        exporting.run(sys.argv[1], sys.argv[2])
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(code),
            model_files[0],
            tmp_path / "bundle",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode and "large" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
