"""The coarser copies of a volume: which there are, and that each voxel is the mean that the docs promise."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import header, put_volume, recorder, started

from microdiffusion import open_run
from microdiffusion.runfile.pyramid import coarser, level_factors, level_shape


@pytest.mark.parametrize(
    ("shape", "voxel_um", "factors"),
    [
        pytest.param((64, 512, 512), (1.0, 1.0, 1.0), [(2, 2, 2), (4, 4, 4), (8, 8, 8)], id="isotropic"),
        pytest.param((64, 512, 512), (2.0, 0.5, 0.5), [(1, 2, 2), (1, 4, 4), (2, 8, 8)], id="long in z"),
        pytest.param((6, 64, 64), (1.0, 1.0, 1.0), [], id="small"),
        pytest.param((1, 130, 70), (1.0, 1.0, 1.0), [(1, 2, 2), (1, 4, 4)], id="one plane"),
        pytest.param((9, 5, 300), (1.0, 1.0, 1.0), [(2, 2, 2), (4, 4, 4)], id="narrow"),
        pytest.param((16, 1, 300), (1.0, 1.0, 1.0), [], id="a line"),
        pytest.param((64, 4096, 4096), (4.0, 0.25, 0.25), [(1, 2**n, 2**n) for n in range(1, 5)], id="large"),
    ],
)
def test_levels(shape: tuple[int, int, int], voxel_um: tuple[float, float, float], factors: list) -> None:
    assert list(level_factors(shape, voxel_um)) == factors


def exact_mean(block: np.ndarray) -> int:
    """Rounded half up, with fractions."""
    return int(Fraction(int(block.astype(object).sum()), block.size) + Fraction(1, 2))


@pytest.mark.parametrize("shape", [(4, 8, 12), (5, 9, 13), (7, 6, 11)])
@pytest.mark.parametrize("factors", [((1, 2, 2), (2, 4, 4)), ((2, 2, 2), (4, 4, 4)), ((1, 2, 2), (1, 4, 4))])
def test_integers_are_means_rounded_half_up(shape: tuple[int, int, int], factors: tuple) -> None:
    rng = np.random.default_rng(3)
    volume = rng.choice([0, 1, 2, 3, 65534, 65535], shape).astype(np.uint16)
    for level, content in zip(factors, coarser(volume, factors), strict=True):
        assert content.shape == level_shape(shape, level)
        assert content.dtype == np.uint16
        z, y, x = level
        for at in np.ndindex(content.shape):
            block = volume[tuple(slice(i * f, (i + 1) * f) for i, f in zip(at, (z, y, x), strict=True))]
            assert content[at] == exact_mean(block)


def test_real_numbers_are_summed_in_the_promised_order() -> None:
    rng = np.random.default_rng(3)
    volume = rng.normal(size=(4, 8, 8)).astype(np.float32)
    half, quarter = coarser(volume, ((1, 2, 2), (2, 4, 4)))
    v = volume
    sums = (v[:, ::2, ::2] + v[:, ::2, 1::2]) + (v[:, 1::2, ::2] + v[:, 1::2, 1::2])
    np.testing.assert_array_equal(half, sums * np.float32(0.25))
    s = sums
    further = (s[:, ::2, ::2] + s[:, ::2, 1::2]) + (s[:, 1::2, ::2] + s[:, 1::2, 1::2])
    np.testing.assert_array_equal(quarter, (further[::2] + further[1::2]) * np.float32(1 / 32))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("shape", [(7, 150, 131), (3, 520, 300), (2, 700, 301), (20, 520, 300)], ids=str)
def test_what_is_written_is_the_pyramid_of_what_is_written(
    tmp_path: Path, shape: tuple[int, int, int], dtype: str
) -> None:
    """Several planes in a block, several blocks in a plane, and many of both."""
    path = tmp_path / "run.h5"
    rng = np.random.default_rng(1)
    volumes = [rng.normal(1000, 500, shape).astype(np.float32) for _ in range(2)]
    run = header(shape=shape, voxel_size_um=(1.0, 0.5, 0.5), dtype=dtype, channels=("a", "b"), sweeps=2)
    target = started(recorder(path, run=run, time_points=2))
    for sweep, volume in enumerate(volumes):
        put_volume(target, sweep, 1, volume=volume)
    target.stop()
    factors = level_factors(shape, (1.0, 0.5, 0.5))
    assert factors
    with open_run(path) as opened, h5py.File(path) as plain:
        assert opened.pyramid_factors == ((1, 1, 1), *factors)
        assert len(opened.pyramid) == len(factors) + 1
        for t in range(2):
            expected = coarser(opened.volume[t, 1], factors)
            for level, content in enumerate(expected, 1):
                np.testing.assert_array_equal(opened.pyramid[level][t, 1], content)
                np.testing.assert_array_equal(plain[f"pyramid/{level}"][t, 1], content)
                np.testing.assert_array_equal(plain[f"pyramid/{level}"].attrs["factors"], factors[level - 1])


def test_without_a_pyramid_there_is_only_the_volume(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = recorder(path, run=header(shape=(3, 130, 130), sweeps=1), pyramid=False)
    target.start()
    put_volume(target, 0, volume=np.ones((3, 130, 130), np.float32))
    target.stop()
    with open_run(path) as opened, h5py.File(path) as plain:
        assert opened.pyramid == (opened.volume,)
        assert opened.pyramid_factors == ((1, 1, 1),)
        assert "pyramid" not in plain
