"""LPIPS, the learned perceptual distance of Zhang et al. (2018), where the extra is installed.

A network for photographs says which of two pictures looks more like a third; it knows nothing of
fluorescence, so it is a figure beside the others, and asked for by name. The first use fetches AlexNet's
weights (torchvision does, 230 MB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microdiffusion.errors import DependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Perceptual:
    """The distance, with its network loaded.

    Raises
    ------
    DependencyError
        The package is not installed, or its weights cannot be had.
    """

    def __init__(self) -> None:
        try:
            import lpips
        except ImportError as error:
            raise DependencyError(
                'LPIPS is not installed: pip install "microdiffusion-daemon[lpips]", or leave out --lpips.'
            ) from error
        try:
            self._distance: Any = lpips.LPIPS(net="alex", verbose=False).eval()
        except Exception as error:  # of torchvision, the network or the disk
            raise DependencyError(
                f"LPIPS cannot load AlexNet's weights ({error}): connect to the internet once, or leave out "
                "--lpips."
            ) from error

    @torch.no_grad()
    def __call__(self, estimate: NDArray[Any], truth: NDArray[Any]) -> float:
        """Return the mean distance over the slices of two volumes (Z, Y, X) in [0, 1]; 0 is equal."""

        def pictures(volume: NDArray[Any]) -> torch.Tensor:
            grey = torch.from_numpy(np.asarray(volume, dtype=np.float32)).clamp(0, 1) * 2 - 1
            return grey[:, None].expand(-1, 3, -1, -1)

        pairs = zip(pictures(estimate).split(8), pictures(truth).split(8), strict=True)
        return float(torch.cat([self._distance(a, b).flatten() for a, b in pairs]).mean())
