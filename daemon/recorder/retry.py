"""Waiting for a full disk to have room again. Used on the recorder's thread; `waiting_for` from any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from microdiffusion.daemon.recorder.queue import JobQueue
from microdiffusion.errors import NoRoomError

_RETRY_S = 1.0
_T = TypeVar("_T")


class Patience:
    """Does work again until the disk has room for it, or the queue stops.

    Parameters
    ----------
    queue : JobQueue
        Its stop ends the waiting.
    note : callable
        Told when the waiting begins and ends; it may find the disk full itself.

    Attributes
    ----------
    waiting_for : str
        Why the disk cannot take more now; empty where it can.
    """

    def __init__(self, queue: JobQueue, note: Callable[[str], None]) -> None:
        self.waiting_for = ""
        self._queue = queue
        self._note = note

    def until_done(self, work: Callable[[], _T]) -> _T:
        """Do what may be done twice; where the disk is full, again each second.

        Raises
        ------
        NoRoomError
            The queue has stopped, and the disk is still full.
        """
        while True:
            stopping = self._queue.stopping  # before the attempt, so that there is one after the stop
            try:
                done = work()
            except NoRoomError as error:
                if stopping:
                    raise
                if not self.waiting_for:
                    self._tell(f"waiting: {error}")
                self.waiting_for = str(error)
                with self._queue.changed:
                    self._queue.changed.wait_for(lambda: self._queue.stopping, _RETRY_S)
            else:
                if self.waiting_for:
                    self.waiting_for = ""
                    self._tell("there is room again")
                return done

    def _tell(self, text: str) -> None:
        with contextlib.suppress(NoRoomError):
            self._note(text)
