"""Weights of other implementations → a snapshot of ours, and back, tensor by tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.features import WhisperFeatures
from nim4_jax.layers import LoraConfig, Policy
from nim4_jax.models.encoder import EncoderConfig
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops.chunking import Chunking
from nim4_jax.text.phonemes import INVENTORY_HASH
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames
from nim4_jax.weights import firered, hf, rules, snapshot, whisper
from nim4_jax.weights.gguf_file import GgufFile
from nim4_jax.weights.tensor_file import SINGLE, Reader, Spec, Writer

MODEL, TOKENIZER = "model.safetensors", "tokenizer.json"
"""What an imported model's folder holds."""
FLOAT32 = Policy()

Progress = Callable[[int, int], None]


class Source(Protocol):
    """Tensors of another implementation by name; `get` reads one."""

    specs: dict[str, Spec]

    def get(self, name: str) -> np.ndarray:
        """One tensor."""
        ...


@dataclasses.dataclass(frozen=True)
class OpenedEncoder:
    """An encoder of another implementation, opened: all that its import needs.

    Attributes:
        source: its tensors, unread.
        config: the shape of our encoder.
        origin: file or folder, for messages.
        rules: which tensor fills which parameter.
        is_ignored: whether a tensor of this name means nothing to us.
        features: fields of the features that it was trained with.
        mean: float32 [M], which is taken from the features.
        scale: float32 [M], by which they are then multiplied.
        check: raises ValueError where tensors that fill no parameter are others than
            our encoder takes for granted.
    """

    source: Source
    config: EncoderConfig
    origin: str
    rules: Sequence[rules.Rule]
    is_ignored: Callable[[str], bool]
    features: dict[str, Any]
    mean: np.ndarray
    scale: np.ndarray
    check: Callable[[], None] = lambda: None


def _shapes_of(part: str, initialise: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by path of what an initialiser would make; nothing is allocated."""
    made = nn.unbox(jax.eval_shape(initialise))["params"]
    return {
        "/".join([part, *(key.key for key in keys)]): tuple(leaf.shape)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(made)
    }


def llm_shapes(
    config: LLMConfig, policy: Policy = FLOAT32
) -> dict[str, tuple[int, ...]]:
    """Shapes of our LLM's parameters by path, "llm/…"."""
    model = Qwen3(config, policy)

    def initialise():
        mask = jnp.ones((1, 2), bool)
        tokens = mask.astype(jnp.int32)
        return model.init(jax.random.key(0), tokens, mask, method=Qwen3.logits)

    return _shapes_of("llm", initialise)


def encoder_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of our encoder's parameters by path, "encoder/…"."""
    model: Any = config.build(Policy())

    def initialise():
        values = jnp.zeros((1, 16, config.num_mels))
        frames = Frames(values, jnp.ones((1, 16), bool))
        return model.init(jax.random.key(0), frames, Chunking.full())

    return _shapes_of("encoder", initialise)


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
    """A folder under a temporary name, renamed when the block ends well.

    Raises:
        ValueError: there is something of that name already.
    """
    if os.path.exists(path):
        raise ValueError(f"{path} exists; name a folder that does not.")
    temporary = f"{path.rstrip('/')}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_in(
    source: Source,
    moves: list[rules.Move],
    shapes: Mapping[str, tuple[int, ...]],
    path: str,
    meta: dict[str, Any],
    progress: Progress,
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a snapshot from their tensors, in the dtypes in which they are stored.

    Args:
        source: of their tensors.
        moves: where each goes.
        shapes: of our parameters.
        path: file to write.
        meta: facts for its header.
        progress: called with tensors done and all tensors.
        extra: parameters that are no tensor of theirs.
    """
    extra = extra or {}
    dtypes = {move.ours: source.specs[move.theirs][1] for move in moves}
    specs = {name: (shape, dtypes[name]) for name, shape in shapes.items()}
    specs |= {name: (array.shape, array.dtype) for name, array in extra.items()}
    with Writer(path, specs, snapshot.header(meta)) as writer:
        for name, array in extra.items():
            writer.put(name, array)
        for done, move in enumerate(moves):
            writer.put(move.ours, move.to_ours(source.get(move.theirs)), move.layer)
            progress(done + 1, len(moves))


def import_llm(
    source: Source,
    config: LLMConfig,
    tokenizer: str,
    out: str,
    origin: str,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write OUT/model.safetensors and OUT/tokenizer.json.

    Args:
        source: tensors under Hugging Face's names.
        config: shape of the model.
        tokenizer: content of its tokenizer.json.
        out: folder to make.
        origin: where the weights come from, for messages.
        progress: called with tensors done and all tensors.

    Returns:
        Number of parameters.

    Raises:
        ValueError: tensors, config and tokenizer do not fit each other.
    """
    shapes = llm_shapes(config)
    moves = rules.plan([rule for rule in hf.RULES if rule.ours in shapes], shapes)
    given = {name: shape for name, (shape, _) in source.specs.items()}
    rules.check_names(moves, given, origin, lambda name: hf.is_ignored(name, config))
    vocabulary = Tokenizer(tokenizer).vocab_size
    if vocabulary > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {vocabulary} ids, but {origin} only embeds "
            f"{config.vocab_size}; they do not belong together."
        )
    meta = _describe({"llm": dataclasses.asdict(config)}, TOKENIZER)
    with new_folder(out) as folder:
        move_in(source, moves, shapes, os.path.join(folder, MODEL), meta, progress)
        Path(folder, TOKENIZER).write_text(tokenizer, encoding="utf8")
    return sum(int(np.prod(shape)) for shape in shapes.values())


def import_encoder(
    opened: OpenedEncoder, out: str, progress: Progress = lambda done, total: None
) -> int:
    """Write OUT/model.safetensors: an encoder and the statistics of its features.

    Args:
        opened: what is read.
        out: folder to make.
        progress: called with tensors done and all tensors.

    Returns:
        Number of the encoder's parameters.

    Raises:
        ValueError: tensors that do not fit the encoder.
    """
    source, config = opened.source, opened.config
    shapes = encoder_shapes(config)
    moves = rules.plan(opened.rules, shapes)
    given = {name: shape for name, (shape, _) in source.specs.items()}
    rules.check_names(moves, given, opened.origin, opened.is_ignored)
    rules.check_shapes(moves, given, opened.origin)
    opened.check()
    model = {"features": opened.features, "encoder": dataclasses.asdict(config)}
    extra = {"cmvn/mean": opened.mean, "cmvn/scale": opened.scale}
    with new_folder(out) as folder:
        path = os.path.join(folder, MODEL)
        move_in(source, moves, shapes, path, _describe(model), progress, extra)
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _describe(model: dict[str, Any], tokenizer: str = "") -> dict[str, Any]:
    """Facts of an imported snapshot."""
    return {
        "stage": "imported",
        "model": model,
        "tokenizer": tokenizer,
        "phonemes": INVENTORY_HASH,
    }


def export_llm(
    model: str,
    tokenizer: str,
    out: str,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the LLM of a snapshot as a folder that transformers loads.

    Args:
        model: snapshot file.
        tokenizer: path of its tokenizer.json.
        out: folder to make.
        progress: called with tensors done and all tensors.

    Raises:
        ValueError: the snapshot holds no LLM.
    """
    with snapshot.opened(model) as (tensors, meta):
        values = dict(meta["model"]["llm"])
        if LoraConfig(**values.pop("lora", {})).rank:
            raise ValueError(
                f"{model} holds LoRA matrices beside its kernels; merge them first: "
                "nim4 snapshot --merge_lora."
            )
        config = LLMConfig(**values)
        shapes = llm_shapes(config)
        missing = sorted(shapes.keys() - set(tensors.keys()))
        if missing:
            raise ValueError(f"{model} lacks {missing}: it holds no whole LLM.")
        moves = rules.plan([rule for rule in hf.RULES if rule.ours in shapes], shapes)

        def take(move: rules.Move) -> np.ndarray:
            if move.layer is None:
                return move.layout.theirs(tensors.get_tensor(move.ours))
            layers = tensors.get_slice(move.ours)
            return move.layout.theirs(layers[move.layer : move.layer + 1][0])

        specs: dict[str, Spec] = {}
        for move in moves:
            array = take(move)
            specs[move.theirs] = (array.shape, array.dtype)
        dtype = str(specs["model.embed_tokens.weight"][1])
        with new_folder(out) as folder:
            path = os.path.join(folder, SINGLE)
            with Writer(path, specs, {"format": "pt"}) as writer:
                for done, move in enumerate(moves):
                    writer.put(move.theirs, take(move))
                    progress(done + 1, len(moves))
            text = json.dumps(hf.from_llm_config(config, dtype), indent=2)
            Path(folder, "config.json").write_text(text + "\n", encoding="utf8")
            shutil.copyfile(tokenizer, os.path.join(folder, TOKENIZER))


def open_hf(folder: str, tokenizer: str = "") -> tuple[Reader, LLMConfig, str]:
    """A Hugging Face folder: tensors, our config, content of its tokenizer.json.

    Args:
        folder: with config.json, safetensors, and tokenizer.json unless one is given.
        tokenizer: path of another tokenizer.json.

    Raises:
        ValueError: something is missing or of an unknown family.
    """
    config = hf.to_llm_config(hf.read_config(folder))
    return Reader(folder), config, _read(tokenizer or os.path.join(folder, TOKENIZER))


def open_gguf(path: str, tokenizer: str = "") -> tuple[GgufFile, LLMConfig, str]:
    """A GGUF file: tensors, our config, content of a tokenizer.json.

    Args:
        path: of the file.
        tokenizer: path of a tokenizer.json; empty: made from the file's vocabulary.

    Raises:
        ValueError: the file is unusable.
    """
    file = GgufFile(path)
    return file, file.config, _read(tokenizer) if tokenizer else file.make_tokenizer()


def open_firered(folder: str) -> OpenedEncoder:
    """The encoder of a FireRedASR.

    Args:
        folder: with model.pth.tar and cmvn.ark.

    Raises:
        ValueError: a file is missing, harmful, or of another model.
    """
    weights, statistics = firered.find_files(folder)
    source = firered.Weights(weights)
    mean, scale = firered.read_cmvn(statistics)
    config = source.config
    if mean.shape != (config.num_mels,):
        raise ValueError(
            f"{statistics} describes {mean.size} channels, {weights} takes "
            f"{config.num_mels}."
        )
    return OpenedEncoder(
        source=source,
        config=config,
        origin=weights,
        rules=firered.RULES,
        is_ignored=firered.is_ignored,
        features={"num_mels": config.num_mels},
        mean=mean,
        scale=scale,
    )


def open_whisper(path: str) -> OpenedEncoder:
    """The encoder of a Whisper, whose features are not normalised.

    Args:
        path: folder or file, see `whisper.open_weights`.

    Raises:
        ValueError: a file is missing, damaged, or of another model.
    """
    source = whisper.open_weights(path)
    mels = source.config.num_mels
    return OpenedEncoder(
        source=source,
        config=source.config,
        origin=source.origin,
        rules=whisper.RULES,
        is_ignored=source.is_ignored,
        features=dataclasses.asdict(WhisperFeatures(num_mels=mels)),
        mean=np.zeros(mels, np.float32),
        scale=np.ones(mels, np.float32),
        check=functools.partial(whisper.check_positions, source),
    )


def _read(tokenizer: str) -> str:
    try:
        return Path(tokenizer).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{tokenizer} cannot be read ({error}); name a tokenizer.json with "
            "--tokenizer."
        ) from error
