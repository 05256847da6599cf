"""The prior of one session: which implicit field stands for the specimen, and its volume for each sweep.

Owns the session's `SessionInr` and three decisions.

- *Which field.* Where a projection was held out, a few fields are fitted on a part of the pixels (one that
  corrects the closed form, and ones that start dark, at two bandwidths), and the one that predicts that
  projection best stays; else it is the first, the most careful one, until a projection is held out.
- *When to choose anew.* When the last sweep's volume suddenly explains the projections far less than it
  used to: another specimen, or the stage has moved.
- *How long.* Steps stop at the noise, at `inr.cold_steps` or `inr.warm_steps`, or at the deadline:
  `inr.deadline_s`, and a quarter of the time between two sweeps while an acquisition is running.

All fields see the projections without the noise that their neighbourhood gives away (`noise.quieten`), and
projections in which nothing stands out of the noise as dark, so what they have to explain is signal. Not
thread-safe: one session, one thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.inr.field import SessionInr, low_pass
from microdiffusion.engines.projections import along_z, quieten

if TYPE_CHECKING:
    from microdiffusion.config import InrConfig

logger = logging.getLogger("microdiffusion.engines")

# Of the noise's power, which has gone from the projections that are fitted: what may be left of it.
_TARGET = 0.05
_TARGET_DARK = 0.1
# By how much of its error (rms) a dark field must predict the held-out projection better.
_MARGIN = 0.015
_PIXELS = 4096  # enough to choose a field by, and to notice another specimen
# The brightest of an image's windows, in standard deviations of the noise: below the first the image is
# dark, beyond the second it is not. Of a million pixels of noise the brightest reaches 5, and the noise is
# estimated a little low.
_STANDS_OUT = (5.5, 7.5)
_WINDOWS = (1, 5, 15)
_KNOWN_DARK = 0.05  # of the noise's deviation: how well a dark image is known to be dark
# Share of the projections' structure that the last volume does not explain: more than this, and so much
# more than usual, is another specimen.
_UNEXPLAINED = 0.8
_SUDDEN = 3.0
_MEMORY = 0.7  # of what is usual, from sweep to sweep
_SHARE_OF_INTERVAL = 0.25


@dataclass(frozen=True, slots=True)
class View:
    """What one sweep shows, normalised.

    Attributes
    ----------
    operator, images, variance : (M, Z), (M, Y, X), (M, Y, X)
    closed : (Z, M)
        Tikhonov's matrix with the smoothness that fits the noise.
    floor : float
        Zero light.
    held_operator, held : (H, Z) and (H, Y, X), or None
        Held-out projections.
    received_s : float
        When the sweep came, `time.monotonic()`; 0 where nobody waits for it.
    """

    operator: Tensor
    images: Tensor
    variance: Tensor
    closed: Tensor
    floor: float
    held_operator: Tensor | None = None
    held: Tensor | None = None
    received_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PriorFit:
    """The prior's volume (Z, Y, X), the steps that its field took, and the misfit that is left of it.

    `chi_square` is the mean square in units of the noise, of the quietened projections.
    """

    volume: Tensor
    steps: int
    chi_square: float


class SessionPrior:
    """The field of a session, and how it was chosen.

    Parameters
    ----------
    shape : (Z, Y, X)
    config : InrConfig
    bandwidth : float
        Along z, cycles per slice: what the optics can tell. `config.bandwidth_z` goes before it, and then
        the held-out projection chooses nothing.
    name : str
        Of the session, for the log.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        config: InrConfig,
        *,
        bandwidth: float,
        device: torch.device,
        name: str,
    ) -> None:
        self._shape = shape
        self._config = config
        self._device = device
        self._name = name
        self._widest = config.bandwidth_z or bandwidth
        self.bandwidth = self._widest
        self.dark = False
        self._chosen = config.bandwidth_z is not None  # nothing is left to choose
        self._field: SessionInr | None = None
        self._every = max(1, int((shape[1] * shape[2] / _PIXELS) ** 0.5))
        self._last: Tensor | None = None  # every so many pixels of the last volume
        self._typical_misfit = 0.0
        self._received_s = 0.0

    @property
    def warm(self) -> bool:
        """Whether a field was fitted already."""
        return self._field is not None

    @property
    def nbytes(self) -> int:
        """Of the tensors that are kept."""
        planes = self._field.planes if self._field is not None else None
        return sum(tensor.nbytes for tensor in (planes, self._last) if tensor is not None)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is kept from sweep to sweep: numbers (plain data) and tensors by name."""
        planes = self._field.planes if self._field is not None else None
        tensors = {"planes": planes, "last": self._last}
        numbers = {
            "shape": list(self._shape),
            "rank": self._config.rank,
            "widest": self._widest,
            "bandwidth": self.bandwidth,
            "dark": self.dark,
            "chosen": self._chosen,
            "usual": self._typical_misfit,
            "received_s": self._received_s,
        }
        return numbers, {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def load(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from a state.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is not one of a prior of this shape, rank and optics.
        """
        mine, _ = self.state()
        if any(numbers[name] != mine[name] for name in ("shape", "rank", "widest")):
            raise ValueError("the state is of another geometry")
        self.bandwidth, self.dark = float(numbers["bandwidth"]), bool(numbers["dark"])
        self._chosen, self._typical_misfit = bool(numbers["chosen"]), float(numbers["usual"])
        self._received_s = float(numbers["received_s"])
        if "last" in tensors:
            self._last = tensors["last"].to(self._device)
        if "planes" in tensors:
            self._field = self._new(self._shape, self.bandwidth)
            self._field.planes = tensors["planes"].to(self._device)

    def fit(self, view: View) -> PriorFit:
        """Return the prior of a sweep; chooses the field where that is due."""
        noise = view.variance
        view = self._quiet(view)
        if self._changed(self._part(replace(view, variance=noise))):
            logger.info("%s: the specimen is another one: the INR starts anew", self._name)
            self._field, self._chosen = None, self._config.bandwidth_z is not None
            self.bandwidth, self.dark = self._widest, False
        steps = self._config.warm_steps if self.warm else self._config.cold_steps
        if self._field is None or (view.held is not None and not self._chosen):
            self._field = self._choose(view)
        fit = self._fit(self._field, self.dark, view, steps, self._seconds(view))
        self._last = fit.volume[:, :: self._every, :: self._every].clone()
        self._field.release()
        return fit

    def _quiet(self, view: View) -> View:
        """Return the view without the noise that its images give away, of wholly dark ones all of it."""
        images = quieten(view.images, view.variance)
        if self._config.bandwidth_xy is not None:
            images = low_pass(images, self._config.bandwidth_xy)
        share = signal_share(view.images - view.floor, view.variance)
        return replace(
            view,
            images=view.floor + share * (images - view.floor),
            variance=view.variance * share.clamp_min(_KNOWN_DARK).square(),
        )

    def _choose(self, view: View) -> SessionInr:
        """Return a cold field of the kind that predicts the held-out projection best, where there is one."""
        if view.held is not None and not self._chosen:
            part = self._part(view)
            shape = (self._shape[0], *part.images.shape[1:])
            least, allowed = float("inf"), float("inf")
            for bandwidth, dark in ((self._widest, False), (self._widest, True), (0.5 * self._widest, True)):
                fit = self._fit(self._new(shape, bandwidth), dark, part, self._config.cold_steps)
                error = _held_error(part, fit.volume)
                if error < (1 - _MARGIN) * least and fit.chi_square <= allowed:
                    self.bandwidth, self.dark, least = bandwidth, dark, error
                if not dark:
                    # One good guess is no merit of a field that cannot explain what it was fitted to.
                    allowed = max(1.0, fit.chi_square)
            self._chosen = True
            reason = "chosen by the held-out projection"
        elif self._config.bandwidth_z is not None:
            reason = "as engine.inr.bandwidth_z says"
        else:
            reason = "nothing held out to choose by"
        across = self._config.bandwidth_xy
        logger.info(
            "%s: INR %s, bandwidth along z %.3f cycles per slice, across %s, %s",
            self._name,
            "from the dark" if self.dark else "from the closed form",
            self.bandwidth,
            "what the noise allows" if across is None else f"{across:g} cycles per pixel",
            reason,
        )
        return self._new(self._shape, self.bandwidth)

    def _new(self, shape: tuple[int, int, int], bandwidth: float) -> SessionInr:
        return SessionInr(shape, bandwidth=bandwidth, rank=self._config.rank, device=self._device)

    def _part(self, view: View) -> View:
        """Return the view of every so many pixels: columns are independent, so their fit is the same."""
        every = (slice(None), slice(None, None, self._every), slice(None, None, self._every))
        return replace(
            view,
            images=view.images[every].contiguous(),
            variance=view.variance[every].contiguous(),
            held=None if view.held is None else view.held[every],
        )

    def _fit(
        self,
        field: SessionInr,
        dark: bool,
        view: View,
        steps: int,
        seconds: float = float("inf"),
    ) -> PriorFit:
        start, target = None, _TARGET_DARK
        if not dark:
            start = along_z(view.closed, view.images)
            # What the closed form leaves for the sake of smoothness is not for the field to make up for.
            left = (along_z(view.operator, start) - view.images).square() / view.variance
            target = _TARGET + float(left.mean())
        fit = field.fit(
            view.operator,
            view.images,
            view.variance,
            floor=view.floor,
            steps=steps,
            target=target,
            start=start,
            seconds=seconds,
        )
        return PriorFit(field.volume(view.floor), fit.steps, fit.chi_square)

    def _changed(self, part: View) -> bool:
        """Return whether the last volume suddenly explains far less of the projections than it used to."""
        if self._last is None:
            return False
        misfit = ((along_z(part.operator, self._last) - part.images).square() / part.variance).mean()
        middle = part.images.mean(dim=(1, 2), keepdim=True)
        structure = ((part.images - middle).square() / part.variance).mean()
        # Two sweeps differ by the noise of both.
        now = float((misfit - 2.0).clamp_min(0.0) / structure.clamp_min(1.0))
        sudden = now > _UNEXPLAINED and now > _SUDDEN * self._typical_misfit
        self._typical_misfit = (
            now if self._typical_misfit == 0.0 else _MEMORY * self._typical_misfit + (1 - _MEMORY) * now
        )
        return sudden

    def _seconds(self, view: View) -> float:
        """Return how long the fit may take; remembers when this sweep came."""
        limit = self._config.deadline_s or float("inf")
        if view.received_s > self._received_s > 0.0:
            limit = min(limit, _SHARE_OF_INTERVAL * (view.received_s - self._received_s))
        self._received_s = view.received_s
        return limit


def signal_share(above: Tensor, variance: Tensor) -> Tensor:
    """Return for each projection (M, 1, 1) whether anything in it stands out of the noise: 0, 1 or between.

    Parameters
    ----------
    above, variance : (M, Y, X)
        Projections above the level of no light, and their noise variance.
    """
    brightest = torch.zeros_like(above[:, :1, :1])
    for window in _WINDOWS:
        size = min(window, *above.shape[1:])
        mean = F.avg_pool2d(torch.stack([above, variance]), size, max(1, size // 2))
        figure = mean[0] / (mean[1] / size**2).sqrt()
        brightest = torch.maximum(brightest, figure.amax(dim=(1, 2), keepdim=True))
    low, high = _STANDS_OUT
    return ((brightest - low) / (high - low)).clamp(0.0, 1.0)


def _held_error(view: View, volume: Tensor) -> float:
    if view.held is None or view.held_operator is None:
        return 0.0
    return float((along_z(view.held_operator, volume) - view.held).square().mean().sqrt())
