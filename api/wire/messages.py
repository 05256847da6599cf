"""The messages between driver and daemon, field by field; `codec` turns them into bytes and back.

Frozen pydantic models: whatever comes off the line is checked here, and nowhere after. Every text, list and
number is bounded. `docs/wire.md` has the meaning of each field. No state; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, create_model

from microdiffusion.frames import FRAME_FIELDS, Number
from microdiffusion.header import RunHeader
from microdiffusion.wire.feedback import SweepFeedback

MAX_HELD = 1024
"""Most frames that an answer to `start` can name as held."""

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Edge = Annotated[int, Field(ge=1, le=1 << 20)]
Text = Annotated[str, Field(max_length=2000)]
Value = str | bool | Annotated[int, Field(gt=-(1 << 53), lt=1 << 53)] | FiniteFloat | None


class Reason(StrEnum):
    """Reasons for refusing a message; the receiver counts by these."""

    PARTS = "parts"
    HEADER_SIZE = "header-size"
    HEADER = "header"
    VERSION = "version"
    KIND = "kind"
    SIZE = "size"
    CHECKSUM = "checksum"
    WINDOW = "window"  # more is unanswered than the daemon allows
    FRAME = "frame"  # well-formed, but it does not belong to the run as its header describes it
    UNKNOWN_RUN = "unknown-run"
    BUSY = "busy"
    CLOSED = "closed"
    DECLINED = "declined"


class WireModel(BaseModel):
    """Base of all messages: strict, frozen, and of this version."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    mdd: Literal[2] = 2


class RunStart(WireModel):
    """A run begins, or its sender asks (again) who is there.

    `first_seq` is where this sender's frame numbers begin: above 0 where it continues a run that another one
    left. It distinguishes the senders of one run, whatever their sockets. `attempt` is echoed in the answer.
    `secret` proves that a run which is resumed is the sender's own. TCP keeps the order, so whatever was sent
    before this message and is unanswered when its answer comes is lost.
    """

    kind: Literal["start"] = "start"
    header: RunHeader
    first_seq: Number = 0
    attempt: Number = 0
    secret: Annotated[str, Field(pattern=r"^[!-~]{0,64}$", repr=False)] = ""


class RunProgress(WireModel):
    """Progress of a run, each second; not answered. A sender that is killed leaves the last one.

    `announced` frames were taken by the camera so far; of these, `dropped` will never be sent, for want of
    room. `journal_bytes` of pixels wait on the sender's disk.
    """

    kind: Literal["progress"] = "progress"
    run: RunId
    first_seq: Number = 0
    announced: Number
    dropped: Number
    journal_bytes: Number = 0


class RunEnd(WireModel):
    """A run is over; `announced - dropped - unsent - damaged - received` were lost on the line.

    `unsent` frames are left with the sender, whose journal may deliver them later (one that arrived without
    the sender hearing of it is received, not unsent); `damaged` ones were refused for good.
    """

    kind: Literal["end"] = "end"
    run: RunId
    first_seq: Number = 0
    announced: Number
    dropped: Number
    unsent: Number = 0
    damaged: Number = 0
    reason: Text = "finished"


class Tell(WireModel):
    """A request to a run's driver: "go" on, "pause" before the next sweep, or "stop"; `text` says why."""

    kind: Literal["tell"] = "tell"
    run: RunId
    what: Literal["go", "pause", "stop"]
    text: Text = ""


class Feedback(WireModel):
    """Findings of a sweep, to a run's driver that asked for it (`RunHeader.adaptive`); nobody answers."""

    kind: Literal["feedback"] = "feedback"
    run: RunId
    feedback: SweepFeedback


class Command(WireModel):
    """A request on the control socket; `key` and `value` of a setting, empty where it needs none."""

    kind: Literal["command"] = "command"
    command: Annotated[str, Field(max_length=64)]
    key: Annotated[str, Field(max_length=200)] = ""
    value: Text = ""
    number: Number = 0


class Answer(WireModel):
    """The answer to the `Command` of this number: whether it was carried out, and one sentence."""

    kind: Literal["answer"] = "answer"
    number: Number
    ok: bool
    text: Text = ""
    values: Annotated[Mapping[Annotated[str, Field(max_length=200)], Value], Field(max_length=256)] = {}


class Ack(WireModel):
    """Acknowledgement: the daemon has it.

    `received` are frames that are safe with the daemon, duplicates included, in the order in which they came.
    `attempt` answers the `start` of this number; `window_bytes` (most that may be sent and unanswered),
    `held` (frames that are there but not safe yet: they need not be sent again) and `server` (the daemon's
    version) come with it. `ended` answers `end`.
    """

    kind: Literal["ack"] = "ack"
    run: RunId
    received: Annotated[tuple[Number, ...], Field(max_length=1024)] = ()
    attempt: Number | None = None
    window_bytes: Number | None = None
    held: Annotated[tuple[Number, ...], Field(max_length=MAX_HELD)] = ()
    server: Annotated[str, Field(max_length=64)] = ""
    ended: bool = False


class Refuse(WireModel):
    """The daemon does not take it: the frame `seq`, or the whole run where that is None.

    `reason` is one of `Reason`, or the code of a newer daemon; `text` is one sentence for the user.
    """

    kind: Literal["refuse"] = "refuse"
    run: RunId | None = None
    seq: Number | None = None
    reason: Annotated[str, Field(max_length=64)]
    text: Text = ""


class FrameBody(WireModel):
    """Header of a frame: its run and its pixels."""

    kind: Literal["frame"] = "frame"
    run: RunId
    htype: Literal["array-1.0"] = "array-1.0"
    shape: tuple[Edge, Edge]
    type: Literal["uint16", "float32"]
    crc32: Annotated[int, Field(ge=0, lt=1 << 32)]


_PLACE: dict[str, Any] = {
    field.name: (field.kind, ... if field.default is None else field.default) for field in FRAME_FIELDS
}
FrameHeader = create_model("FrameHeader", __base__=FrameBody, **_PLACE)
"""Header of a frame: `FrameBody`, and each field of `FrameInfo` as it is declared there."""


Control: TypeAlias = RunStart | RunProgress | RunEnd | Ack | Refuse | Tell | Feedback | Command | Answer
