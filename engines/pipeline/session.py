"""What the reconstructor keeps: the matrices of each sweep geometry, and the state of each session.

Geometries depend on slab positions alone and are shared by all sessions; a session (channel and position)
has its normalisation, its prior, what was found about the network, and the sweep before. Bounded memory
whatever the number of sweeps. Runs on the reconstructor's thread.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.diffusion import SliceConditions
from microdiffusion.engines.projections import (
    DataConsistency,
    Seen,
    Supports,
    interpolation_matrix,
    matched_smoothness,
    supports,
    tikhonov_matrix,
)
from microdiffusion.engines.trust import UNTOLD, Findings, OctaveTest
from microdiffusion.optics import projection_operator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.engines.inr import SessionPrior
    from microdiffusion.header import RunHeader

_MOST = 64  # geometries; lost frames make rare ones


@dataclass(slots=True, eq=False)
class Geometry:
    """Everything that depends on the sweep's slab positions alone.

    `matrix` (M, Z) float64 and `operator` are the same; `tikhonov` and `linear` (Z, M) are closed forms;
    `octave` is None where there are too few projections; `supports` are the slices that each slab saw.
    """

    matrix: NDArray[np.float64]
    operator: Tensor
    tikhonov: Tensor
    linear: Tensor
    conditions: SliceConditions
    consistency: DataConsistency
    octave: OctaveTest | None
    supports: Supports
    _smooth: dict[float, Tensor] = field(default_factory=dict)

    def closed(self, images: Tensor, variance: Tensor) -> Tensor:
        """Return Tikhonov's matrix (Z, M) with the smoothness that fits images and noise."""
        smoothness = matched_smoothness(self.matrix, images, variance)
        if smoothness not in self._smooth:
            self._smooth[smoothness] = _tensor(tikhonov_matrix(self.matrix, smoothness), self.operator.device)
        return self._smooth[smoothness]


class Geometries:
    """The geometries of a run, made when they first occur."""

    def __init__(self, header: RunHeader, device: torch.device) -> None:
        self._header = header
        self._device = device
        self._known: dict[bytes, Geometry] = {}

    def of(self, z_um: NDArray[np.float64]) -> Geometry:
        """Return the geometry of slabs at `z_um` (M,), ascending.

        Raises
        ------
        GeometryError
            A slab lies outside of the volume.
        """
        # Stages report positions with some nanometres of jitter; a twentieth of a slice is one geometry.
        # It is made of the rounded places: whichever sweep asks for it first, it is the same.
        voxel_um = self._header.voxel_size_um[0]
        places = np.round((z_um - self._header.z0_um) * (20 / voxel_um)).astype(np.int64)
        key = places.tobytes()
        known = self._known.get(key)
        if known is not None:
            return known
        z_um = (self._header.z0_um + places * (voxel_um / 20)).astype(np.float64)
        matrix = self._matrix(z_um)
        centres = (z_um - self._header.z0_um) / voxel_um
        length = self._header.profile.length_um / voxel_um
        operator = _tensor(matrix, self._device)
        geometry = Geometry(
            matrix,
            operator,
            _tensor(tikhonov_matrix(matrix), self._device),
            _tensor(interpolation_matrix(centres, self._header.shape[0]), self._device),
            SliceConditions.of(matrix, centres, length),
            DataConsistency(operator),
            OctaveTest.of(matrix, centres, length),
            supports(matrix),
        )
        if len(self._known) >= _MOST:
            self._known.pop(next(iter(self._known)))
        self._known[key] = geometry
        return geometry

    def rows(self, z_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the operator (M, Z) float64 of slabs at `z_um`."""
        return self._matrix(z_um)

    def operator(self, z_um: NDArray[np.float64]) -> Tensor:
        """Return the operator (M, Z) of slabs at `z_um` alone, as for held-out projections."""
        return _tensor(self._matrix(z_um), self._device)

    def _matrix(self, z_um: NDArray[np.float64]) -> NDArray[np.float64]:
        return projection_operator(
            z_um,
            self._header.profile,
            z0_um=self._header.z0_um,
            voxel_z_um=self._header.voxel_size_um[0],
            shape_z=self._header.shape[0],
        )


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A session as plain data: numbers (JSON, to the last bit) and tensors by name."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    def on_the_host(self) -> State:
        """Return it with all tensors on the CPU: good for whatever happens to a GPU."""
        return State(self.numbers, {name: tensor.detach().cpu() for name, tensor in self.tensors.items()})


@dataclass(slots=True, eq=False)
class Session:
    """What is kept from sweep to sweep.

    Attributes
    ----------
    low, span : float
        Counts that are 0 in normalised units, and counts of one unit.
    prior : SessionPrior
    findings : Findings
        About the network, for the judge.
    sweeps : int
        Reconstructed so far.
    white_share : float
        Of the fine structure of the projections, what is noise and not texture; see `noise.white_share`.
    last_two : list of Seen
        The sweeps before, in counts, the last one last; empty where sweeps are not merged.
    error_scale : float
        See `uncertainty.scale`.
    """

    low: float
    span: float
    prior: SessionPrior
    findings: Findings = field(default_factory=Findings)
    sweeps: int = 0
    white_share: float = 1.0
    last_two: list[Seen] = field(default_factory=list)
    error_scale: float = UNTOLD

    @property
    def nbytes(self) -> int:
        """Of what it keeps."""
        return self.prior.nbytes + sum(each.images.nbytes + each.variance.nbytes for each in self.last_two)

    def state(self) -> State:
        """Return all of it as plain data."""
        numbers: dict[str, Any] = {
            "low": self.low,
            "span": self.span,
            "sweeps": self.sweeps,
            "white_share": self.white_share,
            "findings": asdict(self.findings),
            "seen": [each.sweep for each in self.last_two],
            "error_scale": self.error_scale,
        }
        prior, tensors = self.prior.state()
        for place, each in enumerate(self.last_two):
            tensors |= {f"seen_{place}_{name}": tensor for name, tensor in each.tensors().items()}
        return State(numbers | {"prior": prior}, tensors)

    @classmethod
    def of(cls, state: State, prior: SessionPrior, device: torch.device) -> Session:
        """Return the session that `state` was taken of; `prior` is a cold one and takes over its part.

        Raises
        ------
        KeyError, TypeError, ValueError
            The state is not one of such a session.
        """
        numbers = state.numbers
        prior.load(numbers["prior"], state.tensors)
        session = cls(
            float(numbers["low"]),
            float(numbers["span"]),
            prior,
            Findings(**numbers["findings"]),
            int(numbers["sweeps"]),
            float(numbers["white_share"]),
            error_scale=float(numbers["error_scale"]),
        )
        for place, number in enumerate(numbers["seen"]):
            start = f"seen_{place}_"
            parts = {
                name.removeprefix(start): each
                for name, each in state.tensors.items()
                if name.startswith(start)
            }
            session.last_two.append(Seen.of(int(number), parts, device))
        return session

    def seen(self, number: int) -> Seen | None:
        """Return one of the last two sweeps by its number, None where it is not there."""
        return next((each for each in self.last_two if each.sweep == number), None)


def light_range(counts: NDArray[np.float32]) -> tuple[float, float]:
    """Return what is dark, and how far it is from there to what is bright; of the host's own copy."""
    low, high = (float(v) for v in np.percentile(counts, [1.0, 99.9]))
    return low, max(high - low, 1e-3 * abs(high), 1e-6)


def _tensor(array: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(device)
