"""The configuration: one frozen model per TOML table, with units in every name.

The models say what is possible; reading files, environment and command line, and turning a refusal into
a sentence with the line of the file, is `config_load`'s work. The resolved configuration travels to
every process and into the run file as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from microdiffusion.addresses import loopback
from microdiffusion.header import CameraNoise, NonNegative, Positive

Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1)]


class Table(BaseModel):
    """Base of all tables: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AcquisitionConfig(Table):
    """Where frames come from and how they are taken."""

    driver: Annotated[
        Literal["micromanager", "watch", "none"],
        Field(
            description="micromanager: run a pycromanager acquisition; watch: follow the images that "
            "somebody else's acquisition saves; none: wait for frames on the wire"
        ),
    ] = "micromanager"
    watch: Annotated[
        Path | None,
        Field(description="folder where that acquisition's data set (NDTiff) appears, or is (watch)"),
    ] = None
    begin: Annotated[
        Literal["at once", "on command"],
        Field(description="on command: wait for `mdd control start`"),
    ] = "at once"
    backend: Annotated[
        Literal["python", "java"],
        Field(description="python: a core of our own with mm_config; java: the running Micro-Manager"),
    ] = "python"
    port: Annotated[int, Field(ge=1, le=65535, description="port of the pycro-manager server (java)")] = 4827
    mm_app_path: Annotated[
        Path | None,
        Field(description="folder of the device adapters (python); none: the demo devices"),
    ] = None
    mm_config: Annotated[
        Path | None, Field(description="Micro-Manager configuration file (python); none: MMConfig_demo.cfg")
    ] = None
    exposure_ms: Annotated[Positive, Field(description="exposure, ms")] = 10.0
    channel_group: Annotated[str | None, Field(description="configuration group of the channels")] = None
    channels: Annotated[tuple[str, ...], Field(description="presets of that group, one session each")] = ()
    positions_um: Annotated[
        tuple[tuple[FiniteFloat, FiniteFloat], ...], Field(description="stage x, y of each position, µm")
    ] = ()
    sweeps: Annotated[int | None, Field(ge=1, description="number of sweeps; none: until stopped")] = None
    sweep_interval_s: Annotated[
        NonNegative, Field(description="time from one sweep's start to the next, s")
    ] = 0.0
    specimen: Annotated[
        bool, Field(description="replace the camera's pixels by the virtual specimen's projections")
    ] = False


class SweepConfig(Table):
    """The slabs that cover the volume once."""

    calibration: Annotated[
        Path | None,
        Field(description="what `mdd calibrate beam` wrote: the measured profile, and length_um from it"),
    ] = None
    length_um: Annotated[Positive, Field(description="length of the slab that the beam lights, µm")] = 12.0
    axial_profile: Annotated[
        Path | None,
        Field(description="text file of two columns, z (µm, even steps) and intensity; none: a box"),
    ] = None
    step_um: Annotated[Positive | None, Field(description="distance of neighbouring slabs, µm")] = None
    overlap: Annotated[
        Fraction | None,
        Field(description="instead of step_um: share of a slab that lies in the next one too"),
    ] = None
    alternate_offset: Annotated[bool, Field(description="every other sweep starts half a step deeper")] = True
    hold_out_every: Annotated[
        int, Field(ge=0, description="every how many sweeps one extra projection judges the result; 0: never")
    ] = 4

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
    """The volume that is wanted."""

    voxel_z_um: Annotated[Positive, Field(description="distance of slices, µm")] = 2.0
    z0_um: Annotated[
        FiniteFloat, Field(description="centre of the first slice, µm, in stage coordinates")
    ] = 0.0
    shape_z: Annotated[int, Field(ge=2, le=4096, description="number of slices")] = 48
    pixel_um: Annotated[
        Positive | None, Field(description="camera pixel in the specimen, µm; none: what Micro-Manager says")
    ] = None


class CameraConfig(Table):
    """The camera's image and its noise."""

    calibration: Annotated[
        Path | None,
        Field(description="what `mdd calibrate camera` wrote: offset, gain and read_noise"),
    ] = None
    width: Annotated[
        int | None, Field(ge=16, le=16384, description="columns (centred region); none: all")
    ] = None
    height: Annotated[int | None, Field(ge=16, le=16384, description="rows; none: all")] = None
    offset: Annotated[FiniteFloat, Field(description="counts of a dark frame")] = 0.0
    gain: Annotated[Positive | None, Field(description="counts per photon; none: estimate the noise")] = None
    read_noise: Annotated[NonNegative, Field(description="standard deviation of a dark frame, counts")] = 0.0

    @property
    def noise(self) -> CameraNoise:
        """The part that travels in the run's header."""
        return CameraNoise(offset=self.offset, gain=self.gain, read_noise=self.read_noise)


class SpecimenConfig(Table):
    """The virtual specimen: procedural neurons with spines, vessels and nuclei."""

    kind: Annotated[
        Literal["tissue", "beads", "layer"],
        Field(description="beads and a thin layer are what `mdd calibrate beam` looks at"),
    ] = "tissue"
    seed: Annotated[int, Field(ge=0, description="seed of structure, activity and noise")] = 1
    neurons: Annotated[int, Field(ge=0, le=1000, description="number of neurons")] = 5
    vessels: Annotated[int, Field(ge=0, le=1000, description="number of vessels")] = 2
    nuclei: Annotated[int, Field(ge=0, le=10000, description="number of nuclei")] = 40
    photons: Annotated[
        Positive, Field(description="photons per pixel and projection where it is brightest")
    ] = 400.0
    activity: Annotated[NonNegative, Field(description="peak ΔF/F of the neurons' activity")] = 1.0
    drift_um_per_min: Annotated[NonNegative, Field(description="lateral drift, µm per minute")] = 2.0
    bleaching_per_min: Annotated[Fraction, Field(description="share of the signal lost per minute")] = 0.02


class InrConfig(Table):
    """The implicit neural representation of a session."""

    bandwidth_z: Annotated[
        Positive | None,
        Field(
            le=0.5,
            description="finest structure along z, cycles per slice; none: 0.4 / slab length, or half "
            "of it where a held-out projection says so",
        ),
    ] = None
    bandwidth_xy: Annotated[
        Positive | None,
        Field(le=0.5, description="highest frequency across, cycles per pixel; none: what the noise allows"),
    ] = None
    rank: Annotated[
        int | None,
        Field(
            ge=4, le=256, description="axial basis functions at most; none: as many as the bandwidth asks for"
        ),
    ] = None
    cold_steps: Annotated[int, Field(ge=1, le=5000, description="steps at most for the first sweep")] = 12
    warm_steps: Annotated[int, Field(ge=1, le=5000, description="steps at most for each later sweep")] = 6
    deadline_s: Annotated[
        Positive | None,
        Field(
            description="seconds after which a fit begins no further step; none: a quarter of the time "
            "between two sweeps of a running acquisition, without limit for files"
        ),
    ] = None


class ReferenceConfig(Table):
    """The reference method, engine.method = "microdiffusion": the paper's numbers, and its ablations."""

    inr_steps: Annotated[
        int, Field(ge=1, le=1_000_000, description="updates of the INR; with a full batch, epochs")
    ] = 5000
    inr_batch_pixels: Annotated[
        int, Field(ge=0, le=1 << 24, description="pixels of an update of the INR; 0: all (as in the paper)")
    ] = 0
    inr_rate: Annotated[Positive, Field(le=0.1, description="the INR's first learning rate")] = 1e-3
    inr_decay: Annotated[Positive, Field(le=1, description="its factor after each 500th of the updates")] = (
        0.9954
    )
    inr_frequencies: Annotated[int, Field(ge=4, le=4096, description="the INR's random frequencies")] = 256
    inr_bandwidth: Annotated[
        Positive, Field(description="their standard deviation, cycles per half edge of the volume")
    ] = 4.0
    epochs: Annotated[
        int, Field(ge=1, le=100_000, description="of the denoiser; each shows every projection once")
    ] = 2001
    rate: Annotated[Positive, Field(le=0.1, description="the denoiser's first learning rate")] = 2e-4
    rate_growth: Annotated[
        Positive, Field(description="factor by which that rate has grown, evenly, at the end")
    ] = 2.5
    width: Annotated[
        int, Field(ge=32, le=512, multiple_of=32, description="the U-Net's channels at full resolution")
    ] = 64
    dropout: Annotated[Fraction, Field(description="the U-Net's dropout")] = 0.1
    timesteps: Annotated[int, Field(ge=2, le=10_000, description="steps T of the diffusion")] = 1000
    shortcut: Annotated[
        int, Field(ge=0, description="sample the last so many of them, to the same result; 0: all")
    ] = 4
    guidance: Annotated[
        Annotated[FiniteFloat, Field(ge=0, le=10)],
        Field(description="w in (1 + w) conditional - w unconditional; 0: without guidance, half the cost"),
    ] = 1.8
    condition_dropout: Annotated[
        Fraction, Field(description="share of training without condition: in the paper, not in its code")
    ] = 0.0
    interpolation: Annotated[
        Annotated[FiniteFloat, Field(ge=0, le=1)],
        Field(description="share of the noise in the INR-noise interpolation; 1: without interpolation"),
    ] = 0.1
    image_condition: Annotated[bool, Field(description="E_img, the closest projection's embedding")] = True
    position_condition: Annotated[bool, Field(description="E_pos, the position's embedding")] = True
    joint: Annotated[bool, Field(description="train INR and denoiser together, instead of the INR first")] = (
        False
    )
    neighbours: Annotated[
        Literal["reference", "centred", "none"],
        Field(description="averaging of six INR slices; the reference's lies half a slice off the centre"),
    ] = "reference"
    bfloat16: Annotated[bool, Field(description="products in bfloat16, where the processor has it")] = False
    retrain: Annotated[
        bool, Field(description="train for every sweep; false: the denoiser of a session's first sweep stays")
    ] = True


class EngineConfig(Table):
    """How projections become a volume."""

    method: Annotated[
        Literal["mdd", "inr", "tikhonov", "linear", "microdiffusion"],
        Field(description="the answer that is served; microdiffusion: the reference, for files only"),
    ] = "mdd"
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    ] = "auto"
    runtime: Annotated[
        Literal["auto", "torch", "tensorrt", "openvino"],
        Field(description="what runs the network; auto: TensorRT on CUDA, OpenVINO on a CPU, else torch"),
    ] = "auto"
    weights: Annotated[
        Path | None, Field(description="safetensors file; none: the weights that ship with mdd")
    ] = None
    network: Annotated[
        Literal["auto", "small", "large"],
        Field(description="which of the shipped weights; auto: large on CUDA, small on a CPU"),
    ] = "auto"
    steps: Annotated[int, Field(ge=1, le=8, description="network evaluations per volume")] = 1
    guidance: Annotated[
        Annotated[FiniteFloat, Field(ge=0, le=4)],
        Field(description="classifier-free guidance; 0: none, and half the cost"),
    ] = 0.0
    interpolation: Annotated[
        Annotated[FiniteFloat, Field(ge=0, le=1)],
        Field(description="share of noise in the INR-noise interpolation that the sampler starts from"),
    ] = 0.1
    consistency: Annotated[bool, Field(description="pull the result towards the measured projections")] = True
    fall_back: Annotated[
        bool, Field(description="step back, wholly or partly, where the network does not know the specimen")
    ] = True
    merge_sweeps: Annotated[
        Literal["off", "still", "always"],
        Field(
            description="still: use the sweep before as well, where the specimen has not changed since; "
            "always: everywhere, for a specimen that cannot move"
        ),
    ] = "still"
    uncertainty: Annotated[
        bool, Field(description="write beside each volume by how much each voxel may be off")
    ] = False
    tile: Annotated[
        int, Field(ge=32, le=4096, multiple_of=16, description="edge of the lateral tiles, pixels")
    ] = 256
    cuda_graphs: Annotated[
        bool, Field(description="on CUDA, replay a sweep's update as one graph; false: step by step")
    ] = True
    torch_compile: Annotated[
        bool,
        Field(description="on CUDA with torch, fuse the network (torch.compile); the first sweeps wait"),
    ] = False
    update: Annotated[
        Literal["sweep", "projection"],
        Field(
            description="projection: besides each sweep's volume, a rolling one after every projection, "
            "from the newest sweep's worth of them"
        ),
    ] = "sweep"
    policy: Annotated[
        Literal["archive", "live", "wait"],
        Field(
            description="engine too slow: archive (older sweeps wait in the run file and are caught up when "
            "there is time), live (the newest first, with less effort, then fewer) or wait (the sender "
            "waits: a file can)"
        ),
    ] = "archive"
    backlog: Annotated[
        int, Field(ge=1, le=100_000, description="sweeps of a session that wait in memory; see policy")
    ] = 2
    session_memory_mb: Annotated[
        Positive,
        Field(description="most that the state of all sessions may take, MB; idle ones go to the disk first"),
    ] = 2048.0
    checkpoint_s: Annotated[
        Positive,
        Field(
            description="how often a session's state is put on disk, s; after a crash it goes on from there"
        ),
    ] = 10.0
    threads: Annotated[
        int | None, Field(ge=1, le=1024, description="CPU threads; none: as many as cores")
    ] = None
    seed: Annotated[
        int, Field(ge=0, description="seed of the sampler's noise, and of the reference method")
    ] = 0
    inr: InrConfig = InrConfig()
    reference: ReferenceConfig = ReferenceConfig()


class SharesConfig(Table):
    """How often each kind of specimen is drawn for the training; a kind without a source drops out."""

    recorded: Annotated[NonNegative, Field(description="recorded volumes")] = 0.45
    neurites: Annotated[NonNegative, Field(description="phantoms of neurons, from trees (SWC)")] = 0.34
    vessels: Annotated[NonNegative, Field(description="phantoms of vessels, from a vessel graph")] = 0.08
    nuclei: Annotated[NonNegative, Field(description="procedural nuclei and cell bodies")] = 0.08
    textures: Annotated[NonNegative, Field(description="procedural noise, plates and gratings")] = 0.05


class TrainingConfig(Table):
    """What `mdd train` trains, on what, and for how long."""

    volumes: Annotated[
        tuple[Path, ...], Field(description="volumes (HDF5, TIFF, NDTiff, NPY), or folders of them")
    ] = ()
    morphologies: Annotated[
        Path | None,
        Field(description="folder of trees (.swc) and vessel graphs (.h5); none: no such phantoms"),
    ] = None
    held_out: Annotated[
        tuple[str, ...], Field(description="names of volumes that are never trained on, to judge with")
    ] = ()
    licence: Annotated[
        str, Field(description="licence of the volumes whose files state none (model card)")
    ] = ""
    output: Annotated[Path, Field(description="safetensors file of the weights")] = Path(
        "denoiser.safetensors"
    )
    init: Annotated[
        Path | None, Field(description="weights to start from, of the same widths; none: from nothing")
    ] = None
    widths: Annotated[
        tuple[Annotated[int, Field(ge=4, le=1024)], ...],
        Field(min_length=1, max_length=6, description="channels of each level, full resolution first"),
    ] = (48, 96, 128, 160)
    blocks: Annotated[int, Field(ge=1, le=8, description="residual blocks of each level")] = 1
    embedding: Annotated[int, Field(ge=8, le=1024, description="channels of the condition")] = 128
    iterations: Annotated[int, Field(ge=1, description="iterations at most")] = 20_000
    minutes: Annotated[Positive, Field(description="minutes at most; whichever ends first")] = 60.0
    batch: Annotated[
        int, Field(ge=8, le=4096, multiple_of=8, description="windows of an iteration and process, 8 a cube")
    ] = 16
    rate: Annotated[Positive, Field(le=0.1, description="learning rate, before the cosine")] = 1e-3
    pool: Annotated[
        int, Field(ge=4, description="training cubes of 64 x 64 x 64 that are kept in memory")
    ] = 1500
    ring: Annotated[
        int, Field(ge=1, description="groups of four cubes under one optics that are kept in memory")
    ] = 48
    renew_every: Annotated[int, Field(ge=1, description="iterations after which one group is renewed")] = 4
    workers: Annotated[
        int, Field(ge=0, le=64, description="threads that make groups ahead; 0: none, and resuming is exact")
    ] = 0
    validate_every: Annotated[int, Field(ge=1, description="iterations from one checkpoint to the next")] = (
        1000
    )
    seed: Annotated[int, Field(ge=0, description="seed of everything random")] = 0
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="of the network's products; auto: the fastest that the device has natively"),
    ] = "auto"
    shares: SharesConfig = SharesConfig()


class RecorderConfig(Table):
    """The run file."""

    output: Annotated[Path, Field(description="folder of the run files")] = Path("runs")
    time_points: Annotated[
        int, Field(ge=1, le=1_000_000, description="time points that one file has room for")
    ] = 120
    durable: Annotated[bool, Field(description="force each volume to the disk (survives a power cut)")] = (
        False
    )
    pyramid: Annotated[bool, Field(description="write coarser copies of each volume beside it")] = True
    bigdataviewer: Annotated[
        bool, Field(description="make a link beside the run file that BigDataViewer opens, live")
    ] = False
    layout: Annotated[
        Literal["static", "swmr"],
        Field(description="static: opens anywhere, also live; swmr: may be compressed, grows as needed"),
    ] = "static"
    compression: Annotated[
        Literal["none", "gzip", "lz4"],
        Field(description='of the swmr layout; every HDF5 reads gzip, lz4 needs the extra "compression"'),
    ] = "none"
    file_gb: Annotated[
        Positive, Field(description="a run goes on in a further file before one is larger, GB")
    ] = 64.0
    queue_mb: Annotated[Positive, Field(description="most that waits to be written, MB")] = 512.0

    @model_validator(mode="before")
    @classmethod
    def _open_ended(cls, values: object) -> object:
        """Let a file that reserves nothing grow, unless it was said how far."""
        if isinstance(values, dict) and values.get("layout") == "swmr":
            return {"time_points": 1_000_000, **values}
        return values

    @model_validator(mode="after")
    def _compression_needs_swmr(self) -> Self:
        if self.compression != "none" and self.layout != "swmr":
            raise ValueError(
                f'recorder.compression = "{self.compression}" needs recorder.layout = "swmr": '
                "the static layout is not compressed"
            )
        return self


class WireConfig(Table):
    """Addresses and buffers."""

    data: Annotated[str, Field(description="where frames come in; port * takes a free one")] = (
        "tcp://127.0.0.1:5750"
    )
    status: Annotated[str, Field(description="where the status goes out")] = "tcp://127.0.0.1:5751"
    control: Annotated[str, Field(description="where commands come in (`mdd control`)")] = (
        "tcp://127.0.0.1:5752"
    )
    keys: Annotated[
        Path | None,
        Field(description="folder of this machine's keys (`mdd keys`); none: the user's own"),
    ] = None
    server_key: Annotated[
        str | None,
        Field(
            pattern=r"^[!-~]{40}$", description="public key of a daemon on another machine (`mdd keys show`)"
        ),
    ] = None
    encrypt_loopback: Annotated[
        bool, Field(description="ask for keys on loopback addresses too; elsewhere they are always asked for")
    ] = False
    runs: Annotated[int, Field(ge=1, le=64, description="runs that may be open at the same time")] = 8
    silent_s: Annotated[
        Positive, Field(description="a run whose sender says nothing for so long is closed, s")
    ] = 120.0
    max_frame_mb: Annotated[Positive, Field(le=1024, description="largest frame that is accepted, MB")] = 64.0
    send_buffer_mb: Annotated[Positive, Field(description="most that the sender keeps in memory, MB")] = 256.0
    journal: Annotated[
        Path | None,
        Field(description="folder where the sender spills what does not fit; none: the user's own"),
    ] = None
    journal_gb: Annotated[
        NonNegative, Field(description="most that it spills, GB; 0: nothing, what does not fit is dropped")
    ] = 20.0
    receive_buffer_mb: Annotated[Positive, Field(description="most that waits for the engine, MB")] = 512.0
    sweep_timeout_s: Annotated[
        Positive, Field(description="how long a frame may be late before it counts as missing, s")
    ] = 5.0

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

    refresh_hz: Annotated[Positive, Field(le=30, description="redraws per second")] = 4.0
    preview: Annotated[bool, Field(description="draw the volume's maximum projections")] = True
    graphics: Annotated[
        Literal["auto", "kitty", "sixel", "blocks", "none"],
        Field(
            description="how the volume is drawn; auto: as pictures where the terminal says that it can, "
            "else in half blocks; none: in characters"
        ),
    ] = "auto"


class MonitoringConfig(Table):
    """For whoever watches the daemon by machine: a log beside the run files, figures for Prometheus."""

    log: Annotated[bool, Field(description="keep mdd.log.jsonl in the folder of the run files")] = True
    log_mb: Annotated[Positive, Field(description="size at which that file is put aside, MB")] = 10.0
    log_files: Annotated[
        int, Field(ge=0, le=1000, description="files that are kept besides the one that is written")
    ] = 5
    prometheus: Annotated[
        str | None,
        Field(description="loopback address for Prometheus, such as 127.0.0.1:9464; none: no endpoint"),
    ] = None

    @field_validator("prometheus")
    @classmethod
    def _on_loopback(cls, value: str | None) -> str | None:
        if value is not None:
            loopback(value)
        return value


class Config(Table):
    """Everything that `mdd` needs to know."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="start of the run file's name")
    ] = "run"
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
