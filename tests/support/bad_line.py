"""A TCP line between a sender and the daemon that can be cut, fall silent, or turn bits over.

`BadLine` listens on a port of its own and forwards to a target. It knows nothing of what it carries.
One thread with its own event loop; `cut`, `mend` and `flip_every` may be called from any other.

- ``"close"``: what is open is closed and new connections are refused, as when a process dies.
- ``"silence"``: what is open stays open and nothing passes, as when a cable is pulled; `mend` lets go on
  what was under way, as TCP does.
- ``"silence, then reset"``: the same, but the connections do not survive the mending, as when the machine
  behind them has restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from typing import Self

CUTS = ("close", "silence", "silence, then reset")
_BLOCK = 1 << 16


class BadLine:
    """A line to `target` on the loopback interface.

    Parameters
    ----------
    target : int
        The port that is forwarded to.
    seed : int
        Of the places where bits turn over.

    Attributes
    ----------
    port : int
        Connect here.
    connections, flipped : int
        How many there were; how many bits were turned over.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self._target = target
        self._dice = random.Random(seed)  # noqa: S311
        self._flip_every = 0
        self._mode = ""
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self.connections = self.flipped = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))
        self._ready = threading.Event()

    @property
    def address(self) -> str:
        """Where a sender connects."""
        return f"tcp://127.0.0.1:{self.port}"

    def cut(self, how: str) -> None:
        """Cut the line, one of `CUTS`."""
        self._do(self._cut, how)

    def mend(self) -> None:
        """Let it pass again."""
        self._do(self._mend)

    def flip_every(self, mean_bytes: int) -> None:
        """Turn one bit over in about so many bytes, in either direction; 0: none."""
        self._flip_every = mean_bytes

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: object, *arguments: object) -> None:
        done = threading.Event()

        async def run() -> None:
            await work(*arguments)  # type: ignore[operator]
            done.set()

        asyncio.run_coroutine_threadsafe(run(), self._loop)
        if not done.wait(10):
            raise TimeoutError("the line did not answer")

    async def _main(self) -> None:
        await self._mend()
        self._ready.set()
        await self._stopping.wait()
        await self._refuse()
        self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _cut(self, how: str) -> None:
        if how not in CUTS:
            raise ValueError(how)
        self._mode = how
        if how == "close":
            await self._refuse()
            self._reset()
        else:
            self._flowing.clear()

    async def _mend(self) -> None:
        if self._mode.endswith("reset"):
            self._reset()
        self._mode = ""
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _reset(self) -> None:
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A cancelled connection is no error, but asyncio's streams would report it as one.
        with contextlib.suppress(asyncio.CancelledError):
            await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._flowing.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        except* (OSError, _OverError):
            pass
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(_BLOCK):
            await self._flowing.wait()
            writer.write(self._spoilt(block))
            await writer.drain()
        raise _OverError

    def _spoilt(self, block: bytes) -> bytes:
        if not self._flip_every:
            return block
        spoilt = bytearray(block)
        at = int(self._dice.expovariate(1 / self._flip_every))
        while at < len(spoilt):
            spoilt[at] ^= 1 << self._dice.randrange(8)
            self.flipped += 1
            at += 1 + int(self._dice.expovariate(1 / self._flip_every))
        return bytes(spoilt)


class _OverError(Exception):
    """One end has closed, so the other is to be closed too."""
