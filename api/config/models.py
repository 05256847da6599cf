"""The configuration: one frozen model per TOML table, with units in every name.

The models define what is valid; `load` reads files, environment and command line, and turns a refusal into a
sentence with the line of the file. The resolved configuration goes to every process and into the run file as
it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import FiniteFloat, field_validator, model_validator

from microdiffusion.addresses import loopback
from microdiffusion.config.engine_tables import EngineConfig, TrainingConfig
from microdiffusion.config.table import Fraction, Table, key
from microdiffusion.header import CameraNoise, NonNegative, Positive

_PUBLIC_KEY = re.compile(r"[0-9A-Fa-f]{64}|[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
"""As people write one, or as ZeroMQ does (Z85)."""


class AdaptiveConfig(Table):
    """An acquisition that plans its next sweep by what the engine says of the last ones."""

    policy: Literal["off", "learn", "changes"] = key(
        "off",
        "off: every sweep as planned; learn: each sweep begins where it tells most; changes: denser slabs "
        "where something changes, as many frames",
    )
    least_interval_s: NonNegative | None = key(
        None,
        "shortest sweep_interval_s while something changes, s; none: always sweep_interval_s",
    )
    frames_per_min: Positive | None = key(
        None,
        "light dose: most frames of a channel and position in any minute; none: no limit but the interval",
    )
    lowest_um: FiniteFloat | None = key(
        None,
        "least position that the focus stage may take, µm; none: what the plan needs, and refocus_um beyond",
    )
    highest_um: FiniteFloat | None = key(None, "greatest position that it may take, µm; none: likewise")
    refocus_um: NonNegative = key(
        0.0, "how far the stage may follow a drift of the specimen along z, µm; 0: it stays"
    )
    sparsest: FiniteFloat = key(
        2.0, "widest step where nothing changes, in planned steps (changes)", ge=1, le=4
    )
    wait: NonNegative = key(
        0.5, "longest wait for the engine's word on a sweep, as a share of that sweep's time", le=1
    )


class AcquisitionConfig(Table):
    """The source of the frames and their acquisition."""

    driver: Literal["micromanager", "watch", "none"] = key(
        "micromanager",
        "micromanager: run a pycromanager acquisition; watch: follow the images that another program's "
        "acquisition saves; none: wait for frames on the wire",
    )
    watch: Path | None = key(
        None, "folder where that acquisition saves, or its NDTiff data set or first ScanImage file (watch)"
    )
    begin: Literal["at once", "on command"] = key("at once", "on command: wait for `mdd control start`")
    backend: Literal["python", "java"] = key(
        "python", "python: our own core, with mm_config; java: the running Micro-Manager"
    )
    port: int = key(4827, "port of the pycro-manager server (java)", ge=1, le=65535)
    mm_app_path: Path | None = key(None, "folder of the device adapters (python); none: the demo devices")
    mm_config: Path | None = key(None, "Micro-Manager configuration file (python); none: MMConfig_demo.cfg")
    exposure_ms: Positive = key(10.0, "exposure, ms")
    channel_group: str | None = key(None, "configuration group of the channels")
    channels: tuple[str, ...] = key((), "presets of that group, one session each")
    positions_um: tuple[tuple[FiniteFloat, FiniteFloat], ...] = key((), "stage x, y of each position, µm")
    sweeps: int | None = key(None, "number of sweeps; none: until stopped", ge=1)
    sweep_interval_s: NonNegative = key(0.0, "time from the start of one sweep to the next, s")
    specimen: bool = key(False, "replace the camera's pixels with projections of the virtual specimen")
    adaptive: AdaptiveConfig = AdaptiveConfig()


class SweepConfig(Table):
    """The slabs that cover the volume once."""

    calibration: Path | None = key(None, "file from `mdd calibrate beam`: measured profile and length_um")
    length_um: Positive = key(12.0, "length of the illuminated slab, µm")
    axial_profile: Path | None = key(
        None, "text file of two columns, z (µm, even steps) and intensity; none: a box"
    )
    step_um: Positive | None = key(None, "distance between neighbouring slabs, µm")
    overlap: Fraction | None = key(None, "instead of step_um: fraction of a slab that overlaps the next one")
    offsets: Literal["golden", "alternate", "fixed"] = key(
        "golden",
        "where a sweep starts within a step: golden (elsewhere each time, by the golden section), alternate "
        "(every other sweep half a step deeper) or fixed",
    )
    hold_out_every: int = key(
        4, "every Nth sweep takes an extra projection that tests the result; 0: none", ge=0
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.calibration is not None and self.axial_profile is not None:
            raise ValueError("give calibration or axial_profile, not both")
        if self.step_um is not None and self.overlap is not None:
            raise ValueError("give step_um or overlap, not both")
        return self

    @property
    def resolved_step_um(self) -> float:
        """Distance of neighbouring slabs, µm."""
        if self.step_um is not None:
            return self.step_um
        return self.length_um * (1.0 - (self.overlap or 0.0))


class VolumeConfig(Table):
    """The volume to be reconstructed."""

    voxel_z_um: Positive = key(2.0, "slice spacing, µm")
    z0_um: FiniteFloat = key(0.0, "centre of the first slice, µm, in stage coordinates")
    shape_z: int = key(48, "number of slices", ge=2, le=4096)
    pixel_um: Positive | None = key(None, "camera pixel in the specimen, µm; none: as Micro-Manager reports")


class CameraConfig(Table):
    """The camera's image and its noise."""

    calibration: Path | None = key(None, "file from `mdd calibrate camera`: offset, gain and read_noise")
    width: int | None = key(None, "columns (centred region); none: all", ge=16, le=16384)
    height: int | None = key(None, "rows; none: all", ge=16, le=16384)
    offset: FiniteFloat = key(0.0, "counts of a dark frame")
    gain: Positive | None = key(None, "counts per photon; none: estimate the noise")
    read_noise: NonNegative = key(0.0, "standard deviation of a dark frame, counts")

    @property
    def noise(self) -> CameraNoise:
        """The part that is in the header of a run."""
        return CameraNoise(offset=self.offset, gain=self.gain, read_noise=self.read_noise)


class SpecimenConfig(Table):
    """The virtual specimen: procedural neurons, vessels and nuclei."""

    kind: Literal["tissue", "beads", "layer"] = key(
        "tissue", "what to simulate; beads and a thin layer are for `mdd calibrate beam`"
    )
    seed: int = key(1, "seed of structure, activity and noise", ge=0)
    neurons: int = key(5, "number of neurons", ge=0, le=1000)
    vessels: int = key(2, "number of vessels", ge=0, le=1000)
    nuclei: int = key(40, "number of nuclei", ge=0, le=10000)
    photons: Positive = key(400.0, "photons per pixel and projection at the brightest spot")
    activity: NonNegative = key(1.0, "peak ΔF/F of the neurons' activity")
    drift_um_per_min: NonNegative = key(2.0, "lateral drift, µm per minute")
    bleaching_per_min: Fraction = key(0.02, "fraction of the signal lost per minute")


class RecorderConfig(Table):
    """The run file."""

    output: Path = key(Path("runs"), "folder of the run files")
    time_points: int = key(120, "time points that one file has room for", ge=1, le=1_000_000)
    durable: bool = key(False, "flush each volume to the disk (survives a power cut)")
    pyramid: bool = key(True, "write coarser copies of each volume")
    compress_after: Literal["off", "gzip", "lz4"] = key(
        "off", "compress each run in place when it is over (`mdd repack`); such a file cannot be resumed"
    )
    file_gb: Positive = key(64.0, "start another file before one grows larger than this, GB")
    time_point_gb: Positive = key(
        64.0, "largest time point, all positions, of a run that is accepted, GB: a file holds at least one"
    )
    queue_mb: Positive = key(512.0, "limit for what waits to be written, MB")


class WireConfig(Table):
    """Addresses and buffers."""

    data: str = key("tcp://127.0.0.1:5750", "where frames arrive; port * takes a free one")
    status: str = key("tcp://127.0.0.1:5751", "where the status is published")
    control: str = key("tcp://127.0.0.1:5752", "where commands arrive (`mdd control`)")
    keys: Path | None = key(None, "folder of this machine's keys (`mdd keys`); none: in the user's directory")
    server_key: str | None = key(
        None, "public key of a daemon on another machine, 64 digits (`mdd keys show`)"
    )
    encrypt_loopback: bool = key(
        False, "require keys on loopback addresses too; elsewhere they are always required"
    )
    runs: int = key(8, "maximum number of open runs", ge=1, le=64)
    positions: int = key(1000, "most positions of a run that is accepted", ge=1, le=10_000)
    silent_s: Positive = key(120.0, "close a run whose sender has been silent for this long, s")
    max_frame_mb: Positive = key(64.0, "largest frame that is accepted, MB", le=1024)
    send_buffer_mb: Positive = key(256.0, "limit for frames in the sender's memory, MB")
    journal: Path | None = key(None, "folder for frames that exceed it; none: in the user's directory")
    journal_gb: NonNegative = key(20.0, "limit for that folder, GB; 0: no journal, the frames are dropped")
    receive_buffer_mb: Positive = key(512.0, "limit for sweeps that wait for the engine, MB")
    sweep_timeout_s: Positive = key(5.0, "how late a frame may be before it counts as missing, s")

    @field_validator("server_key")
    @classmethod
    def _public_key(cls, value: str | None) -> str | None:
        if value is not None and not _PUBLIC_KEY.fullmatch(value):
            raise ValueError("expected the 64 digits that `mdd keys show` prints there")
        return value

    @field_validator("data", "status", "control")
    @classmethod
    def _tcp_address(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        host, _, port = rest.rpartition(":")
        if scheme != "tcp" or not host or not (port == "*" or (port.isdigit() and 0 < int(port) < 65536)):
            raise ValueError("expected an address like tcp://127.0.0.1:5750")
        return value


class DashboardConfig(Table):
    """The live view in the terminal."""

    refresh_hz: Positive = key(4.0, "redraws per second", le=30)
    preview: bool = key(True, "show maximum projections of the volume")
    graphics: Literal["auto", "kitty", "sixel", "blocks", "none"] = key(
        "auto",
        "how the volume is drawn; auto: as pictures where the terminal says that it can, else in "
        "half blocks; none: in characters",
    )


class MonitoringConfig(Table):
    """Monitoring by other programs: a log beside the run files, metrics for Prometheus."""

    log: bool = key(True, "write mdd.log.jsonl in the folder of the run files")
    log_mb: Positive = key(10.0, "size at which that file is rotated, MB")
    log_files: int = key(5, "rotated files to keep", ge=0, le=1000)
    prometheus: str | None = key(
        None, "loopback address for Prometheus, such as 127.0.0.1:9464; none: no endpoint"
    )

    @field_validator("prometheus")
    @classmethod
    def _on_loopback(cls, value: str | None) -> str | None:
        if value is not None:
            loopback(value)
        return value


class Config(Table):
    """Everything that `mdd` needs to know."""

    name: str = key("run", "prefix of the run file's name", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    acquisition: AcquisitionConfig = AcquisitionConfig()
    sweep: SweepConfig = SweepConfig()
    volume: VolumeConfig = VolumeConfig()
    camera: CameraConfig = CameraConfig()
    specimen: SpecimenConfig = SpecimenConfig()
    engine: EngineConfig = EngineConfig()
    recorder: RecorderConfig = RecorderConfig()
    wire: WireConfig = WireConfig()
    dashboard: DashboardConfig = DashboardConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _watch_needs_a_folder(self) -> Self:
        if self.acquisition.driver == "watch" and self.acquisition.watch is None:
            raise ValueError('acquisition.driver = "watch" needs acquisition.watch, a folder')
        return self

    @model_validator(mode="after")
    def _channels_need_their_group(self) -> Self:
        if self.acquisition.channels and not self.acquisition.channel_group:
            raise ValueError("acquisition.channels needs acquisition.channel_group")
        return self
