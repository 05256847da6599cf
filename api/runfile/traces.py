"""Brightness over time: ΔF/F of regions, with its standard deviation and the share of it that is data.

A sweep tells the brightness of a region as far as its slabs look at it and at nothing else that may have
changed as well; the rest of a value is prior, what the estimator expects. For a relative change of brightness
b(z) that is a Gaussian process along z over half a slab (the estimator's prior, `engines/inr/changes.py`),
alike but independent in the region and in what else its columns hold, each slab m measures

    y_m = Σ_z A_mz u_z b(z) + Σ_z A_mz o_z b'(z) + noise,

u and o the light of the region and of the rest in each slice. The *data share* of B = Σ u b / Σ u is the part
of its prior variance that the slabs of the sweep remove (Rasmussen & Williams 2006, section 2.2); it does not
depend on how large changes are, unless the noise hides them. The variance of ΔF/F is then

    spread² + c · <(ΔF/F)²> · (1 - data share) + first²,

spread the scatter of the trace between time points, <(ΔF/F)²> how much this region changes at all (the mean,
weighted by the data shares), and `first` for time points of which the age map says that nothing had been
learned before. c and `first` were measured on sessions of recorded specimens (docs/opening-files.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.frames import AGE_UNIT

if TYPE_CHECKING:
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader
    from microdiffusion.runfile.reader import Run

_CHANGE = 0.5  # standard deviation of a change of brightness that is looked for, relative
_UNTOLD = 0.45  # of the mean square of ΔF/F is the error's where nothing is data
_FIRST = 0.15  # standard deviation of ΔF/F while the structure is a single sweep's
_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
# Immerkær (1996), Fast noise variance estimation: a kernel that smooth structure does not excite.
_KERNEL = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))
_KERNEL_NORM = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class RoiTraces:
    """Brightness of N regions at T time points; NaN where there is no volume.

    Attributes
    ----------
    labels : (N,) int
        Their labels in the image, or 1, 2, 3 ... in the order of the balls.
    times : (T,) float64
        Camera time, s since the start of the run.
    fluorescence : (N, T) float64
        Mean over the region, counts above the camera's offset.
    baseline : (N,) float64
        F0, counts above the offset.
    dff : (N, T) float64
        ΔF/F = fluorescence / baseline - 1.
    dff_sd : (N, T) float64
        Standard deviation of `dff`.
    data_share : (N, T) float64
        How much of `dff` the projections of its own time point tell, 0 to 1; the rest is prior: what earlier
        sweeps and the neighbourhood let expect. NaN where the geometry is not known.
    """

    labels: NDArray[np.int64]
    times: NDArray[np.float64]
    fluorescence: NDArray[np.float64]
    baseline: NDArray[np.float64]
    dff: NDArray[np.float64]
    dff_sd: NDArray[np.float64]
    data_share: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SlabView:
    """The slabs of a sweep, as far as traces need them.

    Attributes
    ----------
    operator : (M, Z) float64
    noise : (M,) float64
        Standard deviation of a pixel of each projection, counts.
    reach : float
        Length of a slab, slices.
    """

    operator: NDArray[np.float64]
    noise: NDArray[np.float64]
    reach: float

    @classmethod
    def of(cls, sweep: Sweep, header: RunHeader) -> SlabView | None:
        """Return those of a sweep; None where no projection of it is left."""
        if not len(sweep.stage):
            return None
        weights = header.profile.weights
        length_um = header.profile.spacing_um / float(np.square(weights).sum())  # of a box as wide
        noise = np.array([_noise(image, header) for image in sweep.projections])
        return cls(header.operator_at(sweep.stage), noise, length_um / header.voxel_size_um[0])


class Region:
    """A region of interest: its voxels within a box, and the columns through it.

    Parameters
    ----------
    box : slices (z, y, x)
    inside : (z, y, x) bool
        Within the box.
    """

    def __init__(self, box: tuple[slice, slice, slice], inside: NDArray[np.bool_]) -> None:
        self.box, self.inside = box, inside
        self._columns = np.asarray(inside.any(axis=0), np.bool_)

    def brightness(self, volume: NDArray[np.float32]) -> float:
        """Return the mean over its voxels of a volume (Z, Y, X)."""
        return float(volume[self.box][self.inside].mean(dtype=np.float64))

    def data_share(self, volume: NDArray[np.float32], view: SlabView) -> float:
        """Return the data share of a change of brightness; `volume` is above the offset."""
        rows, columns = self.box[1:]
        light = np.maximum(volume[:, rows, columns], 0.0)[:, self._columns].sum(1, dtype=np.float64)
        own = np.zeros(len(volume))
        own[self.box[0]] = np.where(self.inside, np.maximum(volume[self.box], 0.0), 0.0).sum((1, 2))
        if not own.sum() > 0.0:
            return 0.0
        near = view.operator[:, self.box[0]].sum(1) > 0
        if not near.any():
            return 0.0
        operator = view.operator[near]
        part = np.flatnonzero((operator.sum(0) > 0) | (own > 0))
        operator, own, rest = operator[:, part], own[part], np.maximum(light - own, 0.0)[part]
        kernel = _CHANGE**2 * np.exp(-0.5 * np.square((part[:, None] - part) / (view.reach / 2)))
        seen, others, weights = operator * own, operator * rest, own / own.sum()
        noise = np.diag(np.square(view.noise[near]) * np.count_nonzero(self._columns))
        system = seen @ kernel @ seen.T + others @ kernel @ others.T + noise
        cross = seen @ kernel @ weights
        told, all_of_it = cross @ np.linalg.lstsq(system, cross, rcond=None)[0], weights @ kernel @ weights
        return float(np.clip(told / all_of_it, 0.0, 1.0))


def regions_of(rois: ArrayLike | Iterable[Any], shape: tuple[int, int, int]) -> dict[int, Region]:
    """Return regions by label.

    Parameters
    ----------
    rois : (Z, Y, X) integers or bool, or (N, 4)
        A label image, 0 is background; or balls: centre z, y, x and radius, voxels.
    shape : (Z, Y, X)

    Raises
    ------
    InputFileError
        They are neither, or no voxel of the volume is in one of them.
    """
    image = np.asarray(rois)
    if image.shape == shape and image.dtype.kind in "iub":
        return _labelled(image.astype(np.int64, copy=False))
    if image.ndim == 2 and image.shape[1] == 4 and image.dtype.kind in "iuf" and len(image):
        return {number: _ball(ball, number, shape) for number, ball in enumerate(image.astype(float), 1)}
    raise InputFileError(
        f"Regions of interest are a label image of integers of the shape {shape}, or rows of z, y, x and "
        f"radius in voxels, not an array of {image.dtype} of the shape {image.shape}."
    )


def measure_traces(
    volumes: Sequence[Callable[[], tuple[NDArray[Any], SlabView | None]] | None],
    regions: dict[int, Region],
    *,
    offset: float,
    baseline: slice | Sequence[int] | None = None,
    times: NDArray[np.float64] | None = None,
    ages: NDArray[np.float64] | None = None,
) -> RoiTraces:
    """Return the traces of regions.

    Parameters
    ----------
    volumes : sequence
        For each time point a function that returns its volume (Z, Y, X) and slabs; None: there is none.
    offset : float
        Counts of no light.
    baseline : slice or sequence of int, optional
        Time points of which the median is F0; None: all.
    times : (T,), optional
        Seconds.
    ages : (N, T), optional
        Sweeps that each region has kept still, this one included; NaN: not known.

    Raises
    ------
    InputFileError
        The baseline has no volume.
    """
    count = len(volumes)
    light, share = np.full((2, len(regions), count), np.nan)
    for t, read in enumerate(volumes):
        if read is None:
            continue
        counts, view = read()
        volume = np.asarray(counts, np.float32) - np.float32(offset)
        for number, region in enumerate(regions.values()):
            light[number, t] = region.brightness(volume)
            if view is not None:
                share[number, t] = region.data_share(volume, view)
    quiet = _at_baseline(light, baseline)
    if not np.isfinite(quiet).any(axis=1).all():
        raise InputFileError("No time point of the baseline has a volume: give others, or wait for one.")
    base = np.nanmedian(quiet, axis=1)
    base[~(base > 0.0)] = np.nan  # what is dark has no relative brightness
    dff = light / base[:, None] - 1
    first = (
        np.zeros_like(dff) if ages is None else _FIRST / np.maximum(np.nan_to_num(ages, nan=np.inf), 1) ** 3
    )
    sizes = np.sqrt(_variance(dff, np.nan_to_num(share, nan=1.0)) + first**2)
    seconds = np.full(count, np.nan) if times is None else np.asarray(times, np.float64)
    return RoiTraces(np.array(list(regions), np.int64), seconds, light, base, dff, sizes, share)


def _at_baseline(light: NDArray[np.float64], baseline: slice | Sequence[int] | None) -> NDArray[np.float64]:
    """Return the part (N, B) at the time points of the baseline."""
    points = np.arange(light.shape[1])
    try:
        chosen = (
            points
            if baseline is None
            else points[baseline if isinstance(baseline, slice) else list(baseline)]
        )
    except (IndexError, TypeError) as error:
        raise InputFileError(
            f"The baseline {baseline!r} does not fit {len(points)} time points: {error}"
        ) from None
    if chosen.ndim != 1:  # of a nested list
        raise InputFileError(
            f"A baseline is several time points, slice(0, 8) or [0, 1, 2], not {baseline!r}."
        )
    return light[:, chosen]


def run_traces(run: Run, rois: ArrayLike, channel: int, baseline: slice | Sequence[int] | None) -> RoiTraces:
    """Return the traces of a run's regions, up to its last time point with a status; see `Run.traces`."""
    shape, count = run.header.shape, run.used
    regions = regions_of(rois, shape)
    written = set(run.written(channel).tolist())

    def reader(t: int) -> Callable[[], tuple[NDArray[Any], SlabView | None]]:
        return lambda: (run.volume[run.place(t, channel)], SlabView.of(run.sweep(t, channel), run.header))

    def figures(name: str) -> NDArray[Any]:
        values = run.values(name)[:count]
        return values if len(run.header.channels) == 1 else values[:, channel]

    try:
        ages = _ages_at(regions, figures("age"), shape)
    except KeyError:  # layout 1.0
        ages = None
    return measure_traces(
        [reader(t) if t in written else None for t in range(count)],
        regions,
        offset=run.header.camera.offset,
        baseline=baseline,
        times=figures("acquired_s"),
        ages=ages,
    )


def traces_of(
    volumes: ArrayLike, rois: ArrayLike, *, offset: float = 0.0, baseline: slice | Sequence[int] | None = None
) -> RoiTraces:
    """Return ΔF/F of regions of volumes alone (T, Z, Y, X), such as an export's; NaN is a gap.

    Exports do not say where the slabs lay: `data_share` is NaN and `dff_sd` the trace's scatter alone.
    `rois` and `baseline` as for `Run.traces`; `offset`: counts of no light.

    Raises
    ------
    InputFileError
        The regions do not fit, or the baseline has no volume.
    """
    series: Any = (
        volumes if hasattr(volumes, "shape") and hasattr(volumes, "__getitem__") else np.asarray(volumes)
    )
    if len(series.shape) != 4:
        raise InputFileError(
            f"Volumes over time have the axes t, z, y, x, not the shape {tuple(series.shape)}."
        )
    z, y, x = (int(edge) for edge in series.shape[1:])
    regions = regions_of(rois, (z, y, x))
    readers = [lambda t=t: (np.asarray(series[t]), None) for t in range(series.shape[0])]
    return measure_traces(readers, regions, offset=offset, baseline=baseline)


def _ages_at(
    regions: dict[int, Region], ages: NDArray[np.uint8], shape: Sequence[int]
) -> NDArray[np.float64]:
    """Return the ages (N, T) of regions from maps of ages (T, z, y, x); NaN: not known."""
    rows = []
    for region in regions.values():
        place = tuple(
            (part.start + part.stop - 1) * blocks // (2 * edge)
            for part, blocks, edge in zip(region.box, ages.shape[1:], shape, strict=True)
        )
        rows.append(ages[(slice(None), *place)] * AGE_UNIT)
    found = np.array(rows, np.float64)
    found[found == 0.0] = np.nan
    return found


def _variance(dff: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variance (N, T) of ΔF/F of regions whose structure is known."""
    result = np.full_like(dff, np.nan)
    for row, told, out in zip(dff, share, result, strict=True):
        there = np.isfinite(row)
        values = row[there]
        if not values.size:
            continue
        spread = _MAD * np.median(np.abs(values))
        if values.size > 2:  # of an active region it is activity, which lasts longer than a time point
            steps = _MAD * np.median(np.abs(np.diff(values))) / np.sqrt(2)
            spread = min(spread, steps) or max(spread, steps)
        changes = np.average(values**2, weights=told[there]) if told[there].any() else np.mean(values**2)
        out[there] = spread**2 + _UNTOLD * changes * (1 - told[there])
    return result


def _labelled(image: NDArray[np.int64]) -> dict[int, Region]:
    """Return the regions of a label image, by label."""
    places = np.nonzero(image)
    if not places[0].size:
        raise InputFileError("The label image has no label: 0 is background.")
    labels, which = np.unique(image[places], return_inverse=True)
    first = np.full((3, len(labels)), np.iinfo(np.int64).max)
    last = np.zeros((3, len(labels)), np.int64)
    for axis, place in enumerate(places):
        np.minimum.at(first[axis], which, place)
        np.maximum.at(last[axis], which, place)
    found = {}
    for number, label in enumerate(labels.tolist()):
        z, y, x = (slice(int(a), int(b) + 1) for a, b in zip(first[:, number], last[:, number], strict=True))
        found[label] = Region((z, y, x), image[z, y, x] == label)
    return found


def _ball(ball: NDArray[np.float64], number: int, shape: tuple[int, int, int]) -> Region:
    if not np.isfinite(ball).all():
        raise InputFileError(f"Ball {number} has a number that is not finite: correct it, or leave it out.")
    centre, radius = ball[:3], ball[3]
    edges = zip(centre, shape, strict=True)
    z, y, x = (
        slice(max(0, int(np.ceil(at - radius))), max(0, min(edge, int(np.floor(at + radius)) + 1)))
        for at, edge in edges
    )
    grid = np.ogrid[z, y, x]
    far = sum(np.square(axis - at) for axis, at in zip(grid, centre, strict=True))
    inside = np.asarray(far <= radius**2)
    if not inside.any():
        raise InputFileError(
            f"Ball {number} (z, y, x, radius: {', '.join(f'{each:g}' for each in ball)} voxels) has no voxel "
            f"of the volume {shape}: correct its centre, or give a larger radius."
        )
    return Region((z, y, x), inside)


def _noise(image: NDArray[Any], header: RunHeader) -> float:
    """Return the standard deviation of a projection's noise (Y, X), counts."""
    camera, counts = header.camera, np.asarray(image, np.float64)
    if camera.gain is not None:
        light = max(float(counts.mean()) - camera.offset, camera.gain)
        return float(np.sqrt(camera.gain * light + camera.read_noise**2))
    if min(counts.shape) < 3:
        return camera.read_noise
    rows, columns = (edge - 2 for edge in counts.shape)
    response = sum(
        weight * counts[y : y + rows, x : x + columns]
        for y, line in enumerate(_KERNEL)
        for x, weight in enumerate(line)
    )
    return max(_MAD * float(np.median(np.abs(response))) / _KERNEL_NORM, camera.read_noise)
