"""GGUF files (llama.cpp) of the Qwen3, Qwen2 and Llama families, dequantised.

Reading needs the package `gguf` (extra `gguf`). Tensors come under Hugging Face's names
and in float32, so that the rules of `hf` serve here too.

Source: llama.cpp `convert_hf_to_gguf.py` (names; the order of rotary pairs in Llama).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.weights import hf
from nim4_jax.weights.tensor_file import Spec

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FREQUENCIES = "rope_freqs.weight"
_CONTROL, _USER = 3, 4  # kinds of token

# How each tokenizer cuts text before BPE; llama.cpp knows them by these names too.
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTES],
    "smollm": [_DIGITS, _BYTES],
    "qwen2": [
        {
            "type": "Split",
            "pattern": {"Regex": _QWEN},
            "behavior": "Isolated",
            "invert": False,
        },
        _BYTES | {"use_regex": False},
    ],
}


class GgufFile:
    """A GGUF file as a source of tensors.

    Attributes:
        specs: shape and dtype of each tensor, under Hugging Face's names.
        config: the LLM's shape.
    """

    def __init__(self, path: str):
        """Open the file; tensors stay on the disk.

        Raises:
            ValueError: the package is missing, or the file is cut off or of an unknown
                family.
        """
        try:
            import gguf
        except ImportError as error:
            raise ValueError(
                "reading GGUF needs the package gguf: pip install 'nim4-jax[gguf]'."
            ) from error
        self._quants = gguf.quants
        self.path = path
        try:
            reader = _open_reader(path)
            self._fields = {k: f.contents() for k, f in reader.fields.items()}
            tensors = {t.name: t for t in reader.tensors}
            self._tensors = {_rename(name): tensor for name, tensor in tensors.items()}
            self.specs: dict[str, Spec] = {
                name: (tuple(int(n) for n in reversed(t.shape)), np.dtype(np.float32))
                for name, t in self._tensors.items()
            }
        # The package checks little: damaged numbers make it raise anything.
        except Exception as error:
            raise ValueError(
                f"{path} is no GGUF file, or cut off ({type(error).__name__}: {error})."
            ) from error
        if _FREQUENCIES in tensors:
            raise ValueError(f"{path} scales RoPE ({_FREQUENCIES}): not supported.")
        try:
            self.config = self._read_config()
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            if path in str(error):
                raise
            raise ValueError(
                f"{path}: its shape cannot be read ({type(error).__name__}: {error})."
            ) from error

    def get(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32.

        Raises:
            ValueError: of an unknown type, or of another size than it states.
        """
        try:
            return self._read_tensor(name)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path}: tensor {name} is of a type that the package gguf cannot "
                f"dequantise ({error})."
            ) from error
        except Exception as error:
            raise ValueError(
                f"{self.path}: tensor {name} is damaged "
                f"({type(error).__name__}: {error}); fetch the file again."
            ) from error

    def _read_tensor(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        flat = self._quants.dequantize(tensor.data, tensor.tensor_type)
        array = np.asarray(flat, np.float32).reshape(self.specs[name][0])
        heads = {
            "q_proj": self.config.num_heads,
            "k_proj": self.config.num_kv_heads,
        }
        part = name.rpartition(".")[0].rpartition(".")[2]
        if self._family == "llama" and part in heads:
            # llama.cpp turns neighbouring pairs, Hugging Face halves.
            split = array.reshape(heads[part], -1, 2, *array.shape[1:])
            array = split.swapaxes(1, 2).reshape(array.shape)
        return array

    @property
    def _family(self) -> str:
        return str(self._fields.get("general.architecture"))

    def _read_config(self) -> LLMConfig:
        family = self._family
        if family not in hf.FAMILIES:
            raise ValueError(
                f"{self.path}: architecture {family!r} is unknown; convertible are "
                f"{sorted(hf.FAMILIES)}."
            )

        def need(key: str) -> Any:
            if f"{family}.{key}" not in self._fields:
                raise ValueError(f"{self.path} lacks {family}.{key}.")
            return self._fields[f"{family}.{key}"]

        heads, width = need("attention.head_count"), need("embedding_length")
        return LLMConfig(
            vocab_size=self.specs["model.embed_tokens.weight"][0][0],
            width=width,
            num_layers=need("block_count"),
            num_heads=heads,
            num_kv_heads=need("attention.head_count_kv"),
            head_dim=self._fields.get(f"{family}.attention.key_length", width // heads),
            ffn=need("feed_forward_length"),
            rope_theta=float(self._fields.get(f"{family}.rope.freq_base", 10_000.0)),
            norm_epsilon=float(need("attention.layer_norm_rms_epsilon")),
            tie_embeddings="lm_head.weight" not in self.specs,
            **hf.FAMILIES[family],
        )

    def make_tokenizer(self) -> str:
        """The content of a tokenizer.json with this file's vocabulary.

        Raises:
            ValueError: no byte-level BPE, or cut in an unknown way.
        """
        kind = self._fields.get("tokenizer.ggml.model")
        cut = self._fields.get("tokenizer.ggml.pre", "gpt-2")
        if kind != "gpt2" or cut not in _CUTS:
            raise ValueError(
                f"{self.path}: tokenizer of model {kind!r}, cut {cut!r}; known are "
                f"model 'gpt2' with {sorted(_CUTS)}. Give its tokenizer.json with "
                "--tokenizer."
            )
        tokens, kinds, merges = (
            self._read_list(key, kind)
            for key, kind in (("tokens", str), ("token_type", int), ("merges", str))
        )
        if len(tokens) != len(kinds):
            raise ValueError(
                f"{self.path} has {len(tokens)} tokens of {len(kinds)} kinds; it is "
                "damaged: fetch it again."
            )
        added = [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == _CONTROL,
            }
            for index, (token, kind) in enumerate(zip(tokens, kinds))
            if kind in (_CONTROL, _USER)
        ]
        made = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if cut == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": _CUTS[cut]},
            "post_processor": None,
            "decoder": _BYTES,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: index for index, token in enumerate(tokens)},
                "merges": [merge.split(" ", 1) for merge in merges],
            },
        }
        return json.dumps(made, ensure_ascii=False)

    def _read_list(self, key: str, kind: type) -> list[Any]:
        """A list of the tokenizer's.

        Raises:
            ValueError: there is none, or of something else.
        """
        found = self._fields.get(f"tokenizer.ggml.{key}")
        if not isinstance(found, list) or not all(isinstance(x, kind) for x in found):
            raise ValueError(
                f"{self.path} lacks tokenizer.ggml.{key}, a list of {kind.__name__}."
            )
        return found


def _open_reader(path: str) -> Any:
    """The package's reader, which ends where the file does.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        """Its own finds nothing behind the end, as often as a length asks for it."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *order, **options):
            found = super()._get(offset, dtype, count, *order, **options)
            if len(found) < count:
                raise ValueError(f"{count} numbers at byte {offset} are not there")
            return found

    return Reader(path)


def _rename(name: str) -> str:
    """llama.cpp's name of a tensor as Hugging Face's; unknown ones stay."""
    *where, part, kind = name.split(".")
    known = _NAMES.get(part, part)
    prefix = f"model.layers.{where[1]}." if where[:1] == ["blk"] else ""
    return f"{prefix}{known}.{kind}"
