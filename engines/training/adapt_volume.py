"""Fine-tuning to a slow, dense stack of the user's own specimen: `mdd adapt --volume`.

The stack is the truth: it is seen through the session's own beam, step and noise, after a random number of
sweeps, and the network learns to find it again, with the loss of the ordinary training. Whether that helps
is told by a session on a part of the stack that was kept aside, and so is how far to go: the mean of old and
new weights forgets less, and is often better than either (Wortsman et al., CVPR 2022). Runs on one thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.config import EngineConfig
from microdiffusion.engines.diffusion import Denoiser
from microdiffusion.engines.pipeline import pick_device
from microdiffusion.engines.training.degrade import Optics
from microdiffusion.engines.training.fine_tune import SPECIMENS, AdaptPlan, Watch, fine_tune
from microdiffusion.engines.training.learner import Learner
from microdiffusion.engines.training.parallel import training_dtype
from microdiffusion.engines.training.specimen import Specimen, cube_pool
from microdiffusion.engines.training.trial import Served, Trial, Worth, make_trial, run_trial

_WAYS = (1.0, 0.5)
"""Shares of the way from the old weights to the new ones that are tried."""


@dataclass(frozen=True, slots=True)
class AdaptedToVolume:
    """The network after adapting, and what it is worth on the part that was kept aside."""

    model: Denoiser
    worth: Worth
    iterations: int


def adapt_to_volume(
    specimen: Specimen,
    optics: Optics,
    model: Denoiser,
    config: EngineConfig,
    plan: AdaptPlan,
    say: Callable[[str], None],
    watch: Watch = lambda iteration, share, loss, seconds: None,
) -> AdaptedToVolume:
    """Return `model` adapted to a specimen; the argument is left as it is.

    Parameters
    ----------
    optics : Optics
        Of the session that the network will serve.
    config : EngineConfig
        Device, evaluations, fallback and so on, as the result will be used.

    Raises
    ------
    GeometryError
        Fewer than two slabs fit into the stack.
    """
    begun_s = time.monotonic()
    device, _ = pick_device(config.device)
    trial = make_trial(specimen.aside, optics)
    trained = sum(volume.size for volume in specimen.volumes)
    say(
        f"{specimen.name}: {trained / 1e6:.2f} million voxels to train on, "
        f"{' x '.join(str(edge) for edge in specimen.aside.shape)} kept aside to judge by"
    )
    before = run_trial(trial, model, config, device)
    judging_s = (time.monotonic() - begun_s) * len(_WAYS)
    new, iterations = learn(
        specimen, optics, model, device, plan, watch, begun_s=begun_s, reserve_s=judging_s
    )
    network, worth = best_way(trial, before, (model, new), config, device)
    return AdaptedToVolume(network, worth, iterations)


def learn(
    specimen: Specimen,
    optics: Optics,
    model: Denoiser,
    device: torch.device,
    plan: AdaptPlan,
    watch: Watch = lambda iteration, share, loss, seconds: None,
    *,
    begun_s: float,
    reserve_s: float = 0.0,
) -> tuple[Denoiser, int]:
    """Return the network that a specimen made of `model`, and the iterations; see `fine_tune`."""
    rng = np.random.default_rng(plan.seed)
    dtype = training_dtype(device, "auto")
    learner = Learner(copy.deepcopy(model).float(), device, dtype, rate=plan.rate, weight_decay=0.0)

    def cubes() -> NDArray[np.float16]:
        return cube_pool(specimen, SPECIMENS, rng)

    iterations = fine_tune(learner, plan, optics, cubes, rng, watch, begun_s=begun_s, reserve_s=reserve_s)
    return learner.average, iterations


def best_way(
    trial: Trial,
    before: Served,
    ends: tuple[Denoiser, Denoiser],
    config: EngineConfig,
    device: torch.device,
) -> tuple[Denoiser, Worth]:
    """Return the best network on the way from old to new (`ends`), and what it is worth.

    One that helps, if there is any; `before` is what the old one serves.
    """
    networks = [between(*ends, share) for share in _WAYS]
    results = [(each, Worth(before, run_trial(trial, each, config, device))) for each in networks]
    return max(results, key=lambda result: (result[1].word == "helps", result[1].gain))


@torch.no_grad()
def between(old: Denoiser, new: Denoiser, share: float) -> Denoiser:
    """Return the network whose weights are a share of the way from `old` to `new`."""
    network = copy.deepcopy(old).float()
    for mine, theirs in zip(network.parameters(), new.parameters(), strict=True):
        mine.lerp_(theirs.to(mine), share)
    return network
