"""The configuration: one frozen model per TOML table, with units in every name.

The models define what is valid; `load` reads files, environment and command line, and turns a refusal into a
sentence with the line of the file. The resolved configuration goes to every process and into the run file as
it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from microdiffusion.addresses import loopback
from microdiffusion.header import CameraNoise, NonNegative, Positive

Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1)]


def key(default: Any, meaning: str, **limits: Any) -> Any:
    """Return a key of a table: its default, its meaning in a few words, and the limits of its value."""
    return Field(default, description=meaning, **limits)


class Table(BaseModel):
    """Base of all tables: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _no_control_characters(cls, value: Any) -> Any:
        if isinstance(value, Path) and any(character < " " for character in str(value)):
            raise ValueError(
                f"{str(value)!r} has a control character: in TOML write it in single quotes, 'D:\\new'"
            )
        return value


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


class InrConfig(Table):
    """The implicit neural representation of a session."""

    bandwidth_z: Positive | None = key(
        None,
        "finest structure along z, cycles per slice; none: 0.4 / slab length, or half of that if a "
        "held-out projection suggests it",
        le=0.5,
    )
    bandwidth_xy: Positive | None = key(
        None, "highest lateral frequency, cycles per pixel; none: as the noise allows", le=0.5
    )
    rank: int | None = key(
        None, "maximum number of axial basis functions; none: as many as the bandwidth needs", ge=4, le=256
    )
    cold_steps: int = key(12, "maximum number of steps for the first sweep", ge=1, le=5000)
    warm_steps: int = key(6, "maximum number of steps for each later sweep", ge=1, le=5000)
    deadline_s: Positive | None = key(
        None,
        "a fit starts no further step after this time, s; none: a quarter of the time between two sweeps "
        "of a live acquisition, no limit for files",
    )


class ReferenceConfig(Table):
    """The reference method, engine.method = "microdiffusion": the paper's parameters and ablations."""

    inr_steps: int = key(5000, "INR updates; epochs if the batch is full", ge=1, le=1_000_000)
    inr_batch_pixels: int = key(0, "pixels per INR update; 0: all (as in the paper)", ge=0, le=1 << 24)
    inr_rate: Positive = key(1e-3, "initial learning rate of the INR", le=0.1)
    inr_decay: Positive = key(0.9954, "factor on that rate after every 500th of the updates", le=1)
    inr_frequencies: int = key(256, "number of random frequencies of the INR", ge=4, le=4096)
    inr_bandwidth: Positive = key(4.0, "their standard deviation, cycles per half edge of the volume")
    epochs: int = key(2001, "epochs of the denoiser; each shows every projection once", ge=1, le=100_000)
    rate: Positive = key(2e-4, "initial learning rate of the denoiser", le=0.1)
    rate_growth: Positive = key(2.5, "factor by which that rate grows, linearly, until the end")
    width: int = key(64, "the U-Net's channels at full resolution", ge=32, le=512, multiple_of=32)
    dropout: Fraction = key(0.1, "the U-Net's dropout")
    timesteps: int = key(1000, "steps T of the diffusion", ge=2, le=10_000)
    shortcut: int = key(4, "sample only so many of the last steps, with the same result; 0: all", ge=0)
    guidance: FiniteFloat = key(
        1.8, "w in (1 + w) conditional - w unconditional; 0: no guidance, half the cost", ge=0, le=10
    )
    condition_dropout: Fraction = key(
        0.0, "fraction of training without condition: in the paper, not in its code"
    )
    interpolation: FiniteFloat = key(
        0.1, "fraction of noise in the INR-noise interpolation; 1: no interpolation", ge=0, le=1
    )
    image_condition: bool = key(True, "E_img, the embedding of the closest projection")
    position_condition: bool = key(True, "E_pos, the embedding of the position")
    neighbours: Literal["reference", "centred", "none"] = key(
        "reference", "averaging of six INR slices; the reference's is half a slice off centre"
    )
    bfloat16: bool = key(False, "multiply in bfloat16 where the processor supports it")
    retrain: bool = key(True, "train for every sweep; false: keep the denoiser of a session's first sweep")


class EngineConfig(Table):
    """The reconstruction of volumes from projections."""

    method: Literal["mdd", "inr", "tikhonov", "linear", "microdiffusion"] = key(
        "mdd", "reconstruction method; microdiffusion: the reference, for files only"
    )
    device: str = key("auto", "auto, cpu, cuda or cuda:N", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    runtime: Literal["auto", "torch", "tensorrt", "openvino"] = key(
        "auto", "what runs the network; auto: TensorRT on CUDA, OpenVINO on a CPU, otherwise torch"
    )
    weights: Path | None = key(None, "safetensors file; none: the weights shipped with mdd")
    network: Literal["auto", "small", "large"] = key(
        "auto", "which shipped weights; auto: large on CUDA, small on a CPU"
    )
    steps: int = key(1, "network evaluations per volume", ge=1, le=8)
    guidance: FiniteFloat = key(0.0, "classifier-free guidance; 0: none, half the cost", ge=0, le=4)
    interpolation: FiniteFloat = key(
        0.1, "fraction of noise in the INR-noise interpolation that the sampler starts from", ge=0, le=1
    )
    consistency: bool = key(True, "pull the result towards the measured projections")
    fallback: bool = key(True, "fall back, fully or partly, where the network does not fit the specimen")
    memory: Literal["session", "sweep"] = key(
        "session",
        "session: earlier sweeps count as well, wherever the specimen has not changed since; sweep: every "
        "sweep stands alone",
    )
    uncertainty: bool = key(False, "also write the uncertainty of each voxel")
    tile: int = key(256, "edge of the lateral tiles, pixels", ge=32, le=4096, multiple_of=16)
    cuda_graphs: bool = key(True, "on CUDA, replay the update of a sweep as one graph; false: step by step")
    compile: bool = key(
        True, "build TensorRT's engine before the start if none is cached; false: serve with torch instead"
    )
    torch_compile: bool = key(
        False, "on CUDA with torch, fuse the network (torch.compile); delays the first sweeps"
    )
    update: Literal["sweep", "projection"] = key(
        "sweep",
        "projection: in addition to each sweep's volume, a rolling one after every projection, from the "
        "latest sweep's worth of projections",
    )
    policy: Literal["archive", "live", "wait"] = key(
        "archive",
        "if the engine is too slow: archive (older sweeps wait in the run file until there is time), live "
        "(newest first, with less effort, then fewer) or wait (the sender waits: a file can)",
    )
    backlog: int = key(2, "sweeps of a session that may wait in memory; see policy", ge=1, le=100_000)
    memory_gb: Positive | None = key(
        None, "decline runs for which the engine may take more than this, GB; none: the machine's memory"
    )
    session_memory_mb: Positive = key(
        2048.0, "limit for the state of all sessions, MB; idle sessions go to the disk first"
    )
    checkpoint_s: Positive = key(
        10.0, "interval between checkpoints of a session's state, s; a crash resumes from there"
    )
    threads: int | None = key(None, "CPU threads; none: one per core", ge=1, le=1024)
    seed: int = key(0, "seed of the sampler's noise and of the reference method", ge=0)
    inr: InrConfig = InrConfig()
    reference: ReferenceConfig = ReferenceConfig()


class SharesConfig(Table):
    """Share of each kind of specimen in the training; a kind without a source is left out."""

    recorded: NonNegative = key(0.45, "recorded volumes")
    neurites: NonNegative = key(0.34, "phantoms of neurons, from trees (SWC)")
    vessels: NonNegative = key(0.08, "phantoms of vessels, from a vessel graph")
    nuclei: NonNegative = key(0.08, "procedural nuclei and cell bodies")
    textures: NonNegative = key(0.05, "procedural noise, plates and gratings")


class TrainingConfig(Table):
    """Training with `mdd train`."""

    volumes: tuple[Path, ...] = key((), "volumes (HDF5, TIFF, NDTiff, NPY), or folders of them")
    morphologies: Path | None = key(
        None, "folder of trees (.swc) and vessel graphs (.h5); none: no such phantoms"
    )
    held_out: tuple[str, ...] = key((), "names of volumes that are kept for validation")
    licence: str = key("", "licence of volumes whose files state none (model card)")
    output: Path = key(Path("denoiser.safetensors"), "safetensors file for the weights")
    init: Path | None = key(None, "weights to start from, of the same widths; none: those that ship with mdd")
    scratch: bool = key(False, "start from nothing instead")
    widths: tuple[Annotated[int, Field(ge=4, le=1024)], ...] = key(
        (48, 96, 128, 160), "channels of each level, full resolution first", min_length=1, max_length=6
    )
    blocks: int = key(1, "residual blocks of each level", ge=1, le=8)
    embedding: int = key(128, "channels of the condition", ge=8, le=1024)
    iterations: int = key(20_000, "maximum number of iterations", ge=1)
    minutes: Positive = key(60.0, "time limit, minutes, preparing included; whichever comes first")
    batch: int = key(16, "windows per iteration and process, 8 per cube", ge=8, le=4096, multiple_of=8)
    rate: Positive | None = key(
        None, "learning rate, before the cosine; none: 1e-3 from nothing, 2e-4 from weights", le=0.1
    )
    pool: int = key(1500, "training cubes of 64 x 64 x 64 kept in memory", ge=4)
    ring: int = key(48, "groups of four cubes with the same optics kept in memory", ge=1)
    renew_every: int = key(4, "iterations between renewals of one group", ge=1)
    workers: int = key(0, "threads that prepare groups ahead; 0: none, and resuming is exact", ge=0, le=64)
    validate_every: int = key(1000, "iterations between checkpoints", ge=1)
    seed: int = key(0, "seed of everything random", ge=0)
    device: str = key("auto", "auto, cpu, cuda or cuda:N", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "precision of the multiplications; auto: the fastest that the device supports natively"
    )
    shares: SharesConfig = SharesConfig()


class RecorderConfig(Table):
    """The run file."""

    output: Path = key(Path("runs"), "folder of the run files")
    time_points: int = key(120, "time points that one file has room for", ge=1, le=1_000_000)
    durable: bool = key(False, "flush each volume to the disk (survives a power cut)")
    pyramid: bool = key(True, "write coarser copies of each volume")
    bigdataviewer: bool = key(False, "make a link beside the run file that BigDataViewer can open, live")
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
        None,
        "public key of a daemon on another machine (`mdd keys show`)",
        pattern=r"^[!-~]{40,64}$",
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
