"""Peers that send anything to a daemon's socket, and do not care for its answers."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter

import zmq
from wire_mutations import Message, Mutator, valid_messages

from microdiffusion import wire
from microdiffusion.errors import WireError


def send_hostile(address: str, count: int, seed: int, *, rate_hz: float | None = None) -> Counter[str]:
    """Send spoilt messages over ever new connections, and return the refusals that came back, by reason.

    One connection in five never reads its answers; others speak no ZeroMQ at all.
    """
    dice = random.Random(seed)  # noqa: S311
    # The mutators spoil runs of several names: one daemon may have many strange ones open.
    mutators = [
        Mutator(seed + number, valid_messages(f"{dice.getrandbits(128):032x}")) for number in range(4)
    ]
    refused: Counter[str] = Counter()
    context = zmq.Context()
    begin_s = time.monotonic()
    sent = 0
    try:
        while sent < count:
            batch = min(count - sent, dice.choice((1, 10, 200, 500)))
            reads = dice.random() < 0.8
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.LINGER, 0 if dice.random() < 0.2 else 2000)
            dealer.setsockopt(zmq.SNDTIMEO, 5000)
            dealer.setsockopt(zmq.SNDHWM, 50)
            dealer.connect(address)
            for _ in range(batch):
                _send(dealer, dice.choice(mutators).message())
                sent += 1
                if rate_hz is not None:
                    time.sleep(max(0.0, begin_s + sent / rate_hz - time.monotonic()))
                while reads and dealer.poll(0):
                    refused[_answer(dealer)] += 1
            while reads and dealer.poll(20):
                refused[_answer(dealer)] += 1
            dealer.close()
            _speak_no_zeromq(address, dice)
    finally:
        context.destroy(linger=1000)
    return refused


def _send(dealer: zmq.Socket[bytes], message: Message) -> None:
    dealer.send_multipart(message or [b""])


def _answer(dealer: zmq.Socket[bytes]) -> str:
    try:
        answer = wire.decode(dealer.recv_multipart())
    except WireError:
        return "an answer that is none"
    return answer.reason if isinstance(answer, wire.Refuse) else type(answer).__name__


def _speak_no_zeromq(address: str, dice: random.Random) -> None:
    host, _, port = address.rpartition("//")[2].rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    noise = dice.choice((b"GET / HTTP/1.1\r\n\r\n", dice.randbytes(2000), greeting, greeting[:20], b""))
    with socket.create_connection((host, int(port)), timeout=5) as line:
        line.sendall(noise)
        if noise == greeting:  # then a frame that claims to be enormous
            line.sendall(b"\x02" + (1 << dice.choice((30, 50, 62))).to_bytes(8, "big") + b"x" * 100)
