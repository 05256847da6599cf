"""Somebody else's acquisition, followed through the NDTiff data set that it saves.

`acquire` waits for a data set to appear in `acquisition.watch` (or takes the folder itself, where it is one)
and sends its images from the first on, while they are being saved; then it waits for the next. What was
complete before it began is left alone. A data set ends when its last file is complete, or when nothing has
been added for as long as the daemon waits for a sender (`wire.silent_s`) beyond
`acquisition.sweep_interval_s`.

Invariants: the images stay where they were saved, so nothing is dropped: where the daemon cannot take more,
this waits; memory is bounded by the sender's buffer. The same data set gives the same frames again, so a run
that is gone on with gets what it lacks, and the daemon discards what it has. Runs on the caller's thread.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from microdiffusion.drivers.passive.ndtiff_tail import GrowingDataset, dataset_folder, is_complete
from microdiffusion.drivers.passive.relay import PassiveRun
from microdiffusion.drivers.sending import FINISH_S, SenderProgress, open_sender
from microdiffusion.errors import AcquisitionError, GeometryError, MissingFileError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import ResumeFrom
    from microdiffusion.sender import Sender, SenderStats
    from microdiffusion.wire import ClientKeys

POLL_S = 0.05
LOOK_S = 0.5
"""How often the folder is searched."""
SETTLE_S = 2.0
"""How long a complete last file must stay the last: large data sets have several."""
DEPTHS = ("*", "*/*")
"""Where data sets are looked for: Micro-Manager's save root, and folders in it."""


def acquire(
    config: Config,
    address: str,
    *,
    stop: threading.Event,
    note: Callable[[str], None] = lambda _: None,
    resume: ResumeFrom | None = None,
    security: ClientKeys | None = None,
    patience_s: Callable[[], float] = lambda: FINISH_S,
    on_stats: Callable[[SenderStats], None] | None = None,
) -> SenderStats | None:
    """Send the data sets that are saved in `acquisition.watch`, one run each, until stopped.

    Returns what became of the last one's frames; None where there was none. A data set that cannot be used is
    told, and the next is waited for. Where the folder is a data set itself, it is the only one, and this
    returns at its end. The parameters are those of `micromanager.acquire`; `resume` means the
    newest data set, whether it is still being written or not.

    Raises
    ------
    MissingFileError
        The folder does not exist.
    AcquisitionError, GeometryError
        The only data set cannot be read, or does not fit the configuration; the daemon refused.
    """
    folder = config.acquisition.watch
    if folder is None or not folder.is_dir():
        raise MissingFileError(
            f"The folder {folder} does not exist: set acquisition.watch to where Micro-Manager saves."
        )
    follower = _Follower(config, address, stop, note, security, patience_s, on_stats)
    itself = dataset_folder(folder)
    if itself is not None:
        return follower.follow(itself, resume)
    search = _Search(folder, follower.quiet_s, newest=resume is not None)
    note(f"waiting for a data set in {folder}")
    stats = None
    while not stop.is_set():
        found = search.next()
        if found is None:
            stop.wait(LOOK_S)
            continue
        try:
            stats = follower.follow(found, resume) or stats
        except (AcquisitionError, GeometryError) as error:
            note(f"the data set {found.name} is left: {error}")
        resume = None
    return stats


class _Search:
    """Finds data sets that are new, or still being written; each once."""

    def __init__(self, root: Path, quiet_s: float, *, newest: bool) -> None:
        self._root = root
        self._known: set[Path] = set()
        found = self._new()
        latest = max(found, key=_changed_s, default=None) if newest else None
        # The times of files go by the clock on the wall.
        self._due = [
            place
            for place in found
            if place == latest or not (is_complete(place) or time.time() - _changed_s(place) > quiet_s)
        ]

    def next(self) -> Path | None:
        """Return a data set that has not been returned yet."""
        self._due = self._due or self._new()
        return self._due.pop(0) if self._due else None

    def _new(self) -> list[Path]:
        """Return the data sets that have appeared since the last call, in the order of their names."""
        found = []
        for folder in sorted(path for depth in DEPTHS for path in self._root.glob(depth)):
            if folder in self._known or not folder.is_dir():
                continue
            place = dataset_folder(folder)
            if place is not None:
                self._known |= {folder, place}
                found.append(place)
        return found


def _changed_s(folder: Path) -> float:
    latest = 0.0
    for path in folder.iterdir():
        with suppress(OSError):  # a temporary file that has gone since
            latest = max(latest, path.stat().st_mtime)
    return latest


class _Follower:
    """Sends data sets, one after the other."""

    def __init__(
        self,
        config: Config,
        address: str,
        stop: threading.Event,
        note: Callable[[str], None],
        security: ClientKeys | None,
        patience_s: Callable[[], float],
        on_stats: Callable[[SenderStats], None] | None,
    ) -> None:
        self._config, self._address, self._security = config, address, security
        self._stop, self._note, self._patience_s, self._on_stats = stop, note, patience_s, on_stats
        self.quiet_s = config.wire.silent_s + config.acquisition.sweep_interval_s

    def follow(self, folder: Path, resume: ResumeFrom | None) -> SenderStats | None:
        """Send the data set to its end and return what became of its frames; None where it has none."""
        self._note(f"following the data set {folder}")
        dataset = GrowingDataset(folder)
        run = PassiveRun(
            self._config,
            # No journal: what waits lies on the disk already.
            lambda header: open_sender(self._config, self._address, header, self._security, journal=False),
            note=self._note,
            run_id=resume.run_id if resume else None,
            source=f"NDTiff data set {folder.name}",
        )
        reason = "broken off"
        stats = None
        try:
            reason = self._pass_on(dataset, run)
            run.settle()
            if reason != "stopped" and run.sender is not None and not self._delivered(run.sender):
                reason = "stopped"
        finally:
            dataset.close()
            if run.sender is not None:
                stats = run.sender.finish(reason=reason, timeout_s=self._patience_s())
        if run.sender is not None:
            run.sender.raise_if_failed()
        self._tell_end(folder, reason, dataset.damaged, run.unplaced)
        return stats

    def _pass_on(self, dataset: GrowingDataset, run: PassiveRun) -> str:
        """Pass on all images; return why they ended: "finished", "nothing new" or "stopped"."""
        changed_s = time.monotonic()
        tell: SenderProgress | None = None
        while True:
            for image in dataset.images():
                if run.sender is not None and not self._await_room(run.sender):
                    return "stopped"
                run.take(image)
                changed_s = time.monotonic()
                if run.sender is not None:
                    tell = tell or SenderProgress(run.sender, self._note, self._on_stats)
                    tell()
            quiet_s = time.monotonic() - changed_s
            if quiet_s > SETTLE_S and dataset.is_complete:
                return "finished"
            if quiet_s > self.quiet_s:
                self._note(f"nothing new has been saved for {self.quiet_s:g} s: the run is closed")
                return "nothing new"
            if self._is_stopped(run.sender) or self._stop.wait(POLL_S):
                return "stopped"
            if run.sender is not None:
                run.sender.raise_if_failed()

    def _is_stopped(self, sender: Sender | None) -> bool:
        return self._stop.is_set() or (sender is not None and sender.wanted == "stop")

    def _await_room(self, sender: Sender) -> bool:
        """Wait until the sender takes a frame and the daemon wants some; False where the run is stopped."""
        while sender.wanted == "pause" or not sender.wait_for_room(POLL_S):
            sender.raise_if_failed()
            if self._is_stopped(sender):
                return False
            if sender.wanted == "pause":
                self._stop.wait(POLL_S)
        return not self._is_stopped(sender)

    def _delivered(self, sender: Sender) -> bool:
        """Wait until the daemon has everything; False where the run is stopped before."""
        while sender.stats.buffered_bytes:
            sender.raise_if_failed()
            if self._is_stopped(sender):
                return False
            self._stop.wait(POLL_S)
        return True

    def _tell_end(self, folder: Path, reason: str, damaged: int, unplaced: int) -> None:
        text = f"the data set {folder.name} has ended ({reason})"
        for number, what in ((damaged, "damaged images passed over"), (unplaced, "images without a place")):
            if number:
                text += f", {number} {what}"
        self._note(text)
