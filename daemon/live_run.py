"""One run from its start message to its closed file: wires assembler, engine and recorder together.

No thread of its own. `frame` and `end` run on the ingest thread, `_volume` and `_lost` on the engine's,
`_written` on the recorder's, `tick` and `close` on the main thread; the assembler alone is shared and has a
lock. Every sweep ends as exactly one of written, lost, skipped, failed, in the run file and on the board.
"""

from __future__ import annotations

import platform
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion import __version__
from microdiffusion.daemon.assembler import Assembler, LostSweep
from microdiffusion.daemon.machine import package_versions
from microdiffusion.daemon.preview import make_preview
from microdiffusion.daemon.recorder import Recorder, Written
from microdiffusion.daemon.status import HEADLINE, FrameCounts, RunStatus, StatusBoard
from microdiffusion.engines.memory import reconstruction_bytes
from microdiffusion.run_file import Ledger, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.daemon.engine_child import EngineInfo
    from microdiffusion.daemon.engine_process import EngineProcess
    from microdiffusion.daemon.ingest import Ingest
    from microdiffusion.run_header import RunHeader
    from microdiffusion.sweep import Frame, Reconstruction, Sweep
    from microdiffusion.wire import RunEnd

_PACKAGES = (
    *("numpy", "h5py", "pyzmq", "pydantic", "torch", "pycromanager", "pymmcore", "mm-test-adapters"),
    *("openvino", "tensorrt", "tensorrt-rtx-cu13-bindings"),
)


class LiveRun:
    """A run that is being received.

    Parameters
    ----------
    header : RunHeader
    config : Config
    engine : EngineProcess
        Ready; serves this run until `close`.
    info : EngineInfo
        What it said of itself.
    ingest : Ingest
        Where the frames come in; the run's own counters start from its present ones.
    board : StatusBoard
        Told of everything that happens.

    Raises
    ------
    DiskError, UserError
        The run file cannot be created.
    """

    def __init__(
        self,
        header: RunHeader,
        config: Config,
        engine: EngineProcess,
        info: EngineInfo,
        ingest: Ingest,
        board: StatusBoard,
    ) -> None:
        self.header = header
        self.ended = threading.Event()
        self.end_message: RunEnd | None = None
        self._engine = engine
        self._ingest = ingest
        self._before = ingest.stats
        self._board = board
        self._wait_for_engine = config.engine.policy == "wait"
        self._lock = threading.Lock()
        self._held_s = float("-inf")
        self._timeout_s = config.wire.sweep_timeout_s
        self._assembler = Assembler(self._timeout_s)
        self.recorder = Recorder(
            _new_path(config.recorder.output, header.name),
            header,
            config.recorder,
            frames_per_sweep=header.frames_per_sweep,
            configuration=config.model_dump_json(),
            provenance=provenance(info),
            on_written=self._written,
        )
        self.recorder.start()
        self._queue_limit = int(config.recorder.queue_mb * 1e6)
        board.set_run(
            RunStatus(
                name=header.name,
                id=header.run_id,
                file=str(self.recorder.paths[0]),
                source=header.source,
                sweeps=header.sweeps,
                shape=header.shape,
                voxel_size_um=header.voxel_size_um,
            )
        )
        memory_mb = reconstruction_bytes(header, config.engine) / 1e6
        board.note(
            f"the engine takes up to {memory_mb:.0f} MB for {' x '.join(map(str, header.shape))} voxels"
        )
        engine.begin(header)

    def frame(self, frame: Frame) -> bool:
        """Take a frame; False where there is no room for it now."""
        if self._wait_for_engine and not self._engine.has_room():
            self._held_s = time.monotonic()
            return False
        if not self.recorder.put_frame(frame):
            self._held_s = time.monotonic()
            return False
        info = frame.info
        with self._lock:
            over = self._assembler.add(frame)
            received, count = self._assembler.progress(info.channel, info.position, info.sweep)
        self._board.set_sweep(info.sweep, received if count else info.count, info.count)
        self._settle(over)
        return True

    def end(self, message: RunEnd) -> None:
        """Take the sender's last word."""
        self.end_message = message
        with self._lock:
            over = self._assembler.finish()
        self._settle(over)
        self.ended.set()

    def tick(self, now_s: float) -> None:
        """Give up sweeps that wait too long; tell the board how things stand."""
        # A frame that is held here is not late: what waits for it goes on waiting.
        if now_s - self._held_s > self._timeout_s:
            with self._lock:
                over = self._assembler.tick(now_s)
            self._settle(over)
        self.recorder.raise_if_failed()
        received, duplicates, refused = self._frames()
        self._board.set_frames(
            FrameCounts(
                received=received,
                announced=self.end_message.announced if self.end_message else None,
                missing=self._assembler.missing,
                duplicate=duplicates,
                refused=refused,
                dropped_by_sender=self.end_message.dropped if self.end_message else 0,
            )
        )
        self._board.set_queue("engine", self._engine.waiting_bytes)
        self._board.set_queue("recorder", self.recorder.queue_bytes, self._queue_limit)
        with self._lock:
            self._board.set_queue("assembler", self._assembler.waiting_bytes)

    def close(self, *, drain_s: float, hurry: Callable[[], bool]) -> None:
        """Finish what waits, for at most `drain_s` or until `hurry`; write the ledger, close the file.

        Raises
        ------
        DiskError, RunError
            The recorder failed; what it announced as written is safe.
        """
        if not self.ended.is_set():
            with self._lock:
                over = self._assembler.finish()
            self._settle(over)
        self._engine.drain(drain_s, hurry)
        end = self.end_message
        received, duplicates, refused = self._frames()
        self.recorder.put_ledger(
            Ledger(
                announced=end.announced if end else -1,
                received=received,
                duplicates=duplicates,
                refused=refused,
                missing=max(0, end.announced - received) if end else self._assembler.missing,
                dropped_by_sender=end.dropped if end else -1,
            )
        )
        self.tick(0.0)
        self.recorder.stop()

    def volume(self, sweep: Sweep, result: Reconstruction) -> bool:
        """Take a volume from the engine; False where the recorder has no room now."""
        if not self.recorder.put_volume(
            sweep.sweep,
            sweep.channel,
            sweep.position,
            result,
            acquired_s=sweep.time_s,
            received_s=sweep.received_s,
        ):
            # Where it failed rather than being full, this raises, and the daemon closes.
            self.recorder.raise_if_failed()
            return False
        for stage, seconds in result.seconds.items():
            self._board.add_latency(stage, seconds)
        self._board.set_quality(
            sweep.sweep, result.served, result.residual, result.held_out_error, result.candidate_errors
        )
        self._board.set_preview(make_preview(result.volume, self.header.voxel_size_um))
        return True

    def lost(self, sweep: Sweep, outcome: str, reason: str) -> None:
        """Note that the engine gives no volume for this sweep."""
        status = Status.SKIPPED if outcome == "skipped" else Status.FAILED
        self.recorder.mark(sweep.sweep, sweep.channel, sweep.position, status, reason)
        self._board.add_volume("skipped" if outcome == "skipped" else "failed")
        self._board.note(f"sweep {sweep.sweep} {outcome}: {reason}", "warning")

    def _frames(self) -> tuple[int, int, int]:
        """Return this run's own frames: received, duplicates, refused."""
        now, before = self._ingest.stats, self._before
        refused = sum(now.refused.values()) - sum(before.refused.values())
        return now.frames - before.frames, now.duplicates - before.duplicates, refused

    def _written(self, written: Written) -> None:
        self._board.add_volume("written")
        self._board.add_latency(HEADLINE, written.latency_s)

    def _settle(self, over: list[Sweep | LostSweep]) -> None:
        for item in over:
            if isinstance(item, LostSweep):
                self.recorder.mark(item.sweep, item.channel, item.position, Status.LOST, item.reason)
                self._board.add_volume("lost")
                self._board.note(f"sweep {item.sweep} lost: {item.reason}", "warning")
            else:
                if item.missing:
                    self._board.note(f"sweep {item.sweep}: {item.missing} frames missing", "warning")
                self._engine.submit(item)


def provenance(info: EngineInfo) -> dict[str, str]:
    """Return what is needed to know how a volume came about: versions, weights, device, machine."""
    return {
        "mdd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **package_versions(_PACKAGES),
        "device": info.device,
        **({"device_pending": info.pending} if info.pending else {}),
        "weights": info.weights or "none",
        "weights_sha256": info.weights_sha256 or "none",
    }


def _new_path(folder: Path, name: str) -> Path:
    """Return a path that no file has: name, UTC time, and a number where two start in one second."""
    stem = f"{name}_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    path, number = folder / f"{stem}.h5", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}.h5"
    return path
