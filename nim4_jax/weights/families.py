"""The model families that `nim4 convert` reads: one row each.

To add one, write what opens its files: `open_whisper` in conversion.py is an example
for an encoder, with its rules in whisper.py; `open_gguf` is one for an LLM. Then give
it a row in `FAMILIES`.

An encoder that is neither a Conformer nor a Whisper's also needs a class in models/;
its config, with a field that no other one has, in `AsrConfig.encoder`; what it hears,
if that is no log-mel, in features.py; and in train/flops.py the kernels that work at
another rate than the encoder's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nim4_jax.models.conformer import ConformerConfig
from nim4_jax.models.encoder import EncoderConfig
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.weights import conversion
from nim4_jax.weights.conversion import OpenedEncoder, Progress, Source


@dataclasses.dataclass(frozen=True)
class LLMFamily:
    """Files that hold an LLM and its tokenizer.

    Attributes:
        help: what the path has to be.
        open: (path, tokenizer.json or "") → tensors, config, content of tokenizer.json.
    """

    help: str
    open: Callable[[str, str], tuple[Source, LLMConfig, str]]

    def convert(self, path: str, tokenizer: str, out: str, progress: Progress) -> int:
        """See `convert`."""
        source, config, text = self.open(path, tokenizer)
        return conversion.import_llm(source, config, text, out, path, progress)


@dataclasses.dataclass(frozen=True)
class EncoderFamily:
    """Files that hold an encoder; no tokenizer comes with it.

    Attributes:
        help: what the path has to be.
        config: class of our encoder's shape.
        open: path → all that the import needs.
    """

    help: str
    config: type[EncoderConfig]
    open: Callable[[str], OpenedEncoder]

    def convert(self, path: str, tokenizer: str, out: str, progress: Progress) -> int:
        """See `convert`."""
        del tokenizer
        return conversion.import_encoder(self.open(path), out, progress)


FAMILIES: dict[str, LLMFamily | EncoderFamily] = {
    "hf": LLMFamily(
        "a folder with config.json, safetensors and tokenizer.json of the Qwen3, Qwen2 "
        "or Llama family",
        conversion.open_hf,
    ),
    "gguf": LLMFamily("a file of these families, dequantised", conversion.open_gguf),
    "firered": EncoderFamily(
        "a folder with model.pth.tar and cmvn.ark; its encoder",
        ConformerConfig,
        conversion.open_firered,
    ),
    "whisper": EncoderFamily(
        "any Whisper's encoder: a folder with config.json and safetensors, or "
        "CTranslate2's model.bin, dequantised, whole or as model.bin.part1, .part2; "
        "a folder or the file",
        WhisperEncoderConfig,
        conversion.open_whisper,
    ),
}
"""Name of a source → how it is read."""


def describe() -> str:
    """All families and what the path of each has to be, in one line."""
    rows = [f"{name} ({family.help})" for name, family in FAMILIES.items()]
    return f"{', '.join(rows[:-1])} or {rows[-1]}"


def convert(
    source: str,
    path: str,
    out: str,
    tokenizer: str = "",
    progress: Progress = lambda done, total: None,
) -> int:
    """Write OUT/model.safetensors and, of an LLM, OUT/tokenizer.json.

    Args:
        source: of `FAMILIES`.
        path: folder or file to read.
        out: folder to make.
        tokenizer: tokenizer.json, if not the LLM's own.
        progress: called with tensors done and all tensors.

    Returns:
        Number of parameters.

    Raises:
        ValueError: an unknown family, or files that cannot be used.
    """
    if source not in FAMILIES:
        raise ValueError(
            f"models of {source!r} are unknown; choose from {', '.join(FAMILIES)}."
        )
    return FAMILIES[source].convert(path, tokenizer, out, progress)
