"""How many time points a run's file gets, and when the run goes on in a further one.

A file of the static storage gets its room at once, one of the SWMR storage grows by `STEP` time points as
they are needed. Neither becomes larger than `recorder.file_gb`, reckoned without compression: what is still
to come for the time points that the file has room for counts too. Functions hold no state; any thread.
"""

from __future__ import annotations

from dataclasses import replace

from microdiffusion.runfile import RunPlan, file_bytes

STEP = 128
_AHEAD = 10  # a sweep that is more files, or steps, further on is a mistake, not an outage


def with_room(plan: RunPlan, time_points: int, most_bytes: int) -> RunPlan:
    """Return the plan of a new file that is to hold `time_points`, with as much room as it gets now."""
    most = max(1, min(time_points, _fitting(plan, most_bytes)))
    if plan.storage == "static":
        return replace(plan, time_points=most, planned_time_points=most)
    return replace(plan, time_points=min(STEP, most), planned_time_points=time_points)


def longer(plan: RunPlan, *, size: int, pending: float, most_bytes: int) -> int:
    """Return how many time points a file may have now; not more than it has: it is full.

    Parameters
    ----------
    size : int
        Of the file, bytes.
    pending : float
        Number of its time points that are still to be written.
    """
    if plan.storage == "static":
        return plan.planned
    left = most_bytes - size - int(pending * _time_point_bytes(plan))
    return min(plan.planned, plan.time_points + min(STEP, max(left, 0) // _time_point_bytes(plan)))


def furthest(plan: RunPlan, stop: int) -> int:
    """Return the sweep from which on a number is a mistake; `stop`: the first that there is no room for."""
    step = plan.planned if plan.storage == "static" else min(plan.planned, STEP)
    return stop + _AHEAD * step


def _time_point_bytes(plan: RunPlan) -> int:
    return file_bytes(replace(plan, time_points=2)) - file_bytes(replace(plan, time_points=1))


def _fitting(plan: RunPlan, most_bytes: int) -> int:
    return (most_bytes - file_bytes(replace(plan, time_points=1))) // _time_point_bytes(plan) + 1
