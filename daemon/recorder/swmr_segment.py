"""One compressed or open-ended run file under the recorder's pen: HDF5's SWMR storage, filled in order.

Owns the file and the order of things in it. Images (volumes, projections) are handed to HDF5 chunk by chunk,
compressed before; figures (statuses, times, checksums, all that is small) have their places, and are written
there with plain positioned writes, as in a static file. Invariant: *no figure overtakes an image.* Before a
figure is written, HDF5 has given to the operating system where the images before it lie. So whatever is
marked written is there after a kill at any moment, and a reader sees an image before its mark.

HDF5 is called by one thread at a time; `read` may be called by any. The file is opened for writing with the
first write, and a mark that a killed writer left in it is cleared then: whoever writes holds the run's lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from microdiffusion.daemon.recorder.chunk_writer import ChunkWriter, Cut
from microdiffusion.daemon.recorder.filesystem import refuse_unordered
from microdiffusion.daemon.recorder.mending import mend
from microdiffusion.daemon.recorder.segment import is_full
from microdiffusion.errors import DiskError, InputFileError, MddError, NoRoomError
from microdiffusion.runfile import (
    LAYOUT_VERSION,
    LIBVER,
    Dataset,
    Region,
    RunLayout,
    RunPlan,
    SwmrPart,
    chunk_shape,
    clear_mark,
    create_swmr_file,
    datasets,
    file_bytes,
    is_image,
    item_axes,
    read_all,
    read_superblock,
    require_compression,
    stored_shape,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_MARGIN_BYTES = 16 << 20  # left free: HDF5 must not meet a full disk in the middle of its tables


class SwmrSegment:
    """A run file in the SWMR storage that is being written. Made by `create` or `open`.

    Attributes
    ----------
    path : Path
    layout : RunLayout
        The regions tell shapes and types; where a chunk lies is this object's matter.
    """

    def __init__(self, path: Path, plan: RunPlan) -> None:
        self.path = path
        self._lock = threading.RLock()  # held by whoever calls HDF5, or exchanges what is open
        self._file: h5py.File | None = None
        self._descriptor = -1
        self._reader: SwmrPart | None = None
        self._chunks: ChunkWriter | None = None
        self._images: dict[str, h5py.h5d.DatasetID] = {}
        self._places: dict[str, list[int]] = {}
        self._cuts: dict[str, Cut] = {}
        self._unsettled = False  # HDF5 holds back where an image lies
        self._forced = False  # nothing yet has to outlast a power cut
        self._set_layout(plan)

    def _set_layout(self, plan: RunPlan) -> None:
        self._schema: dict[str, Dataset] = {dataset.path: dataset for dataset in datasets(plan)}
        regions = {name: Region(0, one.shape, np.dtype(one.dtype)) for name, one in self._schema.items()}
        self.layout = RunLayout(plan, regions)

    @classmethod
    def open(cls, path: Path) -> SwmrSegment:
        """Open a run file that is there, to go on with it; what a writer before left undone is mended.

        Raises
        ------
        InputFileError
            It is damaged or no run file.
        DiskError
            It cannot be mended.
        """
        refuse_unordered(path)
        found = read_superblock(path)
        if found is not None and found.marked:
            mend(path)
        part = SwmrPart(path)
        try:
            part.require_whole()
        except InputFileError:
            part.close()
            raise
        if not part.as_recorded():
            part.close()
            raise InputFileError(
                f"{path} has chunks of another shape, and no run goes on in those: "
                "make a copy with `mdd repack` and without --chunks, and go on in that."
            )
        segment = cls(path, part.plan)
        if (version := segment.layout.plan.version) != LAYOUT_VERSION:  # it may hold what is not known here
            part.close()
            raise InputFileError(
                f"{path} has run file layout {version} and this mdd writes {LAYOUT_VERSION}: "
                "go on with it with the mdd that began it."
            )
        segment._reader = part
        segment._forced = True  # for all that is known
        return segment

    @classmethod
    def create(cls, path: Path, plan: RunPlan) -> SwmrSegment:
        """Create a run file. It gets its name when it is complete.

        Raises
        ------
        InputFileError
            There is a file of that name, or SWMR cannot work in its folder.
        DependencyError
            Its compression needs a package that is missing.
        NoRoomError, DiskError
            The folder is full; it cannot be written.
        """
        if path.exists():
            raise InputFileError(f"{path} exists and is not overwritten: choose another name or folder.")
        refuse_unordered(path)
        require_compression(plan.compression)
        temporary = path.with_name(f".{path.name}.tmp")
        segment = cls(path, plan)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            segment.need(file_bytes(replace(plan, time_points=1)))
            create_swmr_file(temporary, plan)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, MddError):
                raise
            if is_full(error):
                raise NoRoomError(
                    f"{path} cannot be created, the disk is full: free some space; it goes on when there is "
                    "room."
                ) from error
            raise DiskError(
                f"{path} cannot be created ({getattr(error, 'strerror', None) or error}): "
                "check the folder's rights and free space."
            ) from error
        segment._writable()
        return segment

    def write(self, name: str, index: tuple[int, ...], value: ArrayLike) -> None:
        """Write what `index` selects of the dataset `name`; `value` has its shape.

        Raises
        ------
        NoRoomError, DiskError
            The disk is full, or failed.
        """
        array = np.ascontiguousarray(value, dtype=self._schema[name].dtype)
        self.write_bytes(name, index, array.reshape(-1).view(np.uint8).data, 0, whole=True)

    def write_bytes(
        self, name: str, index: tuple[int, ...], content: memoryview, start: int, *, whole: bool = False
    ) -> None:
        """Write `content` from byte `start` of what `index` selects of the dataset `name`.

        The bytes of an image come in order, from its beginning.

        Raises
        ------
        NoRoomError, DiskError
            The disk is full, or failed.
        """
        schema = self._schema[name]
        size = _size(schema, index)
        if not 0 <= start <= size - len(content) or (whole and len(content) != size):
            raise ValueError(f"/{name}{list(index)} has {size} bytes, not {start} + {len(content)}")
        with self._lock, self._failing():
            self._writable()
            if is_image(schema):
                self._feed(schema, index, content, start)
                return
            self._settle()
            for offset, piece in self._pieces(schema, index, content, start):
                _write_at(self._descriptor, piece, offset)

    def read(self, name: str, index: tuple[int, ...] = ()) -> NDArray[Any]:
        """Return what `index` selects of the dataset `name`, as it is in the file. Any thread.

        Raises
        ------
        DiskError
            The disk failed.
        """
        schema = self._schema[name]
        with self._lock:
            if self._file is None:
                if self._reader is None:
                    self._reader = SwmrPart(self.path)
                return np.array(read_all(self._reader, name, index))
            with self._failing("read"):
                if is_image(schema):
                    return np.asarray(h5py.Dataset(self._image(name))[index])
                content = np.empty(_size(schema, index), np.uint8)
                for offset, piece in self._pieces(schema, index, content.data, 0):
                    _read_at(self._descriptor, piece, offset)
        return content.view(schema.dtype).reshape(schema.shape[len(index) :])

    def force(self) -> None:
        """Force what was written to the disk itself, so that it survives a power cut.

        Raises
        ------
        DiskError
            The disk failed.
        """
        with self._lock:
            with self._failing():
                self._writable()
                self._settle()
            descriptor = self._descriptor
            self._forced = True
        with self._failing():
            force(descriptor)

    def park(self) -> None:
        """Let go of the file until it is needed again: a long run has more files than may be open."""
        self.close()

    def close(self) -> None:
        """Close the file as it is.

        Raises
        ------
        DiskError
            The disk failed.
        """
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            if self._chunks is not None:
                self._chunks.close()
                self._chunks = None
            self._images.clear()
            self._places.clear()
            self._unsettled = False
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            file, self._file = self._file, None
            if file is not None:
                with self._failing():
                    file.close()

    def trim(self, time_points: int, *, most_bytes: int) -> bool:
        """Take away the time points that were not used, and close the file."""
        del most_bytes  # nothing is copied
        fewer = 0 < time_points < self.layout.plan.time_points
        if fewer:
            self._resize(time_points)
        self.close()
        return fewer

    def lengthen(self, time_points: int, *, most_bytes: int) -> bool:
        """Make room for more time points.

        Raises
        ------
        NoRoomError, DiskError
            The disk is full, or failed.
        """
        del most_bytes
        if time_points <= self.layout.plan.time_points:
            return False
        self.need(file_bytes(replace(self.layout.plan, time_points=1)))
        self._resize(time_points)
        return True

    def need(self, size: int) -> None:
        """Look whether the disk has room for so many bytes.

        Raises
        ------
        NoRoomError
            It has not.
        """
        free = shutil.disk_usage(self.path.parent).free
        if free < size + _MARGIN_BYTES:
            raise NoRoomError(
                f"{self.path} needs {(size + _MARGIN_BYTES) / 1e6:.0f} MB and {self.path.parent} has "
                f"{free / 1e6:.0f} MB: free some space; it goes on when there is room."
            )

    def _resize(self, time_points: int) -> None:
        with self._lock, self._failing():
            file = self._writable()
            self._settle()
            timed = [one for one in self._schema.values() if one.timed]
            status = [self._schema["mdd/status"]]
            rest = [one for one in timed if one.path != "mdd/status"]
            # Status is never the longer: its length is what readers take for the file's. HDF5 writes what a
            # flush finds in the order of its own tables, and the disk what it has in its own order, so each
            # of the two is flushed by itself, and forced where anything before was: else a slow disk would
            # hold up the run for a promise that nobody asked for.
            longer = time_points > self.layout.plan.time_points
            for some in (rest, status) if longer else (status, rest):
                for one in some:
                    dataset = self._images.get(one.path) or file[one.path].id
                    dataset.set_extent((time_points, *one.shape[1:]))
                file.flush()
                if self._forced:
                    force(self._descriptor)
            self._places.clear()
            self._set_layout(replace(self.layout.plan, time_points=time_points))

    def _writable(self) -> h5py.File:
        """Return the file, open for writing."""
        if self._file is not None:
            return self._file
        if self._reader is not None:  # HDF5 shares what one process opens twice, with the rights of the first
            self._reader.close()
            self._reader = None
        require_compression(self.layout.plan.compression)
        found = read_superblock(self.path)
        if found is not None and found.marked:
            clear_mark(self.path)
        # The run has a lock file, and SWMR readers need no lock. Chunks are written whole and once: no cache.
        self._file = h5py.File(self.path, "r+", libver=LIBVER, rdcc_nbytes=0, locking=False)
        self._file.swmr_mode = True
        self._descriptor = os.open(self.path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        self._chunks = ChunkWriter(self.layout.plan.compression)
        return self._file

    def _settle(self) -> None:
        """Have HDF5 hand over where the images lie."""
        if self._unsettled and self._file is not None:
            self._file.flush()
            self._unsettled = False

    def _feed(self, schema: Dataset, index: tuple[int, ...], content: memoryview, start: int) -> None:
        lead = item_axes(schema)
        if len(index) != lead or self._chunks is None:
            raise ValueError(f"/{schema.path} is written image by image, not at {index}")
        dtype = np.dtype(schema.dtype)
        if start == 0:
            self.need(_size(schema, index))
        if schema.path not in self._cuts:
            self._cuts[schema.path] = Cut.of(schema.shape[lead:], chunk_shape(schema)[lead:], dtype.itemsize)
        dataset = self._image(schema.path)
        by_hdf5 = self.layout.plan.compression == "lz4"

        def store(place: tuple[int, ...], block: Any) -> None:
            self._unsettled = True
            at = (*index, *place)
            if by_hdf5:
                self._store_filtered(dataset, schema, at, block.view(dtype))
            else:
                dataset.write_direct_chunk(at, block, 0)

        self._chunks.feed(
            (schema.path, index),
            content,
            start,
            cut=self._cuts[schema.path],
            itemsize=dtype.itemsize,
            store=store,
        )

    @staticmethod
    def _store_filtered(
        dataset: h5py.h5d.DatasetID, schema: Dataset, at: tuple[int, ...], block: NDArray[Any]
    ) -> None:
        """Store a chunk through HDF5's filters: what there is no other way to compress."""
        chunk = chunk_shape(schema)
        count = tuple(min(n, whole - i) for n, whole, i in zip(chunk, schema.shape, at, strict=True))
        space = dataset.get_space()
        space.select_hyperslab(at, count)
        dataset.write(h5py.h5s.create_simple(count), space, block[: prod(count)].reshape(count))

    def _image(self, name: str) -> h5py.h5d.DatasetID:
        if name not in self._images:
            self._images[name] = self._writable()[name].id
        return self._images[name]

    def _pieces(
        self, schema: Dataset, index: tuple[int, ...], content: memoryview, start: int
    ) -> Iterator[tuple[int, memoryview]]:
        """Yield places in the file and the parts of `content` that belong there."""
        shape = stored_shape(schema)
        rows = chunk_shape(schema)[0]
        row_bytes = prod(shape[1:]) * np.dtype(schema.dtype).itemsize
        places = self._places_of(schema)
        at, size = 0, row_bytes
        for number, length in zip(index, shape, strict=False):
            if not 0 <= number < length:
                raise IndexError(f"index {index} is outside of shape {shape}")
        for axis, number in enumerate(index):
            size = prod(shape[axis + 1 :]) * np.dtype(schema.dtype).itemsize
            at += number * size
        at += start
        while len(content):
            chunk, within = divmod(at, rows * row_bytes)
            count = min(rows * row_bytes - within, len(content))
            yield places[chunk] + within, content[:count]
            content, at = content[count:], at + count

    def _places_of(self, schema: Dataset) -> list[int]:
        if schema.path not in self._places:
            dataset = self._writable()[schema.path].id
            rows = chunk_shape(schema)[0]
            rest = (0,) * (len(stored_shape(schema)) - 1)
            infos = [
                dataset.get_chunk_info_by_coord((t, *rest)) for t in range(0, stored_shape(schema)[0], rows)
            ]
            creation = dataset.get_create_plist()
            size = prod(chunk_shape(schema)) * np.dtype(schema.dtype).itemsize
            as_made = creation.get_chunk() == chunk_shape(schema) and not creation.get_nfilters()
            if not as_made or any(info.byte_offset is None or info.size != size for info in infos):
                raise InputFileError(
                    f"{self.path}: /{schema.path} has no place for its figures: it is damaged."
                )
            self._places[schema.path] = [int(info.byte_offset) for info in infos]
        return self._places[schema.path]

    @contextlib.contextmanager
    def _failing(self, what: str = "written") -> Iterator[None]:
        """Turn what HDF5 and the system raise into the recorder's errors."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if isinstance(error, MddError):
                raise
            self.need(0)  # the usual reason, whatever HDF5 says
            if is_full(error):  # it was, and has room again by now
                raise NoRoomError(f"{self.path} cannot be {what}: the disk was full.") from error
            reason = (str(error).splitlines() or ["unknown"])[0]
            raise DiskError(
                f"{self.path} cannot be {what} ({reason}): check the disk; what was written before is safe."
            ) from error


def _size(schema: Dataset, index: tuple[int, ...]) -> int:
    """Return the bytes of what an index selects."""
    return prod(schema.shape[len(index) :]) * np.dtype(schema.dtype).itemsize


def force(descriptor: int) -> None:
    """Force what was written to the disk itself."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    while len(content):
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, content, offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, content)
        content, offset = content[written:], offset + written


def _read_at(descriptor: int, room: memoryview, offset: int) -> None:
    if hasattr(os, "preadv"):
        count = os.preadv(descriptor, [room], offset)
    else:
        os.lseek(descriptor, offset, os.SEEK_SET)
        found = os.read(descriptor, len(room))
        count = len(found)
        room[:count] = found
    if count < len(room):
        raise OSError("it is shorter than it says")
