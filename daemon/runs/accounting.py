"""The reports of a run's senders about their frames, kept apart, and added up to the run's ledger.

A run may have several senders one after the other: a driver that was killed, the one that resumed its run,
the delivery of a journal. Each numbers its frames from a first number of its own, which tells them apart, and
reports once a second what it has announced; so the figures of one that is killed are a second old. Which of
its frames came is known here exactly, and corrects them. Pure state; the owner has a lock.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import SENDER_COLUMNS, SENDER_ROOM
from microdiffusion.wire import RunEnd, RunProgress

MOST_KNOWN = 4096
"""Senders kept apart in memory: a peer that starts again and again adds no more to a run's books."""
_BEYOND = 1 << 62


@dataclass(frozen=True, slots=True)
class SenderReport:
    """One sender's own figures, in the order of `SENDER_COLUMNS`; see `Ledger` for their meaning."""

    first_seq: int
    announced: int = 0
    dropped: int = 0
    unsent: int = 0
    damaged: int = 0
    ended: int = 0


class SenderReports:
    """The figures of all senders of a run, by their first numbers."""

    def __init__(self) -> None:
        self._reports: dict[int, SenderReport] = {}
        self._there: set[int] = set()  # not those of an earlier daemon: they report again when they are back
        self._journals: dict[int, int] = {}  # bytes, of those that are there

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> Self:
        """Return what the run file holds: rows (S, 6), unused ones negative."""
        reports = cls()
        for row in rows.tolist():
            if row[0] >= 0:
                reports._reports[row[0]] = SenderReport(*row)
        return reports

    @property
    def any_left(self) -> bool:
        """True while a sender is there that has not ended."""
        return bool(self._there)

    @property
    def journal_bytes(self) -> int:
        """Size of the senders' journals; any thread."""
        return sum(list(self._journals.values()))

    def started(self, first_seq: int) -> None:
        """Note that a sender is there (again)."""
        known = self._known(first_seq)
        if known is not None:
            self._reports[first_seq] = replace(known, ended=0)
            self._there.add(first_seq)

    def progress(self, message: RunProgress) -> None:
        """Note how far a sender is; an old report takes nothing back."""
        known = self._known(message.first_seq)
        if known is not None:
            self._reports[message.first_seq] = replace(
                known,
                announced=max(known.announced, message.announced),
                dropped=max(known.dropped, message.dropped),
                unsent=0,
                ended=0,
            )
            self._there.add(message.first_seq)
            self._journals[message.first_seq] = message.journal_bytes

    def end(self, message: RunEnd) -> None:
        """Note a sender's last word; a journal that is delivered later has a better one."""
        known = self._known(message.first_seq)
        if known is not None:
            self._reports[message.first_seq] = SenderReport(
                message.first_seq,
                max(known.announced, message.announced),
                max(known.dropped, message.dropped),
                message.unsent,
                max(known.damaged, message.damaged),
                1,
            )
            self._there.discard(message.first_seq)
            self._journals.pop(message.first_seq, None)

    def _known(self, first_seq: int) -> SenderReport | None:
        """Return a sender's figures; None for one too many."""
        known = self._reports.get(first_seq)
        if known is None and len(self._reports) < MOST_KNOWN:
            known = SenderReport(first_seq)
        return known

    def rows(self) -> NDArray[np.int64]:
        """Return the figures for the run file (SENDER_ROOM, 6); what has no room is added to the last row."""
        rows = np.full((SENDER_ROOM, len(SENDER_COLUMNS)), -1, np.int64)
        for number, first in enumerate(sorted(self._reports)):
            report = astuple(self._reports[first])
            if number < SENDER_ROOM:
                rows[number] = report
            else:
                rows[-1, 1:5] += report[1:5]
                rows[-1, 5] = min(rows[-1, 5], report[5])
        return rows

    def ledger(self, received: FrameRanges, *, duplicates: int, refused: int) -> Ledger:
        """Return the sums; `received` corrects a sender that could not end."""
        # Frames below the first number that a sender named are of one that never reported.
        firsts = sorted({0, *self._reports})
        announced = 0
        missing = {"dropped": 0, "damaged": 0, "unsent": 0}
        for first, stop in zip(firsts, [*firsts[1:], _BEYOND], strict=True):
            report = self._reports.get(first, SenderReport(first))
            came = received.count(first, stop)
            explained = report.dropped + report.unsent + report.damaged
            # A sender that is gone without a word announced at least what came.
            total = max(report.announced, came if report.ended else came + explained)
            announced += total
            # A sender does not know what came when an acknowledgement is lost: each reason takes its share of
            # what is missing of this sender, so that it cannot explain what another one lost.
            left = total - came
            for reason in ("dropped", "damaged", "unsent"):
                share = min(getattr(report, reason), left)
                missing[reason] += share
                left -= share
            if not report.ended:
                missing["unsent"] += left  # announced and never sent: it stayed with the sender
        return Ledger(
            announced=announced,
            dropped_by_sender=missing["dropped"],
            unsent=missing["unsent"],
            damaged=missing["damaged"],
            duplicates=duplicates,
            refused=refused,
            announced_known=int(bool(self._reports) and all(each.ended for each in self._reports.values())),
        )
