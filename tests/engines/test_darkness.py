"""Where a whole slab was dark, the volume is; nothing that stands out of the noise is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microdiffusion.engines.projections.darkness import light_share, slab_light, supports
from microdiffusion.optics import AxialProfile, projection_operator, sweep_positions

SLICES, SIZE, LENGTH, NOISE = 24, 48, 6.0, 0.01


def operator_of(step: float = LENGTH) -> np.ndarray:
    z = sweep_positions(length_um=LENGTH, step_um=step, z0_um=0, voxel_z_um=1, shape_z=SLICES)
    return projection_operator(z, AxialProfile.box(LENGTH), z0_um=0, voxel_z_um=1, shape_z=SLICES)


def share_of(volume: np.ndarray, *, step: float = LENGTH, level: float = 0.0, seed: int = 0) -> torch.Tensor:
    operator = operator_of(step)
    clean = np.tensordot(operator, volume, 1)
    noisy = clean + NOISE * np.random.default_rng(seed).standard_normal(clean.shape)
    above = torch.from_numpy((noisy - level).astype(np.float32))
    return light_share(supports(operator), SLICES, slab_light(above, torch.full_like(above, NOISE**2)))


def test_a_dark_specimen_is_dark_nearly_everywhere() -> None:
    assert float(share_of(np.zeros((SLICES, SIZE, SIZE))).mean()) < 0.05


def test_only_the_dark_slabs_are_darkened() -> None:
    volume = np.zeros((SLICES, SIZE, SIZE))
    volume[6:12] = 0.3
    share = share_of(volume)
    assert float(share[6:12].min()) == 1.0
    assert float(share[13:].mean()) < 0.05


@pytest.mark.parametrize("bright", [0.5, 6 * 6 * NOISE], ids=["bright", "six times the noise in its slab"])
def test_a_single_point_keeps_its_light(bright: float) -> None:
    volume = np.zeros((SLICES, SIZE, SIZE))
    volume[8, 20, 20] = bright
    for seed in range(5):
        assert float(share_of(volume, seed=seed)[8, 20, 20]) > 0.9


def test_a_haze_of_half_the_noise_keeps_its_light() -> None:
    volume = np.full((SLICES, SIZE, SIZE), 0.5 * NOISE)
    assert float(share_of(volume).mean()) > 0.95


def test_an_undeclared_pedestal_switches_it_off() -> None:
    assert float(share_of(np.full((SLICES, SIZE, SIZE), 0.2)).min()) == 1.0


def test_a_level_above_the_real_one_switches_it_off() -> None:
    assert float(share_of(np.zeros((SLICES, SIZE, SIZE)), level=2 * NOISE).min()) == 1.0


def test_of_overlapping_slabs_one_dark_one_is_enough() -> None:
    volume = np.zeros((SLICES, SIZE, SIZE))
    volume[0:6] = 0.3
    share = share_of(volume, step=3.0)
    assert float(share[:6].min()) == 1.0
    # The slab of slices 3 to 8 is bright, the one of 6 to 11 dark: so slices 6 to 8 are dark.
    assert float(share[6:9].mean()) < 0.05


def test_slices_that_no_slab_saw_keep_what_they_have() -> None:
    operator = operator_of()
    operator[1] = operator[0]  # slices 6 to 11 were not seen
    above = torch.zeros(len(operator), SIZE, SIZE)
    share = light_share(supports(operator), SLICES, slab_light(above, torch.full_like(above, NOISE**2)))
    assert float(share[6:12].min()) == 1.0
    assert float(share[:6].max()) == 0.0


def test_shares_may_be_bytes() -> None:
    light = torch.rand((len(operator_of()), 8, 8), generator=torch.Generator().manual_seed(0))
    seen = supports(operator_of())
    bytes_ = light_share(seen, SLICES, (255 * light).to(torch.uint8))
    assert torch.equal(bytes_, (255 * light_share(seen, SLICES, light)).to(torch.uint8))
