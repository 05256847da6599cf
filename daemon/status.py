"""What the daemon says about itself: the board that gathers it, and its way over ZeroMQ.

Whoever knows a number writes it on the `StatusBoard`, from any thread; the main thread takes a
`StatusSnapshot` a few times a second, draws it and publishes it. A snapshot is whole (nothing has to be
remembered from an earlier one), so a subscriber may join at any time and may miss as many as it likes.

On the wire: PUB, two parts, the topic ``status`` and a snapshot as JSON. Readers ignore fields that they
do not know.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import zmq
from pydantic import ValidationError

from microdiffusion.daemon.machine import disk_free_bytes, resident_mb
from microdiffusion.daemon.snapshot import (
    HEADLINE,
    LIVE,
    EngineStatus,
    FrameCounts,
    Latency,
    Note,
    Outcome,
    Quality,
    QueueDepth,
    RunStatus,
    RunSummary,
    State,
    StatusSnapshot,
    SweepProgress,
    VolumeCounts,
)
from microdiffusion.errors import AddressError, ConfigError, UserError
from microdiffusion.keys import secure_client, secure_server, when_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from microdiffusion.daemon.preview import Preview
    from microdiffusion.keys import ClientKeys, Gate, ServerKeys

__all__ = [
    "HEADLINE",
    "LIVE",
    "EngineStatus",
    "FrameCounts",
    "Outcome",
    "RunStatus",
    "State",
    "StatusBoard",
    "StatusPublisher",
    "StatusSnapshot",
    "subscribe",
]

TOPIC = b"status"

RATE_WINDOW_S = 10.0
LATENCY_WINDOW = 256
NOTES_KEPT = 8


class StatusBoard:
    """Gathers the numbers of all threads; every method may be called from any thread and is quick.

    Parameters
    ----------
    clock
        Seconds, monotonic; a test passes its own.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._started_utc = datetime.now(UTC).isoformat(timespec="seconds")
        self._lock = threading.Lock()
        self._state: State = "starting"
        self._run = RunStatus()
        self._runs: tuple[RunSummary, ...] = ()
        self._engine = EngineStatus()
        self._frames = FrameCounts()
        self._sweep = SweepProgress()
        self._queues: dict[str, QueueDepth] = {}
        self._latencies: dict[str, deque[float]] = {}
        self._volumes: Counter[str] = Counter()
        self._quality = Quality()
        self._notes: deque[Note] = deque(maxlen=NOTES_KEPT)
        self._preview: Preview | None = None
        self._processes: dict[str, int | None] = {"daemon": None}
        self._rates: deque[tuple[float, int]] = deque()
        self._received = 0

    def set_state(self, state: State) -> None:
        """Say what the daemon is doing."""
        with self._lock:
            self._state = state

    def set_run(self, run: RunStatus) -> None:
        """Say which run this is; the disk that holds ``run.file`` is watched."""
        with self._lock:
            self._run = run

    def set_runs(self, runs: tuple[RunSummary, ...]) -> None:
        """Say which runs are not closed yet."""
        with self._lock:
            self._runs = runs

    def set_engine(self, engine: EngineStatus) -> None:
        """Say what reconstructs."""
        with self._lock:
            self._engine = engine

    def set_frames(self, frames: FrameCounts) -> None:
        """Replace the ledger of frames; its `received` is what the frame rate is made of."""
        now = self._clock()
        with self._lock:
            self._frames = frames
            # One entry per tenth of a second is enough, however fast the frames come.
            if not self._rates or now - self._rates[-1][0] >= 0.1:
                self._rates.append((now, frames.received))

    def set_sweep(self, number: int, received: int, count: int) -> None:
        """Say how far sweep `number` has come: `received` of its `count` frames."""
        with self._lock:
            self._sweep = SweepProgress(number=number, received=received, count=count)

    def set_queue(self, name: str, depth_bytes: int, limit_bytes: int = 0) -> None:
        """Say how much waits in queue `name`."""
        with self._lock:
            self._queues[name] = QueueDepth(bytes=depth_bytes, limit=limit_bytes)

    def add_latency(self, stage: str, seconds: float) -> None:
        """Add one measurement of a stage; `HEADLINE` is the one that counts."""
        if math.isfinite(seconds):
            with self._lock:
                self._latencies.setdefault(stage, deque(maxlen=LATENCY_WINDOW)).append(seconds)

    def add_volume(self, outcome: Outcome) -> None:
        """Count a sweep's outcome."""
        with self._lock:
            self._volumes[outcome] += 1

    def set_quality(
        self,
        sweep: int,
        served: str,
        residual: float,
        held_out_error: float = math.nan,
        candidates: Mapping[str, float] | None = None,
    ) -> None:
        """Say how good the volume of `sweep` is; NaN where it was not measured.

        Most sweeps hold no held-out projection, so its last error stays until there is a new one.
        """
        measured = math.isfinite(held_out_error)
        with self._lock:
            before = self._quality
            self._quality = Quality(
                served=served,
                residual=residual if math.isfinite(residual) else None,
                held_out_error=held_out_error if measured else before.held_out_error,
                held_out_sweep=sweep if measured else before.held_out_sweep,
                candidates={name: error for name, error in (candidates or {}).items() if math.isfinite(error)}
                or before.candidates,
            )

    def set_preview(self, preview: Preview | None) -> None:
        """Show this volume (see `preview.make_preview`)."""
        with self._lock:
            self._preview = preview

    def watch_process(self, name: str, pid: int | None) -> None:
        """Show the memory of this process too; None means the own one."""
        with self._lock:
            self._processes[name] = pid

    def note(self, text: str, level: Literal["info", "warning", "error"] = "info") -> None:
        """Tell the user something; the last few notes are kept."""
        with self._lock:
            number = self._notes[-1].number + 1 if self._notes else 0
            elapsed_s = self._clock() - self._started
            self._notes.append(Note(number=number, elapsed_s=elapsed_s, level=level, text=text))

    def snapshot(self) -> StatusSnapshot:
        """Return everything at this moment."""
        with self._lock:
            now = self._clock()
            file = self._run.file
            processes = dict(self._processes)
            latencies = {stage: list(seconds) for stage, seconds in self._latencies.items()}
            snapshot = StatusSnapshot(
                state=self._state,
                started_utc=self._started_utc,
                elapsed_s=now - self._started,
                run=self._run,
                runs=self._runs,
                engine=self._engine,
                frames=self._frames,
                frame_rate_hz=self._frame_rate(now),
                sweep=self._sweep,
                queues=dict(self._queues),
                volumes=VolumeCounts(**self._volumes),
                quality=self._quality,
                notes=tuple(self._notes),
                preview=self._preview,
            )
        # Percentiles and questions to the operating system need no lock.
        memory = {name: resident_mb(pid) for name, pid in processes.items()}
        return snapshot.model_copy(
            update={
                "latencies": {stage: _latency(seconds) for stage, seconds in latencies.items()},
                "memory_mb": {name: mb for name, mb in memory.items() if mb is not None},
                "disk_free_bytes": disk_free_bytes(Path(file)) if file else None,
            }
        )

    def _frame_rate(self, now: float) -> float:
        # Sweeps come in bursts; the window spans several of them.
        while len(self._rates) > 1 and self._rates[1][0] <= now - RATE_WINDOW_S:
            self._rates.popleft()
        if not self._rates or now <= self._rates[0][0]:
            return 0.0
        start, received = self._rates[0]
        return max(0, self._frames.received - received) / (now - start)


def _latency(seconds: list[float]) -> Latency:
    p50, p95 = np.percentile(seconds, (50, 95))
    return Latency(p50=float(p50), p95=float(p95))


class StatusPublisher:
    """A PUB socket for snapshots; belongs to the thread that made it.

    Attributes
    ----------
    address : str
        Where it is bound; a port ``*`` is resolved.

    Raises
    ------
    AddressError
        The address is malformed or its port is taken.
    ConfigError
        Other machines can reach the address, and there are no keys.
    """

    def __init__(self, address: str, *, security: ServerKeys | None = None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()  # a gate guards one socket of a context
        self._gate: Gate | None = None
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 200)
        # Snapshots are whole: a slow subscriber may miss some rather than pile them up here.
        self._socket.setsockopt(zmq.SNDHWM, 4)
        try:
            self._gate = secure_server(self._socket, address, security)
            self._socket.bind(address)
        except ConfigError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"The status address {address} cannot be used ({_reason(error)}): "
                "close the other daemon there, or give another wire.status (port * takes a free one)."
            ) from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def publish(self, snapshot: StatusSnapshot) -> None:
        """Send to whoever listens; never blocks."""
        self._socket.send_multipart([TOPIC, snapshot.model_dump_json().encode()])

    def close(self) -> None:
        """Unbind."""
        self._socket.close()
        if self._gate is not None:
            self._gate.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def subscribe(
    address: str, timeout_s: float = 5.0, *, security: ClientKeys | None = None
) -> Iterator[StatusSnapshot]:
    """Yield the snapshots of the daemon at `address`, always the newest one, until it has closed.

    Raises
    ------
    UserError
        Nobody answers within `timeout_s`, or the daemon falls silent for as long.
    AddressError
        The address is malformed.
    ConfigError
        The daemon is on another machine, and there are no keys.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    with socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
        secure_client(socket, address, security)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise AddressError(
                f"Expected an address like tcp://127.0.0.1:5751, not {address!r} ({_reason(error)})."
            ) from error
        heard = False
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            snapshot = _newest(socket, left)
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


def _reason(error: zmq.ZMQError) -> str:
    return zmq.strerror(error.errno) if error.errno else str(error)


def _newest(socket: zmq.Socket[bytes], timeout_s: float) -> StatusSnapshot | None:
    """Return the newest valid snapshot that is waiting, or the first one to come; None if there is none."""
    newest = None
    wait_ms = max(1, int(1000 * timeout_s))
    while socket.poll(wait_ms):
        parts = socket.recv_multipart()
        wait_ms = 0
        try:
            newest = StatusSnapshot.model_validate_json(parts[-1]) if len(parts) == 2 else newest
        except ValidationError:
            continue  # somebody else's message: not ours to judge, and silence is reported by the caller
    return newest
