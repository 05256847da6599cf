"""Infers the geometry of somebody else's acquisition from the images of its first time point.

`infer` orders the images into sweeps, `make_header` checks them against the configured beam and volume and
returns the run's header. What does not fit is refused in one sentence. Metadata keys differ between
pycromanager's engine and Micro-Manager's own; only this module knows them. Pure functions, safe on any
thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.config import AcquisitionConfig, Config
from microdiffusion.drivers.plan import Plan
from microdiffusion.errors import AcquisitionError, GeometryError
from microdiffusion.files import PIXEL_KEYS, Z_KEYS
from microdiffusion.frames import StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.text import count_noun

Axis = int | str

AXES = ("time", "z", "channel", "position")
EXPOSURE_KEYS = ("Exposure", "Exposure-ms")
TIME_KEYS = ("ElapsedTime-ms",)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A camera image with its axes and metadata: `pixels` is (Y, X) uint8 or uint16."""

    axes: Mapping[str, Axis]
    metadata: Mapping[str, Any]
    pixels: NDArray[Any]

    @property
    def time(self) -> int:
        """Its time point; 0 without a time axis. Raises `AcquisitionError` if it is not a number."""
        value = self.axes.get("time", 0)
        try:
            return int(value)
        except (TypeError, ValueError):
            raise AcquisitionError(
                f"The axis time of an image is {value!r}: let the acquisition number its sweeps 0, 1, 2 ..."
            ) from None

    @property
    def place(self) -> tuple[Axis, Axis, Axis]:
        """Channel, position and z, as the acquisition names them."""
        return self.axes.get("channel", ""), self.axes.get("position", 0), self.axes.get("z", 0)

    @property
    def others(self) -> tuple[tuple[str, Axis], ...]:
        """Its other axes."""
        return tuple(sorted((name, value) for name, value in self.axes.items() if name not in AXES))

    def number(self, keys: tuple[str, ...]) -> float | None:
        """Return the first finite number under one of these keys of its metadata; None without any."""
        for key in keys:
            try:
                value = float(self.metadata[key])
            except (KeyError, TypeError, ValueError):
                continue
            if math.isfinite(value):
                return value
        return None

    @property
    def stage(self) -> StagePosition | None:
        """The stage position in its metadata, if there is one."""
        z_um = self.number(Z_KEYS)
        return None if z_um is None else StagePosition(z_um)

    def check_pixels(self) -> None:
        """Raise `AcquisitionError` if the pixels are not those of a monochrome camera."""
        if self.pixels.ndim != 2:
            raise AcquisitionError(
                f"The images are in colour ({self.pixels.shape}): a projection has one value per pixel; "
                "choose a monochrome camera or pixel type."
            )
        if self.pixels.dtype not in (np.uint8, np.uint16):
            raise AcquisitionError(
                f"The images' pixels are {self.pixels.dtype}: expected 8 or 16 bit; set the camera's "
                "PixelType."
            )


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of an acquisition; each tuple holds the values of an axis in order.

    A position is None where one is configured whose name is not known before its first image.

    Attributes
    ----------
    first_time : int
        The time point that is sweep 0.
    stage : tuple of StagePosition
        Of each slab in the first time point.
    others : tuple
        The values of all other axes, the same for each image.
    shape : (Y, X)
        Pixels of an image.
    """

    first_time: int
    channels: tuple[Axis, ...]
    positions: tuple[Axis | None, ...]
    slabs: tuple[Axis, ...]
    stage: tuple[StagePosition, ...]
    others: tuple[tuple[str, Axis], ...]
    shape: tuple[int, ...]

    def with_position_of(self, image: Image) -> Layout:
        """Return the layout that knows the position of an image by name, if one is still to come."""
        position = image.place[1]
        if position in self.positions or None not in self.positions:
            return self
        place = self.positions.index(None)
        return replace(self, positions=(*self.positions[:place], position, *self.positions[place + 1 :]))

    def place_of(self, image: Image) -> tuple[int, int, int, int] | None:
        """Return sweep, channel, position and index of an image; None if it has no place in the run."""
        channel, position, slab = image.place
        sweep = image.time - self.first_time
        fits = image.pixels.shape == self.shape and image.pixels.dtype in (np.uint8, np.uint16)
        known = channel in self.channels and position in self.positions and slab in self.slabs
        if not fits or not known or sweep < 0 or image.others != self.others:
            return None
        return sweep, self.channels.index(channel), self.positions.index(position), self.slabs.index(slab)


def infer(
    images: Sequence[Image], acquisition: AcquisitionConfig, planned: tuple[StagePosition, ...]
) -> Layout:
    """Return the layout of an acquisition from the images of its first time point.

    Parameters
    ----------
    images : at least one
        In the order of acquisition.
    acquisition : AcquisitionConfig
        Channels and positions, if not all of them come in the first time point.
    planned : tuple of StagePosition
        Configured positions of the slabs, for images that do not have one.

    Raises
    ------
    AcquisitionError
        They do not form sweeps.
    """
    first = images[0]
    for image in images:
        if image.others != first.others:
            raise AcquisitionError(
                f"The images run along an axis that is not one of {', '.join(AXES)} ({dict(image.axes)} "
                f"after {dict(first.axes)}): a sweep has one image for each z, channel and position."
            )
        if image.pixels.shape != first.pixels.shape:
            raise AcquisitionError(
                f"The images have different sizes, {first.pixels.shape} and {image.pixels.shape} pixels: "
                "use one region of interest for all."
            )
    if len({image.place for image in images}) < len(images):
        raise AcquisitionError(
            "Two images of the first time point have the same axes: let the acquisition number its sweeps "
            "along the axis time."
        )
    channels, positions, slabs = (_values(image.place[axis] for image in images) for axis in range(3))
    if len(slabs) == 1 and len(planned) > 1:
        raise AcquisitionError(
            f"The first time point has one slab, [sweep] and [volume] plan {len(planned)}: let the "
            "acquisition number slabs along the axis z and sweeps along the axis time, or plan one slab."
        )
    names = acquisition.channels
    if names and all(isinstance(channel, str) and channel for channel in channels):
        unknown = [channel for channel in channels if channel not in names]
        if unknown:
            raise AcquisitionError(
                f"The images have a channel {unknown[0]!r}, acquisition.channels has {', '.join(names)}: "
                "name it there, or leave these names out."
            )
        channels = names
    return Layout(
        first_time=first.time,
        channels=_filled_up(channels, len(names)),
        positions=_all_positions(positions, len(acquisition.positions_um)),
        slabs=slabs,
        stage=_positions(images, slabs, planned),
        others=first.others,
        shape=first.pixels.shape,
    )


def _values(seen: Iterable[Axis]) -> tuple[Axis, ...]:
    """Return the values of an axis: numbers ascending, names in the order of their appearance."""
    values = tuple(dict.fromkeys(seen))
    numbers = [value for value in values if isinstance(value, int)]
    return tuple(sorted(numbers)) if len(numbers) == len(values) else values


def _filled_up(values: tuple[Axis, ...], configured: int) -> tuple[Axis, ...]:
    """Return the values of an axis; numbers are completed to the configured count, as some may come later."""
    is_counted = all(isinstance(value, int) for value in values)
    return tuple(range(configured)) if is_counted and configured > len(values) else values


def _all_positions(seen: tuple[Axis, ...], configured: int) -> tuple[Axis | None, ...]:
    filled = _filled_up(seen, configured)
    return (*filled, *[None] * (configured - len(filled)))


def _positions(
    images: Sequence[Image], slabs: tuple[Axis, ...], planned: tuple[StagePosition, ...]
) -> tuple[StagePosition, ...]:
    """Return the stage position of each slab: that of the images' metadata, or else the planned one."""
    found = {image.place[2]: image.stage for image in images}
    known = tuple(stage for stage in (found[slab] for slab in slabs) if stage is not None)
    if not known and len(slabs) == len(planned):
        return planned
    if len(known) < len(slabs):
        raise AcquisitionError(
            f"The images do not say where the focus stage was (no {' or '.join(Z_KEYS)} in their metadata), "
            f"and a sweep of {len(slabs)} is not the planned one of {len(planned)}: let the acquisition "
            "move the focus stage, or make [sweep] and [volume] those of the acquisition."
        )
    return known


def make_header(
    config: Config,
    plan: Plan,
    layout: Layout,
    images: Sequence[Image],
    *,
    run_id: str | None,
    source: str,
    note: Callable[[str], None],
    whole: bool,
) -> RunHeader:
    """Return the header of a run of that layout; `images` are those of its first time point.

    Parameters
    ----------
    whole : bool
        Whether the time point is known to have no more images: the next one has begun.

    Raises
    ------
    AcquisitionError
        The images have another size than configured, or their pixel size is unknown; a channel or position
        has fewer slabs than another.
    GeometryError
        The slabs are not in the volume.
    """
    height, width = layout.shape
    wanted = (config.camera.height or height, config.camera.width or width)
    if wanted != (height, width):
        raise AcquisitionError(
            f"The images are {width} x {height} pixels, camera.width and camera.height say {wanted[1]} x "
            f"{wanted[0]}: leave these out if another program sets the camera up."
        )
    pixel_um = config.volume.pixel_um or images[0].number(PIXEL_KEYS) or 0.0
    if pixel_um <= 0:
        raise AcquisitionError(
            "The images do not say how large a pixel is: calibrate it under Devices > Pixel Size "
            "Calibration, or set volume.pixel_um."
        )
    _check_slabs(config, layout, images, note, whole=whole)
    names = config.acquisition.channels
    if len(names) != len(layout.channels):
        names = tuple(str(channel) or "default" for channel in layout.channels)
    return plan.header(
        layout.shape,
        pixel_um,
        source=source,
        run_id=run_id,
        channels=names,
        positions=tuple(
            f"position {number}" if position is None else str(position)
            for number, position in enumerate(layout.positions)
        ),
        frames_per_sweep=len(layout.slabs),
    )


def _check_slabs(
    config: Config, layout: Layout, images: Sequence[Image], note: Callable[[str], None], *, whole: bool
) -> None:
    """Refuse slabs that are outside the volume, lacking or at no depth of their own; tell what stays dark."""
    stacks: dict[str, dict[Axis, float]] = {}
    planned = dict(zip(layout.slabs, layout.stage, strict=True))
    for image in images:
        channel, position, slab = image.place
        name = f" of channel {channel or 'default'}, position {position}"
        stacks.setdefault(name, {})[slab] = (image.stage or planned[slab]).z_um
    if len(stacks) == 1:
        stacks = {"": next(iter(stacks.values()))}
    for name, depths in stacks.items():
        _refuse_equal_depths(name, depths, 0.01 * config.volume.voxel_z_um)
        _refuse_skipped(name, depths)
    voxel, length = config.volume.voxel_z_um, config.sweep.length_um
    low = config.volume.z0_um - 0.5 * voxel
    high = low + config.volume.shape_z * voxel
    reach = {
        name: (min(depths.values()) - 0.5 * length, max(depths.values()) + 0.5 * length)
        for name, depths in stacks.items()
    }
    first, last = min(each[0] for each in reach.values()), max(each[1] for each in reach.values())
    slices = max(math.ceil((last - first) / voxel - 0.01), 2)
    wanted = f"volume.z0_um = {first + 0.5 * voxel:g} and volume.shape_z = {slices}"
    _refuse_fewer_slabs(stacks, wanted, whole=whole)
    for name, (begin, end) in reach.items():
        if begin < low - 0.5 * voxel or end > high + 0.5 * voxel:
            raise GeometryError(
                f"The slabs of the first time point{name} reach from {begin:g} to {end:g} µm, the volume "
                f"from {low:g} to {high:g} µm: set {wanted}{' for all' if len(stacks) > 1 else ''}, or move "
                "the stage."
            )
    steps = [np.diff(np.sort(list(depths.values()))) for depths in stacks.values()]
    gap = max((float(step.max()) for step in steps if step.size), default=0.0) - length
    if gap > 0.5 * voxel:
        note(f"up to {gap:g} µm between neighbouring slabs are never lit: the step is wider than the slab")
    dark = max(max(begin - low, high - end) for begin, end in reach.values())
    if dark > voxel:
        note(f"{dark:g} µm at an end of the volume are never lit: it is deeper than the sweep")


def _refuse_fewer_slabs(stacks: Mapping[str, Mapping[Axis, float]], wanted: str, *, whole: bool) -> None:
    """Refuse a channel or position that has fewer slabs than another and is not just cut off at the end."""
    most = max(stacks, key=lambda name: len(stacks[name]))
    for name, depths in stacks.items():
        lacking = len(stacks[most]) - len(depths)
        if lacking and (whole or (lacking > 1 and name != list(stacks)[-1])):
            raise AcquisitionError(
                f"The first time point has {count_noun(len(depths), 'slab')}{name} and {len(stacks[most])}"
                f"{most}: take as many of each (in Micro-Manager, a z-stack for each channel); {wanted} hold "
                "all."
            )


def _refuse_skipped(name: str, depths: Mapping[Axis, float]) -> None:
    """Refuse a sweep whose numbers skip a slab, and whose depths skip it as well: its image was lost."""
    numbers = sorted(slab for slab in depths if isinstance(slab, int))
    steps = {pair: abs(depths[pair[1]] - depths[pair[0]]) for pair in pairwise(numbers)}
    usual = max((step for (one, other), step in steps.items() if other == one + 1), default=math.inf)
    for (one, other), step in steps.items():
        if step > 1.5 * usual:
            raise AcquisitionError(
                f"The first time point has no slab z = {one + 1}{name}, and the stage went {step:g} µm from "
                f"{one} to {other}, where others are {usual:g} µm apart: copy all of the data set, or record "
                "it again."
            )


def _refuse_equal_depths(name: str, depths: Mapping[Axis, float], closest_um: float) -> None:
    """Refuse a sweep whose depths say nothing, or of which two slabs are at one depth."""
    z_um = np.array(list(depths.values()))
    if z_um.size > 1 and np.ptp(z_um) < closest_um:
        raise AcquisitionError(
            f"All {z_um.size} slabs of the first time point{name} say {z_um[0]:g} µm, so nothing tells their "
            "depths apart: let the acquisition write each image's own depth (a hardware-sequenced stage "
            "writes none), or acquire with mdd's own driver."
        )
    order = np.argsort(z_um, kind="stable")
    for one, other in pairwise(order):
        if z_um[other] - z_um[one] < closest_um:
            slabs = list(depths)
            raise AcquisitionError(
                f"The slabs {slabs[one]} and {slabs[other]} of the first time point{name} are both at "
                f"{z_um[one]:g} µm: take one frame at each depth, and average or number them as time points "
                "otherwise."
            )
