"""Rule tables: which tensor of another implementation is which parameter of ours.

One table per family serves both directions. A layout is a pair of inverse functions
between one tensor of theirs and one parameter (of one layer) of ours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor is laid out on either side.

    Attributes:
        name: for messages.
        ours: their array and our shape → our array.
        theirs: our array → their array.
    """

    name: str
    ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def linear(inputs: int = 1) -> Layout:
    """[out, in] of torch's Linear ↔ ours, whose first `inputs` axes are contracted."""

    def ours(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return array.T.reshape(shape)

    def theirs(array: np.ndarray) -> np.ndarray:
        size = int(np.prod(array.shape[:inputs]))
        return array.reshape(size, -1).T

    return Layout("linear", ours, theirs)


def _reshape(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(shape)


SAME = Layout("same", _reshape, lambda array: array)
BIAS = Layout("bias", _reshape, lambda array: array.reshape(-1))
CONV2D = Layout(  # [out, in, height, width] ↔ [height, width, in, out]
    "conv2d",
    lambda array, shape: array.transpose(2, 3, 1, 0).reshape(shape),
    lambda array: array.transpose(3, 2, 0, 1),
)
CONV1D = Layout(  # [out, in, taps] ↔ [taps, in, out]
    "conv1d",
    lambda array, shape: array.transpose(2, 1, 0).reshape(shape),
    lambda array: array.transpose(2, 1, 0),
)
POINTWISE = Layout(  # Conv1d [out, in, 1] ↔ [in, out]
    "pointwise",
    lambda array, shape: array[..., 0].T.reshape(shape),
    lambda array: array.T[..., None],
)
DEPTHWISE = Layout(  # Conv1d [channels, 1, taps] ↔ [taps, channels]
    "depthwise",
    lambda array, shape: array[:, 0].T.reshape(shape),
    lambda array: array.T[:, None],
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter of ours and its tensor, or one tensor per layer, of theirs.

    Attributes:
        ours: path, as "llm/final_norm/scale"; with a leading axis "layers" where
            `theirs` holds "{layer}".
        theirs: name of the tensor.
        layout: how its axes correspond.
    """

    ours: str
    theirs: str
    layout: Layout = SAME


@dataclasses.dataclass(frozen=True)
class Move:
    """One tensor of theirs and its place in ours; `layer` None fills all of it."""

    theirs: str
    ours: str
    layer: int | None
    layout: Layout
    shape: tuple[int, ...]

    def check(self, shape: tuple[int, ...], origin: str = "") -> None:
        """Hold their tensor's shape against ours.

        Args:
            shape: of their tensor.
            origin: file or folder, for the message.

        Raises:
            ValueError: it is another one.
        """
        expected = _turn_shape(self.layout, self.shape)
        if tuple(shape) != expected:
            where = f"{origin}: " if origin else ""
            raise ValueError(
                f"{where}{self.theirs} has shape {tuple(shape)}, expected {expected} "
                f"for {self.ours} {self.shape} (layout {self.layout.name}); the config "
                "describes a model of another size."
            )

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Their array in our layout.

        Raises:
            ValueError: its shape is another one.
        """
        self.check(array.shape)
        return self.layout.ours(array, self.shape)


@functools.lru_cache(maxsize=256)
def _turn_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Their shape of our shape; once for all layers."""
    return layout.theirs(np.broadcast_to(np.int8(0), shape)).shape


def plan(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> list[Move]:
    """Every tensor of theirs that a model of these shapes corresponds to.

    Args:
        rules: the family's table; rules of parameters that the model lacks are idle.
        shapes: of our parameters by path.

    Raises:
        ValueError: a parameter that no rule fills.
    """
    by_path = {rule.ours: rule for rule in rules}
    if len(by_path) != len(rules):
        raise ValueError("two rules fill one parameter.")
    bare = [f"{path} {shapes[path]}" for path in sorted(shapes) if path not in by_path]
    if bare:
        raise ValueError(f"no rule fills these parameters: {', '.join(bare)}.")
    moves = []
    for path, shape in shapes.items():
        rule = by_path[path]
        if LAYER not in rule.theirs:
            moves.append(Move(rule.theirs, path, None, rule.layout, shape))
            continue
        for layer in range(shape[0]):
            name = rule.theirs.replace(LAYER, str(layer))
            moves.append(Move(name, path, layer, rule.layout, shape[1:]))
    return moves


def check_names(
    moves: Sequence[Move],
    given: Mapping[str, tuple[int, ...]],
    origin: str,
    ignored: Callable[[str], bool] = lambda name: False,
) -> None:
    """Refuse tensors that no rule takes and parameters that no tensor fills.

    Args:
        moves: from `plan`.
        given: shapes of the tensors that are there, by name.
        origin: file or folder, for the message.
        ignored: names of tensors that mean nothing to us, as buffers.

    Raises:
        ValueError: with all such names and shapes.
    """
    wanted = {move.theirs for move in moves}
    spare = sorted(n for n in given.keys() - wanted if not ignored(n))
    missing = sorted(
        f"{move.theirs} (for {move.ours} {move.shape})"
        for move in moves
        if move.theirs not in given
    )
    problems = []
    if missing:
        problems.append(f"lacks {_list(missing)}")
    if spare:
        shown = [f"{name} {tuple(given[name])}" for name in spare]
        problems.append(f"holds {_list(shown)}, which no rule takes")
    if problems:
        raise ValueError(
            f"{origin} {' and '.join(problems)}. Is its config that of these weights?"
        )


def check_shapes(
    moves: Sequence[Move], given: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Refuse tensors of another shape than the parameters that they fill.

    Args:
        moves: from `plan`.
        given: as in `check_names`, which comes first.
        origin: file or folder, for the message.

    Raises:
        ValueError: with the first.
    """
    for move in moves:
        move.check(given[move.theirs], origin)


def _list(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
