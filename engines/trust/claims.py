"""Claims: the network's corrections to a sweep, held against the projections of the next one.

The next sweep's slabs lie elsewhere, and nobody had seen its projections when the network spoke. So in what
keeps still, the share of its correction that explains them best,

    w = <A c, p - A x> / <A c, A c>,

tells which share of it is right: x is the prior, c the network's correction to it, p the projections and A
their operator (least squares). No frame has to be held out for it, and all projections of a sweep answer.
Numerator and denominator are summed up over the session, with a memory of a few sweeps.

A sweep at places that the session has just seen tells nothing: there the prior is known, and what the network
says of the gaps between them does not show. Nor does one of a specimen that has moved since.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PIXELS = 1 << 12  # of an image: enough for one number
_MOST = 6e4  # that float16 holds


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The prior and the network's correction to it (Z, Y, X) float16, at every so many pixels of a sweep.

    `shift` (voxels) and `brightness` say where the specimen was, and how bright: see `inr.Motion`.
    """

    prior: Tensor
    correction: Tensor
    every: int
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    brightness: float = 1.0

    @classmethod
    def of(
        cls,
        prior: Tensor,
        corrected: Tensor,
        shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
        brightness: float = 1.0,
    ) -> Claim:
        """Return the claim that `corrected` (Z, Y, X) makes beyond `prior`."""
        every = max(1, round((prior[0].numel() / _PIXELS) ** 0.5))
        some = prior[:, ::every, ::every]
        kept = (_half(some), _half(corrected[:, ::every, ::every] - some))
        return cls(*kept, every, shift, brightness)

    @property
    def nbytes(self) -> int:
        """Of what it keeps."""
        return self.prior.nbytes + self.correction.nbytes

    def held_against(
        self,
        operator: Tensor,
        images: Tensor,
        variance: Tensor,
        age: Tensor,
        *,
        brightness: float = 1.0,
        dark: float = 0.0,
    ) -> Tensor:
        """Return what of the next sweep it explains and all that it says (2,), in units of the noise.

        Parameters
        ----------
        operator : (M, Z)
        images, variance : (M, Y, X)
            The next sweep's projections, normalised as the claim is, and their noise variance.
        age : (Z, Y, X)
            Sweeps since a voxel was last taken anew, the next one included: no claim was made of what is new.
        brightness, dark : float
            Of the specimen in the next sweep; the level of no light.
        """
        images, variance, age = (each[:, :: self.every, :: self.every] for each in (images, variance, age))
        new = torch.einsum("mz,zyx->myx", (operator > 0).float(), (age < 2).float())
        still = (new == 0) / variance
        brighter = brightness / self.brightness
        prior, correction = (each.to(operator) for each in (self.prior, self.correction))
        left = images - dark - brighter * torch.einsum("mz,zyx->myx", operator, prior - dark)
        said = brighter * torch.einsum("mz,zyx->myx", operator, correction)
        return torch.stack([(still * said * left).sum(), (still * said.square()).sum()])


def _half(volume: Tensor) -> Tensor:
    """Return a volume in float16, without overflow."""
    return volume.clamp(-_MOST, _MOST).half()
