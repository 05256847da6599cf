"""A disk that takes nothing is told; a process that stood still itself tells nothing of its disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from microdiffusion.daemon.runs.health import HANGS_S, RunHealth
from microdiffusion.daemon.status.board import StatusBoard


class Recorder:
    """Takes calls and does them when the test says so."""

    waiting_for = short_of_room = ""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / "run.h5"]
        self.asked: list[Callable[[], None]] = []

    def call(self, work: Callable[[], None]) -> None:
        self.asked.append(work)


@pytest.mark.parametrize(
    ("tick_s", "told"), [(1.0, 1), (2 * HANGS_S, 0)], ids=["the disk hangs", "the process stood still"]
)
def test_only_a_disk_that_hangs_is_told(tmp_path: Path, tick_s: float, told: int) -> None:
    board = StatusBoard(clock=lambda: 0.0)
    watch = RunHealth(Recorder(tmp_path), board, 1)  # type: ignore[arg-type]
    began_s = now_s = time.monotonic()
    while now_s < began_s + 2 * HANGS_S:
        now_s += tick_s
        watch.disk(now_s)
    assert ["taken nothing" in note.text for note in board.snapshot().notes] == [True] * told


def test_a_disk_that_will_be_full_is_told_once(tmp_path: Path) -> None:
    board = StatusBoard(clock=lambda: 0.0)
    recorder = Recorder(tmp_path)
    watch = RunHealth(recorder, board, 1)  # type: ignore[arg-type]
    for short in ("", "room for 3 more sweeps", "room for 2 more sweeps", ""):
        recorder.short_of_room = short
        watch.disk(time.monotonic())
    (note,) = board.snapshot().notes
    assert (note.level, "room for 3 more sweeps" in note.text) == ("warning", True)
