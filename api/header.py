"""The header of a run: geometry, beam and camera. It travels in the `start` message and in the run file.

A frozen pydantic model, because it arrives over the wire and from files: everything is checked here, once,
and the hot path trusts it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from microdiffusion.optics import AxialProfile, projection_operator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.frames import StagePositions

Positive = Annotated[FiniteFloat, Field(gt=0)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]
MOST_SESSIONS = 10_000
"""Channels times positions of one run."""


def _printable(text: str) -> str:
    """Replace characters that would steer a terminal, or end a name: the text comes from other machines."""
    return "".join(character if character.isprintable() else "_" for character in text)


Name = Annotated[str, AfterValidator(_printable)]


class CameraNoise(BaseModel):
    """The camera's conversion of photons into counts.

    Attributes
    ----------
    offset : float
        Counts of a dark frame. Volumes keep it: a uniform specimen of value v has projections of value v.
    gain : float or None
        Counts per photon; None where it was not measured (the engine then estimates the noise).
    read_noise : float
        Standard deviation of a dark frame, counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: FiniteFloat = 0.0
    gain: Positive | None = None
    read_noise: NonNegative = 0.0

    def expose(self, photons: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.uint16]:
        """Return what this camera makes of the expected photons, any shape: uint16 counts.

        Photons are drawn from a Poisson distribution; then come gain (1 where None), offset and read noise.
        """
        counts = rng.poisson(photons).astype(np.float32)
        counts *= self.gain or 1.0
        counts += self.offset
        if self.read_noise > 0:
            counts += self.read_noise * rng.standard_normal(counts.shape, dtype=np.float32)
        return np.clip(np.rint(counts, out=counts), 0, 65535).astype(np.uint16)


class RunHeader(BaseModel):
    """Geometry, beam and camera of a run; the same for each of its sweeps.

    Attributes
    ----------
    run_id : str
        32 hexadecimal digits.
    shape : (Z, Y, X)
        Slices wanted, and the camera's rows and columns.
    voxel_size_um : (z, y, x)
        µm; y and x are the camera's pixel in the specimen.
    z0_um : float
        Centre of the first slice, µm, in the coordinates of the stage.
    profile_weights, profile_spacing_um
        The axial profile (K,), unit sum; one weight is a box of length `profile_spacing_um`.
    dtype : "uint16" or "float32"
        Pixels of the projections, little-endian.
    channels, positions
        Names, at least one each.
    sweeps : int or None
        Number of sweeps (time points), None where the end is open.
    frames_per_sweep : int
        Most frames of one sweep of one session, held-out ones included: the room kept in the run file.
    adaptive : bool
        Whether its driver plans the next sweeps by what the engine says of the last ones (`SweepFeedback`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    name: Annotated[Name, Field(max_length=200)] = "run"
    shape: tuple[Count, Count, Count]
    voxel_size_um: tuple[Positive, Positive, Positive]
    z0_um: FiniteFloat
    profile_weights: Annotated[tuple[NonNegative, ...], Field(min_length=1, max_length=65536)]
    profile_spacing_um: Positive
    dtype: Literal["uint16", "float32"] = "uint16"
    channels: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)] = ("default",)
    positions: Annotated[tuple[Name, ...], Field(min_length=1, max_length=10000)] = ("0",)
    sweeps: Count | None = None
    frames_per_sweep: Count = 64
    camera: CameraNoise = CameraNoise()
    source: Annotated[Name, Field(max_length=2000)] = ""
    adaptive: Annotated[bool, Field(exclude_if=lambda wanted: not wanted)] = False

    @model_validator(mode="after")
    def _volume_of_sane_size(self) -> Self:
        z, y, x = self.shape
        if z * y * x >= 1 << 31:
            raise ValueError(f"a volume of {z} x {y} x {x} voxels is too large (2^31 voxels at most)")
        if not 0 < sum(self.profile_weights) < math.inf:
            raise ValueError("the axial profile needs a positive weight, and a sum that is finite")
        if len(self.channels) * len(self.positions) > MOST_SESSIONS:
            raise ValueError(f"a run has {MOST_SESSIONS} channels times positions at most")
        return self

    @property
    def profile(self) -> AxialProfile:
        """The beam's axial profile."""
        return AxialProfile.sampled(self.profile_weights, self.profile_spacing_um)

    def operator_at(self, stage: StagePositions) -> NDArray[np.float64]:
        """Return the projection operator (M, Z) of stage positions (M,); see `projection_operator`."""
        return projection_operator(
            stage.z_um,
            self.profile,
            z0_um=self.z0_um,
            voxel_z_um=self.voxel_size_um[0],
            shape_z=self.shape[0],
        )

    def centres_of(self, stage: StagePositions) -> NDArray[np.float64]:
        """Return the centres (M,) of slabs, in slices from the first."""
        return (stage.z_um - self.z0_um) / self.voxel_size_um[0]
