"""Reference numbers of transformers' LLMs with random weights: llm_FAMILY.npz.

pip install torch transformers && python tests/goldens/make_llm.py
"""

import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}
FAMILIES = {
    "qwen3": {
        "head_dim": 16,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "qwen2": {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "llama": {"rope_theta": 5e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
}
LENGTHS = (17, 11, 5)
NEW_TOKENS = 64


def make_model(family: str, overrides: dict):
    """A model of the family whose every parameter is random."""
    names = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
    config = getattr(transformers, f"{names[family]}Config")(**SIZES, **overrides)
    model = getattr(transformers, f"{names[family]}ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.2
            mean = 1.0 if "norm" in name else 0.0
            parameter.copy_(mean + spread * torch.randn_like(parameter))
    return model


def record(model, ids, mask) -> dict[str, np.ndarray]:
    """Every sub-layer's output, every block's, and the logits."""
    seen = {}

    def keep(name):
        def hook(_, __, output):
            output = output[0] if isinstance(output, tuple) else output
            seen[name] = output.numpy()

        return hook

    inner = model.model
    hooks = [inner.embed_tokens.register_forward_hook(keep("embeddings"))]
    hooks.append(inner.norm.register_forward_hook(keep("final_norm")))
    for index, layer in enumerate(inner.layers):
        hooks.append(layer.register_forward_hook(keep(f"block{index}")))
        hooks.append(layer.self_attn.register_forward_hook(keep(f"attention{index}")))
        hooks.append(layer.mlp.register_forward_hook(keep(f"mlp{index}")))
    with torch.no_grad():
        seen["logits"] = model(ids, attention_mask=mask, use_cache=False).logits.numpy()
    for hook in hooks:
        hook.remove()
    return seen


def decode(model, prompt) -> np.ndarray:
    """Greedy tokens, each from a full forward without a cache."""
    ids = prompt[None]
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logits = model(ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[0, len(prompt) :].numpy()


def make(family: str) -> dict[str, np.ndarray]:
    """All arrays of one family, weights included."""
    torch.manual_seed(0)
    model = make_model(family, FAMILIES[family])
    ids = torch.randint(0, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    arrays = {"ids": ids.numpy(), "mask": mask.numpy()}
    arrays |= record(model, ids, mask.long())
    arrays["greedy"] = np.stack(
        [decode(model, row[:length]) for row, length in zip(ids, LENGTHS)]
    )
    weights = {f"weights/{n}": p.detach().numpy() for n, p in model.named_parameters()}
    return arrays | weights


if __name__ == "__main__":
    for name in FAMILIES:
        np.savez_compressed(FOLDER / f"llm_{name}.npz", **make(name))
