"""Drift callback of stages 4 to 6: CKA and phoneme errors against stage 1's encoder."""

from __future__ import annotations

import dataclasses
from typing import Any

from nim4_jax.train.callbacks import Outcome
from nim4_jax.train.releases.encoder_probe import EncoderProbe
from nim4_jax.train.state import TrainState
from nim4_jax.types import Frames, Params

CKA = "probe/cka"
PHONEME_ERROR = "probe/phoneme_error"


@dataclasses.dataclass(frozen=True)
class DriftConfig:
    """What drift is measured from, and how often.

    Attributes:
        every: steps between two measurements; 0 for none.
        sources: recordings with transcripts.
        batches: how many batches of them.
        reference: workdir or .safetensors file of the stage-1 encoder; "" for the
            encoder that this run begins with.
    """

    every: int
    sources: tuple[str, ...]
    batches: int = 4
    reference: str = ""

    def __post_init__(self):
        if self.every < 0:
            raise ValueError(f"probe.every={self.every}; expected 1 or more, 0 = off.")


class DriftProbe:
    """Measures the phoneme error of stage 1's head, and CKA with stage 1's encoder."""

    name = "probe"

    def __init__(self, probe: EncoderProbe, reference: Params, every: int):
        """Take the set, "cmvn", "encoder" and "ctc_head" of stage 1, and how often."""
        self._probe, self._reference, self._every = probe, reference, every
        self._frames: list[Frames] | None = None
        self._measured = -1

    def is_due(self, step: int, last: bool) -> bool:
        """Whether to measure: at multiples of `every` and at the end, once a step."""
        return step > self._measured and (last or step % self._every == 0)

    def after_step(self, state: TrainState, step: int, last: bool) -> Outcome:
        """Measure; the state is left as it is."""
        if self._frames is None:
            self._frames = self._probe.hear(self._reference)
        params = {**state.params, "ctc_head": self._reference["ctc_head"]}
        metrics = {
            CKA: self._probe.compare(self._frames, self._probe.hear(params)),
            PHONEME_ERROR: self._probe.phoneme_error(params),
        }
        self._measured = step
        return Outcome(state, metrics=metrics)

    def get_state(self) -> dict[str, Any]:
        """The last step measured."""
        return {"measured": self._measured}

    def set_state(self, saved: dict[str, Any]) -> None:
        """Go on from there."""
        self._measured = int(saved["measured"])
