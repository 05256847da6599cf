"""The beam's axial profile and length, with their uncertainty, from a z-stack.

Owns the order of the work and what is said about the result; `beads` does what is lateral, `align` what
is axial. A thin layer is treated as a few large beads, the tiles of the image, so that a tilted layer
does not lengthen the beam. Pure; any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from microdiffusion.daemon.calibration.align import Aligned, align, typical_step
from microdiffusion.daemon.calibration.beads import find_traces, without_hot_pixels
from microdiffusion.daemon.calibration.profile import Curve, lengths
from microdiffusion.daemon.calibration.spread import Spread, spread_of
from microdiffusion.errors import InputFileError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from numpy.typing import NDArray

Specimen = Literal["beads", "layer"]
Interval = tuple[float, float]
OBLONG = 2.5
"""Spots that are so many times as long as wide: the stage may not be the file's first axis."""
FEW = 5
"""Fewer beads than this, and their scatter says little of the truth."""


@dataclass(frozen=True, slots=True)
class ZStack:
    """Images (Z, Y, X) float32 in the order of taking, and where the stage was (Z,), µm.

    `full` is the count from which on a pixel is saturated, None where nothing is known of it.
    """

    frames: NDArray[np.float32]
    z_um: NDArray[np.float64]
    full: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class BeamResult:
    """The measured beam; lengths in µm, intervals of 95 %.

    Attributes
    ----------
    z_um, weights, low, high : (K,) float64
        The profile on an even grid round its middle, of unit sum, and its band.
    length_um, equivalent_um : float
        Full width at half maximum, and (∫w)² / ∫w².
    centroid_um : float
        Mean of the profile: how much it leans to one side of its middle.
    beads, found, overlapping, saturated, partial, hot_pixels : int
    residual : float
        Root mean square of what the profile leaves of a trace, relative to its height.
    drift_px : float
    """

    z_um: NDArray[np.float64]
    weights: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    length_um: float
    length_interval: Interval
    equivalent_um: float
    equivalent_interval: Interval
    centroid_um: float
    centroid_interval: Interval
    specimen: str
    beads: int
    found: int
    overlapping: int
    saturated: int
    partial: int
    hot_pixels: int
    residual: float
    drift_px: float
    step_um: float
    range_um: float
    warnings: tuple[str, ...]


def measure_beam(stack: ZStack, specimen: Specimen = "beads") -> BeamResult:
    """Return the beam that a stack of sub-slab beads, or of a thin layer, shows.

    Raises
    ------
    InputFileError
        The stack is too short, or shows no bead or layer.
    """
    order = np.argsort(stack.z_um, kind="stable")
    z_um = np.asarray(stack.z_um, np.float64)[order]
    if len(z_um) < 5 or np.ptp(z_um) <= 0:
        raise InputFileError(
            f"{stack.source}: a profile needs at least 5 images at different heights, not {len(z_um)} over "
            f"{np.ptp(z_um) if len(z_um) else 0:g} µm: begin below the beads and end above."
        )
    if not np.all(np.isfinite(z_um)):
        raise InputFileError(f"{stack.source}: some stage positions are not finite: give them with --z-um.")
    frames = np.asarray(stack.frames, np.float32)[order]
    full = stack.full if stack.full is not None else _ceiling(frames)
    warnings: list[str] = []
    if specimen == "layer":
        traces, noise, hot = _tiles(frames, z_um)
        found, overlapping, drift_px = len(traces), 0, 0.0
        clipped = full is not None and float((frames >= full).mean(axis=(1, 2)).max()) > 0.01
        saturated = len(traces) if clipped else 0
    else:
        frames, hot = without_hot_pixels(frames)
        beads = find_traces(frames, full)
        traces, noise = beads.brightness, beads.noise
        overlapping, saturated = beads.overlapping, beads.saturated
        bright = traces.max(axis=1, initial=0.0) > 6.0 * noise
        traces, noise = traces[bright], noise[bright]
        found = len(traces) + overlapping + saturated
        drift_px = float(np.ptp(beads.drift, axis=0).max())
        if max(beads.spot) > OBLONG * min(beads.spot):
            sides = " x ".join(f"{2.355 * sigma:.2g}" for sigma in beads.spot)
            warnings.append(
                f"the beads are {sides} pixels (y, x) wide: is the first axis of the file the stage's? "
                "Save it as Z, Y, X"
            )
    aligned = align(traces, noise, z_um) if len(traces) else None
    if aligned is None:
        raise InputFileError(_nothing_found(stack.source, specimen, found, overlapping, saturated))
    if saturated:
        what = "the layer is" if specimen == "layer" else f"{saturated} of {found} beads are"
        left = "" if specimen == "layer" else ", and were left out"
        warnings.append(f"{what} saturated{left}: lower the laser power or the exposure")
    spread = spread_of(aligned, traces, noise, z_um)
    if spread is None or not _stands_out(aligned.curve, spread):
        raise InputFileError(
            f"{stack.source}: too few images to say how far the profile can be trusted: take more."
        )
    counts = (overlapping, saturated, hot)
    return _result(aligned, spread, z_um, specimen, found, counts, drift_px, tuple(warnings))


def _nothing_found(source: str, specimen: str, found: int, overlapping: int, saturated: int) -> str:
    if specimen == "layer":
        return (
            f"{source}: the image does not get brighter and darker along z: take a stack that begins below "
            "the layer and ends above it."
        )
    if found == 0:
        return (
            f"{source}: no bead was found: use brighter or more beads, or --layer where the specimen is a "
            "thin fluorescent layer."
        )
    if saturated >= max(found - overlapping, 1):
        return f"{source}: all {saturated} beads are saturated: lower the laser power or the exposure."
    return (
        f"{source}: none of {count_noun(found, 'bead')} shows the beam's rise and fall "
        f"({overlapping} overlap, "
        f"{saturated} are saturated): take a longer stack, or a specimen with fewer beads."
    )


def _ceiling(frames: NDArray[np.float32]) -> float | None:
    """Return the value that many pixels share as the highest one: where the camera ends, if it does."""
    top = float(frames.max())
    return top if np.count_nonzero(frames == top) >= max(20, len(frames)) else None


def _tiles(
    frames: NDArray[np.float32], z_um: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return the traces (N, Z) of tiles of the image, their noise, and how many pixels were hot."""
    count = 4 if min(frames.shape[1:]) >= 64 else 1
    rows = np.array_split(np.arange(frames.shape[1]), count)
    columns = np.array_split(np.arange(frames.shape[2]), count)
    traces = np.stack(
        [
            frames[:, row[0] : row[-1] + 1, column[0] : column[-1] + 1].mean(axis=(1, 2), dtype=np.float64)
            for row in rows
            for column in columns
        ]
    )
    noise = np.maximum(np.median(np.abs(np.diff(traces, 2, axis=1)), axis=1) / (0.6745 * np.sqrt(6.0)), 1e-9)
    # What is there without the layer: the darkest stretch, at least a tenth of the stack.
    window = max(len(z_um) // 10, 2)
    calm = np.array([np.convolve(t, np.ones(window) / window, "valid").min() for t in traces])
    return traces - calm[:, None], noise, 0


def _result(
    aligned: Aligned,
    spread: Spread,
    z_um: NDArray[np.float64],
    specimen: str,
    found: int,
    counts: tuple[int, int, int],
    drift_px: float,
    warnings: tuple[str, ...],
) -> BeamResult:
    curve = aligned.curve
    band = spread.half_width(lambda profile: profile)
    trimmed = _trimmed(curve, band)
    figures = partial(_figures, curve.u_um, trimmed.value > 0)
    length, equivalent, centroid = (float(each) for each in figures(curve.value))
    off = [float(each) for each in spread.half_width(figures)]
    # On what grid it is written: as far as there is light, and as far to the other side.
    half = int(np.flatnonzero(trimmed.value > 0).max(initial=2)) - len(curve.u_um) // 2
    other = len(curve.u_um) // 2 - int(np.flatnonzero(trimmed.value > 0).min(initial=len(curve.u_um)))
    reach = max(half, other, 1) + 1
    middle = len(curve.u_um) // 2
    reach = min(reach, middle)
    part = slice(middle - reach, middle + reach + 1)
    weights = trimmed.value[part]
    scale = weights.sum()
    low, high = weights - band[part], weights + band[part]
    step = typical_step(z_um)
    more = _warnings(aligned, trimmed, (length, off[0]), z_um, step, specimen)
    overlapping, saturated, hot = counts
    return BeamResult(
        z_um=curve.u_um[part],
        weights=weights / scale,
        low=np.maximum(low, 0.0) / scale,
        high=high / scale,
        length_um=length,
        length_interval=(max(length - off[0], 0.0), length + off[0]),
        equivalent_um=equivalent,
        equivalent_interval=(max(equivalent - off[1], 0.0), equivalent + off[1]),
        centroid_um=centroid,
        centroid_interval=(centroid - off[2], centroid + off[2]),
        specimen=specimen,
        beads=int(np.count_nonzero(aligned.used)),
        found=found,
        overlapping=overlapping,
        saturated=saturated,
        partial=aligned.partial,
        hot_pixels=hot,
        residual=aligned.residual,
        drift_px=drift_px,
        step_um=step,
        range_um=float(np.ptp(z_um)),
        warnings=(*warnings, *more),
    )


def _figures(
    u_um: NDArray[np.float64], lit: NDArray[np.bool_], profile: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return full width, equivalent length and centroid (from its middle) of a profile's lit part."""
    part = Curve(u_um, np.where(lit, np.maximum(profile, 0.0), 0.0))
    found = lengths(part)
    centroid = float(np.sum(u_um * part.value) / max(np.sum(part.value), 1e-12))
    middle = 0.5 * (found.left_um + found.right_um)
    return np.array([found.fwhm_um, found.equivalent_um, centroid - middle])


def _stands_out(curve: Curve, spread: Spread) -> bool:
    """Return whether a profile can be told from darkness round its middle."""
    middle = len(curve.value) // 2
    lit = _trimmed(curve, spread.half_width(lambda profile: profile)).value > 0
    return bool(lit[middle - 1 : middle + 2].all())


def _trimmed(curve: Curve, band: NDArray[np.float64]) -> Curve:
    """Return the profile without what cannot be told from darkness, beyond its lit part."""
    value = curve.value
    limit = np.maximum(band, 0.004)
    padded = np.pad(value, 1, mode="edge")
    calm = (padded[:-2] + padded[1:-1] + padded[2:]) / 3.0
    lit = np.flatnonzero(calm > limit)
    first, last = (int(lit[0]), int(lit[-1])) if lit.size else (0, len(value) - 1)
    # A lone blip far out is noise; a side lobe is wider than that.
    middle = len(value) // 2
    first = _without_blips(calm > limit, middle, -1, first)
    last = _without_blips(calm > limit, middle, 1, last)
    inside = np.zeros(len(value), bool)
    inside[max(first - 1, 0) : last + 2] = True
    return Curve(curve.u_um, np.where(inside, np.maximum(value, 0.0), 0.0))


def _without_blips(lit: NDArray[np.bool_], middle: int, step: int, end: int) -> int:
    """Return the farthest lit knot on one side that has two lit neighbours inwards; at most to the middle."""
    place = end
    while step * (place - middle) > 0 and not (lit[place] and lit[place - step] and lit[place - 2 * step]):
        place -= step
    return place


def _warnings(
    aligned: Aligned,
    trimmed: Curve,
    length: tuple[float, float],
    z_um: NDArray[np.float64],
    step_um: float,
    specimen: str,
) -> tuple[str, ...]:
    warnings = []
    length_um, off_um = length
    used = int(np.count_nonzero(aligned.used))
    if specimen == "beads" and used < FEW:
        warnings.append(
            f"only {count_noun(used, 'bead was', 'beads were')} used: take a denser specimen "
            "or several stacks"
        )
    if off_um > 0.1 * length_um:
        warnings.append(
            f"the length is known to ±{off_um / length_um:.0%} only: take more, brighter beads or finer steps"
        )
    if step_um > length_um / 4.0:
        warnings.append(
            f"a step of {step_um:g} µm is coarse for a beam of {length_um:.3g} µm: a sixth of the length or "
            "less shows its shape"
        )
    ends = (trimmed.value[1], trimmed.value[-2])
    short = float(np.ptp(z_um)) < 1.6 * length_um
    if short or max(ends) > 0.1 or aligned.partial > 0.7 * used:
        warnings.append(
            f"a stack of {np.ptp(z_um):g} µm does not show the ends of the profile well: take at least three "
            "times its length"
        )
    if aligned.residual > 0.15:
        warnings.append(
            f"the beads differ from their common profile by {aligned.residual:.0%} of its height: too dim, "
            "clumped, or not smaller than the slab"
        )
    return tuple(warnings)
