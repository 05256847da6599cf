"""The answer that is owed for one frame: it travels with the frame from ingest to the file.

Ingest issues a receipt with each frame that it hands on. The recorder says `recorded` once the frame is in
the file, or why it is not: then it is refused, not acknowledged. The frame's run may `hold` the receipt
before that, and `release` it whenever it likes. A receipt that is recorded and not held is complete: it wakes
ingest, which collects it on its own thread.

Any thread may call any method. Each flag is set before both are looked at, so that of two threads at least
one sees the receipt complete; ingest may be woken twice, which is harmless.
"""

from __future__ import annotations

from collections.abc import Callable

from microdiffusion.frames import Frame

Content = tuple[int, int, int, int, int | None]


class Receipt:
    """The receipt of one frame.

    Parameters
    ----------
    seq : int
        The frame's number.
    nbytes : int
        Size of its pixels; 0 where it came once more and is only compared.
    wake : callable
        Called when the receipt has become complete; on any thread, perhaps twice.
    content : tuple, optional
        The frame's place and checksum: what another frame of the same number differs in.

    Attributes
    ----------
    refusal : str
        Why the frame is not in the file, one sentence; empty: it is.
    """

    __slots__ = ("_held", "_recorded", "_wake", "content", "nbytes", "refusal", "seq")

    def __init__(
        self, seq: int, nbytes: int, wake: Callable[[], object], content: Content | None = None
    ) -> None:
        self.seq = seq
        self.nbytes = nbytes
        self.content = content
        self.refusal = ""
        self._wake = wake
        self._recorded = False
        self._held = False

    @property
    def complete(self) -> bool:
        """True when the frame may be answered."""
        return self._recorded and not self._held

    def recorded(self, refusal: str = "") -> None:
        """Note that the frame is in the file, or why it is not."""
        self.refusal = refusal
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


def content_of(frame: Frame) -> Content:
    """Return sweep, channel, position, index and checksum of a frame."""
    info = frame.info
    return info.sweep, info.channel, info.position, info.index, frame.crc32
