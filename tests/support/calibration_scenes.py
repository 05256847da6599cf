"""Stacks of beads and thin layers, dark and flat series, with known truth.

Written without mdd's optics, so that what is measured does not rest on what it is compared with: a bead at
depth z0 is seen when the beam's axis lies at z with ``w(z0 - z)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Profile = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def profile_of(kind: str, length_um: float) -> Profile:
    """Return a profile w(u) of full width at half maximum `length_um`, peak about 1."""
    if kind == "box":
        return lambda u: np.clip(0.5 + (0.5 * length_um - np.abs(u)) / (0.04 * length_um), 0, 1)
    if kind == "gaussian":
        return lambda u: np.exp(-4 * np.log(2) * (u / length_um) ** 2)
    if kind == "bessel":  # flat, with soft edges, and side lobes that differ

        def bessel(u: NDArray[np.float64]) -> NDArray[np.float64]:
            body = np.exp(-np.log(2) * (np.abs(u) / (0.5 * length_um)) ** 4)
            before = 0.16 * np.exp(-(((u + 0.85 * length_um) / (0.16 * length_um)) ** 2))
            after = 0.07 * np.exp(-(((u - 0.95 * length_um) / (0.2 * length_um)) ** 2))
            return np.asarray(body * (1 + 0.12 * u / length_um) + before + after)

        return bessel
    raise ValueError(kind)


@dataclass(frozen=True)
class BeadScene:
    """What a stack of beads is made of; the defaults are a good stack."""

    profile: str = "gaussian"
    length_um: float = 30.0
    step_um: float = 2.0
    range_um: float = 110.0
    beads: int = 30
    size: tuple[int, int] = (160, 160)
    spot: tuple[float, float] = (1.5, 1.5)
    photons: float = 300.0
    spread: float = 0.3
    background: float = 20.0
    gradient: float = 0.5
    bleaching: float = 0.0
    jitter: float = 0.0
    drift_px: float = 0.0
    hot: float = 0.0
    offset: float = 100.0
    gain: float = 0.5
    read_noise: float = 2.0
    dtype: str = "uint16"
    descending: bool = False
    shuffled: bool = False
    beyond: float = 0.5
    seed: int = 0


def bead_stack(scene: BeadScene) -> tuple[NDArray, NDArray[np.float64], Profile]:
    """Return pixels (Z, Y, X), the stage positions (Z,) that the metadata state, and the true profile."""
    rng = np.random.default_rng([scene.seed, 7])
    w = profile_of(scene.profile, scene.length_um)
    z = np.arange(0.0, scene.range_um + 1e-6, scene.step_um)
    if scene.descending:
        z = z[::-1].copy()
    if scene.shuffled:
        z = rng.permutation(z)
    true_z = z + scene.jitter * scene.step_um * rng.standard_normal(len(z))
    depth = rng.uniform(
        -scene.beyond * scene.length_um, scene.range_um + scene.beyond * scene.length_um, scene.beads
    )
    place = rng.uniform(0, 1, (scene.beads, 2)) * np.array(scene.size)
    bright = scene.photons * np.exp(scene.spread * rng.standard_normal(scene.beads))
    rows, columns = np.arange(scene.size[0]), np.arange(scene.size[1])
    slope = (rows[:, None] / scene.size[0] - 0.5) + (columns[None, :] / scene.size[1] - 0.5)
    light_gradient = np.maximum(1 + scene.gradient * slope, 0.05)
    direction = rng.normal(size=2)
    direction /= np.linalg.norm(direction)
    hot = rng.uniform(size=scene.size) < scene.hot
    hot_level = rng.exponential(400.0, scene.size) * hot
    frames = []
    for time, position in enumerate(true_z):
        share = time / max(len(z) - 1, 1)
        left = (1 - scene.bleaching) ** share
        shift = scene.drift_px * (share - 0.5) * direction
        image = scene.background * light_gradient * left
        glow = bright * w(depth - position) * left
        for (y, x), value in zip(place + shift, glow, strict=True):
            if value > 1e-4:
                image = image + value * np.outer(
                    np.exp(-0.5 * ((rows - y) / scene.spot[0]) ** 2),
                    np.exp(-0.5 * ((columns - x) / scene.spot[1]) ** 2),
                )
        counts = scene.gain * rng.poisson(image) + scene.offset + hot_level
        frames.append(counts + scene.read_noise * rng.standard_normal(scene.size))
    return _as_pixels(np.array(frames), scene.dtype), z, w


def layer_stack(scene: BeadScene, tilt_um: float = 0.0) -> tuple[NDArray, NDArray[np.float64], Profile]:
    """Return a stack of a thin layer in the middle, tilted by so much across the image."""
    rng = np.random.default_rng([scene.seed, 8])
    w = profile_of(scene.profile, scene.length_um)
    z = np.arange(0.0, scene.range_um + 1e-6, scene.step_um)
    if scene.descending:
        z = z[::-1].copy()
    if scene.shuffled:
        z = rng.permutation(z)
    true_z = z + scene.jitter * scene.step_um * rng.standard_normal(len(z))
    rows, columns = np.mgrid[: scene.size[0], : scene.size[1]]
    depth = 0.5 * scene.range_um + tilt_um * (columns / scene.size[1] - 0.5)
    lit = 1 + scene.gradient * (rows / scene.size[0] - 0.5)
    frames = []
    for time, position in enumerate(true_z):
        left = (1 - scene.bleaching) ** (time / max(len(z) - 1, 1))
        image = (scene.photons * lit * w(depth - position) + scene.background) * left
        counts = scene.gain * rng.poisson(image) + scene.offset
        frames.append(counts + scene.read_noise * rng.standard_normal(scene.size))
    return _as_pixels(np.array(frames), scene.dtype), z, w


def _as_pixels(counts: NDArray, dtype: str) -> NDArray:
    if dtype == "float32":
        return counts.astype(np.float32)
    limit = np.iinfo(dtype).max
    return np.clip(np.rint(counts), 0, limit).astype(dtype)


def camera_series(
    *,
    seed: int = 0,
    frames: int = 20,
    size: tuple[int, int] = (128, 128),
    photons: float = 500.0,
    gain: float = 0.5,
    offset: float = 100.0,
    read_noise: float = 2.0,
    gradient: float = 0.6,
    response: float = 0.02,
    lamp_drift: float = 0.0,
    flicker: float = 0.0,
    hot: float = 0.0,
    bits: int = 16,
    levels: tuple[float, ...] = (1.0,),
) -> tuple[NDArray, NDArray]:
    """Return a dark and a flat series (N, Y, X) uint16."""
    rng = np.random.default_rng([seed, 9])
    pattern = offset + rng.normal(0, 1.5, size)
    noise = np.full(size, read_noise)
    is_hot = rng.uniform(size=size) < hot
    pattern[is_hot] += rng.exponential(300.0, np.count_nonzero(is_hot))
    noise[is_hot] *= 8
    sensitivity = 1 + response * rng.standard_normal(size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    light = 1 - gradient * ((rows / size[0] - 0.5) ** 2 + (columns / size[1] - 0.5) ** 2)
    limit = 2**bits - 1

    def seen(mean: NDArray) -> NDArray:
        counts = gain * rng.poisson(mean) + pattern + noise * rng.standard_normal(size)
        return np.clip(np.rint(counts), 0, limit).astype(np.uint16)

    dark = np.stack([seen(np.zeros(size)) for _ in range(frames)])
    flat = []
    for level in levels:
        for number in range(frames):
            lamp = (1 - lamp_drift * number / frames) * (1 + flicker * rng.standard_normal())
            flat.append(seen(np.maximum(photons * level * lamp, 0) * light * sensitivity))
    return dark, np.stack(flat)
