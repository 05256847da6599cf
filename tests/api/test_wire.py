"""The codec: what goes in comes out, and nothing that comes in can do more than raise WireError."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from support.wire_support import RUN, make_frame, make_header

from microdiffusion import wire
from microdiffusion.errors import WireError
from microdiffusion.frames import Frame, FrameInfo, StagePosition
from microdiffusion.wire import (
    Ack,
    Answer,
    Command,
    Reason,
    Refuse,
    RunEnd,
    RunProgress,
    RunStart,
    Tell,
    check_of,
    decode,
    encode,
    encode_frame,
)

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
        stage=st.builds(StagePosition, finite),
        channel=indices,
        position=indices,
        held_out=st.booleans(),
        exposure_ms=st.floats(0, 1e9),
        camera_time_s=finite,
    )
)
controls = st.one_of(
    st.builds(RunStart, header=st.builds(make_header, name=texts), first_seq=numbers, attempt=numbers),
    st.builds(RunProgress, run=run_ids, first_seq=numbers, announced=numbers, dropped=numbers),
    st.builds(
        RunEnd,
        run=run_ids,
        first_seq=numbers,
        announced=numbers,
        dropped=numbers,
        unsent=numbers,
        damaged=numbers,
        reason=texts,
    ),
    st.builds(
        Ack,
        run=run_ids,
        received=st.lists(numbers, max_size=5).map(tuple),
        attempt=st.none() | numbers,
        window_bytes=st.none() | numbers,
        held=st.lists(numbers, max_size=5).map(tuple),
        server=texts,
        ended=st.booleans(),
    ),
    st.builds(Tell, run=run_ids, what=st.sampled_from(["go", "pause", "stop"]), text=texts),
    st.builds(Command, command=texts, key=texts, value=texts, number=numbers),
    st.builds(
        Answer,
        number=numbers,
        ok=st.booleans(),
        text=texts,
        values=st.dictionaries(texts, st.none() | texts | st.booleans() | numbers | finite, max_size=4),
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
    header, body, check = encode_frame(RUN, frame)
    shifted = memoryview(b"x" + bytes(body))[1:]
    pixels = decode([header, shifted, check]).frame.pixels
    assert pixels.flags.aligned
    assert not pixels.flags.writeable
    np.testing.assert_array_equal(pixels, frame.pixels)


def test_numpy_scalars_in_the_info_are_sent_as_plain_numbers() -> None:
    info = FrameInfo(
        seq=np.int64(4), sweep=np.uint16(1), index=0, count=np.int32(2), stage=StagePosition(np.float32(1.5))
    )
    received = decode(encode_frame(RUN, Frame(info, make_frame(0).pixels))).frame.info
    assert received == info
    assert type(received.seq) is int


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"stage": StagePosition(math.nan)}, id="z is not a number"),
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


def _checked(header: bytes, *body: bytes) -> list[bytes]:
    """Return a message whose header passes its check, whatever it says."""
    return [header, *body, check_of(header)]


def _frame(**changes: Any) -> list[bytes]:
    """Return a frame with fields of its header changed; a field of None is left out."""
    header, body, _ = encode_frame(RUN, make_frame(7))
    fields = {**json.loads(bytes(header)), **changes}
    fields = {name: value for name, value in fields.items() if value is not None}
    return _checked(json.dumps(fields).encode(), bytes(body))


BODY_BYTES = 16 * 24 * 2
ACK = b'{"mdd": 2, "kind": "ack", "run": "%s"}' % RUN.encode()
MALFORMED = [
    pytest.param([], Reason.PARTS, id="no part"),
    pytest.param(_frame()[:1], Reason.PARTS, id="one part"),
    pytest.param([*_frame(), b""], Reason.PARTS, id="four parts"),
    pytest.param([_frame()[0], _frame()[2]], Reason.PARTS, id="frame without body"),
    pytest.param(_frame()[:2], Reason.PARTS, id="frame without check"),
    pytest.param(_checked(ACK, b"x"), Reason.PARTS, id="ack with body"),
    pytest.param([ACK, b"12345"], Reason.PARTS, id="long check"),
    pytest.param([ACK, b"1234"], Reason.CHECKSUM, id="wrong check"),
    pytest.param([_frame()[0], _frame()[1], b"1234"], Reason.CHECKSUM, id="wrong check of a frame"),
    pytest.param([b" " * (wire.MAX_HEADER_BYTES + 1), b"1234"], Reason.HEADER_SIZE, id="large header"),
    pytest.param(_checked(b""), Reason.HEADER, id="empty header"),
    pytest.param(_checked(b"\xff\xfe{}"), Reason.HEADER, id="not UTF-8"),
    pytest.param(_checked(b"[" * 60000), Reason.HEADER, id="deeply nested"),
    pytest.param(_checked(b"[1, 2]"), Reason.VERSION, id="not an object"),
    pytest.param(_checked(b"\x80\x04K\x01."), Reason.HEADER, id="a pickle"),
    pytest.param(_frame(mdd=None), Reason.VERSION, id="no version"),
    pytest.param(_frame(mdd=3), Reason.VERSION, id="version 3"),
    pytest.param(_frame(mdd=3, kind="novel", seq="x"), Reason.VERSION, id="version 3 with other fields"),
    pytest.param(_frame(mdd="2"), Reason.VERSION, id="version as text"),
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
    pytest.param([_frame()[0], b"", _frame()[2]], Reason.SIZE, id="empty body"),
    pytest.param(_frame(index=10), Reason.FRAME, id="index not below count"),
    pytest.param(_frame(crc32=1), Reason.CHECKSUM, id="wrong checksum"),
    pytest.param([_frame()[0], bytes(BODY_BYTES), _frame()[2]], Reason.CHECKSUM, id="another body"),
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
def test_a_damaged_control_message_is_refused(message: wire.Control, data: st.DataObject) -> None:
    parts = [bytearray(part) for part in encode(message)]
    damaged = parts[data.draw(st.sampled_from([0, 0, 1]))]
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError) as caught:
        decode([bytes(part) for part in parts])
    assert caught.value.reason == Reason.CHECKSUM


@given(controls, st.data())
def test_a_strange_header_that_passes_its_check_raises_nothing_but_wire_error(
    message: wire.Control, data: st.DataObject
) -> None:
    header = bytearray(encode(message)[0])
    for place in data.draw(st.lists(st.integers(0, len(header) - 1), min_size=1, max_size=4)):
        header[place] = data.draw(st.integers(0, 255))
    _decode_or_refuse(_checked(bytes(header[: data.draw(st.integers(0, len(header)))])))


@given(st.sampled_from([0, 1, 2]), st.data())
def test_every_flipped_bit_of_a_frame_is_noticed(part: int, data: st.DataObject) -> None:
    parts = [bytearray(part) for part in _frame()]
    parts[part][data.draw(st.integers(0, len(parts[part]) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError, match="checksum"):
        decode([bytes(part) for part in parts])


SLOW = [
    pytest.param(b"[" * 65000, id="nested lists"),
    pytest.param(b'{"a":' * 13000, id="nested objects"),
    pytest.param(b'{"mdd": ' + b"9" * 65000 + b"}", id="a number of 65,000 digits"),
    pytest.param(b'{"mdd": 1e' + b"9" * 60000 + b"}", id="an exponent of 60,000 digits"),
    pytest.param(b'{"mdd": 2, "kind": "ack", "attempt": ' + b"9" * 65000 + b"}", id="such an attempt"),
    pytest.param(b'{"mdd": 2, "kind": "ack", "received": [' + b"-1," * 21000 + b"0]}", id="many wrong items"),
    pytest.param(
        b'{"mdd": 2, "kind": "start", "header": {' + b",".join(b'"%d":0' % n for n in range(6500)) + b"}}",
        id="many wrong fields",
    ),
    pytest.param(
        b'{"mdd": 2, "kind": "answer", "number": 1, "ok": true, "values": {'
        + b",".join(b'"%d":[]' % n for n in range(5500))
        + b"}}",
        id="many wrong values",
    ),
    pytest.param(b'{"mdd": 2, "kind": "refuse", "reason": "\\ud800"}', id="half of a surrogate pair"),
    pytest.param(b'{"mdd": 2, "kind": "refuse", "reason": "' + b"\\u0000" * 10000 + b'"}', id="zeros"),
    pytest.param(b'{"mdd": NaN}', id="not a number"),
    pytest.param(b'{"mdd": 2, ' * 5000, id="repeated and unfinished"),
]


@pytest.mark.parametrize("header", SLOW)
def test_no_header_takes_long_to_refuse(header: bytes) -> None:
    best_s = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        with pytest.raises(WireError) as caught:
            decode(_checked(header))
        best_s = min(best_s, time.perf_counter() - begin)
        assert len(str(caught.value)) < 500
    assert best_s < 0.15


def _decode_or_refuse(parts: list[bytes]) -> None:
    reason = None
    try:
        decode(parts)
    except WireError as error:
        reason = error.reason
    assert reason is None or reason in list(Reason)


@pytest.mark.parametrize(
    "changes",
    [{"profile_weights": (1e308, 1e308)}, {"channels": ("c",) * 64, "positions": ("0",) * 200}],
    ids=["infinite profile", "too many sessions"],
)
def test_a_header_that_no_run_can_have_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_header(**changes)


def test_names_from_elsewhere_steer_no_terminal() -> None:
    header = make_header(name="a\x1b[2Jb\n", channels=("\x07",), source="\x9b")
    assert (header.name, header.channels, header.source) == ("a_[2Jb_", ("_",), "_")
    assert wire.decode(wire.encode(wire.RunStart(header=header))).header == header
