r"""Make tests/goldens/ctc.npz: torch's CTC in float64 on fixed random problems.

python tests/goldens/make_ctc.py   (needs the `peers` extra)
"""

from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).parent / "ctc.npz"
SHAPES = {  # name: (B, U, L, P)
    "small": (4, 12, 4, 5),
    "repeats": (4, 20, 6, 3),
    "wide": (3, 60, 14, 40),
    "long": (2, 200, 40, 60),
}


def make_case(seed: int, shape: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """Logits, lengths and labels, torch's loss and its gradient over the logits."""
    batch, frames, labels, classes = shape
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(*shape[:2], classes)).astype(np.float32)
    ids = rng.integers(1, classes, (batch, labels))
    label_lengths = rng.integers(0, labels + 1, batch)
    label_lengths[0] = labels
    repeats = np.array(
        [np.sum(row[1:n] == row[: max(n - 1, 0)]) for row, n in zip(ids, label_lengths)]
    )
    least = label_lengths + repeats
    lengths = np.maximum(rng.integers(frames // 2, frames + 1, batch), least)
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        torch.log_softmax(leaf, -1).transpose(0, 1),
        torch.tensor(ids),
        torch.tensor(lengths),
        torch.tensor(label_lengths),
        blank=0,
        reduction="none",
    )
    loss.sum().backward()
    return {
        "logits": logits,
        "frames": lengths,
        "ids": ids.astype(np.int32),
        "labels": label_lengths,
        "loss": loss.detach().numpy(),
        "gradient": leaf.grad.numpy().astype(np.float32),
    }


def main() -> None:
    """Write every case under NAME/ARRAY."""
    arrays = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        for key, array in make_case(seed, shape).items():
            arrays[f"{name}/{key}"] = array
    np.savez_compressed(OUT, **arrays)
    print(f"{OUT}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
