"""The tables of the engine: its methods, and the training of its network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from microdiffusion.config.table import Fraction, Table, key
from microdiffusion.header import NonNegative, Positive


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
    cold_steps: int = key(
        12,
        "maximum number of steps for the first sweep, and in a session that learns for what is new",
        ge=1,
        le=5000,
    )
    warm_steps: int = key(
        6, 'maximum number of steps for each later sweep, where engine.memory = "sweep"', ge=1, le=5000
    )
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
    devices: tuple[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")], ...] = key(
        (),
        "devices that share the sessions of a daemon, an engine process on each: cuda:0, cuda:1; none: "
        "engine.device alone",
        max_length=64,
    )
    runtime: Literal["auto", "torch", "tensorrt", "openvino"] = key(
        "auto", "what runs the network; auto: TensorRT on CUDA, OpenVINO on a CPU, otherwise torch"
    )
    weights: Path | None = key(None, "safetensors file; none: the weights shipped with mdd")
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
    uncertainty: bool = key(
        False, "also write the uncertainty of each voxel, not only its map: as much room again as the volumes"
    )
    tile: int = key(256, "edge of the lateral tiles, pixels", ge=32, le=4096, multiple_of=16)
    cuda_graphs: bool = key(True, "on CUDA, replay the update of a sweep as one graph; false: step by step")
    compile: bool = key(
        True, "build TensorRT's engine before the start if none is cached; false: serve with torch instead"
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
    batch: int = key(16, "windows per iteration, of all processes, 8 per cube", ge=8, le=4096, multiple_of=8)
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
