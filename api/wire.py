"""The wire format: what a driver and the daemon say to each other, and nothing about sockets.

A message is one JSON header (UTF-8, 64 KiB at most), followed for frames by one raw body: the pixels,
little-endian, row by row. A driver says `start`, `frame`, `end`; the daemon answers each of them with
`ack` or `refuse`. `docs/wire.md` holds the format for those who write a client in another language.

Invariants: no pickle; nothing is trusted before it is checked (number of parts, header size, version,
kind, fields, body size, checksum, in this order); whatever arrives, `decode` returns a message or raises
`WireError`, nothing else; what `encode_frame` accepts, `decode` accepts. Fields that a receiver does not
know are ignored, so a later version may add some without a new number. Pure functions, safe on any thread.
"""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from microdiffusion.errors import WireError
from microdiffusion.run_header import RunHeader
from microdiffusion.sweep import Frame, FrameInfo

VERSION = 1
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 1 << 30
"""One image at most: 16384 x 16384 float32."""

Parts: TypeAlias = Sequence[bytes | memoryview]

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
# Integers that every JSON reader keeps exact.
Number = Annotated[int, Field(ge=0, lt=1 << 53)]
Index = Annotated[int, Field(ge=0, lt=1 << 31)]
Edge = Annotated[int, Field(ge=1, le=1 << 20)]


class Reason(StrEnum):
    """Why a message was refused; the receiver counts by these."""

    PARTS = "parts"
    HEADER_SIZE = "header-size"
    HEADER = "header"
    VERSION = "version"
    KIND = "kind"
    SIZE = "size"
    CHECKSUM = "checksum"
    FRAME = "frame"  # well-formed, but it does not belong into the run as its header describes it
    UNKNOWN_RUN = "unknown-run"
    BUSY = "busy"
    CLOSED = "closed"
    DECLINED = "declined"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    mdd: Literal[1] = 1


class RunStart(_Message):
    """A run begins, or its sender wants to know who listens (again).

    Attributes
    ----------
    header : RunHeader
        Geometry, beam and camera.
    attempt : int
        Echoed in the answer. TCP keeps the order, so whatever was sent before this message and is
        unanswered when its answer comes is lost.
    """

    kind: Literal["start"] = "start"
    header: RunHeader
    attempt: Number = 0


class RunEnd(_Message):
    """A run is over.

    Attributes
    ----------
    announced : int
        Frames that the camera took.
    dropped : int
        Those of them that the sender had no room for and never sent.
    reason : str
        "finished", or why it broke off.
    """

    kind: Literal["end"] = "end"
    run: RunId
    announced: Number
    dropped: Number
    reason: Annotated[str, Field(max_length=2000)] = "finished"


class Ack(_Message):
    """The daemon has it.

    Attributes
    ----------
    received : tuple of int
        `seq` of frames that the daemon took, duplicates included.
    attempt : int or None
        Answer to the `start` with this number.
    ended : bool
        Answer to `end`.
    """

    kind: Literal["ack"] = "ack"
    run: RunId
    received: Annotated[tuple[Number, ...], Field(max_length=1024)] = ()
    attempt: Number | None = None
    ended: bool = False


class Refuse(_Message):
    """The daemon does not take it.

    Attributes
    ----------
    run : str or None
        None where the message did not say.
    seq : int or None
        The frame; None where the run as a whole is refused.
    reason : str
        One of `Reason`, or the code of a newer daemon.
    text : str
        One sentence for the user.
    """

    kind: Literal["refuse"] = "refuse"
    run: RunId | None = None
    seq: Number | None = None
    reason: Annotated[str, Field(max_length=64)]
    text: Annotated[str, Field(max_length=2000)] = ""


class _FrameHeader(_Message):
    kind: Literal["frame"] = "frame"
    run: RunId
    seq: Number
    sweep: Index
    index: Index
    count: Annotated[int, Field(ge=1, le=1 << 20)]
    z_um: FiniteFloat
    channel: Index
    position: Index
    held_out: bool
    exposure_ms: Annotated[FiniteFloat, Field(ge=0)]
    camera_time_s: FiniteFloat
    htype: Literal["array-1.0"] = "array-1.0"
    shape: tuple[Edge, Edge]
    type: Literal["uint16", "float32"]
    crc32: Annotated[int, Field(ge=0, lt=1 << 32)]


@dataclass(frozen=True, slots=True)
class RunFrame:
    """A frame and the run that it belongs to; its pixels are a read-only view of the body."""

    run: str
    frame: Frame


Control: TypeAlias = RunStart | RunEnd | Ack | Refuse
Message: TypeAlias = RunFrame | Control


class _Envelope(BaseModel):
    mdd: Literal[1]


_header: TypeAdapter[Control | _FrameHeader] = TypeAdapter(
    Annotated[RunStart | RunEnd | Ack | Refuse | _FrameHeader, Field(discriminator="kind")]
)


def encode(message: Control) -> list[bytes]:
    """Return the single part of a message without a body.

    Raises
    ------
    WireError
        It does not fit into 64 KiB (a very long axial profile or list of positions).
    """
    header = message.model_dump_json().encode()
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(
            f"A {message.kind} message holds {MAX_HEADER_BYTES} bytes at most, this one would have "
            f"{len(header)}: shorten the axial profile or the list of positions.",
            reason=Reason.HEADER_SIZE,
        )
    return [header]


def encode_frame(run: str, frame: Frame) -> list[bytes | memoryview]:
    """Return header and body of a frame; the body is a view of its pixels where these are contiguous.

    Raises
    ------
    WireError
        `info` or `pixels` (Y, X; uint16 or float32) cannot be sent as they are.
    """
    info, pixels = frame.info, frame.pixels
    try:
        little_endian = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
        body = little_endian.reshape(-1).view(np.uint8).data
        header = _FrameHeader(
            run=run,
            seq=operator.index(info.seq),
            sweep=operator.index(info.sweep),
            index=operator.index(info.index),
            count=operator.index(info.count),
            z_um=float(info.z_um),
            channel=operator.index(info.channel),
            position=operator.index(info.position),
            held_out=bool(info.held_out),
            exposure_ms=float(info.exposure_ms),
            camera_time_s=float(info.camera_time_s),
            shape=pixels.shape,
            type=pixels.dtype.newbyteorder("=").name,  # type: ignore[arg-type]  # validated right here
            crc32=zlib.crc32(body),
        )
    except (ValidationError, TypeError, ValueError) as error:
        raise WireError(f"A frame cannot be sent: {_first_complaint(error)}.") from error
    _check_place(header)
    return [header.model_dump_json().encode(), body]


def decode(parts: Parts) -> Message:
    """Return the message that `parts` hold; the pixels of a frame are a view of its body, not a copy.

    Raises
    ------
    WireError
        The message breaks the format; `reason` says how, `run` and `seq` whose frame it was if known.
    """
    if len(parts) not in (1, 2):
        raise WireError(f"A message has one or two parts, this one has {len(parts)}.", reason=Reason.PARTS)
    size = memoryview(parts[0]).nbytes
    if size > MAX_HEADER_BYTES:
        raise WireError(
            f"A header has {MAX_HEADER_BYTES} bytes at most, this one has {size}.", reason=Reason.HEADER_SIZE
        )
    header = _decode_header(bytes(parts[0]))
    expected_parts = 2 if isinstance(header, _FrameHeader) else 1
    if len(parts) != expected_parts:
        raise WireError(
            f"A {header.kind} message has {expected_parts} part(s), this one has {len(parts)}.",
            reason=Reason.PARTS,
        )
    if isinstance(header, _FrameHeader):
        return RunFrame(header.run, _decode_frame(header, memoryview(parts[1])))
    return header


def _decode_header(raw: bytes) -> Control | _FrameHeader:
    try:
        header = _header.validate_json(raw)
    except ValidationError as error:
        raise _header_error(raw, error) from error
    if "mdd" not in header.model_fields_set:
        raise WireError(
            f'A header needs the version field "mdd": {VERSION}; this one has none.', reason=Reason.VERSION
        )
    return header


def _header_error(raw: bytes, error: ValidationError) -> WireError:
    kinds = {complaint["type"] for complaint in error.errors(include_url=False, include_input=False)}
    if "json_invalid" in kinds:
        return WireError(f"A header is a JSON object in UTF-8: {_first_complaint(error)}.")
    # The version comes first: another version may have other kinds and other fields.
    try:
        _Envelope.model_validate_json(raw)
    except ValidationError:
        return WireError(
            f'This is version {VERSION} of the wire format; a header needs "mdd": {VERSION}. '
            "Run the same version of mdd on both sides.",
            reason=Reason.VERSION,
        )
    reason = Reason.KIND if kinds & {"union_tag_invalid", "union_tag_not_found"} else Reason.HEADER
    return WireError(f"A header does not fit its kind: {_first_complaint(error)}.", reason=reason)


def _decode_frame(header: _FrameHeader, body: memoryview) -> Frame:
    dtype = np.dtype(header.type).newbyteorder("<")
    expected = math.prod(header.shape) * dtype.itemsize
    if body.nbytes != expected or expected > MAX_BODY_BYTES:
        raise WireError(
            f"Frame {header.seq} of {header.shape} {header.type} needs a body of {expected} bytes "
            f"({MAX_BODY_BYTES} at most), it came with {body.nbytes}.",
            reason=Reason.SIZE,
            run=header.run,
            seq=header.seq,
        )
    _check_place(header)
    if zlib.crc32(body) != header.crc32:
        raise WireError(
            f"The checksum of frame {header.seq} is wrong.",
            reason=Reason.CHECKSUM,
            run=header.run,
            seq=header.seq,
        )
    pixels = np.frombuffer(body, dtype=dtype).reshape(header.shape)
    if not pixels.flags.aligned:  # ZeroMQ may place a small body anywhere in its receive buffer
        pixels = pixels.copy()
    pixels.flags.writeable = False
    info = FrameInfo(
        seq=header.seq,
        sweep=header.sweep,
        index=header.index,
        count=header.count,
        z_um=header.z_um,
        channel=header.channel,
        position=header.position,
        held_out=header.held_out,
        exposure_ms=header.exposure_ms,
        camera_time_s=header.camera_time_s,
    )
    return Frame(info, pixels)


def _check_place(header: _FrameHeader) -> None:
    if header.index >= header.count:
        raise WireError(
            f"Frame {header.seq} claims to be number {header.index} of {header.count} frames of its sweep; "
            "the index must be below the count.",
            reason=Reason.FRAME,
            run=header.run,
            seq=header.seq,
        )


def _first_complaint(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
