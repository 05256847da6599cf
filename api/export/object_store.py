"""OME-Zarr in an object store (s3://, gs://, az://): written in place, and gone on with.

Owns `write_to_store`. What makes it safe is that an object is there whole or not at all: each shard (or
chunk) of a volume is one request, so whatever breaks off, the store holds whole ones, and a listing says
which volumes are complete at every level. That listing is the only memory of an export: the next call writes
what is missing, after a crash as well as after the run has grown. An array is made longer before its volume
is written; volumes are written by a few threads, while the caller's reads the run.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.export.ome_zarr import (
    chunk_of,
    create_level,
    image_attributes,
    import_zarr,
    places_of,
    root_attributes,
    shard_of,
    window_of,
    zarr_format,
)
from microdiffusion.export.options import Exported, Progress, volumes_and_gaps
from microdiffusion.export.source import Picture, Scope, open_pictures
from microdiffusion.export.store_errors import explained, open_store
from microdiffusion.export.zarr_objects import objects_of
from microdiffusion.runfile import Status, is_locked, lock_path, open_positions

_IN_FLIGHT = 3  # volumes that are compressed or under way while the next one is read
_SENDERS = 4  # threads, each with an object: a request of a small level takes time, and no work
_STATED = "mdd_export"
_OPEN = "the run was not closed, and nobody writes it: what it holds was exported"


def write_to_store(
    run: Path,
    url: str,
    scope: Scope,
    *,
    compress: bool,
    ngff: str,
    follow: bool,
    progress: Progress,
    pause: Callable[[], None] = lambda: time.sleep(1.0),
) -> Exported:
    """Write what the store lacks of a run; with `follow` until the run is closed.

    Parameters
    ----------
    url
        Of the image to be, in a bucket that exists.
    pause
        Waits before the run is looked at again.

    Raises
    ------
    InputFileError
        Something else is there, or another export.
    DependencyError, UserError, NoRoomError, DiskError
        The store's library is not installed; there are no credentials, no rights, no bucket; the store is
        full, or does not answer.
    """
    target = _Target(url, ngff, compress=compress)
    while True:
        ended = _ended(run)  # before the volumes are looked for: what comes later is of the next round
        if not follow or _has_volumes(run):
            with open_pictures(run, scope) as pictures:
                exported = target.add(pictures, scope, progress)
            if ended or not follow or _all_there(pictures, scope):
                if ended == "interrupted":
                    exported.notes.append(_OPEN)
                return exported
        elif ended:
            raise InputFileError(f"{run} ended without a volume: see `mdd info`.")
        pause()


def _ended(run: Path) -> str:
    """Return "closed" or "interrupted" where a run has ended, "" where somebody writes it."""
    locked = is_locked(lock_path(run))  # first: it is closed before the lock is released
    with open_positions(run) as every:
        closed = every[0].closed
    return "closed" if closed else "" if locked else "interrupted"


def _has_volumes(run: Path) -> bool:
    with open_positions(run) as every:
        return any((one.status == Status.WRITTEN).any() for one in every)


def _all_there(pictures: Sequence[Picture], scope: Scope) -> bool:
    """Return whether every volume that was asked for is there, so that nothing is to be waited for."""
    return scope.last is not None and all(picture.written.all() for picture in pictures)


class _Target:
    """An image, or several, in an object store."""

    def __init__(self, url: str, ngff: str, *, compress: bool) -> None:
        self._zarr = import_zarr()
        self._url, self._ngff, self._compress = url.rstrip("/"), ngff, compress
        self._windows: dict[str, tuple[float, float]] = {}
        with explained(self._url):
            self._store = open_store(self._url)

    def add(self, pictures: Sequence[Picture], scope: Scope, progress: Progress) -> Exported:
        """Write the volumes that are not there yet, and say in the attributes what is."""
        total, gaps = volumes_and_gaps(pictures)
        with explained(self._url):
            groups = self._groups(pictures, scope)
            missing = self._missing(pictures)
            done = total - sum(map(len, missing))
            progress(done, total)
            for picture, place, group, wanted in zip(
                pictures, places_of(pictures), groups, missing, strict=True
            ):
                arrays = self._arrays(group, picture)
                if picture.written.any():
                    first = picture.all_written()[0]
                    self._windows.setdefault(place, window_of(picture.read_levels(*first)[-1]))
                # First, so that a viewer opens it while volumes are under way.
                attributes = image_attributes(picture, self._windows.get(place), self._ngff)
                if dict(group.attrs) | attributes != dict(group.attrs):
                    group.attrs.update(attributes)
                for _ in self._written(picture, arrays, wanted):
                    done += 1
                    progress(done, total)
        return Exported([self._url], total, gaps)

    def _groups(self, pictures: Sequence[Picture], scope: Scope) -> list[Any]:
        """Return the group of each picture; refuse what is not this export."""
        stated = {
            "run_id": pictures[0].run.header.run_id,
            "first_time_point": pictures[0].time_points.start,
            "channels": list(pictures[0].channels),
            "positions": [picture.position for picture in pictures if picture.kind == "volume"],
            "level": scope.level,
            "compress": self._compress,
            "ngff": self._ngff,
        }
        version = zarr_format(self._ngff)
        name = "zarr.json" if version == 3 else ".zgroup"
        there = self._store.keys()
        if name in there:
            root = self._zarr.open_group(self._store.zarr, mode="r+", zarr_format=version)
            different = self._difference(dict(root.attrs.get(_STATED, {})), stated)
        elif there:
            root, different = None, "nothing that mdd began"
        else:
            attributes = root_attributes(pictures, self._ngff) | {_STATED: stated}
            root = self._zarr.open_group(
                self._store.zarr, mode="a", zarr_format=version, attributes=attributes
            )
            different = ""
        if different:
            raise InputFileError(
                f"{self._url} exists and is not overwritten (it is {different}): remove it, or name another."
            )
        return [root.require_group(place) if place else root for place in places_of(pictures)]

    @staticmethod
    def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
        if theirs.get("run_id") != ours["run_id"]:
            return "of another run"
        name = next((name for name in ours if theirs.get(name) != ours[name]), "")
        return f"an export with {name} {theirs.get(name)}, not {ours[name]}" if name else ""

    def _arrays(self, group: Any, picture: Picture) -> list[Any]:
        """Return the arrays of all levels, long enough."""
        arrays = []
        for level in range(len(picture.levels)):
            if str(level) not in group:
                arrays.append(create_level(group, picture, level, self._ngff, compress=self._compress))
                continue
            array = group[str(level)]
            if array.shape[0] < picture.shape[0]:
                array.resize((picture.shape[0], *array.shape[1:]))
            arrays.append(array)
        return arrays

    def _missing(self, pictures: Sequence[Picture]) -> list[list[tuple[int, int]]]:
        """Return for each picture (t, channel) of the volumes that are not complete at every level."""
        keys = self._store.keys()
        return [
            [place for place in picture.all_written() if place not in complete]
            for picture, where in zip(pictures, places_of(pictures), strict=True)
            for complete in [self._complete(keys, where, picture)]
        ]

    def _complete(self, keys: set[str], place: str, picture: Picture) -> set[tuple[int, int]]:
        """Return (t, channel) of the volumes of which the store has every object."""
        found: set[tuple[int, int]] | None = None
        for level, one in enumerate(picture.levels):
            begin = f"{place}/{level}/".lstrip("/") + ("c/" if self._ngff != "0.4" else "")
            own = (key[len(begin) :].split("/") for key in keys if key.startswith(begin))
            objects = Counter((int(parts[0]), int(parts[1])) for parts in own if len(parts) == 5)
            expected = prod(
                -(-length // edge)
                for length, edge in zip(one.shape, self._object_shape(picture, level), strict=True)
            )
            whole = {where for where, count in objects.items() if count == expected}
            found = whole if found is None else found & whole
        return found or set()

    def _object_shape(self, picture: Picture, level: int) -> tuple[int, int, int]:
        shape = picture.levels[level].shape
        return chunk_of(shape) if self._ngff == "0.4" else shard_of(shape, picture.dtype.itemsize)

    def _written(
        self, picture: Picture, arrays: Sequence[Any], wanted: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Yield (t, channel) of volumes that are there; an error comes when what is under way has ended."""
        under_way: deque[tuple[tuple[int, int], list[Future[None]]]] = deque()
        with ThreadPoolExecutor(_SENDERS, "export") as threads:
            try:
                for place in wanted:
                    if len(under_way) == _IN_FLIGHT:
                        yield _complete(*under_way.popleft())
                    levels = zip(arrays, picture.read_levels(*place), strict=True)
                    under_way.append((place, [threads.submit(self._put, *level, *place) for level in levels]))
                while under_way:
                    yield _complete(*under_way.popleft())
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def _put(self, array: Any, voxels: NDArray[Any], t: int, channel: int) -> None:
        for place, content in objects_of(array, voxels, compress=self._compress):
            key = array.metadata.encode_chunk_key((t, channel, *place))
            self._store.put(f"{array.path}/{key}", content)


def _complete(place: tuple[int, int], levels: Sequence[Future[None]]) -> tuple[int, int]:
    """Return the place of a volume when all of its levels are there."""
    for level in levels:
        level.result()
    return place
