"""The sessions of one run: finds, revives or creates the session of a sweep.

A session's normalisation is fixed when it starts. Where the specimen's brightness leaves the range that the
network was trained for, the session starts over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.engines.inr import SessionField, SessionPrior, default_bandwidth
from microdiffusion.engines.pipeline.session import FrozenState, Session, light_range
from microdiffusion.engines.pipeline.session_store import SessionKey, SessionStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from microdiffusion.config import InrConfig
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader

# The network was trained on fields whose range is known to about this factor; beyond it, start over.
_RANGE_DRIFT = (0.75, 1.5)
_FEW, _MANY = 20_000, 200_000  # pixels to find the range from; sorting many takes longer than a volume


class RunSessions:
    """The sessions of a run.

    Parameters
    ----------
    store : SessionStore, optional
        Where they are kept, with those of other runs; one of its own where it is not given.
    learns : bool
        Whether a session keeps what its sweeps teach.
    """

    def __init__(
        self,
        header: RunHeader,
        config: InrConfig,
        device: torch.device,
        store: SessionStore | None,
        *,
        learns: bool,
    ) -> None:
        self._header = header
        self._config = config
        self._device = device
        self._store = SessionStore() if store is None else store
        self._learns = learns

    def of(self, sweep: Sweep, lane: str, length: float) -> Session:
        """Return the session of a sweep, whose slabs are `length` slices long.

        A rolling update has none of its own: it goes by a copy of the lane "sweep"'s, which nobody keeps.
        """
        known = self.peek(sweep) if lane == "rolling" else None
        if known is not None:
            return known.copy()
        prior, learned = self._makers(sweep, length)

        def revive(state: FrozenState) -> Session | None:
            try:
                return Session.of(state, prior(), learned())
            except (KeyError, TypeError, ValueError):
                return None  # of another geometry or version

        session = self._store.get(self._key(sweep, lane), revive)
        kept, low, span = _range(sweep, session)
        if session is None:
            session = Session(low, span, prior(), field=learned(span))
        elif not kept:
            session = session.in_another_range(low, span, prior())
        else:
            return session
        self.keep(sweep, lane, session)
        return session

    def begin(self, sweep: Sweep, lane: str, length: float, noise: float | None) -> None:
        """Begin the session of a sweep anew: it shows another specimen, with its own range and texture.

        `noise` is that of the session before, counts².
        """
        prior, learned = self._makers(sweep, length)
        _, low, span = _range(sweep, None)
        self.keep(sweep, lane, Session(low, span, prior(), noise=noise, field=learned(span)))

    def _makers(
        self, sweep: Sweep, length: float
    ) -> tuple[Callable[[], SessionPrior], Callable[..., SessionField | None]]:
        """Return what makes an empty prior, and an empty field of a unit, for the session of a sweep."""

        def prior() -> SessionPrior:
            return SessionPrior(
                self._header.shape,
                self._config,
                bandwidth=default_bandwidth(length),
                device=self._device,
                name=f"channel {sweep.channel}, position {sweep.position}",
            )

        def learned(unit: float = 1.0) -> SessionField | None:
            if not self._learns:
                return None
            return SessionField(
                self._header.shape,
                bandwidth=default_bandwidth(length),
                reach=length,
                unit=unit,
                device=self._device,
                by_slice=self._header.adaptive,
            )

        return prior, learned

    def peek(self, sweep: Sweep) -> Session | None:
        """Return the session of the lane "sweep" as it is, None where it is not in memory."""
        return self._store.peek(self._key(sweep, "sweep"))

    def keep(self, sweep: Sweep, lane: str, session: Session) -> None:
        """Keep a session after a sweep, not after a rolling update; others may be moved to disk for it."""
        if lane != "rolling":
            self._store.put(self._key(sweep, lane), session)

    def _key(self, sweep: Sweep, lane: str) -> SessionKey:
        return SessionKey(self._header.run_id, sweep.channel, sweep.position, lane)


def _range(sweep: Sweep, session: Session | None) -> tuple[bool, float, float]:
    """Return whether the session's normalisation still fits, and the sweep's dark level and span, counts."""
    many = max(1, sweep.projections.size // _MANY)
    low, span = 0.0, 1.0
    # Few pixels (of all columns: an odd step) confirm a range; to reject it takes many.
    for step in (many,) if session is None else (sweep.projections.size // _FEW | 1, many):
        low, span = light_range(sweep.projections.reshape(-1)[::step])
        if (
            session is not None
            and _RANGE_DRIFT[0] < span / session.span < _RANGE_DRIFT[1]
            and abs(low - session.low) < 0.5 * session.span
        ):
            return True, low, span
    return False, low, span
