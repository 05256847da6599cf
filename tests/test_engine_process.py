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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sample_data import SHAPE, header, specimen, sweep_of

from microdiffusion.config import EngineConfig, InrConfig
from microdiffusion.daemon import engine_process
from microdiffusion.daemon.engine_process import EngineProcess
from microdiffusion.drivers.process import keyboard_ignored
from microdiffusion.errors import ConfigError, DiskError, EngineError, InputFileError, MissingFileError
from microdiffusion.sweep import Reconstruction, Sweep

FAST = {"method": "linear", "threads": 1, "device": "cpu"}


class Owner:
    """The daemon's side: keeps what the engine says."""

    def __init__(self, waiting_bytes: int = 1 << 30, **config: Any) -> None:
        self.volumes: list[tuple[Sweep, Reconstruction]] = []
        self.lost: list[tuple[int, str, str]] = []
        self.has_room = True
        self.engine = EngineProcess(
            EngineConfig(**{**FAST, **config}),
            waiting_bytes=waiting_bytes,
            on_volume=self._volume,
            on_lost=self._lost,
        )

    def _volume(self, sweep: Sweep, result: Reconstruction) -> bool:
        if self.has_room:
            self.volumes.append((sweep, result))
        return self.has_room

    def _lost(self, sweep: Sweep, outcome: str, reason: str) -> None:
        self.lost.append((sweep.sweep, outcome, reason))

    @property
    def settled(self) -> list[int]:
        return sorted([sweep.sweep for sweep, _ in self.volumes] + [number for number, _, _ in self.lost])

    def wait(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.engine.raise_if_failed()
            assert time.monotonic() < deadline_s, (self.settled, self.lost)
            time.sleep(0.01)


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
def sweeps() -> list[Sweep]:
    return [sweep_of(specimen(drift=0.3 * number), number) for number in range(6)]


def test_every_sweep_comes_back_as_its_own_volume(
    start: Callable[..., Owner], sweeps: list[Sweep], weights: Path
) -> None:
    owner = start(method="mdd", weights=weights, backlog=10, inr=InrConfig(cold_steps=2, warm_steps=1))
    info = owner.engine.wait_ready()
    assert info.weights == weights.name
    assert len(info.weights_sha256) == 64
    assert info.device.split()[0] in ("torch", "openvino")
    owner.engine.begin(header())
    for sweep in sweeps:
        owner.engine.submit(sweep)
    assert owner.engine.drain(60)
    assert owner.lost == []
    assert [sweep.sweep for sweep, _ in owner.volumes] == [0, 1, 2, 3, 4, 5]
    for sweep, result in owner.volumes:
        assert sweep is sweeps[sweep.sweep]
        assert result.volume.shape == SHAPE
        assert result.volume.dtype == np.float32
    # One INR is kept warm: the first fit is the long one.
    assert [result.inr_iterations for _, result in owner.volumes] == [2, 1, 1, 1, 1, 1]
    owner.engine.raise_if_failed()


def test_sweeps_may_be_submitted_before_the_engine_is_ready(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start(backlog=3)
    owner.engine.begin(header())
    for sweep in sweeps[:3]:
        owner.engine.submit(sweep)
    assert owner.engine.drain(60)
    assert owner.settled == [0, 1, 2]
    assert owner.lost == []


def test_the_newest_sweeps_win_where_the_engine_is_slower(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start(backlog=2)
    owner.engine.wait_ready()
    owner.has_room = False  # the recorder is full, so the first one stays on its way
    owner.engine.begin(header())
    owner.engine.submit(sweeps[0])
    owner.wait(lambda: owner.engine.waiting_bytes == 0)
    time.sleep(0.3)
    for sweep in sweeps[1:]:
        owner.engine.submit(sweep)
    assert not owner.engine.has_room()
    assert [(number, outcome) for number, outcome, _ in owner.lost] == [(n, "skipped") for n in (1, 2, 3)]
    assert {reason for _, _, reason in owner.lost} == {"the engine was busy with other sweeps"}
    assert owner.engine.waiting_bytes == 2 * sweeps[0].projections.nbytes
    owner.has_room = True
    assert owner.engine.drain(30)
    assert [sweep.sweep for sweep, _ in owner.volumes] == [0, 4, 5]


def test_each_session_has_its_own_backlog() -> None:
    owner = Owner(backlog=1)  # never started: everything waits
    for number in range(2):
        for channel in range(2):
            sweep = sweep_of(specimen(), number)
            sweep.channel = channel
            owner.engine.submit(sweep)
    assert owner.lost == [(0, "skipped", "the engine was busy with other sweeps")] * 2
    assert owner.engine.waiting == 2


def test_a_volume_on_its_way_to_the_recorder_counts_as_work(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start()
    owner.engine.wait_ready()
    owner.has_room = False
    owner.engine.begin(header())
    owner.engine.submit(sweeps[0])
    assert not owner.engine.drain(3)  # closing now would lose it
    assert owner.engine.waiting == 1
    owner.has_room = True
    assert owner.engine.drain(10)
    assert owner.settled == [0]
    assert owner.lost == []


def test_a_sweep_that_fails_is_named_and_the_next_ones_work(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start(backlog=5)
    owner.engine.begin(header())
    outside = sweep_of(specimen(), 0)
    outside.z_um = outside.z_um + 500.0
    owner.engine.submit(outside)
    owner.engine.submit(sweeps[1])
    assert owner.engine.drain(60)
    ((number, outcome, reason),) = owner.lost
    assert (number, outcome) == (0, "failed")
    assert "lies outside of the volume" in reason
    assert [sweep.sweep for sweep, _ in owner.volumes] == [1]
    assert owner.engine.restarts == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_engine_costs_its_sweep_and_is_started_again(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start()
    owner.engine.wait_ready()
    first = owner.engine.pid
    assert first is not None
    psutil.Process(first).suspend()  # so that it is caught in the middle of the sweep
    owner.engine.begin(header())
    owner.engine.submit(sweeps[0])
    owner.wait(lambda: owner.engine.waiting_bytes == 0)
    os.kill(first, signal.SIGKILL)
    owner.wait(lambda: bool(owner.lost))
    assert owner.lost == [(0, "failed", f"the engine process died (exit code {-signal.SIGKILL})")]
    owner.engine.submit(sweeps[1])
    assert owner.engine.drain(100)
    assert [sweep.sweep for sweep, _ in owner.volumes] == [1]
    assert owner.engine.restarts == 1
    assert owner.engine.pid != first
    owner.engine.wait_ready(0)
    assert not psutil.pid_exists(first)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_an_engine_that_keeps_dying_is_given_up_with_advice(
    start: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "MAX_RESTARTS", 1)
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
        owner.engine.wait_ready(30)


def test_what_waits_is_bounded_in_bytes(start: Callable[..., Owner], sweeps: list[Sweep]) -> None:
    one = sweeps[0].projections.nbytes
    owner = start(backlog=100, waiting_bytes=int(2.5 * one))
    # Nothing is taken off the queue before a run begins.
    for sweep in sweeps[:4]:
        owner.engine.submit(sweep)
    assert owner.engine.waiting_bytes <= 2.5 * one
    assert [(number, outcome) for number, outcome, _ in owner.lost] == [(0, "skipped"), (1, "skipped")]
    owner.engine.wait_ready()
    owner.engine.begin(header())
    assert owner.engine.drain(100)
    assert [sweep.sweep for sweep, _ in owner.volumes] == [2, 3]


def test_what_is_given_up_is_skipped_and_answers_no_other_sweep(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start()
    owner.engine.wait_ready()
    child = psutil.Process(owner.engine.pid)
    child.suspend()
    owner.engine.begin(header())
    owner.engine.submit(sweeps[0])
    owner.wait(lambda: owner.engine.waiting_bytes == 0)
    owner.engine.submit(sweeps[1])
    assert not owner.engine.drain(60, hurry=lambda: True)
    assert [(number, outcome) for number, outcome, _ in owner.lost] == [(0, "skipped"), (1, "skipped")]
    assert owner.engine.waiting == 0
    # The child is still at the first one; its answer must not become the next run's volume.
    owner.engine.begin(header(run_id="f" * 32, shape=(24, 16, 16)))
    owner.engine.submit(sweep_of(specimen(shape=(24, 16, 16)), 2))
    child.resume()
    assert owner.engine.drain(100)
    ((sweep, result),) = owner.volumes
    assert sweep.sweep == 2
    assert result.volume.shape == (24, 16, 16)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"weights": Path("gone.safetensors")}, MissingFileError, "gone.safetensors do not exist"),
        ({"weights": Path(__file__)}, InputFileError, "does not hold weights"),
        ({"device": "cuda:99"}, ConfigError, "torch sees"),
    ],
    ids=["missing weights", "other file as weights", "missing device"],
)
def test_what_cannot_be_opened_is_raised_as_it_is(
    start: Callable[..., Owner], config: dict[str, Any], kind: type[Exception], message: str
) -> None:
    owner = start(method="mdd", **config)
    with pytest.raises(kind, match=message):
        owner.engine.wait_ready()
    assert owner.engine.restarts == 0
    with pytest.raises(kind):
        owner.engine.raise_if_failed()


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


def test_an_engine_that_is_not_ready_in_time_says_so(start: Callable[..., Owner]) -> None:
    owner = start()
    with pytest.raises(EngineError, match=r"did not get ready within 0\.01 s"):
        owner.engine.wait_ready(0.01)
    assert not owner.engine.is_ready(0.0)


def test_an_error_of_the_recorder_ends_the_engine_with_it(sweeps: list[Sweep]) -> None:
    def full(sweep: Sweep, result: Reconstruction) -> bool:
        raise DiskError("the disk is full")

    engine = EngineProcess(
        EngineConfig(**FAST), waiting_bytes=1 << 30, on_volume=full, on_lost=lambda *_: None
    )
    engine.start()
    try:
        engine.begin(header())
        engine.submit(sweeps[0])
        engine.drain(30)
        with pytest.raises(DiskError, match="the disk is full"):
            engine.raise_if_failed()
        assert engine.restarts == 0
    finally:
        engine.stop()


def test_stopping_ends_the_process_at_once_and_twice_does_no_harm(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start()
    owner.engine.wait_ready()
    pid = owner.engine.pid
    assert pid is not None
    process = psutil.Process(pid)
    owner.engine.stop()
    owner.engine.stop()
    assert not process.is_running()
    assert not any(thread.name == "mdd-engine" for thread in threading.enumerate())
    owner.engine.submit(sweeps[0])
    owner.engine.stop()
    assert owner.settled == [0]


PARENT = """
    import sys, time
    from microdiffusion.config import EngineConfig
    from microdiffusion.daemon.engine_process import EngineProcess

    if __name__ == "__main__":
        engine = EngineProcess(
            EngineConfig(method="linear", threads=1),
            waiting_bytes=1 << 30,
            on_volume=lambda *_: True,
            on_lost=lambda *_: None,
        )
        engine.start()
        if sys.argv[1] == "ready":
            engine.wait_ready()
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
