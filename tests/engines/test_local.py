"""Local means are those of the library's pooling, at every window and border."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from microdiffusion.engines.projections.filters import local_max, local_mean, window_sum


@pytest.mark.parametrize("window", [1, 3, 5, 7, 15, 21])
@pytest.mark.parametrize("shape", [(1, 40, 33), (3, 22, 22), (2, 15, 64)])
def test_means_are_those_of_pooling(window: int, shape: tuple[int, int, int]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(window)) + 100
    wanted = F.avg_pool2d(images[None].double(), window, 1, window // 2, count_include_pad=False)[0]
    torch.testing.assert_close(local_mean(images, window).double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("window", [1, 2, 3, 6, 7, 15])
def test_sums_are_those_of_whole_windows(window: int) -> None:
    images = torch.arange(2 * 20 * 17, dtype=torch.float64).reshape(2, 20, 17)
    wanted = F.avg_pool2d(images[None], window, 1)[0] * window**2
    torch.testing.assert_close(window_sum(images, window), wanted)


@pytest.mark.parametrize("shape", [(1, 40, 33), (3, 2, 5), (2, 1, 1)])
def test_the_largest_neighbour_is_that_of_pooling(shape: tuple[int, int, int]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(local_max(images), F.max_pool2d(images[None], 3, 1, 1)[0], rtol=0, atol=0)


def test_images_smaller_than_the_window_give_the_mean_of_what_is_there() -> None:
    images = torch.rand(2, 4, 6)
    wanted = F.avg_pool2d(images[None], 9, 1, 4, count_include_pad=False)[0]
    torch.testing.assert_close(local_mean(images, 9), wanted)
