"""FireRedASR's encoder with random weights: its numbers, and the file torch saves.

pip install torch && pip install --no-deps fasr-asr-firered==0.5.8
python tests/goldens/make_firered.py
"""

import argparse
import importlib.util
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent
SIZES = {"idim": 20, "n_layers": 2, "n_head": 2, "d_model": 16, "kernel_size": 5}
LENGTHS = (61, 40, 23)


def load_reference():
    """The reference's module alone; its package wants much that is not needed."""
    (package,) = importlib.util.find_spec("fireredasr2").submodule_search_locations
    path = pathlib.Path(package, "models", "module", "conformer_encoder.py")
    spec = importlib.util.spec_from_file_location("firered_encoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make() -> dict[str, np.ndarray]:
    """Inputs, every sub-layer's output, the encoder's output; saves the weights."""
    torch.manual_seed(0)
    encoder = load_reference().ConformerEncoder
    model = encoder(**SIZES, pe_maxlen=64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.25 * torch.randn_like(parameter))
    seen = {}

    def keep(name):
        def hook(_, __, output):
            output = output[0] if isinstance(output, tuple) else output
            seen[name] = output.detach().numpy()

        return hook

    model.input_preprocessor.register_forward_hook(keep("subsampling"))
    for index, block in enumerate(model.layer_stack):
        block.register_forward_hook(keep(f"block{index}"))
        for part in ("ffn1", "mhsa", "conv", "ffn2"):
            getattr(block, part).register_forward_hook(keep(f"{part}{index}"))
    lengths = torch.tensor(LENGTHS)
    features = torch.randn(len(LENGTHS), max(LENGTHS), SIZES["idim"])
    mask = torch.arange(max(LENGTHS))[None] < lengths[:, None]
    features = features * mask[..., None]
    with torch.no_grad():
        output, out_lengths, _ = model(features, lengths)
    state = model.state_dict()
    arguments = dict(SIZES, n_layers_enc=SIZES["n_layers"])
    saved = {
        "args": argparse.Namespace(**arguments),
        "model_state_dict": {f"encoder.{n}": p for n, p in state.items()},
    }
    torch.save(saved, FOLDER / "firered.pth.tar")
    return {
        "features": features.numpy(),
        "mask": mask.numpy(),
        "output": output.numpy(),
        "lengths": out_lengths.numpy(),
        **seen,
    }


if __name__ == "__main__":
    np.savez_compressed(FOLDER / "firered.npz", **make())
