"""Delivery of the journals that interrupted senders have left.

A journal that a living sender has open is skipped. One whose frames the daemon has all acknowledged is
deleted; the daemon discards frames that it has, so delivering twice does no harm. Runs
in the caller's thread, with a `Sender` for one journal after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from microdiffusion.errors import AddressError, MddError
from microdiffusion.sender.journal import Journal, left_over
from microdiffusion.sender.sender import Sender
from microdiffusion.wire import ClientKeys

BUFFER_BYTES = 128_000_000
CONNECT_S = 10.0
"""Timeout for the daemon's first answer, after which it counts as absent."""
STANDSTILL_S = 60.0
"""Timeout for the next acknowledged frame."""
END_S = 10.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """Outcome of the delivery of one journal.

    Attributes
    ----------
    path : Path
        Its folder; gone where `done`.
    run_id, name : str
        The run; empty where the journal could not be read.
    frames : int
        Frames that it held.
    acknowledged, damaged : int
        Of these, those that the daemon has now, and those that could not be sent.
    done : bool
        Nothing is left of it.
    reason : str
        The reason why something is left, one sentence.
    """

    path: Path
    run_id: str
    name: str
    frames: int
    acknowledged: int
    damaged: int
    done: bool
    reason: str = ""

    def __str__(self) -> str:
        """Return it in one line."""
        text = f"run {self.name!r}: {self.acknowledged} of {self.frames} frames delivered from the journal"
        if self.damaged:
            text += f", {self.damaged} damaged"
        return text if self.done else f"{text}; {self.path} remains: {self.reason}"


def deliver(
    folder: Path,
    address: str,
    *,
    run_id: str | None = None,
    security: ClientKeys | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Delivered]:
    """Send the left-over journals in `folder` to the daemon at `address`, oldest first.

    Yields the outcome of each journal as soon as it is known.

    Parameters
    ----------
    run_id
        Only those of this run.
    security
        None only where the address is on loopback.
    stop
        Asked now and then; True ends it early, and what is not delivered stays.

    Raises
    ------
    AddressError, ConfigError
        Nobody answers there, the address is malformed, or it asks for other keys.
    """
    for path in left_over(folder, run_id):
        if stop():
            return
        try:
            journal = Journal.reopen(path)
        except (MddError, OSError) as error:
            yield Delivered(path, "", path.name, 0, 0, 0, done=False, reason=str(error))
            continue
        if journal is None:
            continue
        if not journal.records:
            journal.delete()
        else:
            yield _deliver_one(journal, address, security, stop)


def _deliver_one(
    journal: Journal, address: str, security: ClientKeys | None, stop: Callable[[], bool]
) -> Delivered:
    header, frames = journal.header, len(journal.records)
    largest = max(location.body_bytes for location in journal.records.values())
    try:
        sender = Sender(
            address,
            header,
            buffer_bytes=max(BUFFER_BYTES, 4 * largest),
            journal=journal,
            security=security,
            first_seq=journal.first_seq,
        )
        sender.start()
    except BaseException:
        journal.close()
        raise
    reason, timeout_s = "", 0.0
    try:
        reason = _wait(sender, stop)
        timeout_s = 0.0 if reason else END_S
    finally:
        stats = sender.finish(reason=reason or "delivered from the journal", timeout_s=timeout_s)
    damaged = stats.refused + stats.damaged
    return Delivered(
        journal.path,
        header.run_id,
        header.name,
        frames,
        stats.acknowledged,
        damaged,
        done=stats.acknowledged + damaged == frames,
        reason=reason or sender.trouble or "the daemon stopped answering; try again later.",
    )


def _wait(sender: Sender, stop: Callable[[], bool]) -> str:
    """Wait until the daemon has everything; return why it has not, empty where it has."""
    try:
        sender.meet(stop, CONNECT_S)
        if sender.drain(stop, STANDSTILL_S):
            return ""
    except AddressError:
        raise
    except MddError as error:
        return str(error)
    if stop():
        return "it was stopped; deliver it again."
    return f"the daemon took no frame for {STANDSTILL_S:g} s; try again later."
