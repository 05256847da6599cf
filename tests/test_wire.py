"""The codec: what goes in comes out, and nothing that comes in can do more than raise WireError."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from wire_support import RUN, make_frame, make_header

from microdiffusion import wire
from microdiffusion.errors import WireError
from microdiffusion.sweep import Frame, FrameInfo
from microdiffusion.wire import Ack, Reason, Refuse, RunEnd, RunStart, decode, encode, encode_frame

numbers = st.integers(0, 2**53 - 1)
indices = st.integers(0, 2**31 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
run_ids = st.text("0123456789abcdef", min_size=32, max_size=32)
counts = st.integers(1, 2**20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
images = hnp.arrays(
    st.sampled_from(["<u2", ">u2", "<f4", ">f4"]), hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
)
infos = counts.flatmap(
    lambda count: st.builds(
        FrameInfo,
        seq=numbers,
        sweep=indices,
        index=st.integers(0, count - 1),
        count=st.just(count),
        z_um=finite,
        channel=indices,
        position=indices,
        held_out=st.booleans(),
        exposure_ms=st.floats(0, 1e9),
        camera_time_s=finite,
    )
)
controls = st.one_of(
    st.builds(RunStart, header=st.builds(make_header, name=texts), attempt=numbers),
    st.builds(RunEnd, run=run_ids, announced=numbers, dropped=numbers, reason=texts),
    st.builds(
        Ack,
        run=run_ids,
        received=st.lists(numbers, max_size=5).map(tuple),
        attempt=st.none() | numbers,
        ended=st.booleans(),
    ),
    st.builds(
        Refuse, run=st.none() | run_ids, seq=st.none() | numbers, reason=st.sampled_from(Reason), text=texts
    ),
)


@given(run_ids, infos, images)
def test_a_frame_comes_out_as_it_went_in(run: str, info: FrameInfo, pixels: np.ndarray) -> None:
    message = decode(encode_frame(run, Frame(info, pixels)))
    assert isinstance(message, wire.RunFrame)
    assert message.run == run
    assert message.frame.info == info
    assert message.frame.pixels.dtype.newbyteorder("=") == pixels.dtype.newbyteorder("=")
    np.testing.assert_array_equal(message.frame.pixels, pixels)


@given(controls)
def test_a_control_message_comes_out_as_it_went_in(message: wire.Control) -> None:
    assert decode(encode(message)) == message


@given(images, st.integers(1, 3), st.integers(1, 3))
def test_pixels_that_are_not_contiguous_are_sent_in_order(pixels: np.ndarray, down: int, along: int) -> None:
    view = pixels[::down, ::-along]
    message = decode(encode_frame(RUN, Frame(make_frame(0).info, view)))
    np.testing.assert_array_equal(message.frame.pixels, view)


def test_pixels_are_aligned_and_read_only_wherever_the_body_lies() -> None:
    frame = make_frame(3, make_header(dtype="float32"))
    header, body = encode_frame(RUN, frame)
    shifted = memoryview(b"x" + bytes(body))[1:]
    pixels = decode([header, shifted]).frame.pixels
    assert pixels.flags.aligned
    assert not pixels.flags.writeable
    np.testing.assert_array_equal(pixels, frame.pixels)


def test_numpy_scalars_in_the_info_are_sent_as_plain_numbers() -> None:
    info = FrameInfo(seq=np.int64(4), sweep=np.uint16(1), index=0, count=np.int32(2), z_um=np.float32(1.5))
    received = decode(encode_frame(RUN, Frame(info, make_frame(0).pixels))).frame.info
    assert received == info
    assert type(received.seq) is int


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"z_um": math.nan}, id="z is not a number"),
        pytest.param({"camera_time_s": math.inf}, id="time is infinite"),
        pytest.param({"seq": -1}, id="negative seq"),
        pytest.param({"seq": 1.5}, id="fractional seq"),
        pytest.param({"count": 0}, id="empty sweep"),
        pytest.param({"index": 10}, id="index not below count"),
    ],
)
def test_a_frame_that_decode_would_refuse_is_not_encoded(change: dict[str, Any]) -> None:
    info = make_frame(0).info
    values = {name: getattr(info, name) for name in FrameInfo.__slots__}
    with pytest.raises(WireError):
        encode_frame(RUN, Frame(FrameInfo(**{**values, **change}), make_frame(0).pixels))


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((4, 4)), id="float64"),
        pytest.param(np.zeros((4, 4), dtype=object), id="objects"),
        pytest.param(np.zeros((2, 4, 4), dtype=np.uint16), id="three axes"),
        pytest.param(np.zeros((0, 4), dtype=np.uint16), id="no rows"),
    ],
)
def test_pixels_of_another_kind_are_not_encoded(pixels: np.ndarray) -> None:
    with pytest.raises(WireError):
        encode_frame(RUN, Frame(make_frame(0).info, pixels))


def test_a_header_that_is_too_large_is_not_encoded() -> None:
    weights = tuple(np.random.default_rng(0).random(8000).tolist())
    with pytest.raises(WireError, match="65536 bytes at most"):
        encode(RunStart(header=make_header(profile_weights=weights)))


def _frame(**changes: Any) -> list[bytes]:
    """Return a frame with fields of its header changed; a field of None is left out."""
    header, body = encode_frame(RUN, make_frame(7))
    fields = {**json.loads(header), **changes}
    fields = {name: value for name, value in fields.items() if value is not None}
    return [json.dumps(fields).encode(), bytes(body)]


BODY_BYTES = 16 * 24 * 2
MALFORMED = [
    pytest.param([], Reason.PARTS, id="no part"),
    pytest.param([*_frame(), b""], Reason.PARTS, id="three parts"),
    pytest.param(_frame()[:1], Reason.PARTS, id="frame without body"),
    pytest.param([*encode(Ack(run=RUN)), b"x"], Reason.PARTS, id="ack with body"),
    pytest.param([b" " * (wire.MAX_HEADER_BYTES + 1)], Reason.HEADER_SIZE, id="large header"),
    pytest.param([b""], Reason.HEADER, id="empty header"),
    pytest.param([b"\xff\xfe{}"], Reason.HEADER, id="not UTF-8"),
    pytest.param([b"[" * 60000], Reason.HEADER, id="deeply nested"),
    pytest.param([b"[1, 2]"], Reason.VERSION, id="not an object"),
    pytest.param([b"\x80\x04K\x01."], Reason.HEADER, id="a pickle"),
    pytest.param(_frame(mdd=None), Reason.VERSION, id="no version"),
    pytest.param(_frame(mdd=2), Reason.VERSION, id="version 2"),
    pytest.param(_frame(mdd=2, kind="novel", seq="x"), Reason.VERSION, id="version 2 with other fields"),
    pytest.param(_frame(mdd="1"), Reason.VERSION, id="version as text"),
    pytest.param(_frame(kind="novel"), Reason.KIND, id="unknown kind"),
    pytest.param(_frame(kind=None), Reason.KIND, id="no kind"),
    pytest.param(_frame(run="short"), Reason.HEADER, id="run id"),
    pytest.param(_frame(seq="7"), Reason.HEADER, id="seq as text"),
    pytest.param(_frame(seq=True), Reason.HEADER, id="seq as truth value"),
    pytest.param(_frame(seq=-1), Reason.HEADER, id="negative seq"),
    pytest.param(_frame(z_um=math.nan), Reason.HEADER, id="z is not a number"),
    pytest.param(_frame(z_um=None), Reason.HEADER, id="z is missing"),
    pytest.param(_frame(type="float64"), Reason.HEADER, id="unknown type"),
    pytest.param(_frame(htype="chunk-1.0"), Reason.HEADER, id="unknown htype"),
    pytest.param(_frame(shape=[16, 0]), Reason.HEADER, id="empty shape"),
    pytest.param(_frame(shape=[2**40, 2**40]), Reason.HEADER, id="absurd shape"),
    pytest.param(_frame(shape=[2**20, 2**20]), Reason.SIZE, id="shape larger than any body"),
    pytest.param(_frame(shape=[16, 25]), Reason.SIZE, id="shape larger than the body"),
    pytest.param(_frame(type="float32"), Reason.SIZE, id="type larger than the body"),
    pytest.param([_frame()[0], b""], Reason.SIZE, id="empty body"),
    pytest.param(_frame(index=10), Reason.FRAME, id="index not below count"),
    pytest.param(_frame(crc32=1), Reason.CHECKSUM, id="wrong checksum"),
    pytest.param([_frame()[0], bytes(BODY_BYTES)], Reason.CHECKSUM, id="another body"),
]


@pytest.mark.parametrize(("parts", "reason"), MALFORMED)
def test_a_malformed_message_is_refused_with_its_reason(parts: list[bytes], reason: Reason) -> None:
    with pytest.raises(WireError) as caught:
        decode(parts)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 500


def test_a_damaged_frame_still_says_whose_it_was() -> None:
    with pytest.raises(WireError) as caught:
        decode(_frame(crc32=1))
    assert (caught.value.run, caught.value.seq) == (RUN, 7)


def test_fields_of_a_later_version_are_ignored() -> None:
    assert decode(_frame(novel=[1, 2, 3])).frame.info == make_frame(7).info


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_arbitrary_bytes_raise_nothing_but_wire_error(parts: list[bytes]) -> None:
    _decode_or_refuse(parts)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*json.loads(_frame()[0]), "header", "attempt"]), json_values))
@settings(max_examples=300)
def test_arbitrary_fields_raise_nothing_but_wire_error(changes: dict[str, Any]) -> None:
    _decode_or_refuse(_frame(**changes))


@given(controls, st.data())
def test_a_damaged_control_message_raises_nothing_but_wire_error(
    message: wire.Control, data: st.DataObject
) -> None:
    damaged = bytearray(encode(message)[0])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    _decode_or_refuse([bytes(damaged[: data.draw(st.integers(0, len(damaged)))])])


@given(st.integers(0, BODY_BYTES - 1), st.integers(0, 7))
def test_every_flipped_bit_of_a_body_is_noticed(place: int, bit: int) -> None:
    header, body = _frame()
    damaged = bytearray(body)
    damaged[place] ^= 1 << bit
    assert zlib.crc32(damaged) != zlib.crc32(body)
    with pytest.raises(WireError, match="checksum"):
        decode([header, bytes(damaged)])


def _decode_or_refuse(parts: list[bytes]) -> None:
    reason = None
    try:
        decode(parts)
    except WireError as error:
        reason = error.reason
    assert reason is None or reason in list(Reason)
