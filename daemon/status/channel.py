"""The status channel: the daemon's PUB socket, and its subscribers.

PUB, two parts, the topic ``status`` and a snapshot as JSON. Readers ignore fields that they do not know. A
subscriber may join at any time and miss any number of snapshots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Self

import zmq
from pydantic import ValidationError

from microdiffusion.daemon.control import BoundSocket
from microdiffusion.daemon.status.models import StatusSnapshot
from microdiffusion.errors import UserError
from microdiffusion.wire import ClientKeys, ServerKeys, connected, when_elsewhere

TOPIC = b"status"
IDLE_S = 0.05


class StatusPublisher(BoundSocket):
    """A PUB socket for snapshots; raises as `BoundSocket` does."""

    def __init__(self, address: str, *, security: ServerKeys | None = None) -> None:
        # Snapshots are complete: a slow subscriber may miss some rather than pile them up here.
        super().__init__(zmq.PUB, "status", address, security, {zmq.SNDHWM: 4})

    def publish(self, snapshot: StatusSnapshot) -> None:
        """Send to all subscribers; never blocks."""
        self._socket.send_multipart([TOPIC, snapshot.model_dump_json().encode()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def subscribe(
    address: str,
    timeout_s: float = 5.0,
    *,
    security: ClientKeys | None = None,
    idle: Callable[[], None] | None = None,
) -> Iterator[StatusSnapshot]:
    """Yield the snapshots of the daemon at `address`, always the newest one, until it has closed.

    `idle` is called every `IDLE_S` while there is none: for keys.

    Raises
    ------
    UserError
        Nobody answers within `timeout_s`, or the daemon falls silent for as long.
    AddressError
        The address is malformed.
    ConfigError
        The daemon is on another machine, and there are no keys.
    """
    heard = False
    with connected(zmq.SUB, address, security) as (socket, watch):
        socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if refusal := watch.refusal():
                raise UserError(refusal)
            snapshot = _newest(socket, min(left, IDLE_S))
            if idle is not None:
                idle()
            if snapshot is None:
                continue
            yield snapshot
            if snapshot.state in ("closed", "failed"):
                return
            heard = True
            deadline = time.monotonic() + timeout_s
    if heard:
        raise UserError(
            f"The daemon at {address} said nothing for {timeout_s:g} s: it was killed or the network broke. "
            "Its run file can be opened as it is."
        )
    raise UserError(
        f"No daemon answered at {address} within {timeout_s:g} s: start one with `mdd serve`, "
        f"or give the address that it shows (--address){when_elsewhere(address)}."
    )


def _newest(socket: zmq.Socket[bytes], timeout_s: float) -> StatusSnapshot | None:
    """Return the newest valid snapshot that is waiting, or the first to come; None if there is none."""
    newest = None
    wait_ms = max(1, int(1000 * timeout_s))
    while socket.poll(wait_ms):
        parts = socket.recv_multipart()
        wait_ms = 0
        try:
            newest = StatusSnapshot.model_validate_json(parts[-1]) if len(parts) == 2 else newest
        except ValidationError:
            continue  # not a status: if there is no other, silence is reported by the caller
    return newest
