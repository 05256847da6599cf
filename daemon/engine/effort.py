"""The effort spent on a session's sweeps under `policy = "live"`: less quality before fewer volumes.

Efforts (0 full, 1 one evaluation of the network, 2 the INR without it) are the rungs of a ladder. A session
climbs a rung as soon as a sweep has waited longer than the time between sweeps: the engine is slower than the
acquisition. It descends after a number of sweeps that hardly waited, and that number doubles whenever
descending was too early, so that a load between two rungs does not make the quality flicker. A pure state
machine: times are passed in.
"""

from __future__ import annotations

from microdiffusion.config import EngineConfig

_CALM = 0.25  # of the time between two sweeps: less than that is hardly a wait
_PATIENCE, _MOST_PATIENCE = 8, 256  # sweeps that hardly waited before the next rung down
_NEWEST = 0.3  # weight of the newest interval in the mean


def efforts(config: EngineConfig) -> tuple[int, ...]:
    """Return the efforts of a configuration that cost less than the one before."""
    if config.method != "mdd":
        return (0,)
    return (0, 2) if config.steps == 1 and config.guidance == 0 else (0, 1, 2)


class Ladder:
    """The rung of one session; `rungs` are the efforts, full first."""

    def __init__(self, rungs: tuple[int, ...] = (0, 1, 2)) -> None:
        self._rungs = rungs
        self._at = 0
        self._calm = 0
        self._patience = _PATIENCE
        self._interval_s = 0.0
        self._came_s: float | None = None
        self._changed_s = float("-inf")
        self._came_down = False  # the last change was one down, and may have been too early

    @property
    def effort(self) -> int:
        """0 full, 1 one evaluation, 2 the INR without the network."""
        return self._rungs[self._at]

    @property
    def at_the_top(self) -> bool:
        """True where there is no lower effort."""
        return self._at == len(self._rungs) - 1

    def set_rungs(self, rungs: tuple[int, ...]) -> None:
        """Use other rungs, from the bottom."""
        if rungs != self._rungs:
            self._rungs, self._at, self._calm = rungs, 0, 0

    def came(self, now_s: float) -> None:
        """Note the arrival of a sweep."""
        if self._came_s is not None:
            gap = now_s - self._came_s
            first = self._interval_s == 0.0
            self._interval_s = gap if first else (1 - _NEWEST) * self._interval_s + _NEWEST * gap
        self._came_s = now_s

    def began(self, now_s: float, queued_s: float) -> bool:
        """Note the start of a sweep that was queued at `queued_s`; return whether the rung changed."""
        if self._interval_s == 0.0 or queued_s < self._changed_s:
            return False  # queued before the last change, so not affected by it
        waited_s = now_s - queued_s
        if waited_s > self._interval_s:
            return self.up(now_s)
        self._calm = self._calm + 1 if waited_s < _CALM * self._interval_s else 0
        if self._calm < self._patience:
            return False
        self._calm = 0
        if self._came_down or self._at == 0:
            # The rung has held as long as the wait for it: it was right to descend.
            self._patience = max(_PATIENCE, self._patience // 2)
            self._came_down = False
        if self._at == 0:
            return False
        self._at -= 1
        self._came_down, self._changed_s = True, now_s
        return True

    def up(self, now_s: float) -> bool:
        """Spend less on the next sweeps; return whether that was possible."""
        self._calm = 0
        if self.at_the_top:
            return False
        if self._came_down:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
            self._came_down = False
        self._at += 1
        self._changed_s = now_s
        return True
