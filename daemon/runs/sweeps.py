"""The sweeps of one run: from its frames to the engine, or to a reason why there is no volume.

`RunSweeps` collects frames with an `Assembler`. A sweep that is whole, or whole enough, goes to the engine;
one that is not is lost, and its frames may still come after all: then it is reconstructed as the last. Frames
come on the ingest thread, all else on others, so a lock guards the assembler; it is held for nothing else.

A run that is resumed was partly recorded before. A sweep that lacks frames waits for them, because its sender
may still have them; but only the newest such, as many as there is memory for. Older ones wait for the engine,
as those do whose frames are all there: it reads what is in the file when their turn comes. So what is read at
the start is bounded, however much the run lacks.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from microdiffusion.config import WireConfig
from microdiffusion.daemon.engine import WorkQueue
from microdiffusion.daemon.recorder import Key, Recorder
from microdiffusion.daemon.runs.assembler import FRAME_COST, Assembler, LostSweep, room_for
from microdiffusion.daemon.status import StatusBoard, SweepProgress
from microdiffusion.frames import Frame, Sweep
from microdiffusion.runfile import Status
from microdiffusion.text import count_noun


@dataclass(frozen=True, slots=True)
class RecoveredRun:
    """The time points of a run file before it was resumed: (sweep, channel, position), oldest first.

    Attributes
    ----------
    unfinished : tuple of Key
        With frames, and neither a volume nor a reason for none.
    settled : frozenset of Key
        With either.
    whole : frozenset of Key
        Of the unfinished: with all of their frames.
    """

    unfinished: tuple[Key, ...] = ()
    settled: frozenset[Key] = field(default_factory=frozenset)
    whole: frozenset[Key] = field(default_factory=frozenset)

    @classmethod
    def in_file_of(cls, recorder: Recorder, policy: str) -> RecoveredRun:
        """Return what there is; before the recorder is started.

        What was skipped is caught up, unless the policy is to go with the newest.
        """
        undone = {Status.EMPTY} if policy == "live" else {Status.EMPTY, Status.SKIPPED}
        settled = [status for status in Status if status not in undone]
        unfinished = tuple(recorder.index.unfinished(undone))
        return cls(
            unfinished,
            frozenset(recorder.index.unfinished(settled)),
            frozenset(key for key in unfinished if recorder.index.is_whole(key)),
        )


class RunSweeps:
    """Collects the sweeps of one run.

    Parameters
    ----------
    recorder : Recorder
    queue : WorkQueue
        Of the engine, which serves this run.
    board : StatusBoard
    config : WireConfig
    """

    def __init__(self, recorder: Recorder, queue: WorkQueue, board: StatusBoard, config: WireConfig) -> None:
        self._recorder = recorder
        self._queue = queue
        self._board = board
        self._run_id = recorder.header.run_id
        self._lock = threading.Lock()
        self._room = room_for(recorder.header, int(config.receive_buffer_mb * 1e6))
        self._assembler = Assembler(
            config.sweep_timeout_s, limit_bytes=self._room, most_frames=recorder.header.frames_per_sweep
        )
        self._settled_before: frozenset[Key] = frozenset()
        self._lost: set[Key] = set()  # for want of frames
        self._came_after_all: set[Key] = set()

    @property
    def missing(self) -> int:
        """Frames that never came, of sweeps that are over."""
        return self._assembler.missing

    @property
    def waiting_bytes(self) -> int:
        """Size of the frames of sweeps that are not over."""
        with self._lock:
            return self._assembler.waiting_bytes

    def add(self, frame: Frame) -> None:
        """Take a frame."""
        info = frame.info
        key = (info.sweep, info.channel, info.position)
        rolling = None
        with self._lock:
            over = self._assembler.add(frame)
            received, count = self._assembler.progress(info.channel, info.position, info.sweep)
            # A sweep that is over gets its own volume.
            if self._queue.config.update == "projection" and not (info.held_out or over):
                rolling = self._assembler.window(info.channel, info.position)
            if key in self._lost:
                self._came_after_all.add(key)
        progress = SweepProgress(
            number=info.sweep, received=received if count else info.count, count=info.count
        )
        self._board.put(sweep=progress)
        self._settle(over)
        if rolling is not None:
            self._queue.submit(self._run_id, rolling, lane="rolling", newest_seq=info.seq)

    def tick(self, now_s: float) -> None:
        """Give up sweeps that have waited too long."""
        with self._lock:
            over = self._assembler.tick(now_s)
        self._settle(over)

    def finish(self) -> None:
        """Wait for no further frame of any sweep."""
        with self._lock:
            over = self._assembler.finish()
        self._settle(over)

    def put_off_late(self) -> None:
        """Have reconstructed, as the last, what was lost for want of frames that came after all."""
        if self._queue.config.policy != "live" and self._queue.runs.failure_of(self._run_id) is None:
            for sweep, channel, position in sorted(self._came_after_all):
                self._queue.put_off(self._run_id, sweep, channel, position)

    def recover(self, found: RecoveredRun) -> None:
        """Take in what the file of a resumed run held; before the first frame."""
        over, complete = self._refill(found)
        # Neither is of a sweep that the assembler should hear of.
        self._settled_before = found.settled | frozenset(complete)
        for sweep, channel, position in complete:
            self._queue.put_off(self._run_id, sweep, channel, position)
        self._settle(over)

    def _refill(self, found: RecoveredRun) -> tuple[list[Sweep | LostSweep], list[Key]]:
        """Give the assembler the sweeps that wait for frames, within half of the memory that it has.

        Returns what is over by it, and the sweeps that wait for the engine alone.
        """
        recorder, left_bytes = self._recorder, self._room // 2
        frames: list[list[Frame]] = []
        waiting: set[Key] = set()
        opened: dict[tuple[int, int], int] = {}
        for key in reversed(found.unfinished):
            if key in found.whole:
                continue
            there = recorder.load_frames(*key)
            left_bytes -= sum(frame.pixels.nbytes + FRAME_COST for frame in there)
            if left_bytes < 0:
                break
            frames.append(there)
            waiting.add(key)
            opened[key[1], key[2]] = key[0]
        for channel in range(len(recorder.header.channels)):
            for position in range(len(recorder.header.positions)):
                first = opened.get((channel, position), recorder.index.last_sweep_of(channel, position) + 1)
                self._assembler.start_at(channel, position, first)
        over: list[Sweep | LostSweep] = []
        for frame in (frame for sweep in reversed(frames) for frame in sweep):
            frame.received_s = time.monotonic()
            over += self._assembler.add(frame)
        return over, [key for key in found.unfinished if key not in waiting]

    def _settle(self, over: list[Sweep | LostSweep]) -> None:
        """Give sweeps that are over to the engine, or say that they are lost."""
        for item in over:
            key = (item.sweep, item.channel, item.position)
            if key in self._settled_before:
                continue
            if isinstance(item, LostSweep):
                self._lost.add(key)
                self._recorder.mark(*key, Status.LOST, item.reason)
                self._board.add_volume("lost")
                self._board.note(f"sweep {item.sweep} lost: {item.reason}", "warning")
                continue
            if item.missing:
                missing = count_noun(item.missing, "frame")
                self._board.note(f"sweep {item.sweep}: {missing} missing", "warning")
            self._queue.submit(self._run_id, item)
