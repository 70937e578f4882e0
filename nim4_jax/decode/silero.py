"""Silero VAD: probabilities of speech for windows of many streams at once.

    64 samples of the window before, 512 new ones ─ 4 frames of |STFT| ─ 4 convolutions
    ─ LSTM cell, one step a window ─ probability

All but the LSTM's step is one product over the windows of all streams; a step is one
product over the streams. NumPy on one thread: it runs beside the device, whatever that
is, and the smallest product of an accelerator would wait for the recogniser's.

Source: github.com/snakers4/silero-vad 6.2.3, `silero_vad_16k_op15.onnx`, MIT, whose
    16 kHz weights these are; the windowing is `OnnxWrapper.__call__`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import resources

import numpy as np
import safetensors.numpy
from jaxtyping import Float

import nim4_jax

WINDOW = 512
"""Samples of a Silero window at 16 kHz, 32 ms."""

_CONTEXT = 64  # samples of the window before, that are seen again
_FFT, _HOP = 256, 128  # samples of an STFT frame, and from one to the next
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)).astype(np.float32)
_STRIDES = (1, 2, 2, 1)  # of the convolutions: 4 frames become one
_SIZE = 128  # of the LSTM
_WINDOWS = 64  # encoded at once: what lies between the layers stays in the cache

# Rows of each product. BLAS picks its kernel by the shape, and kernels round in their
# own ways: with one shape for all, a row's bits do not depend on how many rows there
# are. At four, no product is large enough for OpenBLAS to wake its threads, which wait
# for each other by spinning: on a busy machine that takes a hundred times longer.
_ROWS = 4


@dataclasses.dataclass(frozen=True)
class SileroState:
    """Recurrent state of Silero for a stream.

    Attributes:
        hidden: float32 [2, 128], output and cell of the LSTM.
        context: float32 [64], the end of the last window.
    """

    hidden: np.ndarray
    context: np.ndarray


class Silero:
    """The detector; streams and threads may share it.

    Attributes:
        frame: samples of a window.
    """

    frame = WINDOW

    def __init__(self):
        """Load the model that comes with the package."""
        path = resources.files(nim4_jax) / "pretrained" / "silero_vad.safetensors"
        weights = safetensors.numpy.load(path.read_bytes())
        self._convolutions = [
            (_flatten(weights[f"encoder.{n}.weight"]), weights[f"encoder.{n}.bias"])
            for n in range(4)
        ]
        self._input = _turn(weights["lstm.weight_ih"])
        self._recurrent = _turn(weights["lstm.weight_hh"])
        self._bias = weights["lstm.bias_ih"] + weights["lstm.bias_hh"]
        self._output = _turn(weights["output.weight"][:, :, 0])
        self._output_bias = weights["output.bias"]

    def start(self) -> SileroState:
        """State of a stream before its first window."""
        return SileroState(
            np.zeros((2, _SIZE), np.float32), np.zeros(_CONTEXT, np.float32)
        )

    def score(
        self, state: SileroState, windows: Float[np.ndarray, "N 512"]
    ) -> tuple[SileroState, Float[np.ndarray, " N"]]:
        """Speech probabilities of a stream's next windows, any number of them.

        Args:
            state: of the stream; not changed.
            windows: samples in [-1, 1), 16 kHz, one window behind the other.

        Returns:
            State after them; float32 probabilities, 0 … 1.

        Raises:
            ValueError: another shape, no floats, or samples that are not finite.
        """
        ((after, scores),) = self.score_many([state], [windows])
        return after, scores

    def score_many(
        self,
        states: Sequence[SileroState],
        windows: Sequence[Float[np.ndarray, "N 512"]],
    ) -> list[tuple[SileroState, Float[np.ndarray, " N"]]]:
        """What `score` gives for each stream, bit for bit, in one go.

        Args:
            states: of the streams.
            windows: of each stream, any number.

        Raises:
            ValueError: as `score`, of any stream.
        """
        if not states:
            return []
        checked = [_check(own) for own in windows]
        # Longest first: the streams that still have a window at a step are in front.
        order = sorted(range(len(checked)), key=lambda row: -len(checked[row]))
        counts = np.array([len(checked[row]) for row in order])
        rows = _pad(len(order))
        gates = np.zeros((counts[0], rows, 4 * _SIZE), np.float32)
        memory = np.zeros((2, rows, _SIZE), np.float32)
        seen = [_join(states[row], checked[row]) for row in order]
        encoded = self._encode(np.concatenate(seen))
        for place, own in enumerate(np.split(encoded, np.cumsum(counts)[:-1])):
            gates[: len(own), place] = own
            memory[:, place] = states[order[place]].hidden
        scores = self._remember(gates, counts, memory)
        made: dict[int, tuple[SileroState, np.ndarray]] = {}
        for place, row in enumerate(order):
            after = SileroState(
                memory[:, place].copy(), _find_end(states[row], checked[row])
            )
            made[row] = after, scores[: counts[place], place].copy()
        return [made[row] for row in range(len(checked))]

    def _encode(
        self, windows: Float[np.ndarray, "N 576"]
    ) -> Float[np.ndarray, "N 512"]:
        """What the windows give to the gates of the LSTM."""
        padded = np.zeros((_pad(len(windows)), windows.shape[1]), np.float32)
        padded[: len(windows)] = windows
        gates = np.empty((len(padded), 4 * _SIZE), np.float32)
        for begin in range(0, len(padded), _WINDOWS):
            block = slice(begin, begin + _WINDOWS)
            values = _transform(padded[block])
            for (kernel, bias), stride in zip(self._convolutions, _STRIDES):
                values = _multiply(_unfold(values, stride), kernel) + bias
                values = np.maximum(values, 0.0)
            gates[block] = _multiply(values[:, 0], self._input) + self._bias
        return gates[: len(windows)]

    def _remember(self, gates, counts, memory) -> Float[np.ndarray, "N B"]:
        """Probabilities of each step; memory [2, B, 128] becomes that behind the last.

        Args:
            gates: float32 [N, B, 512], of N steps of B streams, a multiple of `_ROWS`.
            counts: int [at most B], steps of each stream, not growing.
            memory: float32, changed.
        """
        outputs = np.zeros((*gates.shape[:2], _SIZE), np.float32)
        for step, given in enumerate(gates):
            active = int(np.sum(counts > step))
            rows = _pad(active)
            output, cell = memory[:, :rows]
            given = given[:rows] + _multiply(output, self._recurrent)
            enters, stays, new, leaves = np.split(given, 4, axis=1)
            cell = _sigmoid(stays) * cell + _sigmoid(enters) * np.tanh(new)
            output = _sigmoid(leaves) * np.tanh(cell)
            # Rows behind the active ones are streams that have ended, or nobody.
            memory[0, :active], memory[1, :active] = output[:active], cell[:active]
            outputs[step, :rows] = output
        scores = _multiply(np.maximum(outputs, 0.0), self._output) + self._output_bias
        return _sigmoid(scores)[..., 0]


def _check(windows: np.ndarray) -> np.ndarray:
    windows = np.asarray(windows)
    if windows.shape[1:] != (WINDOW,) or windows.dtype.kind != "f":
        raise ValueError(
            f"windows of shape {windows.shape} and dtype {windows.dtype}; expected "
            f"[N, {WINDOW}] float samples at 16 kHz: gather packets, pad the last."
        )
    if not np.isfinite(windows).all():
        raise ValueError(
            "windows hold NaN or infinite samples, which would stay in the stream's "
            "state; expected finite ones: check the audio where it enters."
        )
    return windows.astype(np.float32, copy=False)


def _join(state: SileroState, windows: np.ndarray) -> Float[np.ndarray, "N 576"]:
    """Each window behind the end of the one before."""
    ends = np.concatenate([state.context[None], windows[:, -_CONTEXT:]])
    return np.concatenate([ends[:-1], windows], axis=1)


def _find_end(state: SileroState, windows: np.ndarray) -> Float[np.ndarray, "64"]:
    return windows[-1, -_CONTEXT:].copy() if len(windows) else state.context


def _transform(windows: Float[np.ndarray, "N 576"]) -> Float[np.ndarray, "N 4 129"]:
    """|STFT| under periodic Hann windows; the end is mirrored for the last frame."""
    mirrored = windows[:, -2 : -2 - _FFT // 4 : -1]
    samples = np.concatenate([windows, mirrored], axis=1)
    frames = np.lib.stride_tricks.sliding_window_view(samples, _FFT, axis=1)
    return np.abs(np.fft.rfft(frames[:, ::_HOP] * _HANN)).astype(np.float32)


def _unfold(values: Float[np.ndarray, "N U C"], stride: int) -> np.ndarray:
    """What a convolution of width 3 sees at each place: [N, ⌈U / stride⌉, 3 C]."""
    batch, count, channels = values.shape
    padded = np.zeros((batch, count + 2, channels), np.float32)
    padded[:, 1:-1] = values
    views = [padded[:, tap : tap + count : stride] for tap in range(3)]
    return np.concatenate(views, axis=2)


def _multiply(values: np.ndarray, weights: Float[np.ndarray, "C D"]) -> np.ndarray:
    """values @ weights, `_ROWS` rows at a time; their number must be a multiple."""
    rows = values.reshape(-1, _ROWS, values.shape[-1])
    return np.matmul(rows, weights).reshape(*values.shape[:-1], weights.shape[1])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    # Unlike 1 / (1 + exp(−x)), without overflow.
    return 0.5 * np.tanh(0.5 * values) + 0.5


def _flatten(kernel: Float[np.ndarray, "D C 3"]) -> Float[np.ndarray, "E D"]:
    """A convolution's kernel as the matrix behind `_unfold`."""
    return _turn(kernel.transpose(0, 2, 1).reshape(len(kernel), -1))


def _turn(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix.T)


def _pad(count: int) -> int:
    """Rows up to whole products."""
    return -(-count // _ROWS) * _ROWS
