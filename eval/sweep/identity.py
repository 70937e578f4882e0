"""The identity of a model: a checksum of its file or checkpoint."""

from __future__ import annotations

import hashlib

from etils import epath

from nim4_jax.model_files import loading
from nim4_jax.serving import manifest
from nim4_jax.train.checkpoints import checkpoint

_BLOCK = 1 << 22


def identify(origin: str) -> str:
    """What tells a model from another: a checksum of its file, manifest or checkpoint.

    Raises:
        ValueError: there is no model.
    """
    place = epath.Path(loading.resolve(origin))
    if place.is_file():
        return _hash_file(place)
    if manifest.is_bundle(str(place)):
        return _hash_file(place / manifest.FILE)
    step = checkpoint.latest_step(str(place))
    if step is None:
        raise ValueError(
            f"{origin} holds no model: no complete checkpoint, and it is no snapshot "
            "and no bundle; name the --workdir of a training run, a .safetensors file "
            "that `nim4 snapshot` wrote, or a peer."
        )
    digest = hashlib.sha256(str(step).encode())
    for part in ("checksums", "frozen", "meta", "state"):
        for name in ("metadata", "manifest.ocdbt"):
            file = place / "checkpoints" / str(step) / part / name
            if file.is_file():
                digest.update(_hash_file(file).encode())
    return digest.hexdigest()


def _hash_file(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
