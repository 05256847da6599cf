"""The ledger of a run: an account of every frame.

Owns the columns of /mdd/ledger and their arithmetic. The invariants hold at every moment, also while the
run goes on and when its sender was killed:

    announced = received + missing
    missing = dropped_by_sender + unsent + damaged + on_the_line

The sender's reports (announced, dropped, unsent, damaged) come now and then, the daemon's own count
(received) changes with every frame; the two are reconciled here and nowhere else. Pure; any thread.

>>> Ledger(announced=10, dropped_by_sender=1, announced_known=1).settled(received=8, unplaced=0)
Ledger(announced=10, received=8, missing=2, dropped_by_sender=1, unsent=0, damaged=0, on_the_line=1, \
duplicates=0, refused=0, unplaced=0, announced_known=1)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from microdiffusion.text import count_noun


@dataclass(frozen=True, slots=True)
class Ledger:
    """The columns of /mdd/ledger, in this order.

    Attributes
    ----------
    announced : int
        Frames that the camera took, as the sender said; at least what has been accounted for.
    received, missing : int
        Frames that are in the file; the others.
    dropped_by_sender, unsent, damaged, on_the_line : int
        Why they are missing: the sender had no room; it ended before they were sent (its journal may
        hold them); they were refused each time they were sent; or they are on their way, and at the end
        lost there.
    duplicates, refused : int
        Frames that came again; messages that were malformed. Not part of the sums.
    unplaced : int
        Of the received: without a place in the file (beyond the planned sweeps or frames per sweep, or the
        place was taken).
    announced_known : int
        1 when the sender said so at its end; 0 where the number is from its last report, or lower bound.
    """

    announced: int = 0
    received: int = 0
    missing: int = 0
    dropped_by_sender: int = 0
    unsent: int = 0
    damaged: int = 0
    on_the_line: int = 0
    duplicates: int = 0
    refused: int = 0
    unplaced: int = 0
    announced_known: int = 0

    @classmethod
    def of(cls, columns: NDArray[np.int64]) -> Ledger:
        """Return the ledger that /mdd/ledger holds."""
        return cls(*columns.tolist())

    def settled(self, *, received: int, unplaced: int) -> Ledger:
        """Return the ledger with the file's own counts, and every sum made to hold.

        What is received counts: where the sender's reports explain more frames as missing than are missing
        (a frame came after all), the explanations shrink: unsent first, then damaged, then dropped.
        """
        known = bool(self.announced_known)
        explained = max(self.dropped_by_sender, 0) + max(self.unsent, 0) + max(self.damaged, 0)
        announced = max(self.announced, received, 0)
        if not known:  # an older report: what came since was announced as well
            announced = max(announced, received + explained)
        missing = left = announced - received
        reasons = {}
        for name in ("dropped_by_sender", "damaged", "unsent"):
            reasons[name] = min(max(getattr(self, name), 0), left)
            left -= reasons[name]
        return replace(
            self,
            announced=announced,
            received=received,
            missing=missing,
            on_the_line=left,
            duplicates=max(self.duplicates, 0),
            refused=max(self.refused, 0),
            unplaced=unplaced,
            announced_known=int(known),
            **reasons,
        )

    def complaint(self) -> str:
        """Return a phrase for what does not add up, empty where all does."""
        negative = [name for name in LEDGER_COLUMNS if getattr(self, name) < 0]
        if negative:
            return f"the ledger's {', '.join(negative)} cannot be negative"
        if self.announced != self.received + self.missing:
            return (
                f"the ledger's announced ({self.announced}) is not received ({self.received}) "
                f"+ missing ({self.missing})"
            )
        reasons = self.dropped_by_sender + self.unsent + self.damaged + self.on_the_line
        if self.missing != reasons:
            return f"the ledger's missing ({self.missing}) is not the sum of its reasons ({reasons})"
        if self.unplaced > self.received:
            return f"the ledger's unplaced ({self.unplaced}) are more than its received ({self.received})"
        return ""

    def sentence(self) -> str:
        """Return the account in a few words: "all 10 frames", "8 of 10 frames (2 on the line)"."""
        if not self.missing:
            return f"all {count_noun(self.received, 'frame')}"
        reasons = ", ".join(
            f"{count} {name.replace('_', ' ')}"
            for name in ("dropped_by_sender", "unsent", "damaged", "on_the_line")
            if (count := getattr(self, name))
        )
        return f"{self.received} of {count_noun(self.announced, 'frame')} ({reasons})"

    def array(self) -> NDArray[np.int64]:
        """Return the columns (11,) int64."""
        return np.array([getattr(self, name) for name in LEDGER_COLUMNS], dtype="<i8")


LEDGER_COLUMNS = tuple(column.name for column in fields(Ledger))
