"""What the senders of one run said of their frames, kept apart, and added up to the run's ledger.

A run may have several senders one after the other: a driver that was killed, the one that went on after it,
the delivery of a journal. Each counts from its own first number, which tells them apart, and says each
second what it has announced; so one that is killed leaves figures that are a second old. What came of its
frames is known here to the frame, which corrects them. Pure state; the owner has a lock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from microdiffusion.ledger import Ledger

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.daemon.frame_ranges import FrameRanges
    from microdiffusion.wire import RunEnd, RunProgress

MOST_SENDERS = 64
"""Kept apart in a run file; the reports of more are added to the last one's."""
MOST_KNOWN = 4096
"""Kept apart in memory: a peer that begins ever anew adds nothing to a run's books beyond that."""
COLUMNS = ("first_seq", "announced", "dropped", "unsent", "damaged", "ended")


@dataclass(frozen=True, slots=True)
class Account:
    """One sender's own figures: see `Ledger` for their meaning."""

    first_seq: int
    announced: int = 0
    dropped: int = 0
    unsent: int = 0
    damaged: int = 0
    ended: int = 0


class SenderReports:
    """The figures of all senders of a run, by where their numbers begin."""

    def __init__(self) -> None:
        self._accounts: dict[int, Account] = {}
        self._there: set[int] = set()  # not those of an earlier daemon: they say so when they are back
        self._journals: dict[int, int] = {}  # bytes, of those that are there

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> Self:
        """Return what an earlier daemon left in the file: rows (S, 6) int64, unused ones negative."""
        accounts = cls()
        for row in rows:
            if row[0] >= 0:
                account = Account(*(int(value) for value in row))
                accounts._accounts[account.first_seq] = account
        return accounts

    @property
    def anybody(self) -> bool:
        """Whether a sender is there that has not said its last word."""
        return bool(self._there)

    @property
    def journal_bytes(self) -> int:
        """Size of what waits in the senders' journals; any thread."""
        return sum(list(self._journals.values()))

    def started(self, first_seq: int) -> None:
        """Note that a sender is there (again)."""
        known = self._account(first_seq)
        if known is None:
            return
        self._accounts[first_seq] = replace(known, ended=0)
        self._there.add(first_seq)

    def progress(self, message: RunProgress) -> None:
        """Note how far a sender is; a report that is older than what is known changes nothing."""
        known = self._account(message.first_seq)
        if known is None:
            return
        self._accounts[message.first_seq] = replace(
            known,
            announced=max(known.announced, message.announced),
            dropped=max(known.dropped, message.dropped),
            unsent=0,
            ended=0,
        )
        self._there.add(message.first_seq)
        self._journals[message.first_seq] = message.journal_bytes

    def end(self, message: RunEnd) -> None:
        """Note a sender's last word: a journal that is delivered later has a better one."""
        known = self._account(message.first_seq)
        if known is None:
            return
        self._accounts[message.first_seq] = Account(
            message.first_seq,
            max(known.announced, message.announced),
            max(known.dropped, message.dropped),
            message.unsent,
            max(known.damaged, message.damaged),
            1,
        )
        self._there.discard(message.first_seq)
        self._journals.pop(message.first_seq, None)

    def _account(self, first_seq: int) -> Account | None:
        """Return what is known of a sender; None for one too many."""
        known = self._accounts.get(first_seq)
        if known is None and len(self._accounts) < MOST_KNOWN:
            known = Account(first_seq)
        return known

    def rows(self) -> NDArray[np.int64]:
        """Return the figures (MOST_SENDERS, 6) int64, unused rows -1."""
        rows = np.full((MOST_SENDERS, len(COLUMNS)), -1, np.int64)
        for number, first in enumerate(sorted(self._accounts)):
            account = [getattr(self._accounts[first], name) for name in COLUMNS]
            if number < MOST_SENDERS:
                rows[number] = account
            else:
                rows[-1, 1:5] += account[1:5]
                rows[-1, 5] = min(rows[-1, 5], account[5])
        return rows

    def ledger(self, received: FrameRanges, *, duplicates: int, refused: int) -> Ledger:
        """Return the sums; `received` corrects a sender that could not say its last word."""
        # What came below the first number that a sender named is of one that never spoke.
        firsts = sorted({0, *self._accounts})
        stops = [*firsts[1:], 1 << 62]
        announced = 0
        missing = {"dropped": 0, "damaged": 0, "unsent": 0}
        for first, stop in zip(firsts, stops, strict=True):
            account = self._accounts.get(first, Account(first))
            came = received.count(first, stop)
            explained = account.dropped + account.unsent + account.damaged
            # A sender that is gone without a word announced at least what came.
            total = max(account.announced, came if account.ended else came + explained)
            announced += total
            # A sender does not know what came when its confirmation got lost: each reason takes its share
            # of what is missing of this sender, so that it cannot explain what another one lost.
            left = total - came
            for reason in ("dropped", "damaged", "unsent"):
                share = min(getattr(account, reason), left)
                missing[reason] += share
                left -= share
            if not account.ended:
                missing["unsent"] += left  # announced and never sent: it stayed with the sender
        return Ledger(
            announced=announced,
            dropped_by_sender=missing["dropped"],
            unsent=missing["unsent"],
            damaged=missing["damaged"],
            duplicates=duplicates,
            refused=refused,
            announced_known=int(bool(self._accounts) and all(each.ended for each in self._accounts.values())),
        )
