"""Windows of phonemes by how they sound: ScaNN over embeddings.

A phoneme's code is a random direction, bent towards those of phonemes that are
articulated alike; a window's embedding is the codes of its phonemes side by side. What
was heard is embedded by what the phoneme head thinks possible at each place, so the
inner product is near to the acoustic score of the window, up to a shift by one.

Source: Guo et al. 2020 (ScaNN); the embedding is ours, chosen by recall.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nim4_jax.retrieval.verification import Acoustics
from nim4_jax.retrieval.windows import WIDTH
from nim4_jax.text import articulation

SIZE = 16
"""Coordinates of a phoneme; a window has WIDTH times as many."""
NEIGHBOURS = 100
"""Windows that a search gives."""

_WINDOWS = "windows.npy"

_ALIKE = 0.3  # share of articulation in what a code is
_SHARPNESS = 2.0
_DEPTH = 6.0  # nats below the best class at which a phoneme no longer counts
_FAINT = 1e-9  # of the best class: no more counts
_SHIFT = 0.2  # weight of the phonemes before and behind
_SMALL = 5_000  # windows up to which all are compared
_PER_LEAF = 500
_LEAVES = 14  # of the tree that are looked through
_REORDERED = 150


@functools.cache
def codes() -> Float[np.ndarray, "P D"]:
    """Unit vector of each phoneme, float32 [P, SIZE]; zeros for the blank."""
    points = articulation.features()
    distances = np.sum(np.square(points[:, None] - points[None]), axis=-1)
    alike = _ALIKE * np.exp(-_SHARPNESS * distances)
    mixed = np.linalg.cholesky(alike + (1.0 - _ALIKE) * np.eye(len(points)))
    vectors = mixed @ np.random.default_rng(0).standard_normal((len(points), SIZE))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0.0
    return vectors.astype(np.float32)


def embed(windows: Int[np.ndarray, "M W"]) -> Float[np.ndarray, "M D"]:
    """Unit vectors of windows, float32 [M, WIDTH · SIZE]."""
    return codes()[windows].reshape(len(windows), -1) / np.float32(np.sqrt(WIDTH))


def embed_heard(
    log_ratios: Float[np.ndarray, "N P"],
) -> Float[np.ndarray, "Q D"]:
    """Unit vectors of what was heard, one for each run of WIDTH phonemes.

    Args:
        log_ratios: log posterior of each phoneme less the best one's, where each of the
            N phonemes was heard.

    Returns:
        Float32 [N − WIDTH + 1, WIDTH · SIZE], none for fewer phonemes than a window.
    """
    if len(log_ratios) < WIDTH:
        return np.zeros((0, WIDTH * SIZE), np.float32)
    heard = np.maximum(1.0 + log_ratios / _DEPTH, 0.0).astype(np.float32) @ codes()
    runs = np.lib.stride_tricks.sliding_window_view(heard, WIDTH, axis=0)
    runs = runs.transpose(0, 2, 1)
    mixed = runs.copy()
    mixed[:, 1:] += _SHIFT * runs[:, :-1]
    mixed[:, :-1] += _SHIFT * runs[:, 1:]
    flat = mixed.reshape(len(runs), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


class PhoneticIndex:
    """Nearest of M windows. An index never changes; `updated` makes another one.

    Attributes:
        windows: by row.
    """

    def __init__(self, searcher: Any, windows: Int[np.ndarray, "M W"]):
        """Over a ScaNN searcher without ids; use `build` or `load`."""
        self._searcher = searcher
        self.windows = windows

    @classmethod
    def build(cls, windows: Int[np.ndarray, "M W"]) -> PhoneticIndex:
        """Train on windows: a tree, hashed residues, and exact reordering.

        Raises:
            ValueError: no windows.
        """
        if not len(windows):
            raise ValueError("an index needs at least one window.")
        return cls(_train(embed(windows)), windows)

    @classmethod
    def load(cls, folder: str) -> PhoneticIndex:
        """What `save` wrote.

        Raises:
            ValueError: no index there.
        """
        file = Path(folder, _WINDOWS)
        if not file.is_file():
            raise ValueError(f"no phonetic index in {folder}; build and save one.")
        return cls(_load(folder), np.load(file))

    def save(self, folder: str) -> None:
        """Write ScaNN's files and the windows; whatever was there is replaced."""
        place = Path(folder)
        fresh = place.with_name(f"{place.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self._searcher.serialize(str(fresh), relative_path=True)
        np.save(fresh / _WINDOWS, self.windows)
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)

    def number(self, windows: Int[np.ndarray, "M W"]) -> Int[np.ndarray, " M"]:
        """Which of the same windows, ascending, each row of this index is.

        Raises:
            ValueError: they are not the same.
        """
        order = np.lexsort(self.windows.T[::-1])
        if not np.array_equal(self.windows[order], windows):
            raise ValueError(
                f"the index holds {len(self)} windows, the database {len(windows)}, "
                "and not the same ones; update or build the index again."
            )
        numbers = np.empty(len(order), np.int64)
        numbers[order] = np.arange(len(order))
        return numbers

    def __len__(self) -> int:
        return len(self.windows)

    def search(self, heard: Float[np.ndarray, "Q D"]) -> Int[np.ndarray, "Q K"]:
        """Rows nearest to each vector, the nearest first; K ≤ NEIGHBOURS.

        Queries of many streams may stand in one call.
        """
        most = min(NEIGHBOURS, len(self))
        return self._searcher.search_batched(heard, final_num_neighbors=most)[0]

    def find(
        self, acoustics: Acoustics, fresh: int
    ) -> tuple[Int[np.ndarray, "Q K"], Int[np.ndarray, " Q"]]:
        """Rows near to what ends within the last phonemes, and where each begins.

        Args:
            acoustics: of the stream.
            fresh: number of phonemes that are new in it.
        """
        places = acoustics.places[-(fresh + WIDTH - 1) :] - acoustics.begin
        heard = embed_heard(np.log(np.maximum(acoustics.ratios[places], _FAINT)))
        if not fresh or not len(heard):
            return np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
        starts = acoustics.end - len(places) + np.arange(len(heard))
        return self.search(heard), starts

    @classmethod
    def updated(cls, folder: str, windows: Int[np.ndarray, "M W"]) -> PhoneticIndex:
        """A saved index made to hold other windows, without training.

        Those that are in both keep their place in the tree.

        Args:
            folder: where the index was saved; it stays as it is.
            windows: distinct ones.

        Raises:
            ValueError: no index there, or no windows.
        """
        if not len(windows):
            raise ValueError("an index needs at least one window.")
        before = cls.load(folder)
        known = [window.tobytes() for window in before.windows]
        wanted = {window.tobytes(): window for window in windows}
        # The wrapper moves ids as ScaNN moves rows.
        changed = _scann().ScannSearcher(before._searcher.searcher, docids=known)
        gone = [window for window in known if window not in wanted]
        old = set(known)
        if fresh := [window for window in wanted if window not in old]:
            vectors = embed(np.stack([wanted[window] for window in fresh]))
            changed.upsert(fresh, vectors, batch_size=len(fresh))
        if gone:
            changed.delete(gone)
        rows = np.stack([wanted[window] for window in changed.docids])
        return cls(_scann().ScannSearcher(changed.searcher), rows)


def _scann() -> Any:
    """ScaNN's Python interface; its native library is slow to load."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind


def _load(folder: str) -> Any:
    return _scann().load_searcher(folder, assets_backcompat_shim=False)


def _train(vectors: Float[np.ndarray, "M D"]) -> Any:
    scann = _scann()
    count = len(vectors)
    most = min(NEIGHBOURS, count)
    builder = scann.builder(vectors, most, "dot_product")
    if count <= _SMALL:
        return builder.score_brute_force().build()
    from scann.scann_ops.py.scann_builder import ReorderType

    leaves = max(count // _PER_LEAF, 1)
    return (
        builder.tree(
            leaves, min(_LEAVES, leaves), training_sample_size=min(count, 200_000)
        )
        .score_ah(2)
        .reorder(_REORDERED, ReorderType.BFLOAT16)
        .build()
    )


@functools.partial(jax.jit, static_argnames="most")
def search_exactly(
    vectors: Float[Array, "M D"], heard: Float[Array, "Q D"], most: int
) -> Int[Array, "Q K"]:
    """What `PhoneticIndex.search` approximates: every window compared."""
    return jax.lax.top_k(jnp.matmul(heard, vectors.T), most)[1]
