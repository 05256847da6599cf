"""Slabs that are left out of a sweep, and what they say of the network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from microdiffusion.engines.pipeline.cross_validation import cross_validated
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import RunHeader

NOISE = 0.02


def header(shape: tuple[int, int, int]) -> RunHeader:
    return RunHeader(
        run_id="0" * 32,
        shape=shape,
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=4.0,
        dtype="float32",
    )


def sweep_of(truth: np.ndarray, slabs: int) -> Sweep:
    stage = StagePositions.along_z(1.5 + 4.0 * np.arange(slabs))
    images = np.tensordot(header(truth.shape).operator_at(stage), truth, 1)
    images += NOISE * np.random.default_rng(0).standard_normal(images.shape)
    return Sweep(0, 0, 0, stage, images.astype(np.float32), stage[:0], images[:0].astype(np.float32))


def answering(
    truth: np.ndarray, share: float
) -> Callable[[RunHeader, Sweep], tuple[dict[str, Tensor], float]]:
    """Return an engine whose INR knows half of the truth, and whose network adds so many times the rest."""

    def answers(_: RunHeader, sweep: Sweep) -> tuple[dict[str, Tensor], float]:
        volume = torch.from_numpy(truth).float()
        assert sweep.projections.shape[1:] == volume.shape[1:]
        assert len(sweep.held_out) == 0
        return {"mdd": volume * (0.5 + 0.5 * share), "inr": 0.5 * volume, "linear": 0.0 * volume}, NOISE**2

    return answers


@pytest.mark.parametrize("share", [-1.0, 0.5, 1.0, 2.0])
def test_slabs_left_out_tell_the_share_of_a_correction_that_is_right(share: float) -> None:
    truth = np.random.default_rng(1).random((24, 20, 20))
    found = cross_validated(sweep_of(truth, 6), header(truth.shape), answering(truth, share))
    assert found is not None
    assert found.share == pytest.approx(1 / share, abs=0.02)
    assert (found.errors["mdd"] < found.errors["inr"]) == (0 < share < 2)
    assert found.errors["inr"] < found.errors["linear"]


def test_a_network_that_adds_next_to_nothing_is_not_judged() -> None:
    truth = np.random.default_rng(1).random((24, 8, 8))
    found = cross_validated(sweep_of(truth, 6), header(truth.shape), answering(truth, 0.01))
    assert found is not None
    assert found.share is None


@pytest.mark.parametrize("slabs", [4, 5, 6, 9])
def test_each_inner_slab_is_left_out_once_and_the_outermost_never(slabs: int) -> None:
    truth = np.random.default_rng(1).random((4 * slabs, 8, 8))
    sweep, shown = sweep_of(truth, slabs), []

    def answers(_: RunHeader, part: Sweep) -> tuple[dict[str, Tensor], float]:
        shown.append(part.stage.z_um)
        return answering(truth, 1.0)(_, part)

    cross_validated(sweep, header(truth.shape), answers)
    missing = np.concatenate([np.setdiff1d(sweep.stage.z_um, each) for each in shown])
    np.testing.assert_array_equal(np.sort(missing), sweep.stage.z_um[1:-1])


def test_three_slabs_cannot_spare_one() -> None:
    truth = np.ones((12, 8, 8))
    assert cross_validated(sweep_of(truth, 3), header(truth.shape), answering(truth, 1.0)) is None


@pytest.mark.parametrize("begin", [0, 90, 140])
def test_a_large_image_is_judged_where_its_structure_is(begin: int) -> None:
    truth = np.zeros((24, 127, 200))
    truth[:, 100:120, begin : begin + 30] = np.random.default_rng(1).random((24, 20, 30))
    sweep, seen = sweep_of(truth, 6), []

    def answers(part_header: RunHeader, part: Sweep) -> tuple[dict[str, Tensor], float]:
        assert part_header.shape == (24, *part.projections.shape[1:])
        seen.append(part.projections)
        volume = torch.zeros(part_header.shape)
        return {"mdd": volume, "inr": volume}, NOISE**2

    cross_validated(sweep, header(truth.shape), answers)
    assert all(images.shape[1:] == (64, 64) for images in seen)
    assert min(images.max() for images in seen) > 0.3
