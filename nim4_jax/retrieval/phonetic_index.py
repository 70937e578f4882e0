"""Approximate nearest neighbours of phoneme windows: ScaNN over embeddings.

A phoneme's code is a random direction, bent towards those of phonemes that are
articulated alike; a window's embedding is the codes of its phonemes side by side. What
was heard is embedded by what the phoneme head thinks possible at each place, so the
inner product is near to the acoustic score of the window, up to a shift by one.

Where the scann package is not installed every window is compared instead, by a program
of JAX, which finds the same and more, more slowly.

Source: Guo et al. 2020 (ScaNN); the embedding is ours, chosen by recall.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
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
_SCANN_CONFIG = "scann_config.pb"

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
    flat = codes()[windows].reshape(len(windows), WIDTH * SIZE)
    return flat / np.float32(np.sqrt(WIDTH))


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
        """Over a ScaNN searcher without ids, or `Exact`; use `build` or `load`."""
        self._searcher = searcher
        self.windows = windows

    @classmethod
    def build(
        cls, windows: Int[np.ndarray, "M W"], *, train: bool = True
    ) -> PhoneticIndex:
        """Train on windows: a tree, hashed residues, and exact reordering.

        Args:
            windows: uint8 phonemes, none perhaps.
            train: whether there is time to; else, and for few windows, all are
                compared.
        """
        if not len(windows) or not has_scann():
            return cls(Exact(embed(windows)), windows)
        return cls(_train(embed(windows), train), windows)

    @classmethod
    def load(cls, folder: str) -> PhoneticIndex:
        """What `save` wrote; with the scann package or without, wherever it was made.

        Raises:
            ValueError: no index there, or one that ScaNN cannot read.
        """
        file = Path(folder, _WINDOWS)
        if not file.is_file():
            raise ValueError(f"no phonetic index in {folder}; build and save one.")
        windows = np.load(file)
        if not Path(folder, _SCANN_CONFIG).is_file() or not has_scann():
            return cls(Exact(embed(windows)), windows)
        try:
            return cls(_scann().load_searcher(folder, False), windows)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{folder} is no index that ScaNN reads ({error}); build it again."
            ) from error

    def save(self, folder: str) -> None:
        """Write ScaNN's files and the windows; whatever was there is replaced."""
        place = Path(folder)
        fresh = place.with_name(f"{place.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        if not isinstance(self._searcher, Exact):
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
        if not fresh or not len(heard) or not len(self):
            return np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
        starts = acoustics.end - len(places) + np.arange(len(heard))
        return self.search(heard), starts

    def updated(self, windows: Int[np.ndarray, "M W"]) -> PhoneticIndex:
        """This index made to hold other windows; it stays as it is itself.

        Windows that are in both keep their place in the tree. It is trained anew where
        most are others, or where there is no tree and now may be one.

        Args:
            windows: distinct ones.
        """
        wanted = {window.tobytes(): window for window in windows}
        known = [window.tobytes() for window in self.windows]
        old = set(known)
        fresh = [window for window in wanted if window not in old]
        small = [len(self) <= _SMALL, len(windows) <= _SMALL]
        exact = isinstance(self._searcher, Exact)
        few = 2 * len(fresh) >= len(wanted)  # stay, or there are none at all
        if exact or few or small[0] != small[1]:
            return self.build(windows)
        # The wrapper moves ids as ScaNN moves rows.
        changed = _scann().ScannSearcher(self._copy(), docids=known)
        if fresh:
            vectors = embed(np.stack([wanted[window] for window in fresh]))
            changed.upsert(fresh, vectors, batch_size=len(fresh))
        if gone := [window for window in known if window not in wanted]:
            changed.delete(gone)
        rows = np.stack([wanted[window] for window in changed.docids])
        return type(self)(_scann().ScannSearcher(changed.searcher), rows)

    def _copy(self) -> Any:
        """ScaNN's own object once more: it is changed in its place."""
        with tempfile.TemporaryDirectory() as folder:
            self._searcher.serialize(folder, relative_path=True)
            return _scann().load_searcher(folder, False).searcher


class Exact:
    """Exact search, which ScaNN approximates: all vectors compared on the device.

    Vectors and queries are padded to powers of two, so few programs are compiled.
    """

    def __init__(self, vectors: Float[np.ndarray, "M D"]):
        """Over some vectors, none perhaps."""
        self._count = len(vectors)
        self._vectors = jnp.asarray(_pad(vectors))

    def search_batched(
        self, heard: Float[np.ndarray, "Q D"], final_num_neighbors: int
    ) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
        """Rows and inner products, the greatest first, as ScaNN's searcher gives them.

        Args:
            heard: queries.
            final_num_neighbors: K, no more than there are vectors.
        """
        most = min(NEIGHBOURS, len(self._vectors))
        scores, rows = search_exactly(self._vectors, self._count, _pad(heard), most)
        taken = np.s_[: len(heard), :final_num_neighbors]
        return np.asarray(rows)[taken], np.asarray(scores)[taken]


def _pad(vectors: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M2 D"]:
    """With zeros up to a power of two rows, 8 at least."""
    rows = max(8, 1 << max(len(vectors) - 1, 0).bit_length())
    return np.pad(vectors, ((0, rows - len(vectors)), (0, 0)))


@functools.partial(jax.jit, static_argnames="most")
def search_exactly(
    vectors: Float[Array, "M D"], count: int, heard: Float[Array, "Q D"], most: int
) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    """Greatest inner products with the first `count` vectors, and their rows."""
    scores = jnp.matmul(heard, vectors.T)
    real = jnp.arange(len(vectors), dtype=jnp.int32)[None, :] < count
    return jax.lax.top_k(jnp.where(real, scores, -jnp.inf), most)


@functools.cache
def has_scann() -> bool:
    """Whether the scann package is installed and runs here."""
    try:
        _scann()
    except ImportError:
        return False
    return True


def _scann() -> Any:
    """ScaNN's Python interface; its native library is slow to load."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind


def _train(vectors: Float[np.ndarray, "M D"], tree: bool) -> Any:
    scann = _scann()
    count = len(vectors)
    most = min(NEIGHBOURS, count)
    builder = scann.builder(vectors, most, "dot_product")
    if count <= _SMALL or not tree:
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
