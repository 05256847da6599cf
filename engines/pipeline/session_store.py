"""Keeps sessions: in memory up to a limit, on disk beyond it and for crashes.

A session belongs to a run, channel, position and lane; its state is plain numbers and tensors, written as
safetensors with the numbers as JSON in the header: nothing of it is ever executed. Files are whole or absent
(written beside, then renamed), in folders that only this user can read. The least recently used session is
moved to disk first, and comes back bit by bit as it was. Where a file does not fit or is damaged, the session
starts cold.

A checkpoint takes references on the reconstructor's thread (states are replaced, never modified; from a GPU
they are copied first) and writes them on a thread of its own, so that no sweep waits for the disk. All
methods belong to the reconstructor's thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from microdiffusion.engines.pipeline.session import FrozenState, Session

logger = logging.getLogger("microdiffusion.engines")

_LAYOUT = "1"


class SessionKey(NamedTuple):
    """The owner of a session."""

    run_id: str
    channel: int
    position: int
    lane: str

    @property
    def path(self) -> Path:
        """Its file, relative to the state folder."""
        return Path(self.run_id) / f"{self.lane}_c{self.channel:03d}_p{self.position:05d}.safetensors"


class SessionStore:
    """The sessions of all runs.

    Parameters
    ----------
    folder : Path, optional
        Where sessions go for want of memory; None: they are forgotten, and there are no checkpoints.
    most_bytes : int, optional
        Limit of the sessions in memory; the one in use always stays. None: no limit.

    Attributes
    ----------
    write_s : float
        Duration of the last checkpoint.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int | None = None) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._dirty: set[SessionKey] = set()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self.write_s = 0.0

    @property
    def nbytes(self) -> int:
        """Size of the sessions in memory."""
        return sum(session.nbytes for session in self._sessions.values())

    @property
    def dirty(self) -> bool:
        """True where a checkpoint would write anything."""
        return self._folder is not None and bool(self._dirty)

    def peek(self, key: SessionKey) -> Session | None:
        """Return a session that is in memory, without counting that as use."""
        return self._sessions.get(key)

    def get(self, key: SessionKey, revive: Callable[[FrozenState], Session | None]) -> Session | None:
        """Return a session from memory or disk, None where there is none.

        `revive` makes a session of a state; it returns None where the state does not fit.
        """
        session = self._sessions.get(key)
        if session is None:
            state = self._read(key)
            session = None if state is None else revive(state)
            if session is None:
                return None
            self._sessions[key] = session
        self._sessions.move_to_end(key)
        return session

    def put(self, key: SessionKey, session: Session) -> None:
        """Keep a session that is new or has changed; others may be moved to disk for it."""
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        self._dirty.add(key)
        while self._most_bytes is not None and self.nbytes > self._most_bytes and len(self._sessions) > 1:
            self._put_aside(next(iter(self._sessions)))

    def checkpoint(self) -> None:
        """Write what has changed since the last checkpoint, unless that is still being written."""
        if self._folder is None or not (self._writing is None or self._writing.done()):
            return
        states = [
            (key, self._sessions[key].state().on_the_host()) for key in self._dirty if key in self._sessions
        ]
        self._dirty.clear()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="mdd-checkpoint")
        self._writing = self._writer.submit(self._write_checkpoint, states)

    def forget(self, run_id: str) -> None:
        """Forget the sessions of a run, and remove their files."""
        for key in [key for key in self._sessions if key.run_id == run_id]:
            del self._sessions[key]
        self._dirty = {key for key in self._dirty if key.run_id != run_id}
        if self._folder is not None:
            self._wait()
            shutil.rmtree(self._folder / run_id, ignore_errors=True)

    def release(self, run_id: str, channel: int, position: int) -> None:
        """Put a channel and position aside: another store of this folder goes on with its sessions."""
        for key in [key for key in self._sessions if key[:3] == (run_id, channel, position)]:
            self._put_aside(key)

    def close(self) -> None:
        """Write what has changed, and end the writer's thread."""
        self._wait()
        if self.dirty:
            self.checkpoint()
        self._wait()
        if self._writer is not None:
            self._writer.shutdown()

    def _put_aside(self, key: SessionKey) -> None:
        session = self._sessions.pop(key)
        self._wait()
        if key in self._dirty:
            self._dirty.discard(key)
            self._write_all([(key, session.state().on_the_host())])

    def _wait(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write_checkpoint(self, states: list[tuple[SessionKey, FrozenState]]) -> None:
        began_s = time.monotonic()
        self._write_all(states)
        self.write_s = time.monotonic() - began_s

    def _write_all(self, states: list[tuple[SessionKey, FrozenState]]) -> None:
        for key, state in states:
            try:
                self._write(key, state)
            except (OSError, SafetensorError) as error:  # a full disk costs warmth, and no volume
                logger.warning("The state of a session could not be written: %s", error)

    def _write(self, key: SessionKey, state: FrozenState) -> None:
        if self._folder is None:
            return
        path = self._folder / key.path
        for folder in (self._folder, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        metadata = {"layout": _LAYOUT, "numbers": json.dumps(state.numbers)}
        try:
            save_file(state.tensors, partial, metadata)
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def _read(self, key: SessionKey) -> FrozenState | None:
        if self._folder is None:
            return None
        self._wait()
        path = self._folder / key.path
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("layout") != _LAYOUT:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return FrozenState(json.loads(metadata["numbers"]), tensors)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            logger.warning("%s cannot be used (%s): the session starts cold.", path, error)
            return None
