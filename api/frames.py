"""Frames, sweeps and reconstructions: the data that move through the daemon.

Plain slotted dataclasses for the hot path; what they hold was checked where it came in (`wire`,
`files`), and nothing is checked twice.

A field is declared once, here: its `Column` is the dataset of the run file that keeps it, and of `FrameInfo`
type and limits are those of the wire. Codec, writer, reader and checks go by `FRAME_FIELDS` and `FIGURES`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, astuple, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, FiniteFloat

Number = Annotated[int, Field(ge=0, lt=1 << 53)]
"""An integer that every JSON reader keeps exact."""
Index = Annotated[int, Field(ge=0, lt=1 << 31)]


@dataclass(frozen=True, slots=True)
class Column:
    """The dataset of a number in the run file, under its name; below /mdd/frames if it belongs to a frame.

    Attributes
    ----------
    dtype : str
        Little-endian.
    empty : float
        What stands where there is no frame, or no volume.
    units, content, codes : str
        What the dataset says of itself.
    since : int
        Minor version of the layout that brought it.
    """

    dtype: str
    empty: float = 0
    units: str = ""
    content: str = ""
    codes: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True, order=True)
class StagePosition:
    """Position of the stage for one projection.

    A field for each axis, declared as those of `FrameInfo` are: wire and run file follow from it, and most
    modules only pass a position on. A further axis needs a default, for frames that do not have it.

    Attributes
    ----------
    z_um : float
        Centre of the slab, µm.
    """

    z_um: Annotated[FiniteFloat, Column("<f8", np.nan, "um", "slab's centre, NaN: absent")]


STAGE_AXES: dict[str, Any] = {axis.name: axis.default for axis in fields(StagePosition)}
"""Names of the stage's axes, and the position where a frame does not have one."""


@dataclass(frozen=True, slots=True, eq=False)
class StagePositions:
    """Positions of the stage for M projections.

    Attributes
    ----------
    values : (M, A) float64
        A column for each of `STAGE_AXES`.
    """

    values: NDArray[np.float64]

    @classmethod
    def of(cls, positions: Iterable[StagePosition]) -> StagePositions:
        """Return these positions."""
        rows = [astuple(position) for position in positions]
        return cls(np.array(rows, np.float64).reshape(len(rows), len(STAGE_AXES)))

    @classmethod
    def along_z(cls, z_um: ArrayLike) -> StagePositions:
        """Return the positions of slabs with these centres (M,), µm, that differ in nothing else."""
        return cls.read({"z_um": np.atleast_1d(np.asarray(z_um, np.float64))})

    @classmethod
    def read(cls, columns: Mapping[str, ArrayLike]) -> StagePositions:
        """Return positions from an array (M,) for each axis, of which only `z_um` must be there."""
        values = np.empty((np.size(columns["z_um"]), len(STAGE_AXES)))
        for place, (name, default) in enumerate(STAGE_AXES.items()):
            values[:, place] = columns.get(name, default)
        return cls(values)

    @property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """The positions (M,) along each axis."""
        return dict(zip(STAGE_AXES, self.values.T, strict=True))

    @property
    def z_um(self) -> NDArray[np.float64]:
        """Centres of the slabs (M,), µm."""
        return self.columns["z_um"]

    @property
    def step_um(self) -> float:
        """Median distance of neighbouring depths, µm; 0 for fewer than two."""
        depths = np.unique(self.z_um)
        return float(np.median(np.diff(depths))) if depths.size > 1 else 0.0

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[StagePosition]:
        return (StagePosition(*row) for row in self.values.tolist())

    def __getitem__(self, chosen: NDArray[Any] | slice) -> StagePositions:
        return StagePositions(self.values[chosen])

    def __add__(self, more: StagePositions) -> StagePositions:
        return StagePositions(np.concatenate([self.values, more.values]))

    def order(self) -> NDArray[np.int64]:
        """Return the indices (M,) that sort the positions along z first; equal ones keep their order."""
        return np.lexsort(self.values.T[::-1])

    def between(self, other: StagePositions) -> NDArray[np.bool_]:
        """Return which slabs (M,) are between the first and the last of others, which ascend."""
        return np.asarray((self.z_um > other.z_um[0]) & (self.z_um < other.z_um[-1]))

    def distances_um(self, other: StagePositions) -> NDArray[np.float64]:
        """Return the distance of each position from each of N others: (M, N), µm."""
        return np.asarray(np.linalg.norm(self.values[:, None] - other.values[None], axis=-1), np.float64)


_REFOCUS = "how far the stage stood beyond z_um, following the specimen"
DECISION_LETTERS = 160
"""Most that a sweep says of how an adaptive acquisition planned it."""


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """One camera image's place in its run.

    Attributes
    ----------
    seq : int
        Position in the order of sending, 0 for the first frame of the run.
    sweep, channel, position : int
        Time point, channel index, position index.
    index, count : int
        Place in the sweep and number of frames of that sweep, held-out ones included.
    stage : StagePosition
        Where the stage was.
    held_out : bool
        Left out of the reconstruction, to measure its error.
    exposure_ms, camera_time_s : float
        Exposure, and seconds since the start of the run by the camera's clock.
    refocus_um : float
        How far the focus stage stood beyond `stage`, µm, because it followed the specimen.
    decision : str
        What an adaptive acquisition decided for this sweep, and why; with its first frame, else empty.
    """

    seq: Annotated[Number, Column("<i8", -1, content="-1: absent")]
    sweep: Index
    index: Index
    count: Annotated[int, Field(ge=1, le=1 << 20)]
    stage: StagePosition
    channel: Index = 0
    position: Index = 0
    held_out: Annotated[bool, Column("u1")] = False
    exposure_ms: Annotated[FiniteFloat, Field(ge=0), Column("<f8", np.nan, "ms", since=1)] = 0.0
    camera_time_s: Annotated[FiniteFloat, Column("<f8", np.nan, "s")] = 0.0
    refocus_um: Annotated[FiniteFloat, Column("<f8", np.nan, "um", _REFOCUS, since=3)] = 0.0
    decision: Annotated[str, Field(max_length=DECISION_LETTERS)] = ""


@dataclass(slots=True)
class Frame:
    """A projection and its place. `pixels` is (Y, X), uint16 or float32."""

    info: FrameInfo
    pixels: NDArray[Any]
    received_s: float = 0.0  # time.monotonic() at the receiver
    crc32: int | None = None  # of the pixels' bytes, little-endian, where the sender gave it


@dataclass(slots=True)
class Sweep:
    """The projections that cover the volume once: one time point of one session.

    Attributes
    ----------
    stage : StagePositions
        Of the M projections, ascending, without the held-out ones.
    projections : (M, Y, X) float32
        Counts (camera offset included).
    held_out_stage, held_out : StagePositions and (H, Y, X) float32
        Projections that only judge the result.
    missing : int
        Frames of this sweep that never came.
    time_s, received_s : float
        Camera time of the last frame (s since start), `time.monotonic()` at its receipt.
    slots : (M + H,) int64, optional
        Places of its frames (`FrameInfo.index`) in the sweep; None if unknown.
    """

    sweep: int
    channel: int
    position: int
    stage: StagePositions
    projections: NDArray[np.float32]
    held_out_stage: StagePositions
    held_out: NDArray[np.float32]
    missing: int = 0
    time_s: float = 0.0
    received_s: float = 0.0
    slots: NDArray[np.int64] | None = None


IN_NOISE = Column(
    "<f8", np.nan, content="root mean square of reprojection minus projection, in units of the noise"
)
_SHARE = "share of the network's answer in what was served"
_MERGED = "1 earlier sweeps were used as well"
_STILL = "share of the voxels that an earlier sweep still describes"
_DRIFT = "of the specimen since the session began"


@dataclass(frozen=True, slots=True)
class Drift:
    """A rigid shift of the specimen, µm; NaN where nobody looked."""

    drift_z_um: Annotated[float, Column("<f8", np.nan, "um", _DRIFT, since=1)] = np.nan
    drift_y_um: Annotated[float, Column("<f8", np.nan, "um", _DRIFT, since=1)] = np.nan
    drift_x_um: Annotated[float, Column("<f8", np.nan, "um", _DRIFT, since=1)] = np.nan


_RMS = "root mean square of the voxels' standard deviations"
_WIDTH = "half width of the interval of 90 %, in standard deviations, from earlier held-out projections"
_COVERED = "share of a held-out projection's pixels within the interval of the earlier ones; 0.9 is right"
_SLOPE = "estimated slope of reconstructed on true intensity, over all voxels; 1 is right"


@dataclass(frozen=True, slots=True)
class Confidence:
    """Figures of how far a volume may be off; NaN where nobody looked, or nothing tells yet."""

    uncertainty_rms: Annotated[float, Column("<f8", np.nan, "counts", _RMS, since=4)] = np.nan
    interval_width: Annotated[float, Column("<f8", np.nan, content=_WIDTH, since=4)] = np.nan
    interval_coverage: Annotated[float, Column("<f8", np.nan, content=_COVERED, since=4)] = np.nan
    brightness_slope: Annotated[float, Column("<f8", np.nan, content=_SLOPE, since=4)] = np.nan
    brightness_slope_sd: Annotated[float, Column("<f8", np.nan, content="its deviation", since=4)] = np.nan


AGE_UNIT = 1 / 16
"""Sweeps that 1 stands for in a map of ages."""
_AGE_EDGE = 32


def age_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of the map of ages of a volume (Z, Y, X): 32 blocks along each edge at most."""
    z, y, x = (min(edge, _AGE_EDGE) for edge in shape)
    return z, y, x


@dataclass(slots=True)
class Reconstruction:
    """A volume and how it came about.

    Attributes
    ----------
    volume : (Z, Y, X) float32
        In the units of the projections.
    served : str
        Which answer this is: "mdd", "inr", "tikhonov", "linear", "microdiffusion", or "blend" of the
        network's and another.
    residual : float
        Root mean square of (A x - p) in units of the noise.
    held_out_error : float
        The same for the held-out projection; NaN where the sweep has none.
    candidate_errors : dict
        Held-out error of each candidate answer.
    seconds : dict
        Stage name ("inr", "sampler", "consistency", "total") to seconds.
    inr_iterations : int
        Steps that the INR took; 0 where it was not used, or had nothing to correct in the closed form.
    network_weight : float
        Share of the network's answer in what is served.
    why : str
        What speaks against the network alone; empty where it is served, or was not asked for.
    merged : bool
        Whether earlier sweeps were used as well.
    still : float
        Share of the voxels that an earlier sweep still describes; NaN where every sweep stands alone.
    drift : Drift
        How far the specimen has moved since its session began.
    runtime : str
        What evaluated the network, with version, device and precision; empty where there is none.
    effort : int
        What it was allowed to cost: 0 full, 1 one evaluation of the network, 2 the INR without it.
    uncertainty : (Z, Y, X) float32, optional
        Standard deviation of each voxel, in the volume's units; None where it was not asked for.
    uncertainty_map : `age_shape` float32, optional
        Its root mean square over blocks; None where nobody looked.
    confidence : Confidence
        Its figures.
    age : `age_shape` uint8, optional
        For how many sweeps the voxels have kept still: the mean over a block, in `AGE_UNIT`; None where every
        sweep stands alone.
    slots : (N,) int64, optional
        Places of the frames that it was made of; None where the sweep does not say.
    alarms, symptoms : dict
        What looks wrong with the sweep, a sentence by kind, and the numbers that say so; empty where it was
        not watched.
    """

    volume: NDArray[np.float32]
    served: str
    residual: Annotated[float, IN_NOISE]
    held_out_error: Annotated[float, IN_NOISE] = np.nan
    candidate_errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    inr_iterations: Annotated[int, Column("<i4")] = 0
    network_weight: Annotated[float, Column("<f8", np.nan, content=_SHARE)] = 0.0
    merged: Annotated[bool, Column("u1", codes=_MERGED)] = False
    still: Annotated[float, Column("<f8", np.nan, content=_STILL, since=1)] = np.nan
    drift: Drift = Drift()
    runtime: str = ""
    effort: int = 0
    uncertainty: NDArray[np.float32] | None = None
    uncertainty_map: NDArray[np.float32] | None = None
    confidence: Confidence = Confidence()
    age: NDArray[np.uint8] | None = None
    slots: NDArray[np.int64] | None = None
    why: str = ""
    alarms: dict[str, str] = field(default_factory=dict)
    symptoms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A field of `FrameInfo` or `Reconstruction`.

    Attributes
    ----------
    name : str
        On the wire and in the run file.
    kind : type
        Its type with its limits, as pydantic takes it.
    default : int, float or bool
        None: it has none.
    get, convert : callable
        What an object holds of it; a number of NumPy's as Python's own int, float or bool.
    column : Column or None
        How it is recorded; None: its place in the file says it.
    """

    name: str
    kind: Any
    default: Any
    get: Callable[[Any], Any]
    convert: Callable[[Any], Any]
    column: Column | None

    def plain(self, holder: Any) -> Any:
        """Return what an object holds of it, as Python's own int, float or bool."""
        return self.convert(self.get(holder))


def _declared(kind: Any, *path: str) -> Iterator[Declaration]:
    """Yield the fields of a dataclass; a value type among them stands for the fields that it has."""
    defaults = {one.name: None if one.default is MISSING else one.default for one in fields(kind)}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        base = getattr(hint, "__origin__", hint)
        if is_dataclass(base):
            yield from _declared(base, *path, name)
            continue
        column = next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Column)), None)
        get, convert = operator.attrgetter(".".join((*path, name))), operator.index if base is int else base
        yield Declaration(name, hint, defaults[name], get, convert, column)


FRAME_FIELDS: tuple[Declaration, ...] = tuple(_declared(FrameInfo))
"""The fields of a frame."""
FIGURES: tuple[Declaration, ...] = tuple(one for one in _declared(Reconstruction) if one.column is not None)
"""The figures of a reconstruction that are stored as they are; `schema` names those in another form."""
_VALUE_TYPES: dict[str, tuple[Any, list[str]]] = {
    name: (kind, [part.name for part in fields(kind)])
    for name, kind in get_type_hints(FrameInfo).items()
    if is_dataclass(kind)
}
_NAMES = frozenset(one.name for one in fields(FrameInfo))


def frame_info(values: Mapping[str, Any]) -> FrameInfo:
    """Return a `FrameInfo` of values by the names of `FRAME_FIELDS`; those that lack are the defaults."""
    given = {name: value for name, value in values.items() if name in _NAMES}
    for name, (kind, parts) in _VALUE_TYPES.items():
        given[name] = kind(**{part: values[part] for part in parts if part in values})
    return FrameInfo(**given)
