"""The reference from one sweep's projections to a volume: train the INR, train the denoiser, sample.

    x_0 = s · projection + (1 - s) · mean of its slab's INR slices        training target of the denoiser
    x_t <- s · x_t + (1 - s) · INR slice, then an ancestral step           each step of sampling

Only measurements are used: a slice's image condition is the measured projection with the closest slab.
(The authors' evaluation takes the mean of six *true* slices round each slice, which no microscope has.)

The INR is fitted first and stays as it is (the paper's pretraining). Networks live as long as their session.
Differences from the authors' code are listed in docs/reference-method.md. Runs on the engine's thread, on any
device.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from microdiffusion.config import ReferenceConfig
from microdiffusion.engines.projections import along_z, nearest_slab
from microdiffusion.engines.reference import ddpm
from microdiffusion.engines.reference.condition import (
    POSITION,
    PROJECTION,
    PositionEmbedding,
    ProjectionEmbedding,
)
from microdiffusion.engines.reference.mlp_inr import FourierMlp, fit_field
from microdiffusion.engines.reference.unet import MULTIPLE, UNet
from microdiffusion.errors import EngineError

NEIGHBOURS = (0.05, 0.15, 0.3, 0.3, 0.15, 0.05)
"""Weights of six neighbouring INR slices."""
_SMALLEST = 16  # pixels along an edge that E_img needs at least
_BATCH_PIXELS = 1 << 16  # of the slices that are sampled together


@dataclass(slots=True)
class ReferenceAnswer:
    """A volume (Z, Y, X), normalised as its projections were, and its cost.

    Attributes
    ----------
    volume : (Z, Y, X) float32
    inr_steps, updates, evaluations : int
        Updates of the INR and of the denoiser, and evaluations of the denoiser by the sampler (images).
    seconds : dict
        "inr", "train" and "sampler".
    """

    volume: Tensor
    inr_steps: int
    updates: int
    evaluations: int
    seconds: dict[str, float]


class Networks(nn.Module):
    """Everything that is trained for one volume, apart from the INR."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.unet = UNet(POSITION + PROJECTION, width=width, dropout=dropout)
        self.position = PositionEmbedding()
        self.projection = ProjectionEmbedding(width)


class ReferenceMethod:
    """The reference for one session.

    Parameters
    ----------
    shape : (Z, Y, X)
        Of the volume.
    seed : int
        Of the initial weights, of training and of sampling.
    progress : callable
        Gets the stage ("inr", "train", "sampler"), how much is done, and how much there is.
    """

    def __init__(
        self,
        config: ReferenceConfig,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        seed: int = 0,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self.config = config
        self.shape = shape
        self.device = device
        self.seed = seed
        self.schedule = ddpm.Schedule(config.timesteps)
        self.networks: Networks | None = None
        self._progress = progress
        self._z, self._smooth = neighbours(config.neighbours, shape[0])
        self._z, self._smooth = self._z.to(device), self._smooth.to(device)
        self.field = self._new_field()

    def reconstruct(self, operator: Tensor, centres: NDArray[np.float64], images: Tensor) -> ReferenceAnswer:
        """Return the volume of one sweep; trains first.

        Parameters
        ----------
        operator : (M, Z) float32
        centres : (M,) float64
            Slab centres, in slices.
        images : (M, Y, X) float32
            The projections, normalised to about [0, 1].
        """
        seconds = {}
        begun = time.perf_counter()
        kept = self.networks is not None and not self.config.retrain
        if not kept:
            self.field = self._new_field()
        fit_field(self.field, operator, images, self.config, seed=self.seed, progress=self._stage("inr"))
        seconds["inr"] = time.perf_counter() - begun
        begun = time.perf_counter()
        updates = 0 if kept else self.train(operator, images)
        seconds["train"] = time.perf_counter() - begun
        begun = time.perf_counter()
        volume, evaluations = self.sample(images, nearest_slab(centres, self.shape[0]))
        seconds["sampler"] = time.perf_counter() - begun
        return ReferenceAnswer(volume, self.config.inr_steps, updates, evaluations, seconds)

    def train(self, operator: Tensor, images: Tensor) -> int:
        """Train new networks on the projections (M, Y, X).

        One projection an update, all of them in turn an epoch; the rate grows evenly. Returns the updates.
        """
        config = self.config
        generator = torch.Generator().manual_seed(self.seed + 1)
        count = len(images)
        with self._own_random_numbers(), torch.enable_grad():
            networks = self.networks = Networks(config.width, config.dropout).to(self.device)
            networks.train()
            optimiser = torch.optim.AdamW(networks.parameters(), lr=config.rate, weight_decay=1e-4)
            means = along_z(operator @ self._smooth, self._volume(self._z))
            done, advance = 0, self._stage("train")
            for epoch in range(config.epochs):
                optimiser.param_groups[0]["lr"] = self.rate_at(epoch)
                for m in range(count):
                    clean = ddpm.interpolated(images[m], means[m], config.interpolation)
                    optimiser.zero_grad(set_to_none=True)
                    self._noise_loss(networks, operator[m], images[m], clean, generator).backward()
                    optimiser.step()
                    done += 1
                    advance(done, config.epochs * count)
        networks.eval()
        return done

    @torch.no_grad()
    def sample(
        self, images: Tensor, nearest: NDArray[np.intp], *, wanted: range | None = None
    ) -> tuple[Tensor, int]:
        """Draw slices; return them (Z, Y, X) and the number of network evaluations (images).

        Parameters
        ----------
        images : (M, Y, X) float32
            The measured projections.
        nearest : (Z,) int
            Which of them is each slice's condition.
        wanted : range, optional
            Of slices, in steps of 1; None: all. A slice does not depend on which others are drawn.
        """
        config, networks = self.config, self.networks
        if networks is None:
            raise EngineError("The reference's networks are used before training: call reconstruct first.")
        wanted = range(self.shape[0]) if wanted is None else wanted
        steps = ddpm.steps_needed(config.timesteps, config.shortcut, config.interpolation)
        settings = ddpm.Sampling(steps, config.interpolation, config.guidance, self.seed)
        prior = _padded(self.prior())[:, None]
        with self._precision():
            condition = self._condition(
                networks, self._positions(), images, torch.from_numpy(nearest).to(self.device)
            )
        together = max(1, _BATCH_PIXELS // prior[0].numel())
        starts = range(wanted.start, wanted.stop, together)
        drawn, done, advance = [], 0, self._stage("sampler")

        def on_step() -> None:
            nonlocal done
            done += 1
            advance(done, len(starts) * steps)

        for start in starts:
            chosen = slice(start, min(start + together, wanted.stop))
            embedded = condition[chosen]

            def predict(state: Tensor, t: int, conditional: bool, embedded: Tensor = embedded) -> Tensor:
                times = torch.full((len(state),), t, device=self.device)
                with self._precision():
                    noise: Tensor = networks.unet(
                        state, times, embedded if conditional else torch.zeros_like(embedded)
                    )
                return noise.float()

            drawn.append(
                ddpm.draw(self.schedule, predict, prior[chosen], settings, first=start, on_step=on_step)
            )
        rows, columns = self.shape[1:]
        volume = torch.cat(drawn)[:, 0, :rows, :columns]
        return volume, len(wanted) * steps * (2 if config.guidance > 0 else 1)

    def prior(self) -> Tensor:
        """Return the INR (Z, Y, X) with its neighbours averaged: what sampling is pulled to."""
        return along_z(self._smooth, self._volume(self._z))

    def rate_at(self, epoch: int) -> float:
        """Return the denoiser's learning rate of an epoch (0, 1, ...): it grows, as in the authors' code."""
        return self.config.rate * (1.0 + (self.config.rate_growth - 1.0) * epoch / self.config.epochs)

    def _noise_loss(
        self, networks: Networks, weights: Tensor, image: Tensor, clean: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared error of the noise predicted in one noised image (Y, X)."""
        t = torch.randint(len(self.schedule), (1,), generator=generator)
        clean = _padded(clean[None])[:, None]
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        dropped = float(torch.rand(1, generator=generator)) < self.config.condition_dropout
        with self._precision():
            condition = self._condition(
                networks, self._positions(), image[None], torch.zeros(1, dtype=torch.long), weights[None]
            )
            condition = torch.zeros_like(condition) if dropped else condition
            state = self.schedule.noised(clean, t, noise)
            predicted = networks.unet(state, t.to(self.device), condition)
        return F.mse_loss(predicted.float(), noise)

    def _condition(
        self,
        networks: Networks,
        positions: Tensor,
        images: Tensor,
        which: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return conditions (N, 160); the part that is switched off is zero.

        Positions (Z,) are averaged with `weights` (N, Z) where given; images (M, Y, X) are taken by number.
        """
        where = networks.position(positions)
        if weights is not None:
            where = weights @ where
        seen = networks.projection(_padded(images)[:, None])[which.to(self.device)]
        where = where if self.config.position_condition else torch.zeros_like(where)
        seen = seen if self.config.image_condition else torch.zeros_like(seen)
        return torch.cat([where.float(), seen.float()], dim=1)

    def _positions(self) -> Tensor:
        slices = self.shape[0]
        return 2.0 * torch.arange(slices, device=self.device) / slices - 1.0

    def _volume(self, z: Tensor) -> Tensor:
        with self._precision():
            return self.field.volume(z)

    def _new_field(self) -> FourierMlp:
        config = self.config
        with self._own_random_numbers():
            field = FourierMlp(
                self.shape,
                frequencies=config.inr_frequencies,
                bandwidth=config.inr_bandwidth,
                seed=self.seed,
            )
        return field.to(self.device)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16)

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(name, done, total)

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Seed what torch draws by itself (initial weights, dropout), and give the caller's numbers back."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            yield


def neighbours(kind: str, slices: int) -> tuple[Tensor, Tensor]:
    """Return where the INR is evaluated (K,), in slices, and the weights (Z, K) of each slice's average.

    "reference" averages the slices z - 3 ... z + 2, "centred" the six half slices round z, "none" nothing;
    beyond the volume the outermost ones are repeated.
    """
    if kind == "none":
        return torch.arange(slices, dtype=torch.float32), torch.eye(slices)
    centred = kind == "centred" and slices > 1
    z = torch.arange(slices - centred, dtype=torch.float32) + (0.5 if centred else 0.0)
    weights = torch.zeros(slices, z.numel())
    for offset, weight in enumerate(NEIGHBOURS):
        place = (torch.arange(slices) + offset - 3).clamp(0, z.numel() - 1)
        weights[torch.arange(slices), place] += weight
    return z, weights


def padded_edge(pixels: int) -> int:
    """Return the edge that an image is padded to."""
    return max(_SMALLEST, -(-pixels // MULTIPLE) * MULTIPLE)


def _padded(images: Tensor) -> Tensor:
    """Return images (N, Y, X) continued to sides that the networks can halve three times."""
    short = [padded_edge(n) - n for n in images.shape[1:]]
    if not any(short):
        return images
    return F.pad(images[:, None], (0, short[1], 0, short[0]), mode="replicate")[:, 0]
