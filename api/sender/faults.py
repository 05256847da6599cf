"""Deliberate faults: the effects of a bad line on frames, drawn from a seed.

For replays and tests of the path from driver to daemon. A fault strikes the first transmission of a
frame only, so what is re-sent goes through. `FaultSource` has no lock: it belongs to the sender's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Faults(BaseModel):
    """Fractions of the frames that meet a fault; all zero is a sound line.

    Attributes
    ----------
    drop : float
        Lost for good, unannounced: the receiver has to notice.
    duplicate : float
        Sent twice.
    reorder : float
        Overtaken by the next frame.
    corrupt : float
        Damaged on the way: refused by the receiver and then re-sent.
    stall_s : float
        Duration of one stall of the line, after `stall_after` frames.
    cut_s : float
        Duration of one loss of the connection, after `cut_after` frames; what was in transit is lost.
    seed : int
        The same seed gives the same faults for the same frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: Probability = 0.0
    duplicate: Probability = 0.0
    reorder: Probability = 0.0
    corrupt: Probability = 0.0
    stall_s: Annotated[FiniteFloat, Field(ge=0, le=3600)] = 0.0
    stall_after: Annotated[int, Field(ge=0)] = 20
    cut_s: Annotated[FiniteFloat, Field(ge=0, le=3600)] = 0.0
    cut_after: Annotated[int, Field(ge=0)] = 20
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _at_most_one_fault_a_frame(self) -> Self:
        total = self.drop + self.duplicate + self.reorder + self.corrupt
        if total > 1 + 1e-9:
            raise ValueError(f"drop, duplicate, reorder and corrupt must add up to at most 1, not {total:g}")
        return self


class Fault(Enum):
    """The fault of one frame."""

    NONE = auto()
    DROP = auto()
    DUPLICATE = auto()
    REORDER = auto()
    CORRUPT = auto()


class FaultSource:
    """Draws the faults of a run, one per frame, in the order of sending."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._random = np.random.default_rng(faults.seed)
        self._drawn = 0

    def draw(self) -> Fault:
        """Return the fault of the next frame."""
        self._drawn += 1
        faults = self._faults
        chance = self._random.random()
        for share, fault in (
            (faults.drop, Fault.DROP),
            (faults.duplicate, Fault.DUPLICATE),
            (faults.reorder, Fault.REORDER),
            (faults.corrupt, Fault.CORRUPT),
        ):
            if chance < share:
                return fault
            chance -= share
        return Fault.NONE

    def stall_s(self) -> float:
        """Return the length of the stall before the frame that was drawn last, s."""
        return self._faults.stall_s if self._drawn == self._faults.stall_after + 1 else 0.0

    def cut_s(self) -> float:
        """Return the length of the disconnection before the frame that was drawn last, s."""
        return self._faults.cut_s if self._drawn == self._faults.cut_after + 1 else 0.0

    def damage(self, parts: Sequence[bytes | memoryview]) -> list[bytes]:
        """Return a frame's parts with one bit flipped, mostly in the body, or the end of one part missing."""
        damaged = [bytearray(part) for part in parts]
        chance = self._random.random()
        part = damaged[1 if chance < 0.5 else int(self._random.integers(len(damaged)))]
        if chance < 0.75:
            part[int(self._random.integers(len(part)))] ^= 1 << int(self._random.integers(8))
        else:
            del part[int(self._random.integers(len(part))) :]
        return [bytes(part) for part in damaged]
