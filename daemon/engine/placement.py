"""Devices of sessions, by what the sessions cost. Pure state and functions; for its owner's thread.

A session stays where it is, as it is warm there, until its device is lost or the load is uneven. Its cost is
the engine time that it wants of each second: the seconds of its sweeps over the time between them, both
measured. Devices are taken to be alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import NamedTuple

TOLERANCE = 0.1
"""Load above the mean, as a share of it, from which sessions move."""
_SHARE = 0.2  # of a new measurement


class SessionName(NamedTuple):
    """A channel and position of a run."""

    run_id: str
    channel: int
    position: int


def place(
    costs: Mapping[SessionName, float],
    devices: Sequence[int],
    placed: Mapping[SessionName, int] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> dict[SessionName, int]:
    """Return the device of each session, so that none has more than its share and few sessions move.

    Sessions without a device, the dearest first, go to the idlest one (Graham 1969, SIAM J. Appl. Math.
    17:416); then, while the busiest has more than the mean and `tolerance`, the session that evens it out
    best goes from there to the idlest.

    Parameters
    ----------
    costs : mapping of SessionName to float
        Engine time of each, s/s.
    devices : sequence of int
        Those that are alive, at least one.
    placed : mapping of SessionName to int, optional
        Where they are.
    """
    at: dict[SessionName, int] = {}
    loads = dict.fromkeys(devices, 0.0)
    members: dict[int, set[SessionName]] = {device: set() for device in devices}
    for session, device in (placed or {}).items():
        if session in costs and device in loads:
            at[session] = device
            loads[device] += costs[session]
            members[device].add(session)
    idle = [(load, device) for device, load in loads.items()]
    heapify(idle)
    for session in sorted((one for one in costs if one not in at), key=lambda one: -costs[one]):
        load, device = idle[0]
        heapreplace(idle, (load + costs[session], device))
        at[session] = device
        loads[device] += costs[session]
        members[device].add(session)
    most = (1 + tolerance) * sum(loads.values()) / len(loads)
    for _ in range(len(costs)):
        busiest, idlest = max(loads, key=loads.__getitem__), min(loads, key=loads.__getitem__)
        gap = loads[busiest] - loads[idlest]
        movable = [one for one in members[busiest] if 0 < costs[one] < gap]
        if loads[busiest] <= most or not movable:
            break
        session = min(movable, key=lambda one: (abs(costs[one] - gap / 2), one))
        members[busiest].remove(session)
        members[idlest].add(session)
        loads[busiest] -= costs[session]
        loads[idlest] += costs[session]
        at[session] = idlest
    return at


@dataclass(slots=True)
class _Measured:
    """Seconds of a session's sweeps, and between them; 0: unknown."""

    sweep_s: float = 0.0
    interval_s: float = 0.0
    queued_s: float = 0.0


class Placement:
    """The devices of all sessions."""

    def __init__(self) -> None:
        self._at: dict[SessionName, int] = {}
        self._measured: dict[SessionName, _Measured] = {}

    def device_of(self, session: SessionName, alive: Sequence[int]) -> int:
        """Return the device of a session; one that is new, or whose device is not alive, gets another."""
        device = self._at.get(session)
        if device is None or device not in alive:
            costs = self._costs([*self._at, session])
            device = self._at[session] = place(costs, alive, self._at, tolerance=float("inf"))[session]
        return device

    def took(self, session: SessionName, seconds: float, queued_s: float) -> None:
        """Note what a sweep took, and when it had come (`time.monotonic()`)."""
        known = self._measured.setdefault(session, _Measured(seconds))
        known.sweep_s += _SHARE * (seconds - known.sweep_s)
        interval_s = queued_s - known.queued_s
        if known.queued_s and interval_s > 0:
            known.interval_s += (_SHARE if known.interval_s else 1.0) * (interval_s - known.interval_s)
        known.queued_s = queued_s

    def moves(self, alive: Sequence[int]) -> list[tuple[SessionName, int]]:
        """Return sessions that are to move, and where to; they are where they were until `put`."""
        here = {session: device for session, device in self._at.items() if device in alive}
        wanted = place(self._costs(list(here)), alive, here)
        return [(session, device) for session, device in wanted.items() if here[session] != device]

    def put(self, session: SessionName, device: int) -> None:
        """Note where a session is now."""
        self._at[session] = device

    def forget(self, run_id: str) -> None:
        """Forget the sessions of a run."""
        for session in [one for one in self._at if one.run_id == run_id]:
            del self._at[session]
            self._measured.pop(session, None)

    def _costs(self, sessions: Sequence[SessionName]) -> dict[SessionName, float]:
        """Return the costs of sessions; those that nobody has measured are like the others."""
        known = {
            one: measured.sweep_s / measured.interval_s
            for one in sessions
            if (measured := self._measured.get(one)) is not None and measured.interval_s
        }
        usual = sum(known.values()) / len(known) if known else 1.0
        return {one: known.get(one, usual) for one in sessions}
