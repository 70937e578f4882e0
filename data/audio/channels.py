"""Mixing of several channels to one, so that speech in any of them stays audible.

    mix     the mean; where it is far softer than a channel, the loudest
    left    the first
    right   the second
    0 … 7   that channel, counted from 0

The mean cancels what two channels have in opposite phase (a cable with two wires
crossed, some call recorders), and buries one voice among silent channels. So the mean
and the channels are compared in windows of one second:

    power of the mean                                           is heard
    6 dB or more below what unlike channels would give          the loudest channel
    9 dB or more below a channel that holds 99 % of the power   that channel
    else                                                        the mean

Voices of several people on a channel each are unlike: none of them is left out. Windows
are counted from the first sample, so the result does not depend on the blocks in which
samples come.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

NAMED = {"left": 0, "right": 1}
CHOICES = ("mix", *NAMED)
"""What one channel can be made of, beside a number."""

_CANCELLED = 0.25  # power of the mean over that of the mean of unlike channels
_BACK = 0.5  # and that at which the mean comes back
_ALONE, _BURIED = 0.99, 0.125
_SHORTEST = 0.1  # of a window; from fewer samples likeness cannot be told
_STEADY = 0.5  # the chosen channel is kept down to −3 dB of the loudest
_FADE = 0.01  # s, from one choice to the next

Channel = str | int


class ChannelMixer:
    """One recording's way from its channels to one."""

    def __init__(self, rate: float, channels: int, choice: Channel = "mix"):
        """Start a recording.

        Args:
            rate: Hz.
            channels: of the recording.
            choice: one of CHOICES or a number; of one channel there is no choice.

        Raises:
            ValueError: an unknown choice, or a channel that the recording lacks.
        """
        self._only = find_channel(choice, channels)
        self._channels = channels
        self._window = max(1, round(rate))
        self._fade = max(1, round(_FADE * rate))
        self._chosen: int | None = None  # None for the mean
        self._begun = False
        self._held: list[np.ndarray] = []
        self._length = 0

    def feed(
        self, samples: Float[np.ndarray, "S C"], *, last: bool = False
    ) -> Float[np.ndarray, " Z"]:
        """Take samples; hand out those of full windows, and with the last all."""
        if self._channels == 1 or self._only is not None:
            return np.ascontiguousarray(samples[:, self._only or 0], np.float32)
        self._held.append(samples)
        self._length += len(samples)
        if self._length < self._window and not last:
            return np.zeros(0, np.float32)
        held = np.concatenate(self._held).astype(np.float32, copy=False)
        size = self._window
        stop = len(held) if last else len(held) // size * size
        made = [self._mix(held[at : at + size]) for at in range(0, stop, size)]
        self._held, self._length = [held[stop:]], len(held) - stop
        return np.concatenate([np.zeros(0, np.float32), *made])

    def _mix(self, window: np.ndarray) -> np.ndarray:
        before, self._chosen = self._chosen, self._choose(window)
        made = _take(window, self._chosen)
        fades, self._begun = self._begun and before != self._chosen, True
        if not fades:
            return made
        size = min(self._fade, len(window))
        share = np.arange(1, size + 1, dtype=np.float32) / np.float32(size)
        old = _take(window[:size], before)
        made = made.copy()
        made[:size] = share * made[:size] + (1 - share) * old
        return made

    def _choose(self, window: np.ndarray) -> int | None:
        """The channel for a window, None for the mean."""
        if len(window) < _SHORTEST * self._window:
            return self._chosen
        with np.errstate(over="ignore", invalid="ignore"):
            powers = np.square(window, dtype=np.float64).sum(axis=0)
            mean = float(np.square(window.mean(axis=1, dtype=np.float64)).sum())
        loudest, total = float(powers.max()), float(powers.sum())
        if not 0.0 < total < np.inf:
            return self._chosen  # silence, or what is refused later
        apart = total / len(powers) ** 2
        cancelled = mean < apart * (_CANCELLED if self._chosen is None else _BACK)
        buried = loudest >= _ALONE * total and mean < _BURIED * loudest
        if not cancelled and not buried:
            return None
        if self._chosen is not None and powers[self._chosen] >= _STEADY * loudest:
            return self._chosen
        return int(powers.argmax())


def check_choice(choice: object) -> None:
    """See that a choice is one of CHOICES or a number from 0.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(choice, int) and not isinstance(choice, bool) and choice >= 0
    if not number and choice not in CHOICES:
        raise ValueError(
            f"channel {choice!r} is unknown; use one of {', '.join(CHOICES)}, or a "
            "number from 0"
        )


def find_channel(choice: Channel, channels: int) -> int | None:
    """The number of a chosen channel, None for the mix.

    Raises:
        ValueError: an unknown choice, or a channel that is not there.
    """
    check_choice(choice)
    if choice == "mix":
        return None
    number = NAMED[choice] if isinstance(choice, str) else choice
    if number >= channels:
        raise ValueError(
            f"it has {channels} channel{'s' * (channels != 1)}, and no channel "
            f"{choice!r}"
        )
    return number


def _take(window: np.ndarray, chosen: int | None) -> np.ndarray:
    if chosen is None:
        return window.mean(axis=1, dtype=np.float32)
    return window[:, chosen]
