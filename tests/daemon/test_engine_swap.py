"""A faster runtime that has to be built first: torch serves meanwhile, whatever goes wrong costs no volume.

The stand-in is torch under another name; what is real are the processes, the pipes and the change-over.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from support.sample_data import header, specimen, sweep_of, write_sample

from microdiffusion import open_run
from microdiffusion.config.models import (
    Config,
    DashboardConfig,
    EngineConfig,
    InrConfig,
    RecorderConfig,
    WireConfig,
)
from microdiffusion.daemon.dashboard.panels import page
from microdiffusion.daemon.dashboard.screen import screen
from microdiffusion.daemon.engine import worker as engine_child
from microdiffusion.daemon.engine.builder import EngineBuilder
from microdiffusion.daemon.engine.messages import Begin, Told, Work
from microdiffusion.daemon.engine.process import EngineProcess
from microdiffusion.daemon.engine.scheduler import Job
from microdiffusion.daemon.server import daemon as daemon_module
from microdiffusion.daemon.status.models import EngineStatus, StatusSnapshot
from microdiffusion.drivers.replay import open_source, replay
from microdiffusion.engines.pipeline import reconstructor
from microdiffusion.engines.pipeline.engine import Engine
from microdiffusion.errors import EngineError
from microdiffusion.frames import Reconstruction, Sweep
from microdiffusion.runfile.layout import RUNTIMES, Status

FASTER = "tensorrt_standin 1"
# The processes of a test find its files here.
MARKER, GATE = "SWAP_TEST_BUILT", "SWAP_TEST_GATE"


def _file(name: str) -> Path:
    return Path(os.environ[name])


def opener(config: EngineConfig) -> Any:
    """Open torch, and call it the faster one where that has been built."""
    from microdiffusion.engines.pipeline.engine import open_engine

    engine = open_engine(config.model_copy(update={"runtime": "torch"}))
    if config.runtime == "torch":
        return engine
    if _file(MARKER).exists():
        return replace(engine, name=f"{FASTER} cpu float16")
    return replace(engine, pending=FASTER)


def opener_that_never_accepts(config: EngineConfig) -> Any:
    return replace(opener(config), pending=FASTER)


def opener_that_falls_back(config: EngineConfig) -> Any:
    engine = opener(config)
    return engine if engine.pending else replace(engine, fallback="differs from torch by 3e-01")


def opener_that_dies(config: EngineConfig) -> Any:
    if config.runtime != "torch" and _file(MARKER).exists():
        os._exit(9)
    return opener(config)


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


def opener_that_breaks(config: EngineConfig) -> Any:
    engine = opener(config)
    if config.runtime == "torch":
        return engine
    return replace(engine, name=f"{FASTER} cpu float16", runtime=_Breaks(engine.runtime), pending="")


def build(config: EngineConfig, progress: Callable[[float], None]) -> None:
    """Build until the test opens the gate."""
    share = 0.0
    while not _file(GATE).exists():
        share += 0.01 * (1 - share)
        progress(share)
        time.sleep(0.02)
    _file(MARKER).touch()


def build_that_fails(config: EngineConfig, progress: Callable[[float], None]) -> None:
    progress(0.5)
    raise EngineError("the engine differs from torch by 3e-01")


def build_that_raises(config: EngineConfig, progress: Callable[[float], None]) -> None:
    raise TypeError("bindings")


def build_that_crashes(config: EngineConfig, progress: Callable[[float], None]) -> None:
    progress(0.5)
    os._exit(11)


def build_that_hangs(config: EngineConfig, progress: Callable[[float], None]) -> None:
    progress(0.5)
    time.sleep(600)


class Owner:
    """The daemon's side: keeps what the engine says."""

    def __init__(self, weights: Path, **more: Any) -> None:
        self.volumes: list[Reconstruction] = []
        self.lost_jobs: list[tuple[int, str, str]] = []
        self.events: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []
        config = EngineConfig(
            weights=weights, device="cpu", threads=1, backlog=20, inr=InrConfig(cold_steps=2, warm_steps=1)
        )
        self.engine = EngineProcess(
            config,
            waiting_bytes=1 << 30,
            on_note=lambda text, level: self.notes.append((level, text)),
            **{"opener": opener, "build": build, **more},
        )

    def begin(self) -> None:
        self.engine.begin(header(), self)
        self.notes.clear()  # what memory it takes

    def submit(self, sweep: Sweep) -> None:
        self.engine.submit(header().run_id, sweep)

    def drain(self, timeout_s: float) -> bool:
        return self.engine.drain(header().run_id, timeout_s)

    def volume(self, job: Job, result: Reconstruction) -> bool:
        self.volumes.append(result)
        return True

    def live(self, job: Job, result: Reconstruction) -> None:
        raise NotImplementedError

    def load(self, job: Job) -> Sweep | None:
        raise NotImplementedError

    def lost(self, job: Job, outcome: str, reason: str) -> None:
        self.lost_jobs.append((job.sweep_number, outcome, reason))

    def event(self, kind: str, text: str) -> None:
        self.events.append((kind, text))

    def wait(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.engine.raise_if_failed()
            assert time.monotonic() < deadline_s, (self.notes, self.lost, self.engine.building)
            time.sleep(0.01)

    def warnings(self) -> list[str]:
        return [text for level, text in self.notes if level == "warning"]


@pytest.fixture(autouse=True)
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that lets the stand-in's build end."""
    monkeypatch.setenv(MARKER, str(tmp_path / "built"))
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    return tmp_path / "gate"


@pytest.fixture
def start(weights: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def starter(**more: Any) -> Owner:
        owner = Owner(weights, **more)
        owners.append(owner)
        owner.begin()
        owner.engine.start()
        return owner

    yield starter
    for owner in owners:
        owner.engine.stop()


@pytest.fixture(scope="module")
def sweeps() -> list[Sweep]:
    return [sweep_of(specimen(drift=0.3 * number), number) for number in range(4)]


def runtimes(owner: Owner) -> list[str]:
    return [result.runtime.split()[0] for result in owner.volumes]


def test_torch_serves_until_the_build_is_done_and_no_sweep_is_lost(
    start: Callable[..., Owner], sweeps: list[Sweep], gate: Path
) -> None:
    owner = start()
    info = owner.engine.wait_ready()
    assert (info.device.split()[0], info.pending) == ("torch", FASTER)
    shown = set()
    for sweep in sweeps[:2]:
        owner.submit(sweep)
    owner.wait(lambda: shown.add(owner.engine.building) or len(shown - {""}) >= 3)
    owner.wait(lambda: len(owner.volumes) == 2)
    shown.discard("")
    assert all(text.startswith("TensorRT ") and text.endswith(" %, torch serves meanwhile") for text in shown)
    gate.touch()
    # Sweeps that come while the runtimes change wait and are done.
    owner.wait(lambda: "%" not in owner.engine.building)
    owner.submit(sweeps[2])
    owner.wait(lambda: owner.engine.info is not None and owner.engine.info.device.startswith(FASTER))
    owner.submit(sweeps[3])
    assert owner.drain(60)
    assert runtimes(owner)[:2] == ["torch", "torch"]
    assert runtimes(owner)[3] == FASTER.split()[0]
    assert all(np.isfinite(result.volume).all() for result in owner.volumes)
    # The warm INR is kept: only the first sweep was a cold one.
    assert [result.inr_iterations for result in owner.volumes] == [2, 1, 1, 1]
    assert (owner.lost_jobs, owner.engine.restarts, owner.engine.building) == ([], 0, "")
    assert owner.notes == [
        ("info", f"{FASTER} is being built; torch serves meanwhile"),
        ("info", f"{FASTER} cpu float16 serves from now on"),
    ]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        pytest.param({"build": build_that_crashes}, "died (exit code 11)", id="the builder crashes"),
        pytest.param({"opener": opener_that_never_accepts}, "is not accepted here", id="it cannot be opened"),
        pytest.param(
            {"opener": opener_that_falls_back}, "differs from torch by 3e-01", id="it fails where it serves"
        ),
    ],
)
def test_whatever_goes_wrong_torch_goes_on_and_says_why_once(
    more: dict[str, Any], reason: str, start: Callable[..., Owner], sweeps: list[Sweep], gate: Path
) -> None:
    gate.touch()
    owner = start(**more)
    owner.submit(sweeps[0])
    owner.wait(owner.warnings)
    owner.submit(sweeps[1])
    assert owner.drain(60)
    (warning,) = owner.warnings()
    assert warning.startswith("TensorRT is not used, torch goes on in its place: ")
    assert reason in warning
    assert runtimes(owner) == ["torch", "torch"]
    info = owner.engine.info
    assert info is not None
    assert (info.device.split()[0], info.pending) == ("torch", "")
    assert reason in info.reason
    assert (owner.lost_jobs, owner.engine.restarts, owner.engine.building) == ([], 0, "")


@pytest.mark.parametrize(
    ("build", "failure"),
    [
        pytest.param(build, "", id="well"),
        pytest.param(build_that_crashes, "the process that built it died (exit code 11)", id="a crash"),
        pytest.param(build_that_fails, "the engine differs from torch by 3e-01", id="a wrong engine"),
        pytest.param(build_that_raises, "TypeError: bindings", id="an error of the bindings"),
    ],
)
def test_a_build_ends_with_its_reason(build: Any, failure: str, gate: Path) -> None:
    gate.touch()
    builder = EngineBuilder(multiprocessing.get_context("spawn"), EngineConfig(), build)
    outcome = None
    while outcome is None:
        assert wait([builder.pipe], 60)
        outcome = builder.take()
    assert outcome.failure == failure
    assert not builder._process.is_alive()


def test_an_engine_that_dies_of_its_runtime_is_replaced_by_torch(
    start: Callable[..., Owner], sweeps: list[Sweep], gate: Path
) -> None:
    owner = start(opener=opener_that_dies)
    owner.submit(sweeps[0])
    owner.wait(lambda: owner.volumes)
    gate.touch()
    owner.wait(owner.warnings)
    owner.submit(sweeps[1])
    assert owner.drain(100)
    assert owner.warnings() == ["the engine process died (exit code 9): from now on torch serves"]
    assert runtimes(owner) == ["torch", "torch"]
    assert (owner.lost_jobs, owner.engine.restarts, owner.engine.building) == ([], 1, "")


def test_a_runtime_that_fails_in_the_middle_of_a_run_gives_way_and_the_sweep_is_done(
    start: Callable[..., Owner], sweeps: list[Sweep]
) -> None:
    owner = start(opener=opener_that_breaks)
    for sweep in sweeps:
        owner.submit(sweep)
    assert owner.drain(60)
    assert owner.lost_jobs == []
    names = runtimes(owner)
    assert names[0] == FASTER.split()[0]
    assert names[-1] == "torch"
    assert owner.warnings() == [
        f"{FASTER} cpu float16 is not used any more, torch goes on in its place: out of memory"
    ]
    info = owner.engine.info
    assert info is not None
    assert info.reason.endswith(f"; torch, {FASTER} cpu float16 failed: out of memory")
    # The warm INR is kept.
    assert [result.inr_iterations for result in owner.volumes] == [2, 1, 1, 1]


@dataclass
class Conversation:
    """A child that runs in this process: what it says, the code that it ends with, and what it opens."""

    said: list[Any]
    opened: list[EngineConfig]
    code: int | None = None


def converse(
    monkeypatch: pytest.MonkeyPatch,
    serves: str,
    reconstruct: Callable[..., Any],
    requests: list[object],
    **config: Any,
) -> Conversation:
    """Have a child on an imagined GPU answer requests."""
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

    def open_it(config: EngineConfig) -> Engine:
        told.opened.append(config)
        return Engine(torch.device("cuda"), f"{serves if config.runtime != 'torch' else 'torch'} cuda", "")

    monkeypatch.setattr(engine_child, "leave_stops_to_parent", lambda: None)
    monkeypatch.setattr(engine_child.os, "_exit", end)
    made = SimpleNamespace(reconstruct=reconstruct, use=lambda _: None, configure=told.opened.append)
    monkeypatch.setattr(reconstructor, "Reconstructor", lambda *_, **__: made)
    pipe: Any = SimpleNamespace(
        send=told.said.append, recv=receive, close=lambda: told.said.append("closed"), poll=lambda _: True
    )
    with contextlib.suppress(Ended):
        engine_child.serve_engine(pipe, EngineConfig(**config), open_it)
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
    answers = [each for each in told.said if isinstance(each, EngineError)]
    if lost:
        assert answers == []
        assert told.said[-2:] == [
            Told("the GPU takes no more work of the engine's process: CUDA error"),
            "closed",
        ]
        assert told.code == 70
    else:
        assert [str(answer) for answer in answers] == ["RuntimeError: CUDA error"]
        assert told.code is None
    assert [config.runtime for config in told.opened[1:]] == (
        ["torch"] if serves == "tensorrt" and not lost else []
    )


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
    assert [config.tile for config in told.opened] == [256, 128, 64]
    assert told.said[-1] == "a volume"
    assert [each.tile for each in told.said if isinstance(each, Told)] == [128, 64]
    assert "engine.tile = 256: it is 128 from now on" in told.said[1].text


def test_a_runtime_that_is_there_from_the_start_is_not_built(
    start: Callable[..., Owner], sweeps: list[Sweep], tmp_path: Path
) -> None:
    (tmp_path / "built").touch()
    owner = start(build=build_that_fails)
    owner.submit(sweeps[0])
    assert owner.drain(60)
    assert runtimes(owner) == [FASTER.split()[0]]
    assert owner.notes == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_stopping_ends_a_build_at_once(start: Callable[..., Owner]) -> None:
    owner = start()
    owner.wait(lambda: "%" in owner.engine.building)
    builder = owner.engine._successor._builder
    assert builder is not None
    process = psutil.Process(builder._process.pid)
    os.kill(process.pid, signal.SIGTERM)  # as a terminal's hang-up does: the daemon decides
    began_s = time.monotonic()
    owner.engine.stop()
    assert time.monotonic() - began_s < 5
    assert not process.is_running()


PARENT = """
    import multiprocessing, time
    import test_engine_swap
    from microdiffusion.config import EngineConfig
    from microdiffusion.daemon.engine_builder import EngineBuilder

    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        builder = EngineBuilder(context, EngineConfig(), test_engine_swap.build_that_hangs)
        while not builder.share:
            builder.take()
        print(builder._process.pid, flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_build_ends_with_a_killed_daemon(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE


def test_the_dashboard_shows_how_far_a_build_is() -> None:
    text = "TensorRT 62 %, torch serves meanwhile"
    engine = EngineStatus(device="torch cuda float16", building=text, method="mdd", steps=1)
    snapshot = StatusSnapshot(engine=engine)
    assert f"building           {text}" in page(snapshot)
    drawn = screen(snapshot, 120, 40)
    assert any(text in "".join(segment.text for segment in line) for line in drawn)
    assert "building" not in page(StatusSnapshot(engine=engine.model_copy(update={"building": ""})))


def test_the_run_file_says_which_runtime_made_which_volume(
    weights: Path, tmp_path: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "EngineProcess", partial(EngineProcess, opener=opener, build=build))
    daemon = daemon_module.Daemon(
        Config(
            engine=EngineConfig(weights=weights, device="cpu", threads=1, policy="wait"),
            recorder=RecorderConfig(output=tmp_path / "runs"),
            wire=WireConfig(**dict.fromkeys(("data", "status", "control"), "tcp://127.0.0.1:*")),
            dashboard=DashboardConfig(refresh_hz=20),
        ),
        volumes=None,
        duration_s=None,
        feed=lambda address, stop: feed(address, stop),
    )
    changed_at: list[int] = []

    def feed(address: str, stop: Callable[[], bool]) -> None:
        """Send until three volumes are written after the change-over; open the gate after the first one."""

        def enough() -> bool:
            snapshot = daemon.board.snapshot()
            written = snapshot.volumes.written
            if written:
                gate.touch()
            if snapshot.engine.device.startswith(FASTER) and not changed_at:
                changed_at.append(written)
            return stop() or bool(changed_at and written >= changed_at[0] + 3)

        with open_source(write_sample(tmp_path / "sample.h5", sweeps=150)) as source:
            replay(source, address, rate_hz=20, stop=enough)

    daemon.serve(dashboard=False)
    assert changed_at
    notes = [note.text for note in daemon.board.snapshot().notes]
    assert f"{FASTER} cpu float16 serves from now on" in notes
    (path,) = (tmp_path / "runs").glob("*.h5")
    with open_run(path) as run:
        written = run.status == Status.WRITTEN
        assert not np.isin(run.status, (Status.FAILED, Status.SKIPPED)).any()
        names = [RUNTIMES[code] for code in run.values("runtime")[written]]
        assert (names[0], names[-1]) == ("torch", "tensorrt")
        assert names == sorted(names, key=RUNTIMES.index)
        assert run.provenance["device"] == f"{FASTER} cpu float16"  # the last one; events have them all
        assert f"{FASTER} cpu float16" in [event.text for event in run.events if event.kind == "engine"]
