"""Whisper's encoder with random weights: its numbers, and files that CTranslate2 wrote.

pip install torch transformers ctranslate2 && python tests/goldens/make_whisper.py
"""

import copy
import pathlib

import numpy as np
import torch
import transformers
from ctranslate2.converters.transformers import WhisperLoader

FOLDER = pathlib.Path(__file__).parent
SIZES = {
    "vocab_size": 24,
    "num_mel_bins": 8,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "max_target_positions": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "attn_implementation": "eager",
}
QUANTISATIONS = ("float16", "int8", "int8_float16", "int16")
BATCH = 2


def make_model():
    """A model whose every parameter but the positions is random."""
    config = transformers.WhisperConfig(**SIZES)
    model = transformers.WhisperForConditionalGeneration(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("encoder.embed_positions.weight"):
                continue
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.25 * torch.randn_like(parameter))
        # CTranslate2 writes equal tensors once, and an alias.
        first, second = model.model.encoder.layers[:2]
        second.fc2.weight.copy_(first.fc2.weight)
    return model


def record(encoder, features) -> dict[str, np.ndarray]:
    """The stem's output, every sub-layer's with its residual, and the encoder's."""
    seen = {}

    def keep(name):
        def hook(_, __, output):
            output = output[0] if isinstance(output, tuple) else output
            seen[name] = output.numpy()

        return hook

    def keep_input(name):
        def hook(_, arguments):
            seen[name] = arguments[0].numpy()

        return hook

    layers = encoder.layers
    layers[0].register_forward_pre_hook(keep_input("embedded"))
    for index, layer in enumerate(layers):
        layer.final_layer_norm.register_forward_pre_hook(
            keep_input(f"attention{index}")
        )
        layer.register_forward_hook(keep(f"block{index}"))
    with torch.no_grad():
        output = encoder(features.swapaxes(1, 2)).last_hidden_state
        positions = encoder.embed_positions.weight
        seen["stem"] = seen["embedded"] - positions.numpy()
    return {**seen, "output": output.numpy()}


def write_binaries(model) -> None:
    """What CTranslate2's converter writes, in each quantisation."""
    for quantisation in QUANTISATIONS:
        # Quantising scales the model's own tensors.
        spec = WhisperLoader().get_model_spec(copy.deepcopy(model))
        spec.register_vocabulary([str(n) for n in range(SIZES["vocab_size"])])
        spec.validate()
        spec.optimize(quantisation)
        spec._serialize(str(FOLDER / f"whisper_{quantisation}.bin"))


def make() -> dict[str, np.ndarray]:
    """All arrays, weights included."""
    torch.manual_seed(0)
    model = make_model()
    features = torch.randn(
        BATCH, 2 * SIZES["max_source_positions"], SIZES["num_mel_bins"]
    )
    arrays = {"features": features.numpy(), **record(model.model.encoder, features)}
    write_binaries(model)
    weights = {f"weights/{n}": p.detach().numpy() for n, p in model.named_parameters()}
    return arrays | weights


if __name__ == "__main__":
    np.savez_compressed(FOLDER / "whisper.npz", **make())
