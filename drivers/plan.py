"""The plan of a run: which slab is taken when, and the acquisition events that take it.

The configuration alone determines, sweep by sweep, the frames' places (`FrameInfo`) and the events that
pycromanager understands. Sweeps start at different places within a step (`sweep.offsets`), so that together
they overlap at no extra dose. Every n-th sweep, the first one included, ends with a held-out projection
half-way between two neighbouring slabs: the reconstruction never sees it and is judged by it. A resumed run
follows its original plan from a later sweep on. Sweeps are made lazily, without end where the run has none.
Safe on any thread.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.config import Config, SweepConfig, read_beam
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.frames import FrameInfo, StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.optics import AxialProfile, sweep_offset, sweep_positions

Event = dict[str, Any]
Key = tuple[int, int, str, int]


@dataclass(frozen=True, slots=True)
class ResumeFrom:
    """The point at which an interrupted run is resumed.

    Attributes
    ----------
    run_id : str
        The run, as in its header.
    sweep, seq : int
        First sweep to take, and the number of its first frame: both beyond everything in the run file.
    time_s : float
        Camera time at which its frames continue, s since the start of the run.
    secret : str
        What proves to the daemon that its sender may resume it.
    refocus_um : float
        How far the stage had followed the specimen.
    """

    run_id: str
    sweep: int
    seq: int
    time_s: float
    secret: str = field(default="", repr=False)
    refocus_um: float = 0.0


@dataclass(frozen=True, slots=True)
class Slab:
    """A planned projection: its stage position, and whether it is held out."""

    stage: StagePosition
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame: its place in the run, and the event that takes it."""

    info: FrameInfo
    event: Event


@dataclass(frozen=True, slots=True)
class PlannedSweep:
    """All shots of one time point, in the order of acquisition: position, channel, depth.

    Attributes
    ----------
    number : int
        Time point, 0 for the first.
    start_s : float
        Earliest start, seconds after that of the first sweep taken.
    """

    number: int
    start_s: float
    shots: tuple[Shot, ...]

    def through(self, slabs: Sequence[Slab], *, refocus_um: float = 0.0, decision: str = "") -> PlannedSweep:
        """Return the sweep through other slabs, as many as it has, with the stage so much beyond them.

        `decision` says why, with the first frame of each channel and position.
        """
        shots = []
        for shot in self.shots:
            slab = slabs[shot.info.index]
            info = replace(
                shot.info,
                stage=slab.stage,
                held_out=slab.held_out,
                refocus_um=refocus_um,
                decision="" if shot.info.index else decision,
            )
            shots.append(Shot(info, shot.event | {"z": slab.stage.z_um + refocus_um}))
        return replace(self, shots=tuple(shots))


class Plan:
    """The sweeps that a configuration asks for.

    Raises
    ------
    GeometryError
        A slab does not fit into the volume.
    InputFileError, MissingFileError
        The axial profile's file cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self.profile = load_profile(config.sweep)
        self._config = config
        self._acquisition = config.acquisition
        self._sweep = config.sweep
        volume = config.volume
        self._room_um = volume.shape_z * volume.voxel_z_um - config.sweep.length_um
        self._first = self._depths(0)

    def _depths(self, sweep: int) -> NDArray[np.float64]:
        """Return the slab centres (M,) µm of a sweep, without the held-out one."""
        volume, step_um = self._config.volume, self._sweep.resolved_step_um
        offset_um = sweep_offset(sweep, self._sweep.offsets) * step_um
        return sweep_positions(
            length_um=self._sweep.length_um,
            step_um=step_um,
            z0_um=volume.z0_um,
            voxel_z_um=volume.voxel_z_um,
            shape_z=volume.shape_z,
            offset_um=min(offset_um, max(self._room_um, 0.0)),
        )

    @property
    def frames_per_sweep_max(self) -> int:
        """Largest number of frames in a sweep of one channel and position, the held-out one included."""
        return len(self._first) + self._can_hold_out(self._first)

    def header(
        self,
        image: tuple[int, ...],
        pixel_um: float,
        *,
        source: str,
        run_id: str | None = None,
        channels: tuple[str, ...] = ("default",),
        positions: tuple[str, ...] = ("0",),
        frames_per_sweep: int | None = None,
    ) -> RunHeader:
        """Return the header of a run with images of (Y, X) pixels, each of `pixel_um` in the specimen.

        `run_id` names a run to resume; `frames_per_sweep` is for sweeps that are not those of the plan.
        """
        volume = self._config.volume
        return RunHeader(
            run_id=run_id or uuid.uuid4().hex,
            name=self._config.name,
            shape=(volume.shape_z, image[0], image[1]),
            voxel_size_um=(volume.voxel_z_um, pixel_um, pixel_um),
            z0_um=volume.z0_um,
            profile_weights=tuple(float(weight) for weight in self.profile.weights),
            profile_spacing_um=self.profile.spacing_um,
            channels=channels,
            positions=positions,
            sweeps=self._acquisition.sweeps,
            frames_per_sweep=frames_per_sweep or self.frames_per_sweep_max,
            camera=self._config.camera.noise,
            source=source[:2000],
            adaptive=self._acquisition.adaptive.policy != "off",
        )

    def slabs(self, sweep: int) -> tuple[Slab, ...]:
        """Return the slabs of a sweep, in the order of acquisition."""
        return self.slabs_at(sweep, self._depths(sweep))

    def slabs_at(self, sweep: int, depths: NDArray[np.float64]) -> tuple[Slab, ...]:
        """Return the slabs of a sweep at depths (M,) µm, ascending, and the one that is held out."""
        slabs = [Slab(StagePosition(float(z))) for z in depths]
        if self._can_hold_out(depths) and sweep % self._sweep.hold_out_every == 0:
            pair = _scattered(sweep // self._sweep.hold_out_every, len(depths) - 1)
            between = StagePosition(float(0.5 * (depths[pair] + depths[pair + 1])))
            slabs.append(Slab(between, held_out=True))
        return tuple(slabs)

    def sweeps(self, *, first: int = 0, seq: int = 0) -> Iterator[PlannedSweep]:
        """Yield the sweeps from number `first` on, endlessly where no number of sweeps is configured.

        `seq` is the number of the first frame. The configured number of sweeps includes those before `first`.
        """
        end = self._acquisition.sweeps
        for number in count(first) if end is None else range(first, end):
            shots = []
            for position in range(max(len(self._acquisition.positions_um), 1)):
                for channel in range(max(len(self._acquisition.channels), 1)):
                    slabs = self.slabs(number)
                    for index, slab in enumerate(slabs):
                        info = FrameInfo(
                            seq=seq,
                            sweep=number,
                            index=index,
                            count=len(slabs),
                            stage=slab.stage,
                            channel=channel,
                            position=position,
                            held_out=slab.held_out,
                            exposure_ms=self._acquisition.exposure_ms,
                        )
                        shots.append(Shot(info, self._event(info)))
                        seq += 1
            start_s = (number - first) * self._acquisition.sweep_interval_s
            yield PlannedSweep(number, start_s, tuple(shots))

    def _can_hold_out(self, depths: NDArray[np.float64]) -> bool:
        return self._sweep.hold_out_every > 0 and len(depths) > 1

    def _event(self, info: FrameInfo) -> Event:
        """Return the pycromanager event of a frame; axes with a single value are omitted."""
        axes: dict[str, int | str] = {"time": info.sweep, "z": info.index}
        event: Event = {"axes": axes, "z": info.stage.z_um, "exposure": info.exposure_ms}
        if self._acquisition.channels:
            preset = self._acquisition.channels[info.channel]
            axes["channel"] = preset
            event["config_group"] = [self._acquisition.channel_group, preset]
        if self._acquisition.positions_um:
            axes["position"] = info.position
            event["x"], event["y"] = self._acquisition.positions_um[info.position]
        return event


def frame_key(axes: Mapping[str, Any]) -> Key:
    """Return the key that identifies a frame in its run, from the axes of its event or its metadata."""
    return int(axes["time"]), int(axes.get("position", 0)), str(axes.get("channel", "")), int(axes["z"])


def load_profile(sweep: SweepConfig) -> AxialProfile:
    """Return the beam's axial profile: the measured one where there is a file, else a box.

    z = 0 of the table is the stage position of a frame. Where the table is not symmetric about it, the
    shorter side is padded with zeros.

    Raises
    ------
    MissingFileError, InputFileError
        The file does not exist, or is not a table of evenly spaced z and non-negative intensity.
    """
    if sweep.calibration is not None:
        return read_beam(sweep.calibration).profile
    if sweep.axial_profile is None:
        return AxialProfile.box(sweep.length_um)
    path = sweep.axial_profile
    if not path.is_file():
        raise MissingFileError(f"The axial profile {path} does not exist: correct sweep.axial_profile.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of a file without data
            z_um, intensity = np.loadtxt(path, dtype=np.float64, ndmin=2, unpack=True)
    except (ValueError, OSError, UserWarning) as error:
        raise InputFileError(
            f"The axial profile {path} cannot be read ({error}): expected two columns of numbers, z in µm "
            "and intensity."
        ) from error
    spacing = float(np.diff(z_um).mean()) if z_um.size > 1 else np.nan
    is_even = spacing > 0 and np.allclose(np.diff(z_um), spacing, rtol=1e-3, atol=1e-6)
    if not (is_even and np.isfinite(intensity).all() and intensity.min() >= 0):
        raise InputFileError(
            f"The axial profile {path} needs z in µm, ascending and evenly spaced, in its first column, and "
            "a non-negative intensity in its second."
        )
    # The table reaches from z[0] to z[-1]; bins before or after make the focus its middle.
    lean = round(float(z_um[0] + z_um[-1]) / spacing)
    before, after = max(lean, 0), max(-lean, 0)
    if max(before, after) > 4 * z_um.size:
        raise InputFileError(
            f"The axial profile {path} reaches from {z_um[0]:g} to {z_um[-1]:g} µm: its z must count from "
            "the focus, near 0."
        )
    return AxialProfile.sampled(np.pad(intensity, (before, after)), spacing)


def _scattered(turn: int, count: int) -> int:
    """Return the `turn`-th of `count` places in a scattered order that visits all of them."""
    stride = max(round(count * 0.618), 1)
    while gcd(stride, count) != 1:
        stride += 1
    return (count // 2 + turn * stride) % count
