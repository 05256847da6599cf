"""Going on with a run file: what of it still waits for frames, and what only for the engine.

A sweep that lacks frames waits for them, because its sender may still have them; but only the newest such, as
many as there is memory for. Older ones wait for the engine, as those do whose frames are all there: it reads
what is in the file when their turn comes. So what is read here is bounded, however much the run lacks.

Used while a run is opened, by one thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from microdiffusion.daemon.recorder import Key
from microdiffusion.daemon.runs.assembler import FRAME_COST
from microdiffusion.runfile import Status

if TYPE_CHECKING:
    from microdiffusion.daemon.recorder import Recorder
    from microdiffusion.daemon.runs.assembler import Assembler, LostSweep
    from microdiffusion.frames import Frame, Sweep


@dataclass(frozen=True, slots=True)
class RecoveredRun:
    """What a run file held before it was gone on with: (sweep, channel, position), oldest first.

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

    def feed(
        self, assembler: Assembler, recorder: Recorder, *, most_bytes: int
    ) -> tuple[list[Sweep | LostSweep], list[Key]]:
        """Give the assembler the sweeps that wait for frames, with `most_bytes` of frames at most.

        Returns what is over by it, and the sweeps that wait for the engine alone.
        """
        frames: list[list[Frame]] = []
        waiting: set[Key] = set()
        opened: dict[tuple[int, int], int] = {}
        for key in reversed(self.unfinished):
            if key in self.whole:
                continue
            there = recorder.load_frames(*key)
            most_bytes -= sum(frame.pixels.nbytes + FRAME_COST for frame in there)
            if most_bytes < 0:
                break
            frames.append(there)
            waiting.add(key)
            opened[key[1], key[2]] = key[0]
        complete = [key for key in self.unfinished if key not in waiting]
        header = recorder.header
        for channel in range(len(header.channels)):
            for position in range(len(header.positions)):
                first = opened.get((channel, position), recorder.index.last_sweep_of(channel, position) + 1)
                assembler.start_at(channel, position, first)
        over: list[Sweep | LostSweep] = []
        for frame in (frame for sweep in reversed(frames) for frame in sweep):
            frame.received_s = time.monotonic()
            over += assembler.add(frame)
        return over, complete
