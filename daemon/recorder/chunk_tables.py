"""HDF5's own tables of where the chunks of a growing dataset lie, mended without HDF5 after a writer is gone.

Owns `ChunkTables`: the object header of one dataset and its extensible array (HDF5's file format, version
3, IV.A and VII.C). HDF5 writes these tables in place, so a power cut may leave some pages of one as they
were and others as they are. Its checksum is wrong then, and HDF5 refuses the dataset with all that is in
it. But a table only ever gets more: what was forced to the disk is the same in both, so every mixture has
it. What the mixture holds besides was marked by nobody and is taken out (`keep`), and the checksum is made
anew. A table that is pointed to and never reached the disk holds nothing that was marked either: its
pointer goes.

Nothing is written before `save`. Used by one thread, which holds the run's lock.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from microdiffusion.runfile import lookup3

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_NOWHERE = (1 << 64) - 1
_SUM = 4  # bytes of a checksum, the last of each table
_DATASPACE, _LAYOUT, _CONTINUATION = 0x01, 0x08, 0x10
_EXTENSIBLE_ARRAY = 4
_HEADER_ROOM = 64  # what comes before the messages of an object header is shorter
_PARAMETERS = (32, 4, 16, 4, 10)  # of the array, as HDF5 makes it for chunks
_MOST_PIECES = 16  # of an object header
_MOST_BYTES = 1 << 24  # of a table; the largest that HDF5 makes of our datasets have a few KiB


@dataclass(slots=True)
class Table:
    """A stretch of the file that ends with its checksum."""

    at: int
    content: bytearray
    before: bytes

    def number(self, at: int, size: int = 8) -> int:
        """Return what the bytes from `at` on say."""
        return int.from_bytes(self.content[at : at + size], "little")

    def put(self, at: int, number: int) -> None:
        """Put a number of 8 bytes."""
        self.content[at : at + 8] = number.to_bytes(8, "little")


@dataclass(slots=True)
class _Entries:
    """Entries `first` and on of the array: an address, and of compressed chunks size and mask as well."""

    first: int
    rows: NDArray[np.uint8]  # (n, bytes of an entry), a view into a table


class ChunkTables:
    """The tables of one dataset, whose first axis grows.

    Parameters
    ----------
    stream : BinaryIO
        The file, open for reading and writing.
    address : int
        Where the dataset's object header lies.

    Attributes
    ----------
    chunk : tuple of int
        Shape of a chunk.
    tables : list of Table
        All that have a checksum of their own.

    Raises
    ------
    ValueError
        It is another kind of dataset, or its tables are damaged in another way than a power cut does it.
    """

    def __init__(self, stream: BinaryIO, address: int) -> None:
        self._stream = stream
        self._end = stream.seek(0, os.SEEK_END)
        self.tables: list[Table] = []
        self._entries: list[_Entries] = []
        self._array: Table | None = None
        found = self._read_header(address)
        if _DATASPACE not in found or _LAYOUT not in found:
            raise ValueError("it does not grow")
        table, at = found[_DATASPACE]
        self._length = table, at + 4
        table, at = self._read_layout(*found[_LAYOUT])
        if table.number(at) != _NOWHERE:
            self._array = self._pointed_to(table, at, 72, b"EAHD")
        if self._array is not None:
            self._read_array(self._array)

    @property
    def length(self) -> int:
        """Length of the first axis."""
        table, at = self._length
        return table.number(at)

    @length.setter
    def length(self, value: int) -> None:
        table, at = self._length
        table.put(at, value)

    def lasts(self, end: int) -> int:
        """Return how far along the first axis every chunk is there, before the file's end."""
        there = np.concatenate(
            [self._there(entries, end) for entries in self._entries] or [np.zeros(0, bool)]
        )
        gaps = np.flatnonzero(~there)
        return (int(gaps[0]) if gaps.size else len(there)) * self.chunk[0]

    def _there(self, entries: _Entries, end: int) -> NDArray[np.bool_]:
        return _ends(entries.rows, self._chunk_bytes) <= end

    def keep(self, marked: NDArray[np.bool_], each: int, end: int) -> NDArray[np.bool_]:
        """Forget all chunks but those of marked items that are there whole, before the file's end.

        Returns (items,) bool, which those are.

        Parameters
        ----------
        marked : (items,) bool
            In the order of the array.
        each : int
            Chunks of an item, which stand or fall as one.
        end : int
            Bytes of the file.
        """
        there = np.zeros(marked.size * each, bool)
        for entries in self._entries:
            some = there[entries.first : entries.first + len(entries.rows)]
            some[:] = self._there(entries, end)[: some.size]
        kept_items = marked & there.reshape(-1, each).all(axis=1)
        wanted = np.repeat(kept_items, each)
        for entries in self._entries:
            some = np.zeros(len(entries.rows), bool)
            kept = wanted[entries.first : entries.first + some.size]
            some[: kept.size] = kept
            entries.rows[~some, :8] = 0xFF
            entries.rows[~some, 8:] = 0
        if self._array is not None and wanted.any():
            stop = int(np.flatnonzero(wanted)[-1]) + 1
            self._array.put(44, max(self._array.number(44), stop))
        return kept_items

    def save(self) -> int:
        """Write the tables that are not as they were, with their checksums; return how many."""
        changed = 0
        for table in self.tables:
            table.content[-_SUM:] = lookup3(bytes(table.content[:-_SUM])).to_bytes(_SUM, "little")
            if table.content != table.before:
                self._stream.seek(table.at)
                self._stream.write(table.content)
                changed += 1
        return changed

    def _read(self, at: int, size: int) -> bytes:
        if not 0 < at < self._end or not 0 < size <= _MOST_BYTES:
            return bytes(max(min(size, _MOST_BYTES), 0))
        self._stream.seek(at)
        return self._stream.read(size).ljust(size, b"\0")

    def _table(self, at: int, size: int) -> Table:
        before = self._read(at, size)
        table = Table(at, bytearray(before), before)
        self.tables.append(table)
        return table

    def _pointed_to(self, parent: Table, at: int, size: int, signature: bytes) -> Table | None:
        """Return the table that `parent` points to; None, and the pointer taken away, where there is none."""
        address = parent.number(at)
        found = self._read(address, size)
        own = signature == b"EAHD" or (
            self._array is not None and found[6:14] == self._array.at.to_bytes(8, "little")
        )
        if found.startswith(signature) and own:
            return self._table(address, size)
        parent.put(at, _NOWHERE)
        return None

    def _read_header(self, address: int) -> dict[int, tuple[Table, int]]:
        """Return where the messages of each kind are, the last of each."""
        found: dict[int, tuple[Table, int]] = {}
        head = self._read(address, _HEADER_ROOM)
        if head[:5] != b"OHDR\x02":
            raise ValueError("it has no header")
        flags = head[5]
        at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(head[at : at + width], "little")
        table = self._table(address, at + width + size + _SUM)
        pieces = [(table, at + width)]
        for table, start in pieces:  # more are found on the way
            for kind, place in _messages(table, start, ordered=bool(flags & 4)):
                found[kind] = table, place
                if kind == _CONTINUATION and len(pieces) < _MOST_PIECES:
                    at, size = table.number(place), table.number(place + 8)
                    if self._read(at, 4) != b"OCHK" or not 8 < size <= _MOST_BYTES:
                        raise ValueError("a part of its header is absent")
                    pieces.append((self._table(at, size), 4))
        return found

    def _read_layout(self, table: Table, place: int) -> tuple[Table, int]:
        """Take the shape of a chunk and return where the array is pointed to."""
        version, kind, _, axes, width = table.content[place : place + 5]
        at = place + 5 + axes * width
        if (version, kind, table.number(at, 1)) != (4, 2, _EXTENSIBLE_ARRAY):
            raise ValueError("it does not grow")
        *chunk, itemsize = (table.number(place + 5 + axis * width, width) for axis in range(axes))
        self.chunk: tuple[int, ...] = tuple(chunk)
        self._chunk_bytes = prod(chunk) * itemsize
        return table, at + 6

    def _read_array(self, array: Table) -> None:
        size, bits, direct, least, pointers, page_bits = array.content[6:12]
        if (bits, direct, least, pointers, page_bits) != _PARAMETERS or not 8 <= size <= 20:
            raise ValueError("the head of its array is damaged")
        sorts = bits - least.bit_length() + 2
        inner = 2 * (pointers.bit_length() - 1)  # these have their data blocks in the index block
        blocks = 2 * (pointers - 1)
        offset_bytes = (bits + 7) // 8
        index = self._pointed_to(
            array, 60, 14 + direct * size + (blocks + max(sorts - inner, 0)) * 8 + _SUM, b"EAIB"
        )
        if index is None:
            return
        self._take(index, 14, 0, direct, size)
        first, at = direct, 14 + direct * size
        for sort in range(sorts):
            count, each = 1 << sort // 2, (1 << (sort + 1) // 2) * least
            pages = each >> page_bits if each > 1 << page_bits else 0
            holder: Table | None = index
            if sort >= inner:  # its data blocks are in a block of their own
                place = 14 + offset_bytes + count * ((pages + 7) // 8)
                if index.number(at) == _NOWHERE:
                    holder = None
                else:
                    holder = self._pointed_to(index, at, place + count * 8 + _SUM, b"EASB")
                at += 8
            else:
                place, at = at, at + count * 8
            for block in range(count) if holder is not None else ():
                if holder is not None and holder.number(place + block * 8) != _NOWHERE:
                    start = first + block * each
                    self._read_block(holder, place + block * 8, start, each, size, pages, 14 + offset_bytes)
            first += count * each

    def _read_block(
        self, holder: Table, at: int, first: int, each: int, size: int, pages: int, prefix: int
    ) -> None:
        """Read a data block: its entries, or where there are many, pages of them behind its own checksum."""
        block = self._pointed_to(holder, at, prefix + (0 if pages else each * size) + _SUM, b"EADB")
        if block is None:
            return
        if not pages:
            self._take(block, prefix, first, each, size)
            return
        of_page = each // pages
        for page in range(pages):
            table = self._table(
                block.at + prefix + _SUM + page * (of_page * size + _SUM), of_page * size + _SUM
            )
            self._take(table, 0, first + page * of_page, of_page, size)

    def _take(self, table: Table, at: int, first: int, count: int, size: int) -> None:
        rows = np.frombuffer(table.content, np.uint8, count * size, at).reshape(count, size)
        self._entries.append(_Entries(first, rows))


def _messages(table: Table, at: int, *, ordered: bool) -> Iterator[tuple[int, int]]:
    """Yield kind and place of each message in a piece of an object header."""
    before, end = 6 if ordered else 4, len(table.content) - _SUM
    while at + before <= end:
        kind, size = table.content[at], table.number(at + 1, 2)
        if at + before + size <= end:
            yield kind, at + before
        at += before + size


def _ends(rows: NDArray[np.uint8], chunk_bytes: int) -> NDArray[np.float64]:
    """Return where the chunks of entries end; far away where there is none."""
    address = np.ascontiguousarray(rows[:, :8]).view("<u8")[:, 0].astype(np.float64)
    width = rows.shape[1] - 12  # of the size; the mask has four bytes
    if width <= 0:
        return address + chunk_bytes
    sizes = np.zeros((len(rows), 8), np.uint8)
    sizes[:, :width] = rows[:, 8 : 8 + width]
    return address + sizes.view("<u8")[:, 0].astype(np.float64)


def chunks_of(shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    """Return how many chunks it takes for a shape."""
    return prod(ceil(size / edge) for size, edge in zip(shape, chunk, strict=True))
