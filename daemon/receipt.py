"""The acknowledgement that is owed for one frame: it travels with the frame from ingest to the file.

Ingest issues a receipt with each frame that it hands on. The recorder says `recorded` once the frame is in
the file. The frame's run may `hold` the receipt before that, and `release` it whenever it likes. A receipt
that is recorded and not held is complete: it wakes ingest, which collects it on its own thread.

Any thread may call any method. Each flag is set before both are looked at, so that of two threads at least
one sees the receipt complete; ingest may be woken twice, which is harmless.
"""

from __future__ import annotations

from collections.abc import Callable


class Receipt:
    """The receipt of one frame.

    Parameters
    ----------
    seq : int
        The frame's number.
    nbytes : int
        Size of its pixels.
    wake : callable
        Called when the receipt has become complete; on any thread, perhaps twice.
    """

    __slots__ = ("_held", "_recorded", "_wake", "nbytes", "seq")

    def __init__(self, seq: int, nbytes: int, wake: Callable[[], object]) -> None:
        self.seq = seq
        self.nbytes = nbytes
        self._wake = wake
        self._recorded = False
        self._held = False

    @property
    def complete(self) -> bool:
        """True when the frame may be acknowledged."""
        return self._recorded and not self._held

    def recorded(self) -> None:
        """Note that the frame is in the file."""
        self._recorded = True
        if self.complete:
            self._wake()

    def hold(self) -> None:
        """Put the acknowledgement off until `release`; before the frame is handed to the recorder."""
        self._held = True

    def release(self) -> None:
        """Put it off no longer."""
        self._held = False
        if self.complete:
            self._wake()
