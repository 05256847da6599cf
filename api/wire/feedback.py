"""The engine's word on a sweep, for the driver that plans the next ones.

Goes from the engine to the daemon and over the wire to the driver: plain numbers, bounded and checked where
they come in. No state; any thread.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from microdiffusion.header import NonNegative

MAX_SLICES = 4096
MAX_CANDIDATES = 64
_Index = Annotated[int, Field(ge=0, lt=1 << 31)]
_PerSlice = Annotated[tuple[NonNegative, ...], Field(max_length=MAX_SLICES)]


class SweepFeedback(BaseModel):
    """Findings of a sweep in its session, and what the next one can tell.

    Attributes
    ----------
    sweep, channel, position : int
        The sweep and its session.
    learned : int
        Sweeps that the session has taken in, this one included; 1 where it begins anew.
    innovation : (Z,)
        Mean square by which the voxels of a slice changed from what they are while nothing changes, in units
        of the noise's variance of a projection; 0 everywhere in the first sweep.
    changed : (Z,)
        Share of its voxels that did by more than they are known to, 0 to 1.
    told : (Z,)
        Median variance that the sweep took from the voxels of a slice, in the units of `innovation`: what
        there still is to be learned of a specimen that keeps still, also while some of its voxels change.
    first_um : (K,)
        Depths, µm, at which a sweep of even steps may begin: its first slab's centre, between the top of the
        volume and one step below.
    information : (K,)
        What such a sweep is expected to tell, bits per pixel.
    step_um : float
        Its step.
    drift_z_um : float or None
        How much deeper the specimen lies than at the begin of its session, µm; None where nobody looked.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    sweep: _Index
    channel: _Index = 0
    position: _Index = 0
    learned: _Index = 0
    innovation: _PerSlice = ()
    changed: _PerSlice = ()
    told: _PerSlice = ()
    first_um: Annotated[tuple[FiniteFloat, ...], Field(max_length=MAX_CANDIDATES)] = ()
    information: Annotated[tuple[NonNegative, ...], Field(max_length=MAX_CANDIDATES)] = ()
    step_um: NonNegative = 0.0
    drift_z_um: FiniteFloat | None = None
