"""Fluorescence phantoms: synthetic specimens for the training, besides recorded volumes.

Rendered from morphologies (SWC trees and a vessel graph) and from simple shapes, as cubes of light per
voxel in [0, 1]. Everything is random under the caller's generator. Lines are splatted point by point
with trilinear weights and widened by Gaussian blurs, which is fast and has no aliasing.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from microdiffusion.errors import InputFileError


def read_swc(path: Path) -> NDArray[np.float64]:
    """Return the segments (N, 2, 4) of an SWC file: start and end, each x, y, z, radius.

    Raises
    ------
    InputFileError
        The file holds no tree of at least two nodes.
    """
    try:
        rows = np.loadtxt(path, comments="#", ndmin=2, usecols=range(7))
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path} is no SWC morphology ({error}).") from error
    place = {int(row[0]): number for number, row in enumerate(rows)}
    pairs = [(place[int(row[6])], number) for number, row in enumerate(rows) if int(row[6]) in place]
    if not pairs:
        raise InputFileError(f"{path} holds no segments: an SWC file needs at least two connected nodes.")
    nodes = rows[:, 2:6]
    return np.asarray(nodes[np.array(pairs)], dtype=np.float64)


def read_vessel_graph(path: Path) -> NDArray[np.float64]:
    """Return the segments (N, 2, 4) of an HDF5 vessel graph: `points` (x y z diameter), `structure`.

    Raises
    ------
    InputFileError
        The file is no such graph.
    """
    try:
        with h5py.File(path, "r") as file:
            points = file["points"][:, :4].astype(np.float64)
            first = np.sort(file["structure"][:, 0].astype(np.int64))
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise InputFileError(f"{path} is no vessel graph ({error}).") from error
    points[:, 3] *= 0.5
    linked = np.ones(len(points) - 1, dtype=bool)
    linked[first[first > 0] - 1] = False
    start = np.flatnonzero(linked)
    return np.stack([points[start], points[start + 1]], axis=1)


def splat_lines(
    segments: NDArray[np.float64], amounts: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Draw segments (N, 2, 3) in voxels (z, y, x) with light `amounts` (N,) per unit length into a cube."""
    length = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1)
    counts = np.maximum(1, np.ceil(2 * length)).astype(np.int64)
    owner = np.repeat(np.arange(len(segments)), counts)
    within = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + 0.5) / counts[owner]
    points = segments[owner, 0] + within[:, None] * (segments[owner, 1] - segments[owner, 0])
    amount = amounts[owner] * length[owner] / counts[owner]
    base = np.floor(points).astype(np.int64)
    fraction = points - base
    cube = np.zeros(shape, dtype=np.float64)
    for corner in np.ndindex(2, 2, 2):
        index = base + corner
        weight = amount * np.prod(np.where(np.array(corner) == 1, fraction, 1 - fraction), axis=1)
        inside = np.all((index >= 0) & (index < np.array(shape)), axis=1)
        np.add.at(cube, tuple(index[inside].T), weight[inside])
    return cube.astype(np.float32)


def neurites(segments: NDArray[np.float64], rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Render a cube from a random place, scale and rotation of a morphology's segments (N, 2, 4)."""
    nodes = segments[:, 1, :3]
    spread = np.median(np.linalg.norm(nodes - np.median(nodes, axis=0), axis=1)) + 1e-9
    scale = size * np.exp(rng.uniform(np.log(0.4), np.log(4.0))) / spread
    anchor = nodes[rng.integers(len(nodes))]
    # Each pass lays another copy over the first: dense neuropil from one tree.
    cube = np.zeros((size,) * 3, dtype=np.float32)
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        turn = Rotation.random(random_state=rng).as_matrix()
        # Slices lie further apart than pixels more often than not.
        stretch = np.array([np.exp(rng.uniform(np.log(0.35), 0)) if rng.random() < 0.5 else 1.0, 1.0, 1.0])
        place = (segments[:, :, :3] - anchor) @ turn.T * scale * stretch + size * rng.uniform(0.25, 0.75, 3)
        reach = np.linalg.norm(place[:, 1] - place[:, 0], axis=1)
        near = np.all((place.min(axis=1) < size + 4) & (place.max(axis=1) > -4), axis=1) & (reach < 2 * size)
        if not near.any():
            continue
        radius = np.clip(segments[near, :, 3].mean(axis=1), 0.05, None)
        thickness = np.clip(radius / np.median(radius), 0.4, 4) ** rng.uniform(0.5, 1.5)
        thin = thickness < 1.8
        lines = place[near]
        cube += (
            ndimage.gaussian_filter(
                splat_lines(lines[thin], thickness[thin], cube.shape), rng.uniform(0.6, 1.3)
            )
            * 4
        )
        if (~thin).any():
            width = rng.uniform(1.5, 3.0)
            cube += (
                ndimage.gaussian_filter(splat_lines(lines[~thin], thickness[~thin], cube.shape), width)
                * 2
                * width**2
            )
        anchor = nodes[rng.integers(len(nodes))]
    if rng.random() < 0.5:  # spines and boutons: bright dots on what is already there
        dots = (rng.random(cube.shape) < 0.02) * (cube > 0.2 * cube.max())
        cube += (
            ndimage.gaussian_filter(dots.astype(np.float32), rng.uniform(0.7, 1.2))
            * cube.max()
            * rng.uniform(2, 8)
        )
    return cube


def vessels(segments: NDArray[np.float64], rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Render filled or rim-labelled vessels from a random place of a vessel graph's segments (N, 2, 4)."""
    zoom = np.exp(rng.uniform(np.log(0.4), np.log(2.0)))
    anchor = segments[rng.integers(len(segments)), 0, :3]
    turn = Rotation.random(random_state=rng).as_matrix()
    place = (segments[:, :, :3] - anchor) @ turn.T * zoom + size / 2
    near = np.all((place.min(axis=1) < size + 8) & (place.max(axis=1) > -8), axis=1)
    radius = segments[near, :, 3].mean(axis=1) * zoom
    cube = np.zeros((size,) * 3, dtype=np.float32)
    for low, high in [(0, 1.5), (1.5, 3), (3, 6), (6, 99)]:
        chosen = (radius >= low) & (radius < high)
        if chosen.any():
            width = float(np.clip(radius[chosen].mean(), 0.7, 8))
            lines = splat_lines(place[near][chosen], np.ones(chosen.sum()), cube.shape)
            # Above half of a line's blurred peak is a filled tube of about this radius.
            cube = np.maximum(
                cube,
                1 / (1 + np.exp(-12 * (ndimage.gaussian_filter(lines, width) * 2 * np.pi * width**2 - 0.55))),
            )
    if rng.random() < 0.3:
        cube = cube - 0.8 * ndimage.minimum_filter(cube, 3)
    return np.asarray(ndimage.gaussian_filter(cube, rng.uniform(0.5, 1.2)), dtype=np.float32)


def blobs(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Render nuclei or cell bodies: ellipsoids, filled, textured or hollow, of one size class."""
    cube = np.zeros((size,) * 3, dtype=np.float32)
    radius = np.exp(rng.uniform(np.log(2.0), np.log(9.0)))
    density = rng.uniform(0.03, 0.6)
    count = int(np.clip(density * size**3 / (4.2 * radius**3), 1, 500))
    hollow = rng.random() < 0.3
    texture = ndimage.gaussian_filter(rng.standard_normal(cube.shape), rng.uniform(0.8, 2.0))
    texture = 1 + rng.uniform(0, 0.5) * texture / texture.std()
    for _ in range(count):
        axes = radius * np.exp(rng.normal(0, 0.2, 3))
        centre = rng.uniform(-radius, size + radius, 3)
        reach = axes.max() * 1.4 + 1
        low = np.clip(np.floor(centre - reach), 0, size).astype(int)
        high = np.clip(np.ceil(centre + reach), 0, size).astype(int)
        if np.any(high <= low):
            continue
        grid = np.meshgrid(
            *(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij", sparse=True
        )
        distance = np.sqrt(sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)))
        body = 1 / (1 + np.exp((distance - 1) * axes.mean() * 2))
        if hollow:
            body = body * np.clip(distance, 0, 1) ** 3
        view = cube[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        np.maximum(view, (body * rng.uniform(0.3, 1.0)).astype(np.float32), out=view)
    return np.asarray(cube * texture, dtype=np.float32).clip(0)


def texture(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Render band-passed noise, plates and gratings, which are like no specimen."""
    kind = rng.integers(3)
    if kind == 0:
        field = ndimage.gaussian_filter(rng.standard_normal((size,) * 3), np.exp(rng.uniform(-0.5, 1.5, 3)))
        cube = np.clip(field / field.std() + rng.uniform(-1.5, 1.0), 0, None)
    elif kind == 1:
        cube = (rng.random((size, 1, 1)) < 0.08) * np.ones((size,) * 3)
        cube *= ndimage.gaussian_filter(rng.random((size,) * 3), (8, 4, 4))
        cube = ndimage.gaussian_filter(cube, (rng.uniform(0.5, 1.5), 0, 0))
    else:
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1) @ direction
        cube = (
            np.sin(2 * np.pi * grid / rng.uniform(4, 24) + rng.uniform(0, 6)) > rng.uniform(-0.5, 0.7)
        ).astype(float)
        cube = ndimage.gaussian_filter(cube, rng.uniform(0.5, 1.2))
    return np.asarray(cube, dtype=np.float32)
