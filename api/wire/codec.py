"""The wire format: messages as bytes, and nothing about sockets.

A message is one JSON header (UTF-8, 64 KiB at most), for frames one raw body (the pixels, little-endian,
row by row), and four bytes that check the header; the header of a frame checks its body. A driver says
`start`, `frame`, `progress`, `end`; the daemon answers with `ack` or `refuse`, and may `tell` the driver to
pause. On a socket of its own a `command` is answered with `answer`. `docs/wire.md` has the format for those
who write a client in another language.

Invariants: no pickle; nothing is trusted before it is checked (number of parts, header size, the header's
checksum, version, kind, fields, body size, the body's checksum, in this order); whatever arrives, `decode`
returns a message or raises `WireError`, nothing else, and soon; what `encode_frame` accepts, `decode`
accepts. Fields that a receiver does not know are ignored, so a later version may add some without a new
number. Pure functions, safe on any thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from zlib_ng.zlib_ng import crc32

from microdiffusion.errors import WireError
from microdiffusion.frames import FRAME_FIELDS, Frame, FrameInfo, frame_info
from microdiffusion.wire.messages import Control, FrameBody, FrameHeader, Reason

VERSION = 2
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 1 << 30
"""One image at most: 16384 x 16384 float32."""
CHECK_BYTES = 4
MAX_COMPLAINTS = 100

Parts: TypeAlias = Sequence[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class RunFrame:
    """A frame and the run that it belongs to; its pixels are a read-only view of the body."""

    run: str
    frame: Frame


Message: TypeAlias = RunFrame | Control


class _Envelope(BaseModel):
    mdd: Literal[2]


_header: TypeAdapter[Control | FrameBody] = TypeAdapter(
    Annotated[Control | FrameHeader, Field(discriminator="kind")]
)


def encode(message: Control) -> list[bytes]:
    """Return the parts of a message without a body: header and check.

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
    return [header, check_of(header)]


def encode_frame(run: str, frame: Frame) -> list[bytes | memoryview]:
    """Return header, body and check of a frame; the body is a view of its pixels where these are contiguous.

    Raises
    ------
    WireError
        `info` or `pixels` (Y, X; uint16 or float32) cannot be sent as they are.
    """
    info, pixels = frame.info, frame.pixels
    try:
        little_endian = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
        body = little_endian.reshape(-1).view(np.uint8).data
        header = FrameHeader(
            run=run,
            shape=pixels.shape,
            type=pixels.dtype.newbyteorder("=").name,  # type: ignore[arg-type]  # validated right here
            crc32=crc32(body),
            **{field.name: field.plain(info) for field in FRAME_FIELDS},
        )
    except (ValidationError, TypeError, ValueError) as error:
        raise WireError(f"A frame cannot be sent: {_first_complaint(error)}.") from error
    _check_place(run, info)
    text = header.model_dump_json().encode()
    return [text, body, check_of(text)]


def decode(parts: Parts) -> Message:
    """Return the message that `parts` hold; the pixels of a frame are a view of its body, not a copy.

    Raises
    ------
    WireError
        The message breaks the format; `reason` says how, `run` and `seq` whose frame it was if known.
    """
    if len(parts) not in (2, 3):
        raise WireError(f"A message has two or three parts, not {len(parts)}.", reason=Reason.PARTS)
    raw = _checked_header(parts[0], parts[-1])
    header = _decode_header(raw)
    expected_parts = 3 if isinstance(header, FrameBody) else 2
    if len(parts) != expected_parts:
        raise WireError(
            f"A {header.kind} message has {expected_parts} parts, this one has {len(parts)}.",
            reason=Reason.PARTS,
        )
    if isinstance(header, FrameBody):
        return RunFrame(header.run, _decode_frame(header, memoryview(parts[1])))
    return header


def check_of(header: bytes) -> bytes:
    """Return the last part of a message with this header."""
    return crc32(header).to_bytes(CHECK_BYTES, "little")


def _checked_header(part: bytes | memoryview, check: bytes | memoryview) -> bytes:
    """Return the header if it is of sane size and arrived as it was sent."""
    size = memoryview(part).nbytes
    if size > MAX_HEADER_BYTES:
        raise WireError(
            f"A header has {MAX_HEADER_BYTES} bytes at most, this one has {size}.", reason=Reason.HEADER_SIZE
        )
    raw = bytes(part)
    if memoryview(check).nbytes != CHECK_BYTES:
        raise WireError(f"A message ends with a check of {CHECK_BYTES} bytes.", reason=Reason.PARTS)
    if bytes(check) != check_of(raw):
        raise WireError("The checksum of a header is wrong.", reason=Reason.CHECKSUM)
    return raw


def _version_error() -> WireError:
    return WireError(
        f'This is version {VERSION} of the wire format; a header needs "mdd": {VERSION}. '
        "Run the same version of mdd on both sides.",
        reason=Reason.VERSION,
    )


def _decode_header(raw: bytes) -> Control | FrameBody:
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
    if error.error_count() > MAX_COMPLAINTS:  # listing them would take longer than everything else
        return WireError(f"A header does not fit its kind: {error.error_count()} of its values are wrong.")
    kinds = {complaint["type"] for complaint in error.errors(include_url=False, include_input=False)}
    if "json_invalid" in kinds:
        return WireError(f"A header is a JSON object in UTF-8: {_first_complaint(error)}.")
    # The version comes first: another version may have other kinds and other fields.
    try:
        _Envelope.model_validate_json(raw)
    except ValidationError:
        return _version_error()
    reason = Reason.KIND if kinds & {"union_tag_invalid", "union_tag_not_found"} else Reason.HEADER
    return WireError(f"A header does not fit its kind: {_first_complaint(error)}.", reason=reason)


def _decode_frame(header: FrameBody, body: memoryview) -> Frame:
    info = frame_info(header.__dict__)
    dtype = np.dtype(header.type).newbyteorder("<")
    expected = math.prod(header.shape) * dtype.itemsize
    if body.nbytes != expected or expected > MAX_BODY_BYTES:
        raise WireError(
            f"Frame {info.seq} of {header.shape} {header.type} needs a body of {expected} bytes "
            f"({MAX_BODY_BYTES} at most), it came with {body.nbytes}.",
            reason=Reason.SIZE,
            run=header.run,
            seq=info.seq,
        )
    _check_place(header.run, info)
    if crc32(body) != header.crc32:
        raise WireError(
            f"The checksum of frame {info.seq} is wrong.",
            reason=Reason.CHECKSUM,
            run=header.run,
            seq=info.seq,
        )
    pixels = np.frombuffer(body, dtype=dtype).reshape(header.shape)
    if not pixels.flags.aligned:  # ZeroMQ may place a small body anywhere in its receive buffer
        pixels = pixels.copy()
    pixels.flags.writeable = False
    return Frame(info, pixels, crc32=header.crc32)


def _check_place(run: str, info: FrameInfo) -> None:
    if info.index >= info.count:
        raise WireError(
            f"Frame {info.seq} claims to be number {info.index} of {info.count} frames of its sweep; "
            "the index must be below the count.",
            reason=Reason.FRAME,
            run=run,
            seq=info.seq,
        )


def _first_complaint(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
