"""The first bytes of an HDF5 file: which kind it is, and the mark that a writer leaves in it.

Owns the superblock of version 3, which files of the SWMR storage have. A process that has such a file open
for writing says so in byte 11, and HDF5 refuses ordinary readers as long as it is set. A process that was
killed leaves it set. `clear_mark` takes it away: byte 11 to 0, the end of the file to where it is, the
checksum anew; 48 bytes, written at once. Nothing else of the file is touched. Any thread.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIZE = 48
_FORM = struct.Struct("<8sBBBBQQQQI")
_MARKS = 0x01 | 0x04  # open for writing; in SWMR mode
_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the first 48 bytes say.

    Attributes
    ----------
    marked : bool
        Whether a writer has it open, or was killed while it had.
    end : int
        Where the file ended when this was written, bytes.
    whole : bool
        Whether the checksum is right.
    content : bytes
    """

    marked: bool
    end: int
    whole: bool
    content: bytes


def read_superblock(path: Path) -> Superblock | None:
    """Return the superblock of a file that can be written in SWMR mode; None where it has another one.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with path.open("rb") as stream:
        content = stream.read(SIZE)
    if len(content) < SIZE or not content.startswith(SIGNATURE) or content[8:11] != b"\x03\x08\x08":
        return None
    fields: tuple[Any, ...] = _FORM.unpack(content)
    return Superblock(bool(fields[4] & _MARKS), fields[7], fields[9] == lookup3(content[:44]), content)


def clear_mark(path: Path) -> bytes:
    """Take away the mark of a writer that is gone; return the 48 bytes that were there.

    Whoever calls this holds the run's lock: with a writer at work it would be a lie.

    Raises
    ------
    OSError
        It cannot be written.
    ValueError
        The file has another kind of superblock.
    """
    before = read_superblock(path)
    if before is None:
        raise ValueError(f"{path} has no superblock of version 3")
    write_superblock(path, unmarked(before.content, path.stat().st_size))
    return before.content


def unmarked(content: bytes, end: int) -> bytes:
    """Return a superblock without mark, of a file that ends at `end`."""
    fields = list(_FORM.unpack(content))
    fields[4] &= ~_MARKS
    fields[7] = end
    fresh = _FORM.pack(*fields)[:44]
    return fresh + struct.pack("<I", lookup3(fresh))


def write_superblock(path: Path, content: bytes) -> None:
    """Put 48 bytes in the place of the superblock, and force them to the disk.

    Raises
    ------
    OSError
        It cannot be written.
    """
    with path.open("r+b", buffering=0) as stream:
        stream.write(content)
        os.fsync(stream.fileno())


def lookup3(content: bytes) -> int:
    """Return the checksum that HDF5 keeps of its tables: Bob Jenkins' lookup3 (hashlittle), from 0."""
    a = b = c = (0xDEADBEEF + len(content)) & _WORD
    at = 0
    while len(content) - at > 12:
        x, y, z = struct.unpack_from("<III", content, at)
        a, b, c = (a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD
        a = ((a - c) & _WORD) ^ _turned(c, 4)
        c = (c + b) & _WORD
        b = ((b - a) & _WORD) ^ _turned(a, 6)
        a = (a + c) & _WORD
        c = ((c - b) & _WORD) ^ _turned(b, 8)
        b = (b + a) & _WORD
        a = ((a - c) & _WORD) ^ _turned(c, 16)
        c = (c + b) & _WORD
        b = ((b - a) & _WORD) ^ _turned(a, 19)
        a = (a + c) & _WORD
        c = ((c - b) & _WORD) ^ _turned(b, 4)
        b = (b + a) & _WORD
        at += 12
    if at == len(content):
        return int(c)
    x, y, z = struct.unpack("<III", content[at:].ljust(12, b"\0"))
    a, b, c = (a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD
    c = ((c ^ b) - _turned(b, 14)) & _WORD
    a = ((a ^ c) - _turned(c, 11)) & _WORD
    b = ((b ^ a) - _turned(a, 25)) & _WORD
    c = ((c ^ b) - _turned(b, 16)) & _WORD
    a = ((a ^ c) - _turned(c, 4)) & _WORD
    b = ((b ^ a) - _turned(a, 14)) & _WORD
    return int(((c ^ b) - _turned(b, 24)) & _WORD)


def _turned(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _WORD
