"""The engine's process: volumes come back, what cannot be done is said, a crash costs one sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.engine_owner import FAST, RUN, Owner
from support.sample_data import SHAPE, header, specimen, sweep_of

from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.engine import process as engine_process
from microdiffusion.daemon.engine import scheduler as schedule
from microdiffusion.daemon.engine import supervisor
from microdiffusion.daemon.engine.messages import Notice
from microdiffusion.daemon.engine.process import EngineProcess
from microdiffusion.daemon.engine.sinks import SweepJob
from microdiffusion.errors import ConfigError, DiskError, EngineError, MissingFileError
from microdiffusion.frames import Reconstruction, StagePositions, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.processes import keyboard_ignored


@pytest.fixture
def start() -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def starter(**config: Any) -> Owner:
        owner = Owner(**config)
        owners.append(owner)
        owner.engine.start()
        return owner

    yield starter
    for owner in owners:
        owner.engine.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[EngineProcess]:
    """Return an engine that is open already, for tests that leave it as it was: opening takes seconds."""
    owner = Owner()
    owner.engine.start()
    owner.ready()
    yield owner.engine
    owner.engine.stop()


@pytest.fixture
def lend(shared: EngineProcess) -> Iterator[Callable[[], Owner]]:
    def lender() -> Owner:
        return Owner(engine=shared)

    yield lender
    shared.queue.end(RUN)
    shared.queue.end("e" * 32)
    assert shared.restarts == 0
    assert shared.queue.idle


@pytest.fixture(scope="module")
def sweeps() -> list[Sweep]:
    return [sweep_of(specimen(drift=0.3 * number), number) for number in range(6)]


def _nbytes(sweep: Sweep) -> int:
    return sweep.projections.nbytes + sweep.held_out.nbytes


def test_every_sweep_comes_back_as_its_own_volume(
    start: Callable[..., Owner], sweeps: list[Sweep], weights: Path
) -> None:
    owner = start(method="mdd", weights=weights, backlog=10, inr=InrConfig(cold_steps=2, warm_steps=1))
    info = owner.ready()
    assert info.weights == weights.name
    assert len(info.weights_sha256) == 64
    assert info.device.split()[0] in ("torch", "openvino")
    owner.begin()
    for sweep in sweeps:
        owner.submit(sweep)
    assert owner.queue.drain(RUN, 60)
    assert owner.lost_jobs == []
    assert owner.done == [0, 1, 2, 3, 4, 5]
    for job, result in owner.volumes:
        assert job.sweep is sweeps[job.sweep_number]
        assert result.volume.shape == SHAPE
        assert result.volume.dtype == np.float32
    # The session goes on: only the first sweep stands alone.
    assert [result.merged for _, result in owner.volumes] == [False] + [True] * 5
    owner.engine.raise_if_failed()


def test_sweeps_may_be_submitted_before_the_engine_is_ready(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start(backlog=3)
    owner.begin()
    for sweep in sweeps[:3]:
        owner.submit(sweep)
    assert owner.queue.drain(RUN, 60)
    assert owner.settled == [0, 1, 2]
    assert owner.lost_jobs == []


def test_live_the_newest_sweeps_win_where_the_engine_is_slower(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start(backlog=2, policy="live")
    owner.ready()
    owner.has_room = False  # the recorder is full, so the first one stays on its way
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.queue.waiting_bytes == 0)
    owner.submit(*sweeps[1:])
    assert not owner.queue.has_room(RUN)
    assert [(number, outcome) for number, outcome, _ in owner.lost_jobs] == [
        (n, "skipped") for n in (1, 2, 3)
    ]
    assert {reason for _, _, reason in owner.lost_jobs} == {"the engine was busy with other sweeps"}
    assert owner.queue.waiting_bytes == 2 * _nbytes(sweeps[0])
    owner.has_room = True
    assert owner.queue.drain(RUN, 30)
    assert owner.done == [0, 4, 5]


def test_archived_sweeps_wait_in_the_run_file_and_are_caught_up(
    lend: Callable[[], Owner], sweeps: list[Sweep]
) -> None:
    owner = lend()
    owner.has_room = False
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.queue.waiting_bytes == 0)
    owner.submit(*sweeps[1:])
    assert owner.lost_jobs == []
    assert owner.queue._scheduler.backlog == 3
    assert owner.queue.pending(RUN) == 6
    faster = "sweeps come faster than the engine takes them: from sweep 1 on some are done later"
    assert owner.events == [("backlog", faster)]
    owner.has_room = True
    assert owner.queue.drain(RUN, 60)
    # The newest first, then what was put off, oldest first.
    assert owner.done == [0, 4, 5, 1, 2, 3]
    assert owner.loaded == [1, 2, 3]
    assert [job.lane for job, _ in owner.volumes] == ["sweep"] * 3 + ["later"] * 3
    assert owner.events[1:] == [("backlog", "the sweeps that waited in the run file are caught up")]
    assert owner.queue.idle


def test_what_is_not_caught_up_in_time_is_skipped_with_advice(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start(backlog=1)
    owner.ready()
    owner.begin()
    psutil.Process(owner.engine.pid).suspend()
    owner.submit(*sweeps[:4])
    assert not owner.queue.drain(RUN, 60, hurry=lambda: True)
    psutil.Process(owner.engine.pid).resume()
    assert sorted(number for number, _, _ in owner.lost_jobs) == [0, 1, 2, 3]
    assert {(outcome, reason) for _, outcome, reason in owner.lost_jobs} == {
        ("skipped", "the run was closed before its turn came: mdd reconstruct run.h5")
    }


def test_a_sweep_that_was_put_off_and_is_not_in_the_file_fails(
    lend: Callable[[], Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_RETRY_S", 0.01)
    owner = lend()
    owner.begin()
    owner.queue.put_off(RUN, 7, 0, 0)
    assert owner.queue.drain(RUN, 60)
    assert owner.lost_jobs == [(7, "failed", "its frames could not be read from the run file")]
    assert owner.loaded == [7] * 10


@pytest.mark.parametrize("error", [OSError("the disk"), ValueError("the file")])
def test_frames_that_cannot_be_read_fail_their_sweep_and_nothing_else(
    lend: Callable[[], Owner], sweeps: list[Sweep], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(job: SweepJob) -> Sweep:
        raise error

    owner = lend()  # which sees to it that its engine is not started again for this
    monkeypatch.setattr(owner, "load", load)
    owner.begin()
    owner.queue.put_off(RUN, 7, 0, 0)
    owner.submit(sweeps[0])
    assert owner.queue.drain(RUN, 60)
    reason = f"its frames could not be read ({type(error).__name__}: {error})"
    assert owner.lost_jobs == [(7, "failed", reason)]
    assert owner.done == [0]


def test_a_run_without_room_holds_up_no_other(lend: Callable[[], Owner], sweeps: list[Sweep]) -> None:
    owner, other = lend(), Owner()
    owner.begin()
    owner.queue.begin(header(run_id="e" * 32), other)
    owner.has_room = False
    for sweep in sweeps[:2]:
        owner.submit(sweep)
        owner.queue.submit("e" * 32, sweep)
    owner.wait(lambda: other.done == [0, 1])
    assert owner.done == []
    assert owner.queue.pending(RUN) == 2
    owner.has_room = True
    assert owner.queue.drain(RUN, 60)
    assert owner.done == [0, 1]


def test_rolling_updates_are_for_the_live_view_alone(lend: Callable[[], Owner], sweeps: list[Sweep]) -> None:
    owner = lend()
    owner.has_room = False
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: bool(owner.offered))
    # While the run takes nothing, each replaces the one before.
    for number, sweep in enumerate(sweeps[:4]):
        owner.queue.submit(RUN, sweep, lane="rolling", newest_seq=10 * number)
    owner.submit(sweeps[4])
    owner.has_room = True
    owner.wait(lambda: bool(owner.rolling) and owner.done == [0, 4])
    assert [(job.sweep_number, job.newest_seq) for job in owner.rolling] == [(3, 30)]


def test_a_volume_on_its_way_to_the_recorder_counts_as_work(
    lend: Callable[[], Owner], sweeps: list[Sweep]
) -> None:
    owner = lend()
    owner.has_room = False
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: bool(owner.offered))
    assert owner.queue.pending(RUN) == 1  # closing now would lose it
    owner.has_room = True
    assert owner.queue.drain(RUN, 10)
    assert owner.done == [0]
    owner.has_room = False
    owner.submit(sweeps[1])
    assert not owner.queue.drain(RUN, 60, hurry=lambda: owner.offered[-1] == 1)
    assert [(number, outcome) for number, outcome, _ in owner.lost_jobs] == [(1, "skipped")]
    assert owner.queue.pending(RUN) == 0


def test_a_sweep_that_fails_is_named_and_the_next_ones_work(
    lend: Callable[[], Owner], sweeps: list[Sweep]
) -> None:
    owner = lend()
    owner.begin()
    outside = sweep_of(specimen(), 0)
    outside.stage = StagePositions.along_z(outside.stage.z_um + 500.0)
    owner.submit(outside)
    owner.submit(sweeps[1])
    assert owner.queue.drain(RUN, 60)
    ((number, outcome, reason),) = owner.lost_jobs
    assert (number, outcome) == (0, "failed")
    assert "lies outside of the volume" in reason
    assert owner.done == [1]
    assert owner.engine.restarts == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_engine_is_started_again_and_its_sweep_is_done(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start()
    owner.ready()
    first = owner.engine.pid
    assert first is not None
    psutil.Process(first).suspend()  # so that it is caught in the middle of the sweep
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.queue.waiting_bytes == 0)
    os.kill(first, signal.SIGKILL)
    owner.submit(sweeps[1])  # at once: nothing waits for the next process
    assert owner.queue.drain(RUN, 100)
    assert owner.done == [0, 1]
    assert owner.lost_jobs == []
    died = f"the engine process died (exit code {-signal.SIGKILL}): it is started again"
    assert owner.events == [("engine", died)]
    assert owner.engine.restarts == 1
    assert owner.engine.pid != first
    owner.ready()
    assert not psutil.pid_exists(first)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_an_engine_that_keeps_dying_is_given_up_with_advice(
    start: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 1)
    owner = start()
    killed: set[int | None] = {None}
    deadline_s = time.monotonic() + 60
    while len(killed) < 3:
        assert time.monotonic() < deadline_s
        pid = owner.engine.pid
        if pid not in killed and pid is not None:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    with pytest.raises(EngineError, match=r"died 2 times .*engine\.tile"):
        owner.ready()


def test_an_engine_that_does_not_answer_is_ended_and_replaced(
    start: Callable[..., Owner], sweeps: list[Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = start()
    owner.ready()
    child = psutil.Process(owner.engine.pid)
    child.suspend()
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.queue.waiting_bytes == 0)
    monkeypatch.setattr(engine_process, "HANG_S", 0.2)
    owner.wait(lambda: owner.engine.restarts == 1)
    monkeypatch.setattr(engine_process, "HANG_S", 600.0)
    assert not child.is_running()
    assert owner.queue.drain(RUN, 60)
    assert owner.done == [0]
    assert any("the engine has not answered for" in note for note in owner.warnings)


def test_an_engine_that_stands_still_while_a_large_sweep_goes_to_it_is_replaced_too(
    start: Callable[..., Owner], sweeps: list[Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = start()
    owner.ready()
    child = psutil.Process(owner.engine.pid)
    child.suspend()
    owner.begin()
    more = 1 + (8 << 20) // sweeps[0].projections.nbytes  # than any pipe holds
    owner.submit(replace(sweeps[0], projections=np.repeat(sweeps[0].projections, more, axis=0)))
    owner.wait(lambda: owner.queue.waiting_bytes == 0)
    monkeypatch.setattr(engine_process, "HANG_S", 0.2)
    monkeypatch.setattr(engine_process, "_WATCHED_S", 0.2)

    def replaced() -> bool:
        owner.engine.raise_if_failed()
        return owner.engine.restarts == 1

    owner.wait(replaced)
    monkeypatch.setattr(engine_process, "HANG_S", 600.0)
    assert not child.is_running()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_sweep_that_kills_twice_is_given_up(start: Callable[..., Owner], sweeps: list[Sweep]) -> None:
    owner = start(backlog=5)
    owner.begin()
    for _ in range(2):
        owner.ready()
        child = psutil.Process(owner.engine.pid)
        child.suspend()
        if not owner.on_disk:
            owner.submit(sweeps[0])
        owner.wait(lambda: owner.queue.waiting_bytes == 0)
        child.kill()
        owner.wait(lambda pid=child.pid: owner.engine.pid != pid)  # type: ignore[misc]
    owner.submit(sweeps[1])
    assert owner.queue.drain(RUN, 100)
    assert owner.done == [1]
    code = -signal.SIGKILL
    assert owner.lost_jobs == [(0, "failed", f"the engine died twice over this sweep (exit code {code})")]


def test_what_waits_is_bounded_in_bytes(start: Callable[..., Owner], sweeps: list[Sweep]) -> None:
    one = _nbytes(sweeps[0])
    owner = start(backlog=100, waiting_bytes=int(2.5 * one), policy="live")
    owner.begin()
    owner.submit(*sweeps[:4])  # the engine is not open yet
    assert owner.queue.waiting_bytes <= 2.5 * one
    assert [(number, outcome) for number, outcome, _ in owner.lost_jobs] == [(0, "skipped"), (1, "skipped")]
    assert owner.queue.drain(RUN, 100)
    assert owner.done == [2, 3]


def test_what_is_given_up_is_skipped_and_answers_no_other_sweep(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner, other = start(), Owner()
    owner.ready()
    child = psutil.Process(owner.engine.pid)
    child.suspend()
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.queue.waiting_bytes == 0)
    owner.submit(sweeps[1])
    assert not owner.queue.drain(RUN, 60, hurry=lambda: True)
    assert [(number, outcome) for number, outcome, _ in owner.lost_jobs] == [(0, "skipped"), (1, "skipped")]
    assert owner.queue.pending(RUN) == 0
    owner.queue.end(RUN)
    # The child is still at the first one; its answer must not become another run's volume.
    small = header(run_id="f" * 32, shape=(24, 16, 16))
    owner.queue.begin(small, other)
    owner.queue.submit(small.run_id, sweep_of(specimen(shape=(24, 16, 16)), 2))
    child.resume()
    assert owner.queue.drain(small.run_id, 100)
    ((job, result),) = other.volumes
    assert job.sweep_number == 2
    assert result.volume.shape == (24, 16, 16)
    assert owner.volumes == []


def test_what_cannot_be_opened_is_raised_as_it_is(start: Callable[..., Owner]) -> None:
    owner = start(method="mdd", weights=Path("gone.safetensors"))
    with pytest.raises(MissingFileError, match=r"gone\.safetensors do not exist"):
        owner.ready()
    assert owner.engine.restarts == 0
    with pytest.raises(MissingFileError):
        owner.engine.raise_if_failed()


def test_what_was_set_while_the_engine_took_smaller_tiles_reaches_it() -> None:
    engine = EngineProcess(EngineConfig(**FAST, steps=4), waiting_bytes=1 << 30)
    (served,) = engine._devices
    known = served.configured
    engine.queue.set("engine.steps", 2)
    engine._take(Notice("the GPU's memory is too small", {"tile": 64}), served)
    assert (engine.queue.config.steps, engine.queue.config.tile) == (2, 64)
    assert served.configured is known, "the child has yet to hear of it"
    served.configured = engine.queue.config
    engine._take(Notice("the GPU's memory is too small", {"tile": 64}), served)
    assert served.configured is engine.queue.config
    engine.stop()


def _open_but_not_for_one(config: EngineConfig, progress: Any) -> Any:
    from microdiffusion.engines.pipeline.engine import open_engine
    from microdiffusion.engines.pipeline.reconstructor import Reconstructor

    begin = Reconstructor.__init__

    def begin_unless(self: Reconstructor, header: RunHeader, *arguments: Any, **named: Any) -> None:
        if header.run_id == "e" * 32:
            raise RuntimeError("no memory for a volume of this size")
        begin(self, header, *arguments, **named)

    Reconstructor.__init__ = begin_unless  # type: ignore[method-assign]
    return open_engine(config, progress=progress)


def test_a_run_that_the_engine_cannot_begin_ends_no_other() -> None:
    config = EngineConfig(**FAST)
    engine = EngineProcess(config, waiting_bytes=1 << 30, opener=_open_but_not_for_one)
    good, bad = Owner(engine=engine), Owner(engine=engine)
    engine.start()
    try:
        good.begin()
        engine.queue.begin(header(run_id="e" * 32), bad)
        engine.queue.submit("e" * 32, sweep_of(specimen(), 0))
        engine.queue.submit("e" * 32, sweep_of(specimen(), 1))
        good.submit(sweep_of(specimen(), 0))
        good.wait(lambda: good.settled == [0] and bad.settled == [0, 1])
        assert good.done == [0]
        assert {outcome for _, outcome, _ in bad.lost_jobs} == {"failed"}
        assert all("no memory for a volume of this size" in reason for _, _, reason in bad.lost_jobs)
        assert engine.restarts == 0
    finally:
        engine.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="posix signals")
@pytest.mark.parametrize("on_thread", [False, True], ids=["main thread", "another thread"])
def test_ctrl_c_while_a_process_starts_is_for_the_daemon_and_not_for_the_process(on_thread: bool) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        child = multiprocessing.get_context("spawn").Process(target=_tell_mask, args=(theirs,))

        def begin() -> None:
            with keyboard_ignored():
                child.start()
                os.kill(os.getpid(), signal.SIGINT)

        if on_thread:
            thread = threading.Thread(target=begin)
            thread.start()
            thread.join()
        else:
            begin()
        assert pipe.poll(30)
        assert signal.SIGINT in pipe.recv()
        child.join(30)
        assert heard == [signal.SIGINT]
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, before)


def _tell_mask(pipe: Connection) -> None:
    pipe.send(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_an_error_of_one_runs_disk_ends_the_work_for_that_run_alone(
    lend: Callable[[], Owner], sweeps: list[Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(job: SweepJob, result: Reconstruction) -> bool:
        raise DiskError("the disk is full")

    owner, other = lend(), Owner()
    monkeypatch.setattr(owner, "volume", full)
    owner.begin()
    owner.queue.begin(header(run_id="e" * 32), other)
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.queue.runs.failure_of(RUN) is not None)
    owner.submit(sweeps[1])
    owner.queue.submit("e" * 32, sweeps[2])
    assert owner.queue.drain("e" * 32, 30)
    assert other.done == [2]
    assert owner.queue.drain(RUN, 0)
    assert str(owner.queue.runs.failure_of(RUN)) == "the disk is full"
    assert owner.engine.restarts == 0


def test_a_sweep_of_a_run_that_is_not_open_is_refused(sweeps: list[Sweep]) -> None:
    owner = Owner()
    with pytest.raises(EngineError, match="not open"):
        owner.submit(sweeps[0])


def test_settings_that_may_change_do_so_between_two_sweeps(
    start: Callable[..., Owner], sweeps: list[Sweep], weights: Path
) -> None:
    owner = start(method="mdd", weights=weights, backlog=9, inr=InrConfig(cold_steps=2, warm_steps=1))
    owner.begin()
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.done == [0])
    owner.queue.set("engine.steps", "3")
    owner.submit(sweeps[1])
    assert owner.queue.drain(RUN, 30)
    assert owner.queue.config.steps == 3
    assert owner.events == [("engine", "engine.steps = 3 from now on")]
    first, second = (result for _, result in owner.volumes)
    assert second.merged  # the session goes on
    assert (first.effort, second.effort) == (0, 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "engine.device",
            "cpu",
            r"engine\.device cannot be changed while .* runs, only engine\.steps",
        ),
        ("recorder.output", "x", "cannot be changed while the daemon runs"),
        ("engine.steps", 99, "engine.steps = 99 is not possible: input should be less"),
        ("engine.policy", "sometimes", "is not possible: input should be 'archive', 'live' or 'wait'"),
    ],
    ids=["device", "another table", "too many", "no policy"],
)
def test_nothing_else_may_change(key: str, value: Any, message: str) -> None:
    owner = Owner()
    with pytest.raises(ConfigError, match=message):
        owner.queue.set(key, value)
    assert owner.queue.config == EngineConfig(**FAST)


def test_memory_is_said_before_the_start() -> None:
    owner = Owner()
    owner.begin(channels=("a", "b"), positions=("1", "2"))
    (note,) = owner.notes
    assert "24 x 32 x 32 voxels and 4 sessions" in note


def test_stopping_ends_the_process_at_once_and_twice_does_no_harm(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start()
    owner.ready()
    pid = owner.engine.pid
    assert pid is not None
    process = psutil.Process(pid)
    owner.begin()
    owner.engine.stop()
    owner.engine.stop()
    assert not process.is_running()
    assert not owner.engine._thread.is_alive()
    owner.submit(sweeps[0])
    owner.engine.stop()
    assert owner.settled == [0]


PARENT = """
    import sys, time
    from microdiffusion.config import EngineConfig
    from microdiffusion.daemon.engine import EngineProcess

    if __name__ == "__main__":
        engine = EngineProcess(
            EngineConfig(method="linear", threads=1),
            waiting_bytes=1 << 30,
        )
        engine.start()
        while sys.argv[1] == "ready" and engine.info is None:
            time.sleep(0.01)
        print(engine.pid, flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("moment", ["starting", "ready"])
def test_the_engine_ends_with_a_killed_parent_and_says_nothing(tmp_path: Path, moment: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    errors = tmp_path / "stderr.txt"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(script), moment], stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as parent,
    ):
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE
    assert "Traceback" not in errors.read_text()
