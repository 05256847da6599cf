"""Follows somebody else's acquisition through the data set that it saves.

A data set is a folder of NDTiff files, or ScanImage's TIFF files of one recording, of which the first stands
for all. `acquire` waits for one to appear in `acquisition.watch` (or uses that folder or file, if it is one)
and sends its images from the first on, while they are being saved; then it waits for the next. Data sets that
were already complete are ignored. A data set ends when its last file is complete, or when nothing has been
added for `wire.silent_s` + `acquisition.sweep_interval_s`.

Invariants: the images stay where they were saved, so nothing is dropped: if the daemon cannot take more,
reading waits; memory is bounded by the sender's buffer. The same data set gives the same frames again, so a
resumed run gets what it lacks, and the daemon discards what it has. Runs on the caller's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from microdiffusion.config import Config
from microdiffusion.drivers.passive.ndtiff_tail import INDEX, GrowingDataset, dataset_folder, is_complete
from microdiffusion.drivers.passive.relay import PassiveRun
from microdiffusion.drivers.passive.scanimage_tail import (
    SIGNED,
    GrowingSeries,
    begins_recording,
    series_files,
)
from microdiffusion.drivers.sending import DriverTask
from microdiffusion.errors import AcquisitionError, GeometryError, MissingFileError
from microdiffusion.sender import Sender, SenderStats
from microdiffusion.text import count_noun

POLL_S = 0.05
LOOK_S = 0.5
"""Interval at which the folder is searched."""
SETTLE_S = 2.0
"""Time for which a complete last file must remain the last: large data sets have several."""
DEPTHS = ("*", "*/*")
"""Patterns of the folders that are searched: Micro-Manager's save root, and folders in it."""


def acquire(task: DriverTask) -> SenderStats | None:
    """Send the data sets that are saved in `acquisition.watch`, one run each, until stopped.

    Returns the sender's counters of the last one, if there was one, with what was dropped of all. A data set
    that is unusable is reported and skipped. If `watch` is a data set itself, it is the only one, and this
    returns at its end. `task.resume` refers to the newest data set, complete or not.

    Raises
    ------
    MissingFileError
        The folder does not exist.
    AcquisitionError, GeometryError
        The only data set cannot be read, or does not fit the configuration; the daemon refused the run.
    """
    folder = task.config.acquisition.watch
    if folder is None or not folder.exists():
        raise MissingFileError(
            f"The folder {folder} does not exist: set acquisition.watch to where Micro-Manager or ScanImage "
            "saves."
        )
    itself = dataset_folder(folder) if folder.is_dir() else folder
    if itself is not None:
        return _follow(task, itself)
    datasets = _datasets(folder, _quiet_s(task.config), task.note, newest=task.resume is not None)
    stats, found = None, next(datasets)
    task.note(f"waiting for a data set in {folder}")
    while not task.stop.is_set():
        if found is None:
            task.stop.wait(LOOK_S)
            found = next(datasets)
            continue
        try:
            followed = _follow(task, found)
            if followed is not None and stats is not None:  # what was lost before is not forgotten over it
                followed = replace(followed, dropped=followed.dropped + stats.dropped)
            stats = followed or stats
        except (AcquisitionError, GeometryError) as error:
            task.note(f"the data set {found.name} is skipped: {error}")
        task, found = replace(task, resume=None), next(datasets)
    return stats


def _datasets(
    root: Path, quiet_s: float, note: Callable[[str], None], *, newest: bool
) -> Iterator[Path | None]:
    """Yield each data set that is new or still being written, once, in the order of their names.

    None stands for nothing new. With `newest` the newest is yielded even if it is complete.
    """
    known: set[Path] = set()
    is_first_look = True
    while True:
        found = []
        for path in sorted(path for depth in DEPTHS for path in root.glob(depth)):
            place = _dataset(path, known) if path not in known else None
            if place is not None:
                known |= {path, place}
                found.append(place)
        if is_first_look:
            latest = max(found, key=_changed_s, default=None) if newest else None
            # The files' times are wall-clock times.
            over = [each for each in found if is_complete(each) or time.time() - _changed_s(each) > quiet_s]
            done = [each for each in over if each != latest]
            if done:
                note(
                    f"{count_noun(len(done), 'finished data set is', 'finished data sets are')} left alone "
                    f"({done[0].name}{' ...' if len(done) > 1 else ''}): to read one, name it in "
                    "acquisition.watch"
                )
            found = [each for each in found if each not in done]
        is_first_look = False
        yield from found
        yield None


def _dataset(path: Path, known: set[Path]) -> Path | None:
    """Return the data set that this folder or file is; a file that is none is added to `known`."""
    if path.is_dir():
        return dataset_folder(path)
    begins = begins_recording(path)
    if begins is False:
        known.add(path)
    return path if begins else None


def _changed_s(place: Path) -> float:
    latest = 0.0
    for path in place.iterdir() if place.is_dir() else series_files(place).values():
        with suppress(OSError):  # a temporary file that has gone since
            latest = max(latest, path.stat().st_mtime)
    return latest


def _quiet_s(config: Config) -> float:
    """Return the time without additions after which a data set has ended."""
    return config.wire.silent_s + config.acquisition.sweep_interval_s


def _follow(task: DriverTask, folder: Path) -> SenderStats | None:
    """Send a data set to its end and return the sender's counters; None if it has no images."""
    task.note(f"following the data set {folder}")
    dataset: GrowingDataset | GrowingSeries
    if folder.is_dir():
        dataset, kind = GrowingDataset(folder), "NDTiff data set"
    else:
        dataset, kind = GrowingSeries(folder), "ScanImage recording"
        camera = task.config.camera
        camera = camera.model_copy(update={"offset": camera.offset + SIGNED})
        task = replace(task, config=task.config.model_copy(update={"camera": camera}))
    run = PassiveRun(task, source=f"{kind} {folder.name}", journal=False)
    reason = "broken off"
    try:
        reason = _pass_on(task, dataset, run)
        if reason != "stopped":
            dataset.finish()
        if dataset.damaged and not run.has_images:
            raise AcquisitionError(
                f"{folder} has no image that is whole and says its axes, or has them in an {INDEX}: copy all "
                "of it again."
            )
        run.settle()
        run.leave_out(dataset.damaged)
        sender = run.sender
        if reason != "stopped" and sender is not None and not sender.drain(lambda: task.is_stopped(sender)):
            reason = "stopped"
    except OSError as error:  # its disk, or network folder, has gone
        raise AcquisitionError(f"The data set {folder} cannot be read any more: {error}.") from error
    finally:
        dataset.close()
        stats = run.finish(reason)
    run.raise_if_failed()
    text = f"the data set {folder.name} has ended ({reason})"
    if dataset.damaged:
        text += f", {count_noun(dataset.damaged, 'image')} damaged or missing"
    if run.unplaced:
        text += f", {count_noun(run.unplaced, 'image')} without a place"
    task.note(text)
    return stats


def _pass_on(task: DriverTask, dataset: GrowingDataset | GrowingSeries, run: PassiveRun) -> str:
    """Pass all images on; return why this ended: "finished", "nothing new" or "stopped"."""
    quiet_s = _quiet_s(task.config)
    changed_s = time.monotonic()
    while True:
        for image in dataset.images():
            if run.sender is not None and not _await_room(task, run.sender):
                return "stopped"
            run.unread = dataset.damaged
            run.take(image)
            changed_s = time.monotonic()
        unchanged_s = time.monotonic() - changed_s
        if unchanged_s > SETTLE_S and dataset.is_complete:
            return "finished"
        if unchanged_s > quiet_s:
            task.note(f"nothing new has been saved for {quiet_s:g} s: the run is closed")
            return "nothing new"
        if task.is_stopped(run.sender) or task.stop.wait(POLL_S):
            return "stopped"
        run.raise_if_failed()


def _await_room(task: DriverTask, sender: Sender) -> bool:
    """Wait until the sender has room and the daemon is not pausing; False if the run is stopped."""
    while sender.wanted == "pause" or not sender.wait_for_room(POLL_S):
        sender.raise_if_failed()
        if task.is_stopped(sender):
            return False
        if sender.wanted == "pause":
            task.stop.wait(POLL_S)
    return not task.is_stopped(sender)
