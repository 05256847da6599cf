"""The prior of a session: selects the implicit field, and fits its volume for each sweep.

Owns the session's `SessionInr` and three decisions.

- *Which field.* Where a projection was held out, a few fields are fitted on a part of the pixels (one that
corrects
  the closed form, and ones that start dark, at two bandwidths), and the one that predicts that projection
  best stays. Until then it is the first, the most careful one.
- *When to select again.* When the last sweep's volume suddenly explains the projections far less than before:
  another specimen, or the stage has moved.
- *How long to fit.* Steps stop at the noise, at `inr.cold_steps` or `inr.warm_steps`, or at the deadline:
  `inr.deadline_s`, and a quarter of the time between two sweeps while an acquisition is running.

All fields see denoised projections (`noise.quieten`), and projections in which nothing stands out of the
noise as dark, so that they explain signal only. Not thread-safe.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microdiffusion.engines.inr.field import SessionInr, low_pass
from microdiffusion.engines.projections import along_z, quieten, window_sum

if TYPE_CHECKING:
    from microdiffusion.config import InrConfig

logger = logging.getLogger("microdiffusion.engines")

# Of the noise's power, most of which was removed from the projections that are fitted.
_TARGET = 0.05
_TARGET_DARK = 0.1
# By which share of its rms error a dark field must predict the held-out projection better.
_MARGIN = 0.015
_PIXELS = 4096  # enough to select a field and to notice another specimen
# The brightest of an image's windows, in standard deviations of the noise: below the first the image is dark,
# beyond the second it is not. Of a million pixels of noise the brightest reaches 5, and the noise is
# estimated a little low.
_STANDS_OUT = (5.5, 7.5)
_WINDOWS = (1, 5, 15)
_KNOWN_DARK = 0.05  # of the noise's deviation: how well a dark image is known to be dark
# Share of the projections' structure that the last volume does not explain: more than this, and so many times
# the typical share, is another specimen.
_UNEXPLAINED = 0.8
_SUDDEN = 3.0
_MEMORY = 0.7  # of the typical share, from sweep to sweep
_SHARE_OF_INTERVAL = 0.25


@dataclass(frozen=True, slots=True)
class View:
    """The measurements of one sweep, normalised.

    Attributes
    ----------
    operator, images, variance : (M, Z), (M, Y, X), (M, Y, X)
        Projections above the level of no light, and their noise variance.
    closed : (Z, M)
        Tikhonov's matrix with the smoothness that fits the noise.
    held_operator, held : (H, Z) and (H, Y, X), or None
        Held-out projections.
    """

    operator: Tensor
    images: Tensor
    variance: Tensor
    closed: Tensor
    held_operator: Tensor | None = None
    held: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PriorFit:
    """The prior's volume (Z, Y, X), the steps of the fit, and the remaining misfit.

    `chi_square` is its mean square in units of the noise of the denoised projections.
    """

    volume: Tensor
    steps: int
    chi_square: float


class SessionPrior:
    """The field of a session, and its selection.

    Parameters
    ----------
    bandwidth : float
        Along z, cycles per slice, as the optics resolve. `config.bandwidth_z` overrides it; then there is
        nothing to select by the held-out projection.
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
        self._chosen = config.bandwidth_z is not None
        self._field: SessionInr | None = None
        self._every = max(1, int((shape[1] * shape[2] / _PIXELS) ** 0.5))
        self._last: Tensor | None = None  # every so many pixels of the last volume
        self._typical_misfit = 0.0
        self._received_s = 0.0
        self._limit_s = float("inf")

    def copy(self) -> SessionPrior:
        """Return an independent prior (no tensor of a field is ever changed in place)."""
        other = copy.copy(self)
        other._field = copy.copy(self._field)  # noqa: SLF001 its own
        return other

    @property
    def warm(self) -> bool:
        """True once a field has been fitted."""
        return self._field is not None

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        planes = self._field.planes if self._field is not None else None
        return sum(tensor.nbytes for tensor in (planes, self._last) if tensor is not None)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the state between sweeps: numbers (plain data) and tensors by name."""
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
        """Restore a state.

        Raises
        ------
        KeyError, TypeError, ValueError
            It belongs to another shape, rank or optics.
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

    def arrived(self, received_s: float) -> None:
        """Note when a sweep arrived (`time.monotonic()`, 0 offline): its fit ends before the next one."""
        self._limit_s = self._config.deadline_s or float("inf")
        if received_s > self._received_s > 0.0:
            self._limit_s = min(self._limit_s, _SHARE_OF_INTERVAL * (received_s - self._received_s))
        self._received_s = received_s

    def restart(self) -> None:
        """Forget the field: the next fit selects one and begins with it."""
        self._field = self._last = None
        self._chosen = self._config.bandwidth_z is not None
        self.bandwidth, self.dark = self._widest, False

    def release(self) -> None:
        """Drop the tensors, where the next sweep is not fitted from this one's: the selection stays."""
        self._field = self._last = None

    def undecided(self, held: bool) -> bool:
        """Return whether a field is still to be selected, now that a projection was `held` out."""
        return held and not self._chosen

    def fit_columns(self, view: View, pixels: Tensor) -> PriorFit:
        """Return what a sweep says of some pixels (N,), (Z, 1, N), by a field that begins with it."""
        view = self._quiet(view)
        columns = replace(
            view,
            images=view.images.flatten(1)[:, None, pixels],
            variance=view.variance.flatten(1)[:, None, pixels],
            held=None,
        )
        field = self._new((self._shape[0], 1, len(pixels)), self.bandwidth)
        return self._fit(field, self.dark, columns, self._config.cold_steps, self._limit_s)

    def fit(self, view: View) -> PriorFit:
        """Return the prior of a sweep; chooses the field where that is due."""
        noise = view.variance
        view = self._quiet(view)
        if self._changed(self._part(replace(view, variance=noise))):
            logger.info("%s: the specimen is another one: the INR starts anew", self._name)
            self.restart()
        steps = self._config.warm_steps if self.warm else self._config.cold_steps
        if self._field is None or (self.undecided(view.held is not None)):
            self._field = self._choose(view)
        fit = self._fit(self._field, self.dark, view, steps, self._limit_s)
        self._last = fit.volume[:, :: self._every, :: self._every].clone()
        self._field.release()
        return fit

    def _quiet(self, view: View) -> View:
        """Return the view with denoised images; wholly dark ones lose all of their noise."""
        images = quieten(view.images, view.variance)
        if self._config.bandwidth_xy is not None:
            images = low_pass(images, self._config.bandwidth_xy)
        share = signal_share(view.images, view.variance)
        return replace(
            view,
            images=share * images,
            variance=view.variance * share.clamp_min(_KNOWN_DARK).square(),
        )

    def _choose(self, view: View) -> SessionInr:
        """Return a cold field of the kind that predicts the held-out projection best, if there is one."""
        if self.undecided(view.held is not None):
            part = self._part(view)
            shape = (self._shape[0], *part.images.shape[1:])
            least, allowed = float("inf"), float("inf")
            for bandwidth, dark in ((self._widest, False), (self._widest, True), (0.5 * self._widest, True)):
                fit = self._fit(self._new(shape, bandwidth), dark, part, self._config.cold_steps)
                error = _held_error(part, fit.volume)
                if error < (1 - _MARGIN) * least and fit.chi_square <= allowed:
                    self.bandwidth, self.dark, least = bandwidth, dark, error
                if not dark:
                    # A lucky prediction does not count where a field does not explain its own projections.
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
        """Return the view of a subset of pixels: columns are independent, so their fit is the same."""
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
            # The field need not make up for the misfit that the closed form leaves for smoothness.
            left = (along_z(view.operator, start) - view.images).square() / view.variance
            target = _TARGET + float(left.mean())
        fit = field.fit(
            view.operator,
            view.images,
            view.variance,
            floor=0.0,
            steps=steps,
            target=target,
            start=start,
            seconds=seconds,
        )
        return PriorFit(field.volume(0.0), fit.steps, fit.chi_square)

    def _changed(self, part: View) -> bool:
        """Return whether the last volume suddenly explains far less of the projections than before."""
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


def signal_share(above: Tensor, variance: Tensor) -> Tensor:
    """Return for each projection (M, 1, 1) whether anything stands out of its noise, 0 to 1.

    `above` (M, Y, X) are the projections above the level of no light, `variance` (M, Y, X) their noise.
    """
    brightest = torch.zeros_like(above[:, :1, :1])
    low, high = _STANDS_OUT
    for window in _WINDOWS:
        size = min(window, *above.shape[1:])
        total, power = (window_sum(each, size, max(1, size // 2)) for each in (above, variance))
        figure = total / power.sqrt()
        brightest = torch.maximum(brightest, figure.amax(dim=(1, 2), keepdim=True))
        if float(brightest.min()) >= high:
            break
    return ((brightest - low) / (high - low)).clamp(0.0, 1.0)


def _held_error(view: View, volume: Tensor) -> float:
    if view.held is None or view.held_operator is None:
        return 0.0
    return float((along_z(view.held_operator, volume) - view.held).square().mean().sqrt())
