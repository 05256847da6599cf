"""Specimens that change over the sweeps of a session, and the scores of volumes of them.

Three courses: it keeps still, it is active (compact spots that brighten by 20 to 100 % and fade, beside spots
that don't change), it drifts. All follows from the structure (Z, Y, X), the number of sweeps and a seed.
Pure; scipy is imported only here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from microdiffusion.errors import InputFileError
from microdiffusion.metrics import psnr_per_slice, ssim_per_slice

Volume = NDArray[np.float32]

DRIFT = 0.1
"""Voxels a sweep, along z and along y."""
_RADIUS = 2.5  # voxels: sigma of a spot that brightens, and of the ball that its light is summed over
_ACTIVE, _STILL = 5, 15  # spots at most
_APART = 9  # voxels between two spots
_EDGE = 8  # voxels to the border
_LIT = 0.2  # of the range: what is darker has no brightness that could flicker


class Still:
    """A specimen that keeps still."""

    def __init__(self, structure: Volume, sweeps: int) -> None:
        self.structure = structure
        self.sweeps = sweeps
        self.settled = sweeps // 4
        """The first sweep that changes of brightness are scored from."""

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        return self.structure

    @property
    def keeps(self) -> NDArray[np.bool_]:
        """The bright voxels that do not change."""
        return self.structure > _LIT


class Drifting(Still):
    """A specimen that goes `DRIFT` voxels a sweep along z and y."""

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        by = DRIFT * sweep
        return np.asarray(ndimage.shift(self.structure, (by, by, 0), order=1, mode="nearest"), np.float32)

    @property
    def keeps(self) -> NDArray[np.bool_]:
        """No voxel keeps its brightness."""
        return np.zeros(self.structure.shape, np.bool_)


class Active(Still):
    """Spots that brighten once half of the sweeps are over, and again a few sweeps later; others keep still.

    Attributes
    ----------
    centres : (N, 3)
        Of the spots, the `active` first ones of which change.
    course : (sweeps, active)
        By how much they are brighter, relative.

    Raises
    ------
    InputFileError
        There is no room for a spot.
    """

    def __init__(self, structure: Volume, sweeps: int, seed: int = 0) -> None:
        super().__init__(structure, sweeps)
        rng = np.random.default_rng(seed)
        smooth = ndimage.gaussian_filter(structure, 1.5)
        peaks = (ndimage.maximum_filter(smooth, 5) == smooth) & (smooth > np.quantile(smooth, 0.9))
        inside = np.zeros(structure.shape, dtype=bool)
        inside[_EDGE:-_EDGE, _EDGE:-_EDGE, _EDGE:-_EDGE] = True
        centres: list[NDArray[np.int64]] = []
        for centre in rng.permutation(np.argwhere(peaks & inside)):
            if all(np.linalg.norm(centre - other) > _APART for other in centres):
                centres.append(centre)
        if not centres:
            raise InputFileError(
                f"There is no bright spot further than {_EDGE} voxels from the border of {structure.shape}: "
                "use a larger crop, or leave out --activity."
            )
        self.centres = np.array(centres[: _ACTIVE + _STILL])
        self.active = min(_ACTIVE, len(centres))
        self.quiet = sweeps // 2
        grid = np.indices(structure.shape)
        self._far = [((grid - c[:, None, None, None]) ** 2).sum(0) for c in self.centres]
        self.balls = [far <= _RADIUS**2 for far in self._far]
        self.course = np.zeros((sweeps, self.active))
        for number in range(self.active):
            begin, peak, lasting = (
                self.quiet + rng.integers(0, 3),
                rng.uniform(0.2, 1.0),
                rng.uniform(1.5, 3),
            )
            for onset, height in ((begin, peak), (begin + rng.integers(4, 6), rng.uniform(0.5, 1) * peak)):
                after = np.arange(sweeps) - onset
                self.course[:, number] += np.where(after >= 0, height * np.exp(-after / lasting), 0)

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        changes = zip(self.course[sweep], self._far[: self.active], strict=True)
        bright = sum(height * np.exp(-far / (2 * _RADIUS**2)) for height, far in changes)
        return np.asarray(self.structure * (1 + bright), dtype=np.float32)

    @property
    def keeps(self) -> NDArray[np.bool_]:
        """The bright voxels that do not change."""
        far = np.min(self._far[: self.active], axis=0) > (4 * _RADIUS) ** 2
        return np.asarray((self.structure > _LIT) & far)


class Watch:
    """Scores the volumes of a session, in any order of the sweeps; keeps sums and no volumes.

    Parameters
    ----------
    course : Still
        What the specimen does.
    seen : (Z,) bool
        Slices that are scored.
    looked : (sweeps, Z) bool
        Slices that a slab of each sweep looked at.
    """

    def __init__(self, course: Still, seen: NDArray[np.bool_], looked: NDArray[np.bool_]) -> None:
        self._course, self._seen, self._looked = course, seen, looked
        self._keeps = course.keeps & seen[:, None, None]
        self._psnr, self._ssim = np.full((2, course.sweeps), np.nan)
        self._sum = self._squares = np.zeros(int(self._keeps.sum()))
        self._count = 0
        balls = course.balls if isinstance(course, Active) else []
        self._light = np.full((course.sweeps, len(balls)), np.nan)
        self._true = self._light.copy()

    def add(self, sweep: int, volume: Volume) -> None:
        """Score the volume of a sweep."""
        truth = self._course.truth(sweep)
        shown = np.clip(volume, 0, max(1.0, float(truth.max())))[self._seen]
        self._psnr[sweep] = psnr_per_slice(shown, truth[self._seen]).mean()
        self._ssim[sweep] = ssim_per_slice(shown, truth[self._seen]).mean()
        if isinstance(self._course, Active):
            for number, ball in enumerate(self._course.balls):
                self._light[sweep, number] = float(volume[ball].mean())
                self._true[sweep, number] = float(truth[ball].mean())
        if sweep >= self._course.settled:
            still = volume[self._keeps].astype(np.float64)
            self._sum, self._squares = self._sum + still, self._squares + still**2
            self._count += 1

    def scores(self) -> dict[str, Any]:
        """Return PSNR (dB) and SSIM of each sweep, flicker, and where it is active what traces say."""
        result: dict[str, Any] = {"psnr_db": self._psnr.tolist(), "ssim": self._ssim.tolist()}
        if np.any(self._keeps):
            mean = self._sum / self._count
            spread = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0.0))
            truth = self._course.structure[self._keeps]
            result["flicker"] = float(np.sqrt(np.mean(spread**2)) / truth.mean())
        if isinstance(self._course, Active):
            result |= self._activity(self._course)
        return result

    def _activity(self, course: Active) -> dict[str, Any]:
        told, true = _relative(self._light, course), _relative(self._true, course)
        late = slice(course.settled, None)
        pairs = [(true[late, number], told[late, number]) for number in range(course.active)]
        slopes = [float(a @ b / (a @ a)) for a, b in pairs]
        still = np.std(told[late, course.active :], axis=0)
        return {
            "spots": course.active,
            "correlation": float(np.mean([np.asarray(np.corrcoef(a, b))[0, 1] for a, b in pairs])),
            "slope": float(np.mean(slopes)),
            "slope_error": float(np.mean(np.abs(np.array(slopes) - 1))),
            "false_activity": float(still.mean()) if still.size else float("nan"),
            "onset_delay": float(np.mean([self._delay(course, n, told, true) for n in range(course.active)])),
            "traces": {"true": true.T.tolist(), "told": told.T.tolist()},
        }

    def _delay(
        self, course: Active, number: int, told: NDArray[np.float64], true: NDArray[np.float64]
    ) -> int:
        """Return how many sweeps after the first that looked at the spot half of a change was told."""
        z = int(course.centres[number, 0])
        sweeps = np.arange(course.sweeps)
        looked = (course.course[:, number] > 0) & self._looked[:, z]
        first = int(np.argmax(looked)) if looked.any() else course.sweeps - 1
        there = (sweeps >= first) & (told[:, number] >= 0.5 * true[:, number])
        return (int(np.argmax(there)) if there.any() else course.sweeps) - first


def _relative(light: NDArray[np.float64], course: Active) -> NDArray[np.float64]:
    """Return ΔF/F (sweeps, spots) relative to the quiet sweeps."""
    base = light[course.settled : course.quiet].mean(axis=0)
    return np.asarray(light / base - 1)
