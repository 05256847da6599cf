"""Messages that nobody should send: valid ones, spoilt at random, as fast as they can be made.

Most get a right check again after their header was spoilt; otherwise the checksum would turn all of them
away, and nothing behind it would be tried.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from microdiffusion import wire
from microdiffusion.frames import Frame, FrameInfo, StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.wire.messages import (
    Ack,
    Answer,
    Command,
    Control,
    Refuse,
    RunEnd,
    RunProgress,
    RunStart,
    Tell,
)

RUN = "0123456789abcdef" * 2
SHAPE = (8, 16, 16)

Message = list[bytes]

_NUMBERS = (
    *("0", "-1", "1", "9007199254740991", "9007199254740992", "1e308", "1e309", "-0", "1.5", "NaN"),
    *("4294967295", "4294967296", "2147483648", "1048577", "Infinity", "0.1e-400"),
    *("1" * 400, "-" + "9" * 4000, "1" * 60_000),
)
_VALUES = (
    *_NUMBERS,
    *('""', '"x"', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"µ"', '"..\\/x"', '"' + "a" * 2001 + '"'),
    *(
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[0,0]",
        "[1,1]",
        '[1,"a",null]',
        '{"a":{"b":{}}}',
        '{"a":1,"a":2}',
    ),
    *("[" * 200 + "]" * 200, "[" * 20_000, "[" * 20_000 + "]" * 20_000, '{"a":' * 5000 + "1" + "}" * 5000),
    *(
        "[" + "1," * 2000 + "1]",
        "[" + '"z",' * 9000 + "0]",
        "'x'",
        "+1",
        "01",
        ".5",
        "1.",
        "tru",
        '{"a":1,"a":2}',
    ),
)
_SMALL = (0, 1, 2, 3, 255, 65_536, (1 << 31) - 1, -1, 0.5)


def valid_messages(run: str = RUN) -> list[Message]:
    """Return one of each kind, and a few frames."""
    header = RunHeader(
        run_id=run,
        name="fuzz",
        shape=SHAPE,
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(0.5, 1.0, 0.5),
        profile_spacing_um=1.0,
        sweeps=4,
        frames_per_sweep=4,
    )
    controls: list[Control] = [
        RunStart(header=header, attempt=3),
        RunProgress(run=run, announced=5, dropped=1),
        RunEnd(run=run, announced=7, dropped=1, unsent=1, damaged=1, reason="µ"),
        Ack(run=run, received=(0, 1, 2), attempt=3, window_bytes=1 << 20, held=(4, 5), server="0.1.0"),
        Ack(run=run, ended=True),
        Refuse(run=run, seq=3, reason="checksum", text="no"),
        Tell(run=run, what="pause", text="why"),
        Command(command="set", key="engine.steps", value="2", number=1),
        Answer(number=1, ok=True, text="done", values={"a": 1, "b": "x", "c": None, "d": 1.5}),
    ]
    frames = []
    for seq in range(6):
        pixels = np.random.default_rng(seq).integers(0, 4096, SHAPE[1:])
        dtype = "float32" if seq == 5 else "uint16"
        info = FrameInfo(
            seq=seq, sweep=seq // 4, index=seq % 4, count=4, stage=StagePosition(1.0 + 2.0 * (seq % 4))
        )
        frames.append(wire.encode_frame(run, Frame(info, pixels.astype(dtype))))
    return [[bytes(part) for part in message] for message in [*map(wire.encode, controls), *frames]]


class Mutator:
    """Makes spoilt messages out of valid ones.

    Parameters
    ----------
    seed : int
    messages : list of messages, optional
        What to spoil.
    """

    def __init__(self, seed: int, messages: list[Message] | None = None) -> None:
        self._dice = random.Random(seed)  # noqa: S311
        self._messages = messages or valid_messages()
        self._ways: list[Callable[[Message], None]] = [
            *(self._flip, self._flip_body, self._cut, self._grow, self._value, self._value, self._value),
            *(
                self._drop_field,
                self._new_field,
                self._digit,
                self._parts,
                self._noise,
                self._splice,
                self._number,
            ),
        ]

    def message(self) -> Message:
        """Return one more message: nearly always spoilt, and mostly with a right check of its header."""
        dice = self._dice
        message = list(dice.choice(self._messages))
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            dice.choice(self._ways)(message)
        if len(message) > 1 and dice.random() < 0.8:
            message[-1] = crc32(message[0]).to_bytes(4, "little")
        return message

    def _flip(self, message: Message) -> None:
        if message:
            self._flip_in(message, self._dice.randrange(len(message)))

    def _flip_body(self, message: Message) -> None:
        if len(message) == 3:
            self._flip_in(message, 1)

    def _flip_in(self, message: Message, number: int) -> None:
        part = bytearray(message[number])
        for _ in range(self._dice.choice((1, 1, 2, 8)) if part else 0):
            part[self._dice.randrange(len(part))] ^= 1 << self._dice.randrange(8)
        message[number] = bytes(part)

    def _cut(self, message: Message) -> None:
        if message:
            number = self._dice.randrange(len(message))
            message[number] = message[number][: self._dice.randrange(len(message[number]) + 1)]

    def _grow(self, message: Message) -> None:
        if message:
            number = self._dice.randrange(len(message))
            more = self._dice.choice((1, 7, 512, 512, 512, 70_000))
            message[number] += self._dice.choice((b"\0", b" ", b"}", b"\xff")) * more

    def _value(self, message: Message) -> None:
        """Put something strange where a value was; nested ones too."""
        header = self._header(message)
        if header is None:
            return
        place: Any = header
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                return
            key = self._dice.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and self._dice.random() < 0.8:
                place = place[key]
                continue
            place[key] = "@@"
            break
        # Not through the JSON library: most of these are not JSON.
        text = json.dumps(header, separators=(",", ":")).replace('"@@"', self._dice.choice(_VALUES), 1)
        message[0] = text.encode("utf-8", "surrogatepass")

    def _drop_field(self, message: Message) -> None:
        header = self._header(message)
        if header:
            del header[self._dice.choice(list(header))]
            message[0] = json.dumps(header).encode()

    def _new_field(self, message: Message) -> None:
        if message and message[0][:1] == b"{":
            name = self._dice.choice(("x", "mdd", "kind", "run", "header", "µ" * 100, "__class__", ""))
            field = f'{{"{name}":{self._dice.choice(_VALUES)},'
            message[0] = field.encode("utf-8", "surrogatepass") + message[0][1:]

    def _digit(self, message: Message) -> None:
        """Change one digit: what is still well-formed gets furthest."""
        if message and (places := [at for at, byte in enumerate(message[0]) if 48 <= byte < 58]):
            at = self._dice.choice(places)
            message[0] = message[0][:at] + str(self._dice.randrange(10)).encode() + message[0][at + 1 :]

    def _number(self, message: Message) -> None:
        header = self._header(message)
        if header and (keys := [key for key, value in header.items() if isinstance(value, int | float)]):
            header[self._dice.choice(keys)] = self._dice.choice(_SMALL)
            message[0] = json.dumps(header).encode()

    def _parts(self, message: Message) -> None:
        dice = self._dice
        way = dice.randrange(5)
        if way == 0 and message:
            del message[dice.randrange(len(message))]
        elif way == 1:
            message.insert(dice.randrange(len(message) + 1), b"")
        elif way == 2 and message:
            message.append(dice.choice(message))
        elif way == 3:
            dice.shuffle(message)
        else:
            message.extend([b"x"] * dice.choice((1, 2, 50)))

    def _noise(self, message: Message) -> None:
        size = self._dice.choice((0, 1, 4, 100, 1000))
        message[:1] = [self._dice.randbytes(size)]

    def _splice(self, message: Message) -> None:
        other = self._dice.choice(self._messages)
        if message and len(other) == 3:
            message[1:2] = [other[1]]
        elif message:
            message[0] = message[0][: len(message[0]) // 2] + other[0][len(other[0]) // 2 :]

    @staticmethod
    def _header(message: Message) -> dict[str, Any] | None:
        try:
            header = json.loads(message[0])
        except (IndexError, ValueError, RecursionError):
            return None
        return header if isinstance(header, dict) else None
