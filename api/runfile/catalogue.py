"""Every run below a folder, thousands in seconds.

Owns `list_runs`, and the index that makes it quick: what was read of each file, kept under the file's name,
size and times. Every call walks the folder and looks at each file's size and times; only what is new or has
changed is opened, so an index can be old, foreign, damaged or absent, and the answer is the same. It lies in
the user's cache folder, never among the data, and is replaced whole, so that several calls at once do no
harm. Entries whose state may change without a trace in the file (running, interrupted, unreadable) are not
kept, nor is a file that has changed within the last two seconds. Any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import TypeAdapter

from microdiffusion.errors import DiskError, InputFileError, MissingFileError
from microdiffusion.files import replacing
from microdiffusion.paths import catalogue_folder
from microdiffusion.runfile.entry import RunEntry, read_entry
from microdiffusion.runfile.schema import segment_path

_ENDINGS = (".h5", ".hdf5")
_FURTHER = re.compile(r"(.+)_s\d{3,}")
_NOT_ENTERED = (".zarr", ".n5")  # folders of very many files, none of them a run
_SETTLED_NS = 2_000_000_000  # a file system's clock may be as coarse
_FORMAT = 1

Stamps = tuple[tuple[str, int, int, int], ...]
"""Of each file of a run: name, size, and times of its change, ns."""


@dataclass(frozen=True, slots=True)
class KeptEntry:
    """A file in the index; no entry where it is no run. `own`: how many of the further files are its own."""

    stamps: Stamps
    entry: RunEntry | None
    own: int


def list_runs(
    folder: str | Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[RunEntry]:
    """Return every run below a folder, the oldest first.

    Damaged and unreadable run files, and folders that may not be looked into, have an entry, too. HDF5 files
    that are no runs have none. Links to files are followed, links to folders are not.

    Parameters
    ----------
    folder
        Where to look, at any depth.
    progress
        Called with the number of files looked at, and of all.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such folder.
    """
    root = Path(folder)
    if not root.exists():
        raise MissingFileError(f"There is no folder {root}: check the path.")
    if not root.is_dir():
        raise InputFileError(f"{root} is a file: give the folder above it, or see `mdd info`.")
    index = _index_of(root)
    known = _read_index(index)
    kept: dict[str, KeptEntry] = {}
    found: list[RunEntry] = []
    closed_folders: list[RunEntry] = []
    files = list(_files(root, closed_folders))
    total = sum(len(each) for _, each in files)
    done = 0
    for where, stats in files:
        claimed: set[str] = set()
        for name in sorted(stats, key=lambda name: (_further(name, stats), name)):
            done += 1
            progress(done, total)
            if name in claimed:
                continue
            path = where / name
            key = path.relative_to(root).as_posix()
            further = _further_files(path, stats)
            stamps = tuple(_stamp(each.name, stats[each.name]) for each in (path, *further))
            one = known.get(key)
            if one is None or one.stamps != stamps:
                one = KeptEntry(stamps, *read_entry(path, further))
            claimed.update(each.name for each in further[: one.own])
            if _may_be_kept(key, one):
                kept[key] = one
            # A file that goes on in the one that claims to be the first has been told of there.
            if one.entry is not None and not (_further(name, stats) and one.entry.state == "incomplete"):
                found.append(replace(one.entry, path=str(path)))
    if kept != known:
        _write_index(index, kept)
    return sorted(found + closed_folders, key=lambda entry: (entry.created_utc, entry.path))


def _files(root: Path, closed_folders: list[RunEntry]) -> Iterator[tuple[Path, dict[str, os.stat_result]]]:
    """Yield each folder, and the files in it that may be runs; add those that may not be looked into."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        stats: dict[str, os.stat_result] = {}
        below: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):  # outputs in the making, among others
                        continue
                    with contextlib.suppress(OSError):  # gone, or a link to nothing
                        if entry.is_dir(follow_symlinks=False):
                            if not entry.name.lower().endswith(_NOT_ENTERED):
                                below.append(folder / entry.name)
                        elif entry.name.lower().endswith(_ENDINGS) and entry.is_file():
                            stats[entry.name] = os.stat(entry.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = f"it cannot be looked into ({error.strerror or error}): check its rights."
            closed_folders.append(RunEntry(str(folder), "unreadable", problem, files=0))
        yield folder, stats
        waiting += sorted(below, reverse=True)


def _further(name: str, stats: dict[str, Any]) -> bool:
    """Return whether a file is named like a further one of a run whose first file is beside it."""
    path = Path(name)
    match = _FURTHER.fullmatch(path.stem)
    return match is not None and match[1] + path.suffix in stats


def _further_files(path: Path, stats: dict[str, Any]) -> list[Path]:
    found: list[Path] = []
    while (following := segment_path(path, len(found) + 1)).name in stats:
        found.append(following)
    return found


def _stamp(name: str, stat: os.stat_result) -> tuple[str, int, int, int]:
    return name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _may_be_kept(key: str, one: KeptEntry) -> bool:
    newest = max(max(stamp[2:]) for stamp in one.stamps)
    try:
        key.encode()
    except UnicodeEncodeError:  # JSON would not return it
        return False
    state = one.entry.state if one.entry else "closed"
    # One that is incomplete waits for files that may come.
    return state in ("closed", "damaged") and newest < time.time_ns() - _SETTLED_NS


def _index_of(root: Path) -> Path:
    place = os.path.normcase(os.path.realpath(root))
    return catalogue_folder() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"


@cache
def _shape_of_index() -> TypeAdapter[dict[str, KeptEntry]]:
    return TypeAdapter(dict[str, KeptEntry])


def _read_index(path: Path) -> dict[str, KeptEntry]:
    """Return what an index holds; nothing where it is absent, damaged or of another version."""
    try:
        title, body = path.read_bytes().split(b"\n", 1)
        if title != _title(body):
            return {}
        return _shape_of_index().validate_json(body)
    except (OSError, ValueError, MemoryError):  # pydantic's error is a ValueError
        return {}


def _write_index(path: Path, kept: dict[str, KeptEntry]) -> None:
    body = json.dumps({key: asdict(one) for key, one in kept.items()}, separators=(",", ":")).encode()
    with contextlib.suppress(OSError, DiskError):  # it is only there to be quick
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(_title(body) + b"\n" + body)


def _title(body: bytes) -> bytes:
    return b"mdd catalogue %d %08x" % (_FORMAT, crc32(body))
