"""The prior of one session: which implicit field stands for the specimen, and its volume for each sweep.

Owns the session's `SessionInr`. While the session is cold and a projection was held out, a few fields are
fitted (one that corrects the closed form, and ones that start dark, at two bandwidths), and the one that
predicts that projection best stays; else it is the first, which is never worse than the closed form it
starts from. All fields see the projections without the noise that their neighbourhood gives away
(`noise.quieten`), so what they have to explain is signal. Not thread-safe: one session, one thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microdiffusion.engines.inr import SessionInr, low_pass
from microdiffusion.engines.linear import along_z
from microdiffusion.engines.noise import quieten

if TYPE_CHECKING:
    from microdiffusion.config import InrConfig

logger = logging.getLogger("microdiffusion.engines")

# Of the noise's power, which has gone from the projections that are fitted: what may be left of it.
_TARGET = 0.05
_TARGET_DARK = 0.1
# By how much of its error (rms) a dark field must predict the held-out projection better.
_MARGIN = 0.015


@dataclass(frozen=True, slots=True)
class View:
    """What one sweep shows, normalised.

    Attributes
    ----------
    operator, images, variance : (M, Z), (M, Y, X), (M, Y, X)
    closed : (Z, M)
        Tikhonov's matrix with the smoothness that fits the noise.
    smoothness : float
        Of that matrix.
    floor : float
        Zero light.
    held_operator, held : (H, Z) and (H, Y, X), or None
        Held-out projections.
    """

    operator: Tensor
    images: Tensor
    variance: Tensor
    closed: Tensor
    smoothness: float
    floor: float
    held_operator: Tensor | None = None
    held: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PriorFit:
    """The prior's volume (Z, Y, X), and the steps that the kept field took."""

    volume: Tensor
    steps: int


class SessionPrior:
    """The field of a session, and how it was chosen.

    Parameters
    ----------
    shape : (Z, Y, X)
    config : InrConfig
    bandwidth : float
        Along z, cycles per slice: what the optics can tell. `config.bandwidth_z` goes before it, and then
        the held-out projection chooses nothing.
    seed : int
    name : str
        Of the session, for the log.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        config: InrConfig,
        *,
        bandwidth: float,
        seed: int,
        device: torch.device,
        name: str,
    ) -> None:
        self._shape = shape
        self._config = config
        self._seed = seed
        self._device = device
        self._name = name
        self.bandwidth = config.bandwidth_z or bandwidth
        self.dark = False
        self._field: SessionInr | None = None

    @property
    def warm(self) -> bool:
        """Whether a field was fitted already."""
        return self._field is not None

    def fit(self, view: View) -> PriorFit:
        """Return the prior of a sweep; chooses the field where the session is cold."""
        images = quieten(view.images, view.variance)
        if self._config.bandwidth_xy is not None:
            images = low_pass(images, self._config.bandwidth_xy)
        if self._field is None:
            return self._choose(view, images)
        return self._fit(self._field, self.dark, view, images, self._config.warm_steps)

    def _choose(self, view: View, images: Tensor) -> PriorFit:
        bandwidth, steps = self.bandwidth, self._config.cold_steps
        plans = [(bandwidth, False)]
        if view.held is not None and self._config.bandwidth_z is None:
            plans += [(bandwidth, True), (0.5 * bandwidth, True)]
        best: PriorFit | None = None
        least = float("inf")
        for wide, dark in plans:
            field = SessionInr(
                self._shape,
                bandwidth=wide,
                bandwidth_xy=self._config.bandwidth_xy,
                rank=self._config.rank,
                seed=self._seed,
            ).to(self._device)
            fit = self._fit(field, dark, view, images, steps)
            error = _held_error(view, fit.volume)
            if best is None or error < (1 - _MARGIN) * least:
                self._field, self.bandwidth, self.dark = field, wide, dark
                best, least = fit, error
        if best is None:
            raise RuntimeError("no field was planned")
        across = self._config.bandwidth_xy
        logger.info(
            "%s: INR %s, bandwidth along z %.3f cycles per slice, across %s, %s",
            self._name,
            "from the dark" if self.dark else "from the closed form",
            self.bandwidth,
            "what the noise allows" if across is None else f"{across:g} cycles per pixel",
            "chosen by the held-out projection" if len(plans) > 1 else "nothing held out to choose by",
        )
        return best

    def _fit(self, field: SessionInr, dark: bool, view: View, images: Tensor, steps: int) -> PriorFit:
        if dark:
            fit = field.fit(
                view.operator, images, view.variance, floor=view.floor, steps=steps, target=_TARGET_DARK
            )
        else:
            start = along_z(view.closed, images)
            # What the closed form leaves for the sake of smoothness is not for the field to make up for.
            left = (along_z(view.operator, start) - images).square() / view.variance
            fit = field.fit(
                view.operator,
                images,
                view.variance,
                floor=view.floor,
                steps=steps,
                target=_TARGET + float(left.mean()),
                start=start,
                smoothness=view.smoothness,
            )
        return PriorFit(field.volume(view.floor), fit.steps)


def _held_error(view: View, volume: Tensor) -> float:
    if view.held is None or view.held_operator is None:
        return 0.0
    return float((along_z(view.held_operator, volume) - view.held).square().mean().sqrt())
