"""Upper estimates of the engine's memory, before it starts. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microdiffusion.config import EngineConfig
    from microdiffusion.header import RunHeader

# Float32 volumes: state, priors to select from, prediction, candidates, answer, and freed ones, since freed
# memory stays with the process (`pipeline/device.py`).
_VOLUMES = 24
_CLAIMED_PIXELS = 9216  # at most; see `trust/claims.py`
_WORKING_PLANES = 2  # copies of the INR's planes while a sweep is fitted: current and tried
# Resident part of interpreter and libraries (300 MB with torch, 480 MB with OpenVINO, which keeps a network
# for each of the first sizes), and the features of one batch of windows (up to 350 MB).
_REST = 900 << 20


def session_bytes(header: RunHeader, config: EngineConfig) -> int:
    """Return an upper estimate of the size of a session's state."""
    slices, rows, columns = header.shape
    if config.memory == "sweep" or config.method not in ("mdd", "inr"):
        return (config.inr.rank or slices) * rows * columns * 4  # the INR's planes
    # Field and changes of brightness in float32, age and darkness in a byte each; the network's last claim at
    # some pixels, two numbers in float16; covariances of eight ages and two bands in float64.
    claimed = min(rows * columns, _CLAIMED_PIXELS)
    return (10 * rows * columns + 4 * claimed) * slices + 128 * slices**2


def state_bytes(headers: Sequence[RunHeader], config: EngineConfig) -> int:
    """Return the memory of the sessions of all runs; beyond the limit they are on disk."""
    lanes = 2 if config.policy == "archive" else 1  # "later" has sessions of its own
    wanted = lanes * sum(
        len(header.channels) * len(header.positions) * session_bytes(header, config) for header in headers
    )
    # The session in use stays in memory, whatever the limit.
    least = max((session_bytes(header, config) for header in headers), default=0)
    return max(min(wanted, int(config.session_memory_mb * 1e6)), least)


def reconstruction_bytes(header: RunHeader, config: EngineConfig, *others: RunHeader) -> int:
    """Return an upper estimate of the engine's memory for a run and others at the same time.

    It holds for any number of sweeps: tiles and batches of windows bound the network's share; sweeps are
    processed one at a time, so the working volumes are the largest run's; `engine.session_memory_mb` bounds
    the sessions. On a CPU the most resident memory (mapped files and the test's own volumes included) was
    0.49 to 0.95 of it, from 48 x 128 x 128 to 64 x 512 x 512, with torch and with OpenVINO.
    """
    working = 0
    for each in (header, *others):
        slices, rows, columns = each.shape
        planes = _WORKING_PLANES * (config.inr.rank or slices)
        working = max(working, (_VOLUMES * slices + planes) * 4 * rows * columns)
    return working + state_bytes([header, *others], config) + _REST


def memory_statement(headers: Sequence[RunHeader], config: EngineConfig) -> str:
    """Return the sentence shown before a run starts; `headers` are those of all open runs, its own last."""
    sessions = sum(len(header.channels) * len(header.positions) for header in headers)
    total_mb = reconstruction_bytes(headers[-1], config, *headers[:-1]) / 1e6
    state_mb = state_bytes(headers, config) / 1e6
    shape = " x ".join(map(str, headers[-1].shape))
    return (
        f"the engine takes up to {total_mb:.0f} MB for {shape} voxels and {sessions} "
        f"session{'s' if sessions > 1 else ''}, {state_mb:.0f} MB of it for their state"
    )
