"""The update of one sweep: from the INR's volume to the candidate answers and their scores.

A function of tensors alone, on one device: network, sampler, consistency, darkness and scores never
synchronise with the host, so that a GPU runs it in one go and a CUDA graph can hold it. The operations depend
on geometry and settings only, never on a value; whatever is the same for every sweep of a geometry is
computed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from microdiffusion.engines.diffusion import (
    NetworkInputs,
    SamplerSettings,
    VolumeDenoiser,
    sample,
)
from microdiffusion.engines.projections import along_z, light_share
from microdiffusion.engines.trust import measure, measure_held, structured_miss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.diffusion import Runtime
    from microdiffusion.engines.pipeline.geometry import Geometry

Tensors = dict[str, "Tensor"]
SCORES = "scores"  # the update's output that is no answer
_OTHERS = ("inr", "tikhonov", "linear")
_NAMES = {"mdd": ("mdd", *_OTHERS), "inr": _OTHERS}


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """Settings of an update.

    `method` as in the configuration; `consistency`: pull the network's answer towards the projections, and
    darken voxels that no light came from.
    """

    method: str
    sampler: SamplerSettings
    consistency: bool = True

    @classmethod
    def of(cls, config: EngineConfig, effort: int = 0) -> UpdateSettings:
        """Return the settings at an effort: 0 all of them, 1 one evaluation, 2 the INR alone."""
        steps, guidance = (config.steps, config.guidance) if effort == 0 else (1, 0.0)
        method = "inr" if effort == 2 else config.method
        kappa = config.interpolation * 0.1
        return cls(method, SamplerSettings(steps, guidance, kappa, config.tile), config.consistency)


class Update:
    """The update for one geometry.

    `runtime` is None for methods without a network; `noise` (Z, Y, X) is `bridge_noise`, None for none.

    Attributes
    ----------
    names : tuple of str
        The candidate answers, the configured method's first.
    """

    def __init__(
        self, geometry: Geometry, settings: UpdateSettings, runtime: Runtime | None, noise: Tensor | None
    ) -> None:
        self._geometry = geometry
        self._settings = settings
        self._noise = noise
        self._denoise = None
        method = settings.method if runtime is not None or settings.method != "mdd" else "inr"
        if runtime is not None and method == "mdd":
            self._denoise = VolumeDenoiser(runtime, geometry.conditions, settings.sampler)
        self.names = _NAMES.get(method, (method,))

    def __call__(self, given: Tensors, lap: Callable[[str], None] = lambda stage: None) -> Tensors:
        """Return the answers (Z, Y, X) by name, and under `SCORES` the input of `Scores.read`.

        Parameters
        ----------
        given : dict
            Normalised: `images` and `variance` (M, Y, X), `floor` () the level of no light, `closed` (Z, M)
            Tikhonov's matrix; `prior` (Z, Y, X) of the methods that have one, `light` (M, Y, X) their
            `slab_light`, `deviation` (Z, Y, X) how surely the network's prior is known, `leeway` (Z, Z) what
            the session leaves of its correction; `held`,
            `held_variance` (H, Y, X) and `held_operator` (H, Z) where projections were held out.
        lap : callable
            Called with the name of each finished stage.
        """
        images, variance, floor = given["images"], given["variance"], given["floor"]
        geometry, names = self._geometry, self.names
        miss = torch.zeros_like(floor)
        answers = {}
        if "mdd" in names:
            answers["mdd"], miss = self._sampled(given, lap)
        if "inr" in names:
            answers["inr"] = given["prior"]
        if "tikhonov" in names:
            answers["tikhonov"] = along_z(given["closed"], images).clamp_min(floor)
        if "linear" in names:
            answers["linear"] = along_z(geometry.linear, images).clamp_min(floor)
        if self._settings.consistency and "inr" in names:
            self._darken(answers, given["light"], floor)
        if not answers:  # the reference's volume is its own answer
            answers[names[0]] = given["prior"].clamp_min(floor)
        volumes = [answers[name] for name in names]
        scores = measure(volumes, geometry.operator, images, variance, miss)
        if "held" in given:
            seen = (given["held_operator"], given["held"], given["held_variance"])
            held = measure_held(volumes, *seen, geometry.between)
            scores = torch.cat([scores, held])
        lap("scores")
        return {**answers, SCORES: scores}

    def _sampled(self, given: Tensors, lap: Callable[[str], None]) -> tuple[Tensor, Tensor]:
        """Return the network's volume, and its miss before consistency (see `structured_miss`)."""
        denoise = self._denoise
        if denoise is None:
            raise RuntimeError("the method mdd has no network")
        images, variance, floor = given["images"], given["variance"], given["floor"]
        geometry = self._geometry
        shown = NetworkInputs(given["prior"], given["deviation"], images, variance.mean().sqrt())
        above = images - floor
        missed: list[Tensor] = []

        def consistent(volume: Tensor) -> Tensor:
            lap("sampler")
            if not missed:  # later evaluations start from a state that has seen the projections
                missed.append(structured_miss(geometry.operator, volume, images, variance))
            if self._settings.consistency:
                volume = geometry.consistency(volume - floor, above, variance) + floor
            else:
                volume = volume.clamp_min(floor)
            lap("consistency")
            return volume

        volume = sample(
            lambda state, time: denoise(state, shown, time),
            shown.prior,
            self._settings.sampler,
            consistent,
            self._noise,
        )
        believed = along_z(given["leeway"], volume - shown.prior)
        return believed.add_(shown.prior).clamp_min_(floor), missed[0]

    def _darken(self, answers: Tensors, light: Tensor, floor: Tensor) -> None:
        """Set the answers to the level of no light where a whole slab was dark."""
        geometry = self._geometry
        share = light_share(geometry.supports, len(geometry.linear), light)
        for name, volume in answers.items():
            answers[name] = torch.lerp(floor, volume, share)
