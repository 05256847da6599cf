"""Going on with a run file: what of it still waits for frames, and what only for the engine.

Used while a run is opened, by one thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from microdiffusion.daemon.run_book import Key
from microdiffusion.run_file import Status

if TYPE_CHECKING:
    from microdiffusion.daemon.assembler import Assembler, LostSweep
    from microdiffusion.daemon.recorder import Recorder
    from microdiffusion.sweep import Frame, Sweep


@dataclass(frozen=True, slots=True)
class Found:
    """What a run file held before it was gone on with: (sweep, channel, position), oldest first.

    Attributes
    ----------
    unfinished : tuple of Key
        With frames, and neither a volume nor a reason for none.
    settled : frozenset of Key
        With either.
    """

    unfinished: tuple[Key, ...] = ()
    settled: frozenset[Key] = field(default_factory=frozenset)

    @classmethod
    def in_file_of(cls, recorder: Recorder, policy: str) -> Found:
        """Return what there is; before the recorder is started.

        What was skipped is caught up, unless the policy is to go with the newest.
        """
        undone = {Status.EMPTY} if policy == "live" else {Status.EMPTY, Status.SKIPPED}
        settled = [status for status in Status if status not in undone]
        return cls(tuple(recorder.unfinished(undone)), frozenset(recorder.unfinished(settled)))

    def feed(self, assembler: Assembler, recorder: Recorder) -> tuple[list[Sweep | LostSweep], list[Key]]:
        """Give the assembler the sweeps that wait for frames: their sender may still have these.

        Returns what is over by it, and the sweeps whose frames are all there.
        """
        opened: dict[tuple[int, int], int] = {}
        frames: list[Frame] = []
        complete: list[Key] = []
        for key in self.unfinished:
            loaded = recorder.load_sweep(*key)
            if loaded is None or loaded.missing:
                frames += recorder.load_frames(*key)
                opened.setdefault((key[1], key[2]), key[0])
            else:
                complete.append(key)
        header = recorder.header
        for channel in range(len(header.channels)):
            for position in range(len(header.positions)):
                first = opened.get((channel, position), recorder.next_sweep)
                assembler.start_at(channel, position, first)
        over: list[Sweep | LostSweep] = []
        for frame in frames:
            frame.received_s = time.monotonic()
            over += assembler.add(frame)
        return over, complete
