"""Frames on the local disk that the daemon does not have yet, of one sender.

A journal is a folder `<run_id>-<first_seq>-<8 digits>`: `start` (JSON: the run's header, where the
sender's numbers begin, and its secret, which nobody else may read), `lock`, and `NNNNNN.part` files of 64 MB
to which records are appended:

    preface (48 bytes, little-endian): "mddj", header bytes u32, body bytes u64, seq u64, announced u64,
        dropped u64, CRC-32 of the preface so far and the header u32, 0 u32
    header and body of the frame's message on the wire; the header holds the CRC-32 of the body

A record without a header only says how many frames were announced and dropped so far. Invariants: a record
that is whole can be read whatever happened after it was written (no fsync: the operating system keeps it
when the process is killed); what is damaged or torn is skipped. A part is deleted once nothing in it is
needed any more. The lock is held while the journal is open; when the process dies, the system releases it.

No thread of its own and no lock inside: a journal belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from zlib_ng.zlib_ng import crc32

from microdiffusion import wire
from microdiffusion.errors import DiskError, InputFileError, WireError
from microdiffusion.header import RunHeader

PART_BYTES = 64_000_000
MAX_RECORDS = 250_000
"""Most frames in one journal: memory holds a few words of each of them."""
_PREFACE = struct.Struct("<4sIQQQQII")
_CHECKED = _PREFACE.size - 8
_MAGIC = b"mddj"
_START = "start"
_LOCK = "lock"
_PARTS = "[0-9]" * 6 + ".part"


class _Start(BaseModel):
    """The file `start`."""

    model_config = ConfigDict(frozen=True)

    journal: Literal[1] = 1
    header: RunHeader
    first_seq: int = Field(ge=0, lt=1 << 53)
    secret: str = Field("", repr=False)


class JournalFull(Exception):  # no error: the frame waits, or is dropped and counted
    """There is no room for a record within the journal's bounds."""


@dataclass(frozen=True, slots=True)
class Location:
    """Position of a record: number of its part, offset of its header, sizes."""

    part: int
    offset: int
    header_bytes: int
    body_bytes: int


@dataclass(slots=True)
class _PartFile:
    path: Path
    size: int = 0
    live: int = 0  # records that are still needed


class Journal:
    """One sender's journal; its folder appears with the first record. See also `reopen`.

    Parameters
    ----------
    folder : Path
        Where the journal's own folder appears.
    header, first_seq, secret
        The run, where the sender's numbers begin, and what proves that the run is its own.
    limit_bytes : int
        Most that all journals together may take in `folder`.

    Attributes
    ----------
    path : Path
        Its own folder.
    records : dict of int to Location
        The records of a journal that was reopened, by `seq`, ascending; empty in a new one.
    announced, dropped : int
        The last that was noted in it.
    size : int
        Bytes of its parts.
    """

    def __init__(
        self, folder: Path, header: RunHeader, first_seq: int, *, secret: str = "", limit_bytes: int
    ) -> None:
        self.path = folder / f"{header.run_id}-{first_seq}-{uuid.uuid4().hex[:8]}"
        self.header = header
        self.first_seq = first_seq
        self.secret = secret
        self.limit_bytes = limit_bytes
        self.records: dict[int, Location] = {}
        self.announced = self.dropped = 0
        self.size = 0
        self._others_bytes = 0
        self._lock: FileLock | None = None
        self._parts: dict[int, _PartFile] = {}
        self._next = 1
        self._writing: tuple[_PartFile, BinaryIO] | None = None

    @classmethod
    def reopen(cls, path: Path) -> Journal | None:
        """Open a left-over journal, to read from; None while another process or sender has it open.

        Raises
        ------
        InputFileError, OSError
            It is damaged beyond use, or cannot be read.
        """
        lock = _lock_of(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            start = _Start.model_validate_json((path / _START).read_bytes())
            journal = cls(path.parent, start.header, start.first_seq, secret=start.secret, limit_bytes=0)
            journal.path, journal._lock = path, lock
            journal._scan()
        except ValidationError:
            lock.release()
            raise InputFileError(
                f"{path} is no journal of this version of mdd: its start is damaged."
            ) from None
        except BaseException:
            lock.release()
            raise
        return journal

    def append(
        self, seq: int, header: bytes, body: bytes | memoryview, *, announced: int, dropped: int
    ) -> Location:
        """Write a record and return its location; where that fails, nothing of it is left.

        Raises
        ------
        JournalFull
            It would exceed the limit.
        OSError
            The disk does not take it.
        """
        if self._lock is None:
            self._create()
        nbytes = _PREFACE.size + len(header) + memoryview(body).nbytes
        live = sum(part.live for part in self._parts.values())
        if self._others_bytes + self.size + nbytes > self.limit_bytes or live >= MAX_RECORDS:
            raise JournalFull
        location = self._append(seq, header, body, announced, dropped)
        self._parts[location.part].live += 1
        return location

    def note(self, announced: int, dropped: int) -> None:
        """Write how many frames were announced and dropped; raises OSError as `append` does."""
        self._append(0, b"", b"", announced, dropped)

    def read(self, location: Location) -> list[bytes | memoryview]:
        """Return the message on the wire that a record holds: header, body, check.

        Raises
        ------
        DiskError
            It is not what was written, or not there any more.
        OSError
            It cannot be read; perhaps it can later.
        """
        nbytes = location.header_bytes + location.body_bytes
        try:
            view = memoryview(_read(self._parts[location.part].path, location.offset, nbytes))
        except FileNotFoundError as error:
            raise DiskError(f"A frame is gone from the journal {self.path}: {error}.") from error
        header = bytes(view[: location.header_bytes])
        parts: list[bytes | memoryview] = [header, view[location.header_bytes :], wire.check_of(header)]
        try:
            wire.decode(parts)
        except WireError as error:
            raise DiskError(f"A frame in the journal {self.path} is damaged: {error}") from error
        return parts

    def release(self, location: Location) -> None:
        """Note that a record is not needed any more; the last one of a part takes the file with it."""
        part = self._parts[location.part]
        part.live -= 1
        if part.live == 0:
            if self._writing is not None and self._writing[0] is part:
                self._close_writing()
            del self._parts[location.part]
            self.size -= part.size
            with contextlib.suppress(OSError):  # then it is delivered once more, and discarded as a duplicate
                part.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files and release the lock; what it holds stays for `reopen`."""
        self._close_writing()
        if self._lock is not None:
            self._lock.release()

    def delete(self) -> None:
        """Close the journal and delete all of it."""
        self._close_writing()
        if self._lock is None:
            return
        # What cannot be deleted now does no harm: its frames are delivered once more, and discarded.
        for path in [*self.path.glob(_START + "*"), *self.path.glob(_PARTS)]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink(missing_ok=True)
            self.path.rmdir()

    def _create(self) -> None:
        self._others_bytes = _size_of_parts(self.path.parent)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_of(self.path)
        try:
            self._lock.acquire(timeout=0)
            start = _Start(header=self.header, first_seq=self.first_seq, secret=self.secret)
            new = self.path / f"{_START}.new"
            new.touch(mode=0o600)
            new.write_text(start.model_dump_json(), encoding="utf-8")
            new.replace(self.path / _START)
        except OSError:
            self.delete()
            self._lock = None
            raise

    def _append(
        self, seq: int, header: bytes, body: bytes | memoryview, announced: int, dropped: int
    ) -> Location:
        body_bytes = memoryview(body).nbytes
        nbytes = _PREFACE.size + len(header) + body_bytes
        number, part, file = self._part_for(nbytes)
        begin = part.size
        try:
            _write(file, _preface(seq, header, body_bytes, announced, dropped) + header)
            _write(file, body)
        except OSError:
            try:
                file.truncate(begin)
                file.seek(begin)
            except OSError:  # then the part ends with what there is of the record
                self._close_writing()
            raise
        part.size += nbytes
        self.size += nbytes
        self.announced, self.dropped = announced, dropped
        return Location(number, begin + _PREFACE.size, len(header), body_bytes)

    def _part_for(self, nbytes: int) -> tuple[int, _PartFile, BinaryIO]:
        if self._writing is not None:
            part, file = self._writing
            if part.size == 0 or part.size + nbytes <= PART_BYTES:
                return self._next - 1, part, file
            self._close_writing()
        number = self._next
        part = _PartFile(self.path / f"{number:06d}.part")
        file = part.path.open("xb", buffering=0)
        self._next += 1
        self._parts[number] = part
        self._writing = (part, file)
        return number, part, file

    def _close_writing(self) -> None:
        if self._writing is not None:
            with contextlib.suppress(OSError):
                self._writing[1].close()
            self._writing = None

    def _scan(self) -> None:
        found: dict[int, Location] = {}
        for path in sorted(self.path.glob(_PARTS)):
            number = int(path.stem)
            part = self._parts[number] = _PartFile(path, size=path.stat().st_size)
            self.size += part.size
            for seq, location, announced, dropped in _records(path, number, part.size):
                self.announced = max(self.announced, announced)
                self.dropped = max(self.dropped, dropped)
                if location.header_bytes and seq not in found:
                    found[seq] = location
                    part.live += 1
        self.records = dict(sorted(found.items()))


def left_over(folder: Path, run_id: str | None = None) -> list[Path]:
    """Return the journals in `folder` (of one run), in use or not, oldest first."""
    starts = []
    for start in folder.glob(f"{run_id or '*'}-*-*/{_START}"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            starts.append((start.stat().st_mtime, start.parent))
    return [path for _, path in sorted(starts)]


def in_use(folder: Path, run_id: str | None = None) -> bool:
    """Return whether a living sender has a journal in `folder` (of one run) open."""
    for path in left_over(folder, run_id):
        lock = _lock_of(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:
            continue  # deleted meanwhile
        lock.release()
    return False


def _lock_of(path: Path) -> FileLock:
    return FileLock(path / _LOCK, thread_local=False)


def _size_of_parts(folder: Path) -> int:
    size = 0
    for path in folder.glob(f"*-*-*/{_PARTS}"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    return size


def _preface(seq: int, header: bytes, body_bytes: int, announced: int, dropped: int) -> bytes:
    text = _PREFACE.pack(_MAGIC, len(header), body_bytes, seq, announced, dropped, 0, 0)[:_CHECKED]
    return text + struct.pack("<II", crc32(text + header), 0)


def _records(path: Path, number: int, size: int) -> Iterator[tuple[int, Location, int, int]]:
    """Yield seq, location, announced and dropped of the records of a part; what is damaged is skipped."""
    with path.open("rb") as file:
        offset = 0
        while offset + _PREFACE.size <= size:
            file.seek(offset)
            preface = file.read(_PREFACE.size)
            magic, header_bytes, body_bytes, seq, announced, dropped, check, _ = _PREFACE.unpack(preface)
            end = offset + _PREFACE.size + header_bytes + body_bytes
            if (
                magic != _MAGIC
                or header_bytes > wire.MAX_HEADER_BYTES
                or end > size
                or crc32(preface[:_CHECKED] + file.read(header_bytes)) != check
            ):
                file.seek(offset + 1)
                found = file.read().find(_MAGIC)
                offset = offset + 1 + found if found >= 0 else size
                continue
            yield seq, Location(number, offset + _PREFACE.size, header_bytes, body_bytes), announced, dropped
            offset = end


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = file.write(view)
        if not written:
            raise OSError("nothing was written")
        view = view[written:]


def _read(path: Path, offset: int, nbytes: int) -> bytes:
    """Return a piece of a file, or what there is of it."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(nbytes)
