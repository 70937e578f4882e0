"""Writing of a bundle: programs as StableHLO, weights, tokenizer, manifest.

A bundle runs without Flax and without the model's code, on every platform that its
programs were lowered for. Batch sizes are symbolic; lengths of whole recordings and
chunks of streams are those of a list.

| program                   | what it does                                           |
| features-2.5s             | recordings of 2.5 s → normalised log-mel               |
| encode_chunk-640ms        | the next chunk of b streams → encoder frames           |
| hear-2.5s                 | recordings of 2.5 s → phonemes                         |
| transcribe-2.5s           | the same and texts                                     |
| transcribe_hinted-2.5s    | the same, with hotwords of each row in the prompt      |
| start-640ms               | the prompt's start, read into the caches of s streams  |
| tick-640ms-32             | a chunk of b of s streams; room for 32 tokens of text  |
| finish-640ms-32           | the second pass over complete utterances               |
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

import nim4_jax
from nim4_jax.decode import model_programs, stream
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.model_programs import ModelPrograms
from nim4_jax.decode.programs import Arrival, Request
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.models.asr import Asr
from nim4_jax.ops.chunking import Chunking
from nim4_jax.serving import manifest
from nim4_jax.serving.manifest import BundleError, Manifest, Program
from nim4_jax.text import phonemes, template
from nim4_jax.types import Frames, Labels
from nim4_jax.weights import snapshot

_PACKAGES = ("nim4-jax", "jax", "jaxlib", "flax")
_ALL = ("cmvn", "encoder", "ctc_head", "adaptor", "llm")


@dataclasses.dataclass(frozen=True)
class Source:
    """All that a bundle is made from.

    Attributes:
        programs: the live model.
        tokenizer: path of its tokenizer.json.
        bucket_seconds: lengths of whole recordings, growing.
        rows: usual rows of each.
        streams: sizes of streams.
        facts: of the model: stage, steps, origin.
        weights: "float32", "bfloat16" or "int8": dtype of matrices in the file.
        licences: of weights and data.
    """

    programs: ModelPrograms
    tokenizer: str
    bucket_seconds: tuple[float, ...]
    rows: tuple[int, ...]
    streams: tuple[StreamConfig, ...]
    facts: dict[str, Any]
    weights: str
    licences: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A program before it is exported.

    Attributes:
        name: see above.
        parts: of the model that it needs.
        function: (nested parameters, *arguments) → pytree.
        arguments: name → pytree of shapes.
        donated: names of arguments.
    """

    name: str
    parts: tuple[str, ...]
    function: Callable[..., Any]
    arguments: dict[str, Any]
    donated: tuple[str, ...] = ()


def write(
    folder: str,
    source: Source,
    platforms: Sequence[str] = manifest.PLATFORMS,
    progress: Callable[[str], None] = lambda name: None,
) -> Manifest:
    """Write a bundle under a temporary name, then rename it.

    Args:
        folder: of the bundle; must not exist.
        source: the model.
        platforms: of `manifest.PLATFORMS`.
        progress: called with the name of each program.

    Raises:
        BundleError: the folder exists, an unknown platform, or a model without LLM.
        OSError: no room; nothing is left behind.
    """
    target = Path(folder)
    if target.exists():
        raise BundleError(f"{folder} exists; remove it, or name another --out.")
    unknown = sorted(set(platforms) - set(manifest.PLATFORMS))
    if unknown or not platforms:
        raise BundleError(
            f"platforms {unknown or 'of no name'}: use some of {manifest.PLATFORMS}."
        )
    missing = sorted(set(_ALL) - set(source.programs.parts))
    if missing:
        raise BundleError(
            f"the model has no {', '.join(missing)}: a bundle transcribes, so export a "
            "model that has been through stage 2 or later."
        )
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "programs").mkdir(parents=True)
        made = _fill(partial, source, tuple(platforms), progress)
        manifest.write(partial, made)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return made


def _fill(
    folder: Path,
    source: Source,
    platforms: tuple[str, ...],
    progress: Callable[[str], None],
) -> Manifest:
    """All files of the bundle but the manifest."""
    params, model = source.programs.params, source.programs.model
    policy = model.config.policy
    snapshot.write(
        str(folder / manifest.WEIGHTS),
        jax.device_get(params),
        source.facts,
        "bfloat16" if source.weights == "bfloat16" else "",
    )
    shutil.copyfile(source.tokenizer, folder / manifest.TOKENIZER)
    _write_json(folder / manifest.PHONEMES, phonemes.INVENTORY)
    _write_json(folder / manifest.PROMPT, _describe_prompt(source.programs))
    licence = Path(nim4_jax.__file__).parents[1] / "LICENSE"
    if licence.is_file():
        shutil.copyfile(licence, folder / manifest.LICENCE)
    flat: Any = traverse_util.flatten_dict(params, sep="/")
    narrow = source.weights == policy.compute == "bfloat16"
    shapes = {path: _shape(path, leaf, narrow) for path, leaf in flat.items()}
    programs = {}
    for planned in _plan(source):
        progress(planned.name)
        programs[planned.name] = _export(folder, planned, shapes, platforms)
    return Manifest(
        made_with={**_find_versions(), "git": _find_revision()},
        model={**source.facts, "parameters": int(sum(x.size for x in flat.values()))},
        licences=source.licences,
        platforms=platforms,
        weights=source.weights,
        compute=policy.compute,
        parts=source.programs.parts,
        features=dataclasses.asdict(source.programs.model.config.features),
        rates=dataclasses.asdict(source.programs.rates),
        phonemes=phonemes.INVENTORY_HASH,
        budget=dataclasses.asdict(source.programs.budget),
        bucket_seconds=source.bucket_seconds,
        rows=source.rows,
        streams=tuple(map(manifest.record_stream, source.streams)),
        parameters={path: leaf.dtype.name for path, leaf in shapes.items()},
        programs=programs,
        files=manifest.list_files(folder),
    )


def _shape(path: str, leaf: Any, narrow: bool) -> jax.ShapeDtypeStruct:
    """A parameter as the programs take it; narrow ones as the file holds them."""
    narrow = narrow and snapshot.is_matrix(path, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if narrow else leaf.dtype)


def _export(
    folder: Path,
    planned: _Planned,
    shapes: dict[str, jax.ShapeDtypeStruct],
    platforms: tuple[str, ...],
) -> Program:
    """Lower one program for all platforms, and write it."""
    names = tuple(path for path in shapes if path.split("/")[0] in planned.parts)
    arguments, structure = jax.tree.flatten(tuple(planned.arguments.values()))

    def run(leaves, *flat):
        params = traverse_util.unflatten_dict(dict(zip(names, leaves)), sep="/")
        made = planned.function(params, *jax.tree.unflatten(structure, flat))
        results.append(_name_leaves(made))
        return jax.tree.leaves(made)

    results: list[list[str]] = []
    exported = export.export(jax.jit(run), platforms=platforms)(
        [shapes[name] for name in names], *arguments
    )
    file = f"programs/{planned.name}.stablehlo"
    (folder / file).write_bytes(exported.serialize())
    # One by one: JAX would sort the names of a dict.
    labels = [
        label
        for name, tree in planned.arguments.items()
        for label in _name_leaves({name: tree})
    ]
    return Program(
        file,
        names,
        _describe(labels, arguments),
        _describe(results[0], exported.out_avals),
        tuple(
            number
            for number, label in enumerate(labels)
            if label.split(".")[0] in planned.donated
        ),
    )


def _name_leaves(tree: Any) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


def _describe(names: Sequence[str], arrays: Sequence[Any]) -> tuple:
    return tuple(
        manifest.Array(
            name,
            tuple(size if isinstance(size, int) else str(size) for size in array.shape),
            np.dtype(array.dtype).name,
        )
        for name, array in zip(names, arrays, strict=True)
    )


def _plan(source: Source) -> Iterator[_Planned]:
    """All programs, in the order in which audio flows."""
    sizes = export.symbolic_shape("b, s, w")
    names = manifest.name_streams(source.streams)
    for name, config in zip(names, source.streams):
        yield _plan_encoder(source.programs, name, config, sizes)
    for seconds in source.bucket_seconds:
        yield from _plan_whole(source.programs, seconds, sizes)
    for name, config in zip(names, source.streams):
        yield from _plan_stream(source.programs, name, config, sizes)


def _audio(rows: Any, samples: Any) -> Frames:
    return Frames(_array((rows, samples)), _array((rows, samples), jnp.bool_))


def _array(shape: tuple[Any, ...], dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _labels(rows: Any, width: Any) -> Labels:
    return Labels(_array((rows, width), jnp.int32), _array((rows, width), jnp.bool_))


def _plan_encoder(
    programs: ModelPrograms, name: str, config: StreamConfig, sizes: Sequence[Any]
) -> _Planned:
    rows, model = sizes[0], programs.model
    encoder = model.config.encoder.build(model.config.policy)

    def run(params, audio, state):
        def encode(asr: Asr):
            return asr.encode_chunk(asr.extract_piece(audio), state, config.chunking)

        frames, following = model.apply({"params": params}, method=encode)
        return {"frames": frames, "state": following}

    state = jax.eval_shape(
        lambda row: encoder.init_state(row.shape[0], config.left * config.chunk),
        _array((rows,)),
    )
    return _Planned(
        f"encode_chunk-{name}",
        ("cmvn", "encoder"),
        run,
        {"audio": _audio(rows, config.window), "state": state},
        donated=("state",),
    )


def _plan_whole(
    programs: ModelPrograms, seconds: float, sizes: Sequence[Any]
) -> Iterator[_Planned]:
    rows, width = sizes[0], sizes[2]
    arguments = {
        "audio": _audio(rows, round(seconds * SAMPLE_RATE)),
        "chunking": Chunking(_array((), jnp.int32), _array((), jnp.int32)),
    }

    def extract(params, audio):
        return programs.model.apply({"params": params}, audio, method=Asr.extract)

    def hear(params, audio, chunking):
        return model_programs.hear(programs.model, params, audio, chunking)

    def transcribe(params, audio, chunking, suffix=None):
        heard, written = model_programs.transcribe(
            programs.model, programs.answer, params, audio, chunking, suffix
        )
        return {"heard": heard, "written": written}

    name, audio = f"{seconds:g}s", arguments["audio"]
    yield _Planned(f"features-{name}", _ALL[:1], extract, {"audio": audio})
    yield _Planned(f"hear-{name}", _ALL[:3], hear, arguments)
    yield _Planned(f"transcribe-{name}", _ALL, transcribe, arguments)
    hinted = {**arguments, "suffix": _labels(rows, width)}
    yield _Planned(f"transcribe_hinted-{name}", _ALL, transcribe, hinted)


def _plan_stream(
    programs: ModelPrograms, name: str, config: StreamConfig, sizes: Sequence[Any]
) -> Iterator[_Planned]:
    rows, streams = sizes[:2]
    numbers = _array((rows,), jnp.int32)

    def start(params, slots):
        return stream.init(
            programs.model, params, programs.prompt, config, slots.shape[0]
        )

    every = _array((streams,), jnp.int32)
    yield _Planned(f"start-{name}", _ALL, start, {"slots": every})
    state = jax.eval_shape(start, programs.params, every)
    suffix = _labels(rows, config.suffix_tokens)
    arrival = Arrival(
        numbers,
        _audio(rows, config.window),
        _array((rows,), jnp.bool_),
        numbers,
        suffix,
    )
    request = Request(numbers, numbers, numbers, suffix)
    for width in config.widths():

        def tick(params, state, arrival, width=width):
            settings = programs.settings(config, width)
            following, heard, written = stream.tick(
                programs.model, settings, params, state, arrival
            )
            return {"heard": heard, "state": following, "written": written}

        def finish(params, state, request, width=width):
            settings = programs.settings(config, width)
            following, written = stream.finish(
                programs.model, settings, params, state, request
            )
            return {"state": following, "written": written}

        yield _Planned(
            f"tick-{name}-{width}",
            _ALL,
            tick,
            {"state": state, "arrival": arrival},
            donated=("state",),
        )
        yield _Planned(
            f"finish-{name}-{width}",
            _ALL,
            finish,
            {"state": state, "request": request},
            donated=("state",),
        )


def _describe_prompt(programs: ModelPrograms) -> dict[str, Any]:
    """The prompt as it was trained: to be compared, and read by other programs."""
    return {
        "layout": "[prefix | speech | suffix | answer]",
        "texts": list(template.TEXTS),
        "prefix": list(programs.prompt.prefix),
        "suffix": list(programs.prompt.suffix),
        "end_id": programs.end_id,
    }


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf8")


def _find_versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _find_revision() -> str | None:
    """The checkout's commit, None where the package was installed otherwise."""
    folder = Path(nim4_jax.__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
