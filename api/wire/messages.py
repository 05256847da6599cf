"""What driver and daemon say to each other, field by field; `wire` turns it into bytes and back.

Frozen pydantic models: whatever comes off the line is checked here, and nowhere after. Every text, list and
number is bounded. No state; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, create_model

from microdiffusion.frames import FRAME_FIELDS, Number
from microdiffusion.header import RunHeader

MAX_HELD = 1024
"""Most frames that an answer to `start` can name as held."""

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Edge = Annotated[int, Field(ge=1, le=1 << 20)]
Text = Annotated[str, Field(max_length=2000)]
Value = str | bool | Annotated[int, Field(gt=-(1 << 53), lt=1 << 53)] | FiniteFloat | None


class Reason(StrEnum):
    """Why a message was refused; the receiver counts by these."""

    PARTS = "parts"
    HEADER_SIZE = "header-size"
    HEADER = "header"
    VERSION = "version"
    KIND = "kind"
    SIZE = "size"
    CHECKSUM = "checksum"
    WINDOW = "window"  # more on its way than the daemon said that it takes
    FRAME = "frame"  # well-formed, but it does not belong into the run as its header describes it
    UNKNOWN_RUN = "unknown-run"
    BUSY = "busy"
    CLOSED = "closed"
    DECLINED = "declined"


class WireModel(BaseModel):
    """Base of all messages: strict, frozen, and of this version."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    mdd: Literal[2] = 2


class RunStart(WireModel):
    """A run begins, or its sender wants to know who listens (again).

    Attributes
    ----------
    header : RunHeader
        Geometry, beam and camera.
    first_seq : int
        Where this sender's frame numbers begin: above 0 where it goes on with a run that another one left.
        It tells the senders of one run apart, whatever their sockets.
    attempt : int
        Echoed in the answer. TCP keeps the order, so whatever was sent before this message and is
        unanswered when its answer comes is lost.
    """

    kind: Literal["start"] = "start"
    header: RunHeader
    first_seq: Number = 0
    attempt: Number = 0


class RunProgress(WireModel):
    """How far a run has come, said each second; unanswered. A sender that is killed leaves the last one.

    Attributes
    ----------
    first_seq : int
        Whose numbers these are; see `RunStart`.
    announced : int
        Frames that the camera took so far.
    dropped : int
        Those of them that the sender had no room for and never will send.
    journal_bytes : int
        Pixels that wait in the sender's journal, on its disk.
    """

    kind: Literal["progress"] = "progress"
    run: RunId
    first_seq: Number = 0
    announced: Number
    dropped: Number
    journal_bytes: Number = 0


class RunEnd(WireModel):
    """A run is over; `announced - dropped - unsent - damaged - received` were lost on the line.

    Attributes
    ----------
    first_seq : int
        Whose numbers these are; see `RunStart`.
    announced : int
        Frames that the camera took.
    dropped : int
        Those of them that the sender had no room for and never will send.
    unsent : int
        Those that are left with the sender: its journal may deliver them later. Where a frame arrived
        without the sender hearing of it, it is received, not unsent.
    damaged : int
        Those that were refused for good.
    reason : str
        "finished", or why it broke off.
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
    """What the daemon wants of a run's driver.

    Attributes
    ----------
    what : str
        "go" on, "pause" before the next sweep, or "stop" in good order.
    text : str
        Why, one sentence for the user.
    """

    kind: Literal["tell"] = "tell"
    run: RunId
    what: Literal["go", "pause", "stop"]
    text: Text = ""


class Command(WireModel):
    """A request on the control socket.

    Attributes
    ----------
    command : str
        Its name; the daemon knows which there are.
    key, value : str
        Of a setting, as after `--set`; empty where the command needs none.
    number : int
        Echoed in the answer.
    """

    kind: Literal["command"] = "command"
    command: Annotated[str, Field(max_length=64)]
    key: Annotated[str, Field(max_length=200)] = ""
    value: Text = ""
    number: Number = 0


class Answer(WireModel):
    """What became of a `Command`.

    Attributes
    ----------
    number : int
        That of the command.
    ok : bool
        Whether it was obeyed.
    text : str
        One sentence for the user.
    values : dict of str to str, int, float, bool or None
        What was asked for.
    """

    kind: Literal["answer"] = "answer"
    number: Number
    ok: bool
    text: Text = ""
    values: Annotated[Mapping[Annotated[str, Field(max_length=200)], Value], Field(max_length=256)] = {}


class Ack(WireModel):
    """The daemon has it.

    Attributes
    ----------
    received : tuple of int
        `seq` of frames that are safe with the daemon, duplicates included; in the order in which they came.
    attempt : int or None
        Answer to the `start` with this number; the three that follow are said in this answer alone.
    window_bytes : int or None
        Most pixels, in bytes, that may be on their way or waiting unconfirmed.
    held : tuple of int
        `seq` of frames that are there but not safe yet: they need not be sent again.
    server : str
        The daemon's version of mdd.
    ended : bool
        Answer to `end`.
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
    text: Text = ""


class FrameBody(WireModel):
    """What the header of a frame says of its run and its pixels."""

    kind: Literal["frame"] = "frame"
    run: RunId
    htype: Literal["array-1.0"] = "array-1.0"
    shape: tuple[Edge, Edge]
    type: Literal["uint16", "float32"]
    crc32: Annotated[int, Field(ge=0, lt=1 << 32)]


_REQUIRED = frozenset(
    [
        "seq",
        "sweep",
        "index",
        "count",
        "z_um",
        "channel",
        "position",
        "held_out",
        "exposure_ms",
        "camera_time_s",
    ]
)
"""What this version began with. A field that came later may be absent, and is its default then."""
_PLACE: dict[str, Any] = {
    field.name: (field.kind, ... if field.name in _REQUIRED else field.default) for field in FRAME_FIELDS
}
FrameHeader = create_model("FrameHeader", __base__=FrameBody, **_PLACE)
"""Header of a frame: `FrameBody`, and each field of `FrameInfo` as it is declared there."""


Control: TypeAlias = RunStart | RunProgress | RunEnd | Ack | Refuse | Tell | Command | Answer
