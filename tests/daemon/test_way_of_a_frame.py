"""One frame's way: from a DEALER socket through ingest, run and recorder to its file, and the answer back.

A frame and its receipt are *in the hands* of whoever is on the stack when the frame is handed over and
written, and when its receipt is completed and answered. What is asked on the way and returns (the codec, the
intake, the run's index), or looks at the frame besides (assembler, exposure, health), is on none of these.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.ingest_support import Peer, frame_parts
from support.wire_support import make_frame, make_header, wait_until

from microdiffusion import open_run, wire
from microdiffusion.config.models import Config
from microdiffusion.daemon.engine import EngineProcess, WorkQueue
from microdiffusion.daemon.ingest import Ingest
from microdiffusion.daemon.recorder.queue import WriteQueue
from microdiffusion.daemon.recorder.segment import Segment
from microdiffusion.daemon.runs import OpenRuns
from microdiffusion.daemon.status import StatusBoard

MOST = 8
DAEMON = "microdiffusion.daemon."


class Hand(NamedTuple):
    """A callable of the daemon that is on the stack."""

    module: str
    function: str

    @property
    def room(self) -> str:
        return self.module.split(".")[0]

    @property
    def owner(self) -> str:
        return self.function.split(".")[0]


def hands() -> list[Hand]:
    """Return who is on this thread's stack, the first caller first."""
    found: list[Hand] = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(DAEMON):
            found.append(Hand(module.removeprefix(DAEMON), frame.f_code.co_qualname))
        frame = frame.f_back
    return found[::-1]


def in_recorder() -> bool:
    return threading.current_thread().name == "recorder"


class Trace:
    """The stacks at the four moments of a frame's way, and their threads; to be made before the ingest."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stacks: dict[str, list[Hand]] = {}
        self.threads: dict[str, str] = {}
        self._patch = patch
        self._spy("handed over", WriteQueue, "put", lambda queue, work, size=0, frame=None: frame is not None)
        self._spy("written", Segment, "write", lambda segment, name, index, value: name == "projections")
        self._spy("completed", Ingest, "_wake", lambda ingest: in_recorder())
        self._spy("answered", Ingest, "_answer", lambda ingest, peer, answer: bool(answer.received))

    def _spy(self, moment: str, owner: Any, name: str, matters: Any) -> None:
        original = getattr(owner, name)

        def spy(*arguments: Any) -> Any:
            if matters(*arguments):
                last = Hand(original.__module__.removeprefix(DAEMON), original.__qualname__)
                self.stacks[moment] = [*hands(), last]
                self.threads[moment] = threading.current_thread().name
            return original(*arguments)

        self._patch.setattr(owner, name, spy)

    def owners(self, moment: str) -> list[str]:
        """Return whose callables are on a stack, once where they call themselves."""
        names = [hand.owner for hand in self.stacks[moment]]
        return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]

    def rooms(self, moment: str) -> list[str]:
        names = [hand.room for hand in self.stacks[moment]]
        return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


class Place:
    """A daemon's ingest and runs, with an engine that was not started."""

    def __init__(self, folder: Path, **engine: Any) -> None:
        self.folder = folder
        recorder = {"output": folder, "time_points": 2}
        config = Config.model_validate({"recorder": recorder, "engine": {"method": "linear", **engine}})
        self.ingest = Ingest("tcp://127.0.0.1:*")
        engines = EngineProcess(config.engine, waiting_bytes=1 << 30)
        self.queue = engines.queue
        self.runs = OpenRuns(config, engines, StatusBoard(), self.ingest)
        self.ingest.start(self.runs.on_start)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *error: object) -> None:
        self.ingest.stop()
        self.close_runs()

    def close_runs(self) -> None:
        self.runs.close_all(drain_s=0.0, hurry=lambda: True, show=lambda: None)

    def pixels(self) -> Any:
        """Return the first frame as it is in the file."""
        (path,) = self.folder.glob("*.h5")
        with open_run(path) as run:
            return run.projections.filled(0)[0, 0]


def test_a_frame_passes_each_room_once_and_at_most_eight_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(monkeypatch)
    with Place(tmp_path) as place, Peer(place.ingest.address) as peer:
        peer.start()
        peer.say(frame_parts(0))
        assert peer.hear() == wire.Ack(run=make_header().run_id, received=(0,))
        np.testing.assert_array_equal(place.pixels(), make_frame(0).pixels)

    assert {moment: (trace.threads[moment], trace.owners(moment)) for moment in trace.stacks} == {
        "handed over": ("mdd-ingest", ["Ingest", "IngestProtocol", "LiveRun", "Recorder", "WriteQueue"]),
        "written": ("recorder", ["Recorder", "RunWriter", "_write", "Segment"]),
        "completed": ("recorder", ["Recorder", "Receipt", "Ingest"]),
        "answered": ("mdd-ingest", ["Ingest", "IngestProtocol", "Ingest"]),
    }
    assert {moment: trace.rooms(moment) for moment in trace.stacks} == {
        "handed over": ["ingest", "runs", "recorder"],
        "written": ["recorder"],
        "completed": ["recorder", "receipt", "ingest"],
        "answered": ["ingest"],
    }
    everybody = {hand for stack in trace.stacks.values() for hand in stack}
    classes = {hand.owner for hand in everybody if "." in hand.function}
    assert len(classes) <= MOST, classes
    modules = {hand.module for hand in everybody}
    assert len(modules) <= MOST, modules


def test_the_bytes_are_in_the_file_before_the_receipt_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    wake = Ingest._wake

    def spy(ingest: Ingest) -> None:
        if in_recorder():
            seen.append(place.pixels())
        wake(ingest)

    monkeypatch.setattr(Ingest, "_wake", spy)
    with Place(tmp_path) as place, Peer(place.ingest.address) as peer:
        peer.start()
        peer.say(frame_parts(0))
        assert peer.confirmed(1) == [0]
    np.testing.assert_array_equal(seen[0], make_frame(0).pixels)


def test_a_run_holds_receipts_while_the_engine_has_enough_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = False
    monkeypatch.setattr(WorkQueue, "has_room", lambda queue, run_id: room)
    with Place(tmp_path, policy="wait") as place, Peer(place.ingest.address) as peer:
        peer.start()
        for seq in range(3):
            peer.say(frame_parts(seq))
        (run,) = place.runs.unclosed
        wait_until(lambda: len(run.received) == 3 and run.recorder.queue_bytes == 0)
        assert peer.hears_nothing()
        room = True
        run.tick(0.0, shown=False)
        assert peer.confirmed(3) == [0, 1, 2]
        room = False
        peer.say(frame_parts(3))
        assert peer.hears_nothing()
        place.queue.set("engine.policy", "archive")
        run.tick(0.0, shown=False)
        assert peer.confirmed(1) == [3], "the policy was changed meanwhile"
        place.queue.set("engine.policy", "wait")
        peer.say(frame_parts(4))
        assert peer.hears_nothing()
        place.close_runs()
        assert peer.confirmed(1) == [4], "at the end nothing waits for the engine any more"
