"""What moves through the daemon: frames, sweeps and reconstructions.

Plain slotted dataclasses for the hot path; what they hold was checked where it came in (`wire`,
`projection_file`), and nothing is checked twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    z_um : float
        Centre of the slab, µm.
    held_out : bool
        Left out of the reconstruction, to measure its error.
    exposure_ms, camera_time_s : float
        Exposure, and seconds since the start of the run by the camera's clock.
    """

    seq: int
    sweep: int
    index: int
    count: int
    z_um: float
    channel: int = 0
    position: int = 0
    held_out: bool = False
    exposure_ms: float = 0.0
    camera_time_s: float = 0.0


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
    z_um : (M,) float64
        Slab centres, ascending, without the held-out ones.
    projections : (M, Y, X) float32
        Counts (camera offset included).
    held_out_z_um, held_out : (H,) float64 and (H, Y, X) float32
        Projections that only judge the result.
    missing : int
        Frames of this sweep that never came.
    time_s, received_s : float
        Camera time of the last frame (s since start), `time.monotonic()` at its receipt.
    slots : (M + H,) int64, optional
        Places of its frames (`FrameInfo.index`) in the sweep; None where nobody said.
    """

    sweep: int
    channel: int
    position: int
    z_um: NDArray[np.float64]
    projections: NDArray[np.float32]
    held_out_z_um: NDArray[np.float64]
    held_out: NDArray[np.float32]
    missing: int = 0
    time_s: float = 0.0
    received_s: float = 0.0
    slots: NDArray[np.int64] | None = None


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
    merged : bool
        Whether the sweep before was used as well.
    runtime : str
        What evaluated the network, with version, device and precision; empty where there is none.
    effort : int
        What it was allowed to cost: 0 full, 1 one evaluation of the network, 2 the INR without it.
    uncertainty : (Z, Y, X) float32, optional
        Standard deviation of each voxel, in the volume's units; None where it was not asked for.
    slots : (N,) int64, optional
        Places of the frames that it was made of; None where the sweep does not say.
    """

    volume: NDArray[np.float32]
    served: str
    residual: float
    held_out_error: float = float("nan")
    candidate_errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    inr_iterations: int = 0
    network_weight: float = 0.0
    merged: bool = False
    runtime: str = ""
    effort: int = 0
    uncertainty: NDArray[np.float32] | None = None
    slots: NDArray[np.int64] | None = None
