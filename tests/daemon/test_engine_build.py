"""An engine that has to be built is built before the camera moves; what goes wrong costs no sweep.

The stand-in is torch under another name; what is real are the processes and their pipe.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.engine_owner import RUN, Owner
from support.sample_data import header, specimen, sweep_of, write_sample

from microdiffusion import open_run
from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import Config, DashboardConfig, EngineConfig, RecorderConfig, WireConfig
from microdiffusion.daemon.dashboard.panels import page
from microdiffusion.daemon.engine import process as engine_process
from microdiffusion.daemon.engine import worker as engine_worker
from microdiffusion.daemon.engine.messages import Begin, Notice, Work
from microdiffusion.daemon.engine.process import EngineProcess, may_build
from microdiffusion.daemon.server import daemon as daemon_module
from microdiffusion.daemon.status.models import EngineStatus, StatusSnapshot
from microdiffusion.daemon.status.text import log_line
from microdiffusion.drivers.replay import open_source, replay
from microdiffusion.engines import pipeline
from microdiffusion.engines.pipeline import Engine
from microdiffusion.engines.runtimes.tensorrt_build import MODULES
from microdiffusion.errors import EngineError
from microdiffusion.frames import Sweep
from microdiffusion.runfile.schema import Status

FASTER = "tensorrt_standin 1"
GATE = "BUILD_TEST_GATE"  # the file that lets a build end; the process finds its name in the environment


def open_built(config: EngineConfig, progress: Callable[[float], None]) -> Any:
    """Open torch; unless it is asked for, "build" until the gate is open and call it the faster one."""
    from microdiffusion.engines.pipeline import open_engine

    engine = open_engine(config.model_copy(update={"runtime": "torch"}))
    if config.runtime == "torch":
        return engine
    share = 0.0
    while not Path(os.environ[GATE]).exists():
        progress(share)
        share += 0.1 * (1 - share)
        time.sleep(0.02)
    return replace(engine, name=f"{FASTER} cpu float16")


def open_kept(config: EngineConfig, progress: Callable[[float], None]) -> Any:
    progress(1.0)
    return open_built(config, progress)


def open_fallen_back(config: EngineConfig, progress: Callable[[float], None]) -> Any:
    progress(0.5)
    engine = open_built(config.model_copy(update={"runtime": "torch"}), progress)
    return replace(engine, fallback="TensorRT is not used, torch goes on in its place: it differs by 3e-01")


def open_dying(config: EngineConfig, progress: Callable[[float], None]) -> Any:
    if config.runtime != "torch":
        progress(0.5)
        os._exit(9)
    return open_built(config, progress)


class _Breaks:
    """A runtime that fails from its third call on."""

    def __init__(self, runtime: Any) -> None:
        self.device, self.multiple, self.capturable = runtime.device, runtime.multiple, False
        self.name, self._runtime, self._left = FASTER, runtime, 2

    def __call__(self, *inputs: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("out of memory")
        return self._runtime(*inputs)


def open_breaking(config: EngineConfig, progress: Callable[[float], None]) -> Any:
    engine = open_built(config, progress)
    return engine if config.runtime == "torch" else replace(engine, runtime=_Breaks(engine.runtime))


@pytest.fixture(autouse=True)
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    monkeypatch.setattr(engine_process, "may_build", lambda config: config.compile)
    return tmp_path / "gate"


@pytest.fixture
def start(weights: Path, tmp_path: Path) -> Iterator[Callable[[Any], Owner]]:
    owners: list[Owner] = []

    def starter(opener: Any) -> Owner:
        owner = Owner(
            state=tmp_path / "state",
            opener=opener,
            method="mdd",
            weights=weights,
            backlog=20,
            inr=InrConfig(cold_steps=2, warm_steps=1),
            fallback=False,  # a network that was hardly trained would not be asked again
        )
        owners.append(owner)
        owner.begin()
        owner.notes.clear()  # what memory it takes
        owner.engine.start()
        return owner

    yield starter
    for owner in owners:
        owner.engine.stop()


@pytest.fixture(scope="module")
def sweeps() -> list[Sweep]:
    return [sweep_of(specimen(drift=0.3 * number), number) for number in range(4)]


def runtimes(owner: Owner) -> list[str]:
    return [result.runtime.split()[0] for _, result in owner.volumes]


@pytest.mark.parametrize(
    ("changes", "installed", "expected"),
    [
        ({}, "tensorrt_rtx", True),
        ({"runtime": "tensorrt"}, "tensorrt", True),
        ({}, "", False),
        ({"compile": False}, "tensorrt", False),
        ({"device": "cpu"}, "tensorrt", False),
        ({"runtime": "torch"}, "tensorrt", False),
        ({"method": "linear"}, "tensorrt", False),
    ],
    ids=str,
)
def test_only_where_tensorrt_serves_may_there_be_a_build(
    changes: dict[str, Any], installed: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process.importlib.util, "find_spec", lambda name: name == installed or None)
    monkeypatch.setattr(engine_process.ctypes, "CDLL", lambda name: None)
    assert may_build(EngineConfig(**changes)) == expected

    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(engine_process.ctypes, "CDLL", no_driver)
    assert not may_build(EngineConfig(**changes))


def test_daemon_and_engine_look_for_the_same_tensorrt() -> None:
    assert engine_process.TENSORRT == MODULES


def test_a_build_says_how_far_it_is_and_no_sweep_is_lost(
    start: Callable[[Any], Owner], sweeps: list[Sweep], gate: Path
) -> None:
    owner = start(open_built)
    assert owner.engine.may_build
    owner.submit(sweeps[0])
    shares: set[float] = set()
    owner.wait(lambda: owner.engine.building and (shares.add(owner.engine.building[0]) or len(shares) > 3))
    assert owner.engine.may_build
    assert owner.engine.building is not None
    assert owner.engine.building[1] > 0
    gate.touch()
    owner.submit(sweeps[1])
    assert owner.queue.drain(RUN, 60)
    assert (owner.engine.may_build, owner.engine.building) == (False, None)
    assert runtimes(owner) == [FASTER.split()[0]] * 2
    first, last = owner.notes
    assert "--no-compile serves with torch" in first
    assert last.startswith(f"{FASTER} cpu float16 is open, its build took ")


def test_where_the_engine_is_kept_nothing_waits_for_it(start: Callable[[Any], Owner], gate: Path) -> None:
    owner = start(open_kept)
    owner.wait(lambda: not owner.engine.may_build)
    assert owner.engine.info is None
    gate.touch()
    owner.wait(lambda: owner.engine.info)


@pytest.mark.parametrize(
    ("opener", "warning", "restarts"),
    [
        (open_fallen_back, "TensorRT is not used, torch goes on in its place: it differs by 3e-01", 0),
        (open_dying, "the engine process died (exit code 9): from now on torch serves", 1),
    ],
    ids=["a wrong engine", "a crash"],
)
def test_a_build_that_fails_is_followed_by_torch(
    opener: Any, warning: str, restarts: int, start: Callable[[Any], Owner], sweeps: list[Sweep]
) -> None:
    owner = start(opener)
    owner.submit(sweeps[0])
    assert owner.queue.drain(RUN, 60)
    assert owner.warnings == [warning]
    assert runtimes(owner) == ["torch"]
    assert (owner.lost_jobs, owner.engine.restarts, owner.engine.may_build) == ([], restarts, False)


def test_a_runtime_that_fails_in_the_middle_of_a_run_is_followed_by_torch_and_the_sweep_is_done(
    start: Callable[[Any], Owner], sweeps: list[Sweep], gate: Path
) -> None:
    gate.touch()
    owner = start(open_breaking)
    owner.submit(*sweeps)
    assert owner.queue.drain(RUN, 60)
    assert owner.lost_jobs == []
    names = runtimes(owner)
    assert (names[0], names[-1]) == (FASTER.split()[0], "torch")
    assert owner.warnings == [
        f"{FASTER} cpu float16 is not used any more, torch goes on in its place: out of memory"
    ]
    assert owner.queue.config.runtime == "torch"
    # The session goes on: it was put on disk before the process ended.
    assert [result.merged for _, result in owner.volumes] == [False, True, True, True]


def test_stopping_ends_a_build_at_once(start: Callable[[Any], Owner]) -> None:
    owner = start(open_built)
    owner.wait(lambda: owner.engine.building)
    began_s = time.monotonic()
    owner.engine.stop()
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("built", [True, False], ids=["built", "--no-compile"])
def test_the_camera_moves_once_the_engine_is_built(
    built: bool, weights: Path, tmp_path: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = open_built if built else open_kept
    monkeypatch.setattr(daemon_module, "EngineProcess", partial(EngineProcess, opener=opener))
    open_when_fed: list[bool] = []

    def feed(address: str, stop: Callable[[], bool]) -> None:
        open_when_fed.append(daemon.engine.info is not None)
        gate.touch()
        with open_source(write_sample(tmp_path / "sample.h5", sweeps=2)) as source:
            replay(source, address, rate_hz=20, stop=stop)

    daemon = daemon_module.Daemon(
        Config(
            engine=EngineConfig(weights=weights, device="cpu", threads=1, policy="wait", compile=built),
            recorder=RecorderConfig(output=tmp_path / "runs"),
            wire=WireConfig(**dict.fromkeys(("data", "status", "control"), "tcp://127.0.0.1:*")),
            dashboard=DashboardConfig(refresh_hz=20),
        ),
        volumes=None,
        duration_s=None,
        feed=feed,
    )
    shown: list[str] = []

    def watch() -> None:
        while len(shown) < 3:
            text = daemon.board.snapshot().engine.building
            shown.extend([text] if text else [])
            time.sleep(0.02)
        gate.touch()

    if built:
        threading.Thread(target=watch, daemon=True).start()
    daemon.serve(dashboard=False)
    assert open_when_fed == [built]
    assert all(text.startswith("TensorRT ") for text in shown)
    (path,) = (tmp_path / "runs").glob("*.h5")
    with open_run(path) as run:
        assert (run.status == Status.WRITTEN).all()
        assert run.provenance["device"] == f"{FASTER} cpu float16"


def test_status_and_log_say_how_far_a_build_is() -> None:
    engine = EngineStatus(building="TensorRT 62 %, 0:00:40 left", method="mdd", steps=1)
    snapshot = StatusSnapshot(engine=engine)
    assert "building           TensorRT 62 %, 0:00:40 left" in page(snapshot)
    assert " building=TensorRT_62_%,_0:00:40_left " in log_line(snapshot)
    assert "building" not in page(StatusSnapshot())


@dataclass
class Conversation:
    """A worker that runs in this process: what it says, what it was configured with, its exit code."""

    said: list[Any]
    configured: list[EngineConfig]
    code: int | None = None


def converse(
    monkeypatch: pytest.MonkeyPatch, serves: str, reconstruct: Callable[..., Any], requests: list[object]
) -> Conversation:
    """Have a worker on an imagined GPU answer requests."""
    told = Conversation([], [])

    class Ended(Exception):
        pass

    def receive() -> object:
        if not requests:
            raise EOFError
        return requests.pop(0)

    def end(code: int) -> None:
        told.code = code
        raise Ended

    monkeypatch.setattr(engine_worker, "leave_stops_to_parent", lambda: None)
    monkeypatch.setattr(engine_worker.os, "_exit", end)
    made = SimpleNamespace(reconstruct=reconstruct, configure=told.configured.append)
    monkeypatch.setattr(pipeline, "Reconstructor", lambda *_, **__: made)
    pipe: Any = SimpleNamespace(
        send=told.said.append, recv=receive, close=lambda: told.said.append("closed"), poll=lambda _: True
    )
    with contextlib.suppress(Ended):
        engine_worker.serve_engine(
            pipe, EngineConfig(), lambda *_: Engine(torch.device("cuda"), f"{serves} cuda", "")
        )
    return told


def work(sweep: Sweep) -> list[object]:
    return [Begin(header()), Work(header().run_id, sweep, "sweep", 0)]


@pytest.mark.parametrize("lost", [False, True], ids=["one bad sweep", "the GPU is lost"])
@pytest.mark.parametrize("serves", ["torch", "tensorrt"])
def test_a_process_whose_gpu_is_lost_says_so_and_leaves_the_sweep_to_the_next(
    lost: bool, serves: str, monkeypatch: pytest.MonkeyPatch, sweeps: list[Sweep]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "synchronize", fail if lost else lambda _: None)
    told = converse(monkeypatch, serves, fail, work(sweeps[0]))
    answers = [str(each) for each in told.said if isinstance(each, EngineError)]
    notices = [each for each in told.said if isinstance(each, Notice)]
    if lost:
        assert answers == []
        assert notices == [Notice("the GPU takes no more work of the engine's process: CUDA error")]
        assert (told.said[-1], told.code) == ("closed", 70)
    elif serves == "torch":
        assert (answers, notices, told.code) == (["RuntimeError: CUDA error"], [], None)
    else:
        assert (answers, told.code) == ([], None)
        assert [notice.changes for notice in notices] == [{"runtime": "torch"}]


def test_where_the_gpus_memory_is_too_small_the_same_sweep_is_done_with_smaller_tiles(
    monkeypatch: pytest.MonkeyPatch, sweeps: list[Sweep]
) -> None:
    attempts: list[int] = []

    def reconstruct(*_: object, **__: object) -> str:
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "a volume"

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    told = converse(monkeypatch, "torch", reconstruct, work(sweeps[0]))
    assert [config.tile for config in told.configured] == [128, 64]
    assert told.said[-1] == "a volume"
    assert [each.changes for each in told.said if isinstance(each, Notice)] == [{"tile": 128}, {"tile": 64}]
    assert "engine.tile = 256: it is 128 from now on" in told.said[1].text
