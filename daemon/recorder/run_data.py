"""Data of the run as a whole, in its first file: ledger, senders, frames without a place, events, engine.

Owns the values as they are in the file, and the order of writing. Everything may be done twice: the values
here change after the file. Used by one thread at a time, the recorder's once it runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from microdiffusion.daemon.recorder.segment import Segment
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import (
    ENGINE_BYTES,
    EVENT_KIND_BYTES,
    EVENT_ROOM,
    OWNER_BYTES,
    OWNER_ROOM,
    REASON_BYTES,
    UNPLACED_ROOM,
)

_VALUE_CHARACTERS = 500
_OWNERS = "mdd/owners"


class RunData:
    """The data of a run.

    Parameters
    ----------
    first : Segment
        The run's first file, new or there already.
    placed : int
        Frames that have their place in the run's files.

    Attributes
    ----------
    ledger : Ledger
    senders : (64, 6) int64
        See `schema.SENDER_COLUMNS`.
    unplaced : int
        Frames that have no place in the file.
    unplaced_seqs : set of int
        `seq` of the first of those.
    owners : list of str
        Who may resume the run; empty: whoever asks.
    """

    def __init__(self, first: Segment, *, placed: int) -> None:
        self._first = first
        self.senders: NDArray[np.int64] = first.read("mdd/senders")
        ledger = Ledger.of(first.read("mdd/ledger"))
        seqs = first.read("mdd/unplaced_seq")
        self.unplaced_seqs: set[int] = set(seqs[seqs >= 0].tolist())
        self.unplaced = max(ledger.unplaced, len(self.unplaced_seqs))
        self.ledger = ledger.settled(received=placed + self.unplaced, unplaced=self.unplaced)
        self.owners: list[str] = []
        if _OWNERS in first.layout.regions:  # since layout 1.2
            self.owners = [owner.decode(errors="replace") for owner in first.read(_OWNERS).tolist() if owner]
        self._events = max(int(first.read("mdd/events/count")), 0)
        elapsed_s = _seconds_since(first.layout.plan.created_utc)
        if self._events:  # a clock that was set back must not put an event before the one it follows
            last_s = float(first.read("mdd/events/time_s")[(self._events - 1) % EVENT_ROOM])
            elapsed_s = max(elapsed_s, last_s)
        self._began_s = time.monotonic() - elapsed_s

    def write_ledger(self, ledger: Ledger, *, placed: int, senders: NDArray[np.int64] | None = None) -> None:
        """Write what became of the frames, and what each sender said; `placed` frames are in the file."""
        if senders is not None:
            self._first.write("mdd/senders", (), senders)
            self.senders = senders
        self._write_ledger(ledger, placed, self.unplaced)

    def unplace(self, seq: int, *, placed: int) -> None:
        """Count a frame without a place; its number is recorded, so that a duplicate is recognized."""
        if self.unplaced < UNPLACED_ROOM:
            self._first.write("mdd/unplaced_seq", (self.unplaced,), seq)
            self.unplaced_seqs.add(seq)
        self._write_ledger(self.ledger, placed, self.unplaced + 1)

    def _write_ledger(self, ledger: Ledger, placed: int, unplaced: int) -> None:
        settled = ledger.settled(received=placed + unplaced, unplaced=unplaced)
        self._first.write("mdd/ledger", (), settled.array())
        self.ledger, self.unplaced = settled, unplaced

    def write_owner(self, owner: str) -> None:
        """Let one more resume the run; of very many, the latest."""
        owners = [*self.owners, owner][-OWNER_ROOM:]
        if _OWNERS in self._first.layout.regions:
            rows = np.array(owners + [""] * (OWNER_ROOM - len(owners)), f"S{OWNER_BYTES}")
            self._first.write(_OWNERS, (), rows)
        self.owners = owners

    def write_engine(self, provenance: Mapping[str, str]) -> None:
        """Write what the engine said of itself; very long texts are cut."""
        values = {key: str(value)[:_VALUE_CHARACTERS] for key, value in provenance.items()}
        while len(text := json.dumps(values).encode()) > ENGINE_BYTES:
            values.popitem()
        self._first.write("mdd/engine", (), np.array(text, f"S{ENGINE_BYTES}"))

    def write_event(self, kind: str, text: str) -> None:
        """Write an event, over the oldest one when the room is used up."""
        row = (self._events % EVENT_ROOM,)
        self._first.write("mdd/events/time_s", row, time.monotonic() - self._began_s)
        self._first.write("mdd/events/kind", row, cut(kind, EVENT_KIND_BYTES))
        self._first.write("mdd/events/text", row, cut(text, REASON_BYTES))
        self._first.write("mdd/events/count", (), self._events + 1)
        self._events += 1


def cut(text: str, room: int) -> NDArray[np.bytes_]:
    """Return the text cut to whole characters within `room` bytes."""
    return np.array(text.encode(errors="replace")[:room].decode(errors="ignore").encode(), f"S{room}")


def _seconds_since(created_utc: str) -> float:
    try:
        return max((datetime.now(UTC) - datetime.fromisoformat(created_utc)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
