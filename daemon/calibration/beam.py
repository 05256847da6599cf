"""The beam's axial profile and length, with their uncertainty, from a z-stack.

Owns the order of the work and the warnings; `beads` does what is lateral, `align` what is axial. A thin layer
is treated as a few large beads, the tiles of the image, so that a tilted layer does not lengthen the beam.

Uncertainty is a delete-a-group jackknife (Shao & Tu, *The Jackknife and Bootstrap*, 1995, section 2.3), over
the beads and over the images: beads differ among themselves, and what is wrong with an image (where the stage
really was, how bright the laser) is wrong for all beads at once. Photon noise is in both, so the intervals
are too wide rather than too narrow. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from microdiffusion.daemon.calibration.align import Aligned, align, typical_step
from microdiffusion.daemon.calibration.beads import find_traces, without_hot_pixels
from microdiffusion.daemon.calibration.profile import Curve
from microdiffusion.errors import InputFileError
from microdiffusion.metrics import saturation_level
from microdiffusion.text import count_noun

Specimen = Literal["beads", "layer"]
Interval = tuple[float, float]
OBLONG = 2.5
"""Ratio of a spot's widths from which on the stage may not be the file's first axis."""
FEW = 5
"""Fewer beads than this, and their scatter says little about the truth."""
GROUPS = 10
"""Groups of the jackknife."""


@dataclass(frozen=True, slots=True)
class ZStack:
    """Images (Z, Y, X) float32 in the order of taking, and where the stage was (Z,), µm.

    `full` is the count from which on a pixel is saturated, None where unknown.
    """

    frames: NDArray[np.float32]
    z_um: NDArray[np.float64]
    full: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class BeamResult:
    """The measured beam; lengths in µm, intervals of 95 %. Its file has fields of the same names.

    Attributes
    ----------
    z_um, weights, low, high : (K,) float64
        The profile on an even grid round its middle, of unit sum, and its band.
    length_um, equivalent_um : float
        Full width at half maximum, and (∫w)² / ∫w².
    centroid_um : float
        Mean of the profile: how much it leans to one side of its middle.
    figures : mapping
        specimen, beads, residual (root mean square of what the profile leaves of a trace, of its height) ...
    """

    z_um: NDArray[np.float64]
    weights: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    spacing_um: float
    length_um: float
    length_interval_um: Interval
    equivalent_um: float
    equivalent_interval_um: Interval
    centroid_um: float
    centroid_interval_um: Interval
    figures: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Traces (N, Z) and their noise (N,), how many there were in all, and why some were left out."""

    traces: NDArray[np.float64]
    noise: NDArray[np.float64]
    found: int
    overlapping: int = 0
    saturated: int = 0
    hot_pixels: int = 0
    drift_px: float = 0.0
    warnings: tuple[str, ...] = ()


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
            f"{np.ptp(z_um) if len(z_um) else 0:g} µm: start below the beads and stop above them."
        )
    if not np.all(np.isfinite(z_um)):
        raise InputFileError(f"{stack.source}: some stage positions are not finite: give them with --z-um.")
    frames = np.asarray(stack.frames, np.float32)[order]
    full = stack.full if stack.full is not None else saturation_level(frames, least=max(20, len(frames)))
    seen = _layer(frames, full) if specimen == "layer" else _beads(frames, full)
    aligned = align(seen.traces, seen.noise, z_um) if len(seen.traces) else None
    if aligned is None:
        raise InputFileError(f"{stack.source}: {_nothing_found(seen, specimen)}")
    repeats = _jackknife(aligned, seen, z_um)
    band = _half_width(repeats, lambda profile: profile)
    lit = _lit(aligned.curve, band)
    if lit is None:
        raise InputFileError(f"{stack.source}: too few images to tell how sure the profile is: take more.")
    return _result(aligned, seen, repeats, band, lit, z_um, specimen)


def _beads(frames: NDArray[np.float32], full: float | None) -> _Seen:
    frames, hot = without_hot_pixels(frames)
    beads = find_traces(frames, full)
    bright = beads.brightness.max(axis=1, initial=0.0) > 6.0 * beads.noise
    found = int(np.count_nonzero(bright)) + beads.overlapping + beads.saturated
    warnings = []
    if max(beads.spot) > OBLONG * min(beads.spot):
        sides = " x ".join(f"{2.355 * sigma:.2g}" for sigma in beads.spot)
        warnings.append(
            f"the beads are {sides} pixels (y, x) wide: is the first axis of the file the stage's? "
            "Save it as Z, Y, X"
        )
    if beads.saturated:
        warnings.append(
            f"{beads.saturated} of {found} beads are saturated, and were left out: lower the laser power or "
            "the exposure"
        )
    return _Seen(
        beads.brightness[bright],
        beads.noise[bright],
        found,
        beads.overlapping,
        beads.saturated,
        hot,
        beads.drift_px,
        tuple(warnings),
    )


def _layer(frames: NDArray[np.float32], full: float | None) -> _Seen:
    """Return the traces of tiles of the image."""
    count = 4 if min(frames.shape[1:]) >= 64 else 1
    bands = [
        band for rows in np.array_split(frames, count, axis=1) for band in np.array_split(rows, count, 2)
    ]
    traces = np.stack([tile.mean(axis=(1, 2), dtype=np.float64) for tile in bands])
    noise = np.maximum(np.median(np.abs(np.diff(traces, 2, axis=1)), axis=1) / (0.6745 * np.sqrt(6.0)), 1e-9)
    # What is there without the layer: the darkest stretch, at least a tenth of the stack.
    window = max(len(frames) // 10, 2)
    calm = np.array([np.convolve(t, np.ones(window) / window, "valid").min() for t in traces])
    clipped = full is not None and float((frames >= full).mean(axis=(1, 2)).max()) > 0.01
    warnings = ("the layer is saturated: lower the laser power or the exposure",) if clipped else ()
    saturated = len(traces) if clipped else 0
    return _Seen(traces - calm[:, None], noise, len(traces), saturated=saturated, warnings=warnings)


def _nothing_found(seen: _Seen, specimen: str) -> str:
    if specimen == "layer":
        return (
            "the image does not get brighter and darker along z: take a stack that starts below the layer "
            "and stops above it."
        )
    if seen.found == 0:
        return (
            "no bead was found: use brighter or more beads, or --layer if the specimen is a thin fluorescent "
            "layer."
        )
    if seen.saturated >= max(seen.found - seen.overlapping, 1):
        return f"all {seen.saturated} beads are saturated: lower the laser power or the exposure."
    return (
        f"none of {count_noun(seen.found, 'bead')} shows the beam's rise and fall ({seen.overlapping} "
        f"overlap, {seen.saturated} are saturated): take a longer stack, or a specimen with fewer beads."
    )


def _jackknife(aligned: Aligned, seen: _Seen, z_um: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the profile again (G, K), without one group of beads after another, and of images."""
    traces, noise = seen.traces[aligned.used], seen.noise[aligned.used]
    knots = aligned.curve.u_um

    def without(count: int, again: Callable[[NDArray[np.bool_]], Aligned | None]) -> NDArray[np.float64]:
        groups = min(GROUPS, count)
        kept = (np.arange(count) % groups != group for group in range(groups if groups > 1 else 0))
        found = [again(part) for part in kept]
        return np.array([one.curve.at(knots) for one in found if one is not None])

    repeats = [
        without(len(traces), lambda kept: align(traces[kept], noise[kept], z_um)),
        without(len(z_um), lambda kept: align(traces[:, kept], noise, z_um[kept])),
    ]
    return [profiles for profiles in repeats if len(profiles) > 1]


def _half_width(
    repeats: list[NDArray[np.float64]], figures: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return by how much figures (F,) of a profile (K,) may be off, 95 %; infinity where nothing says it."""
    if not repeats:
        return np.asarray(np.inf)
    found = [np.stack([figures(profile) for profile in profiles]) for profiles in repeats]
    degrees = [len(each) - 1 for each in found]
    variances = [free * each.var(axis=0) for each, free in zip(found, degrees, strict=True)]
    variance = np.sum(variances, axis=0)
    # Welch and Satterthwaite: how well a sum of variances is known that are known to their own degrees.
    uncertain = np.sum([own**2 / free for own, free in zip(variances, degrees, strict=True)], axis=0)
    effective = np.maximum(variance**2 / np.maximum(uncertain, 1e-300), 1.0)
    return np.asarray(stats.t.ppf(0.975, effective) * np.sqrt(variance))


def _lit(curve: Curve, band: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Return which knots (K,) are not mere darkness; None where the middle is not among them."""
    calm = ndimage.uniform_filter1d(curve.value, 3, mode="nearest") > np.maximum(band, 0.004)
    # A lone blip far out is noise; a side lobe is wider than that.
    lit = np.flatnonzero(ndimage.binary_opening(calm, np.ones(3)))
    middle = len(calm) // 2
    if not calm[middle - 1 : middle + 2].all():
        return None
    inside = np.zeros(len(calm), bool)
    inside[max(lit[0] - 1, 0) : lit[-1] + 2] = True
    return inside & (curve.value > 0)


def _result(
    aligned: Aligned,
    seen: _Seen,
    repeats: list[NDArray[np.float64]],
    band: NDArray[np.float64],
    lit: NDArray[np.bool_],
    z_um: NDArray[np.float64],
    specimen: str,
) -> BeamResult:
    u_um = aligned.curve.u_um

    def figures(profile: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return full width, equivalent length and centroid (from its middle) of a profile's lit part."""
        part = Curve(u_um, np.where(lit, np.maximum(profile, 0.0), 0.0))
        low, high = part.ends_um
        centroid = float(np.sum(u_um * part.value) / max(np.sum(part.value), 1e-12))
        return np.array([high - low, part.equivalent_um, centroid - 0.5 * (low + high)])

    (length, equivalent, centroid), off = figures(aligned.curve.value).tolist(), _half_width(repeats, figures)
    # The grid of the file reaches as far as there is light, and as far to the other side.
    middle = len(u_um) // 2
    reach = min(int(np.abs(np.flatnonzero(lit) - middle).max()) + 1, middle)
    part = slice(middle - reach, middle + reach + 1)
    whole = np.where(lit, aligned.curve.value, 0.0)
    value, scale = whole[part], whole.sum()
    step, stack_um = typical_step(z_um), float(np.ptp(z_um))
    ends = max(whole[1], whole[-2])
    return BeamResult(
        z_um=u_um[part],
        weights=value / scale,
        low=np.maximum(value - band[part], 0.0) / scale,
        high=(value + band[part]) / scale,
        spacing_um=aligned.curve.spacing_um,
        length_um=length,
        length_interval_um=(max(length - off[0], 0.0), length + off[0]),
        equivalent_um=equivalent,
        equivalent_interval_um=(max(equivalent - off[1], 0.0), equivalent + off[1]),
        centroid_um=centroid,
        centroid_interval_um=(centroid - off[2], centroid + off[2]),
        figures={
            "specimen": specimen,
            "beads": int(np.count_nonzero(aligned.used)),
            "found": seen.found,
            "overlapping": seen.overlapping,
            "saturated": seen.saturated,
            "partly_seen": aligned.partial,
            "hot_pixels": seen.hot_pixels,
            "residual": aligned.residual,
            "drift_px": seen.drift_px,
            "step_um": step,
            "range_um": stack_um,
        },
        warnings=(*seen.warnings, *_warnings(aligned, (length, off[0]), ends, stack_um, step, specimen)),
    )


def _warnings(
    aligned: Aligned,
    length: tuple[float, float],
    ends: float,
    stack_um: float,
    step_um: float,
    specimen: str,
) -> list[str]:
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
            f"the length is known to ±{off_um / length_um:.0%} only: take more or brighter beads, or finer "
            "steps"
        )
    if step_um > length_um / 4.0:
        warnings.append(
            f"a step of {step_um:g} µm is coarse for a beam of {length_um:.3g} µm: a sixth of the length or "
            "less shows its shape"
        )
    if stack_um < 1.6 * length_um or ends > 0.1 or aligned.partial > 0.7 * used:
        warnings.append(
            f"a stack of {stack_um:g} µm does not show the ends of the profile well: take at least three "
            "times its length"
        )
    if aligned.residual > 0.15:
        warnings.append(
            f"the beads differ from their common profile by {aligned.residual:.0%} of its height: too dim, "
            "clumped, or not smaller than the slab"
        )
    return warnings
