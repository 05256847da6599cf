"""Traces of regions with known truth: what they tell, how far off they are, and what of them is data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.session_scene import LENGTH, NOISE, SHAPE, SIDE, STEP, spot

from microdiffusion import open_run
from microdiffusion.config.models import Config, EngineConfig
from microdiffusion.daemon.offline.reconstruct import reconstruct_file
from microdiffusion.files import write_projections
from microdiffusion.optics import AxialProfile, projection_operator, sweep_offset, sweep_positions
from microdiffusion.runfile import RoiTraces

SWEEPS, BURST, BASELINE = 14, 8, slice(4, 8)
RADIUS = 2.5


def places(rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Return the centres of ten spots that do not touch each other."""
    found: list[tuple[int, int, int]] = []
    while len(found) < 10:
        z, y, x = rng.integers(7, SIDE - 7, 3).tolist()
        if all(np.hypot(np.hypot(z - a, y - b), x - c) > 8 for a, b, c in found):
            found.append((z, y, x))
    return found


def session(folder: Path, seed: int, step: float = STEP) -> tuple[RoiTraces, NDArray[np.float64]]:
    """Return the traces of ten spots, the first four of which flash, and the true ΔF/F."""
    rng = np.random.default_rng(seed)
    centres = places(rng)
    spots = [spot(centre, rng.uniform(1.5, 3.0)) for centre in centres]
    heights = rng.uniform(0.4, 1.0, len(spots))
    courses = np.ones((SWEEPS, len(spots)))
    for number in range(4):
        begin, peak, lasting = BURST + rng.integers(0, 3), rng.uniform(0.3, 1.0), rng.uniform(1.5, 3.0)
        after = np.arange(SWEEPS) - begin
        courses[:, number] += np.where(after >= 0, peak * np.exp(-after / lasting), 0)
    truth = [
        np.asarray(0.02 + sum(a * h * s for a, h, s in zip(row, heights, spots, strict=True)), np.float32)
        for row in courses
    ]
    slabs = [
        sweep_positions(
            length_um=LENGTH,
            step_um=step,
            z0_um=0.0,
            voxel_z_um=1.0,
            shape_z=SIDE,
            offset_um=sweep_offset(number, "golden") * step,
        )
        for number in range(SWEEPS)
    ]
    z_um = np.array([each[: min(map(len, slabs))] for each in slabs])
    profile = AxialProfile.box(LENGTH)
    images = []
    for depths, volume in zip(z_um, truth, strict=True):
        operator = projection_operator(depths, profile, z0_um=0.0, voxel_z_um=1.0, shape_z=SIDE)
        light = np.tensordot(operator, volume, axes=1)
        images.append((light + NOISE * rng.standard_normal(light.shape)).astype(np.float32))
    source, path = folder / f"{seed}.h5", folder / f"{seed}_run.h5"
    write_projections(
        source,
        images,
        z_um=z_um,
        profile=profile,
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        shape_z=SIDE,
    )
    engine = EngineConfig(method="inr", device="cpu", threads=1)
    reconstruct_file(source, path, config=Config(engine=engine), causal=True)
    balls = [(*centre, RADIUS) for centre in centres]
    with open_run(path) as run:
        traces = run.traces(balls, baseline=BASELINE)
    inside = [np.sum(np.square(np.indices(SHAPE).T - centre), -1).T <= RADIUS**2 for centre in centres]
    light = np.array([[volume[ball].mean() for volume in truth] for ball in inside])
    return traces, light / np.median(light[:, BASELINE], axis=1, keepdims=True) - 1


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[RoiTraces, NDArray[np.float64]]]:
    """Return sessions of seeds that no constant was chosen by."""
    folder = tmp_path_factory.mktemp("traces")
    return [session(folder, seed) for seed in range(100, 104)]


def test_about_two_thirds_lie_within_one_deviation(sessions: list[tuple[RoiTraces, NDArray[np.float64]]]):
    off = np.concatenate([(traces.dff - true) / traces.dff_sd for traces, true in sessions])
    assert np.isfinite(off).all()
    assert 0.58 < (np.abs(off) < 1).mean() < 0.88
    assert 0.88 < (np.abs(off) < 2).mean() <= 1.0
    flashing = np.abs(off[np.arange(len(off)) % 10 < 4, BURST:])
    assert 0.5 < (flashing < 1).mean() < 0.95


def test_activity_is_told_and_stillness_is_not_active(
    sessions: list[tuple[RoiTraces, NDArray[np.float64]]],
) -> None:
    told, true = (
        np.concatenate([rows[:4, BURST:].ravel() for rows in each])
        for each in ([traces.dff for traces, _ in sessions], [true for _, true in sessions])
    )
    assert np.corrcoef(told, true)[0, 1] > 0.8
    still = np.concatenate([traces.dff[4:, BURST:] for traces, _ in sessions])
    assert still.std() < 0.08


def test_what_no_slab_looked_at_is_prior_and_errs_more(
    sessions: list[tuple[RoiTraces, NDArray[np.float64]]],
) -> None:
    share, error, size = (
        np.concatenate([values[:4, BURST:].ravel() for values in each])
        for each in (
            [traces.data_share for traces, _ in sessions],
            [np.square(traces.dff - true) for traces, true in sessions],
            [traces.dff_sd for traces, _ in sessions],
        )
    )
    assert share.min() >= 0.0
    assert share.max() <= 1.0
    prior, data = share < np.quantile(share, 1 / 3), share > np.quantile(share, 2 / 3)
    assert error[data].mean() < error[prior].mean()
    assert np.median(size[data]) < np.median(size[prior])


def test_slabs_without_gaps_tell_more(tmp_path: Path, sessions: list[tuple[RoiTraces, NDArray[np.float64]]]):
    dense, _ = session(tmp_path, 100, step=LENGTH / 2)
    assert dense.data_share.mean() > sessions[0][0].data_share.mean() + 0.1
