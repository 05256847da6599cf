"""How much memory a reconstruction takes at most, known before it starts. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.run_header import RunHeader

_VOLUMES = 16  # float32 volumes alive at once: state, priors to choose from, prediction, candidates, answer
_PLANE_COPIES = 3  # of the INR's planes: the last sweep's, this one's, and those that a step tries
_REST = 600 << 20  # torch itself, the network, and one batch of windows with its features


def reconstruction_bytes(header: RunHeader, config: EngineConfig) -> int:
    """Return an upper estimate of the engine's memory for a run, whatever the number of sweeps.

    Tiles and batches of windows bound the network's share; what grows are a dozen volumes, and the INR's
    planes for each session. Measured on a CPU the peak was 0.69 to 0.88 of it,
    from 48 x 128 x 128 to 64 x 512 x 512.
    """
    slices, rows, columns = header.shape
    sessions = len(header.channels) * len(header.positions)
    planes = _PLANE_COPIES * (config.inr.rank or slices) * rows * columns * 4 * sessions
    # The last two sweeps and their noise, where they are merged: float32 whatever the camera sends.
    kept = 0 if config.merge_sweeps == "off" else 4
    frames = kept * header.frames_per_sweep * rows * columns * 4 * sessions
    return _VOLUMES * 4 * slices * rows * columns + planes + frames + _REST
