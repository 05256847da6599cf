"""Several runs beside each other: what one of them does is no other's trouble."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.ingest_support import Peer, frame_parts
from support.wire_support import make_header, wait_until

from microdiffusion import open_run
from microdiffusion.config.models import Config, EngineConfig, RecorderConfig
from microdiffusion.daemon.engine.process import EngineProcess
from microdiffusion.daemon.ingest import Ingest, NotYet, RunState
from microdiffusion.daemon.lock import RunLock
from microdiffusion.daemon.runs import registry as open_runs
from microdiffusion.daemon.runs.registry import OpenRuns
from microdiffusion.daemon.status.board import StatusBoard
from microdiffusion.daemon.status.models import RunSummary
from microdiffusion.errors import ConfigError, DiskError, RunError, UserError
from microdiffusion.header import RunHeader
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.schema import Status
from microdiffusion.wire import RunStart


def header_of(name: str) -> RunHeader:
    return make_header().model_copy(update={"run_id": name * 32, "name": name})


class FakeRun:
    """A run that can be made to fail, or to take its time over its end."""

    def __init__(self, name: str) -> None:
        self.header = header_of(name[:1])
        counts = dict.fromkeys(Status, 0) | {Status.WRITTEN: 2}
        self.recorder = SimpleNamespace(
            header=self.header,
            paths=[Path(f"{name}.h5")],
            counts=counts,
            data=SimpleNamespace(owners=(), ledger=Ledger()),
        )
        self.state = RunState.OPEN
        self.may_close = threading.Event()
        self.may_close.set()
        self.ticks = 0
        self.drained_s: float | None = None
        self.hurried: Callable[[], bool] = lambda: False
        self.failure: Exception | None = None
        self.close_failure: Exception | None = None

    def end(self) -> None:
        self.state = RunState.ENDED

    def abort(self, reason: str) -> None:
        self.state = RunState.CLOSED

    def tick(self, now_s: float, *, shown: bool) -> None:
        self.ticks += 1
        if self.failure is not None:
            raise self.failure

    def close(self, *, drain_s: float, hurry: Callable[[], bool]) -> None:
        self.drained_s = drain_s
        self.hurried = hurry
        assert self.may_close.wait(30)
        if self.close_failure is not None:
            raise self.close_failure

    def summary(self) -> RunSummary:
        return RunSummary(name=self.header.name)


class Stage:
    """Open runs that are fakes."""

    def __init__(self, folder: Path) -> None:
        self.board = StatusBoard()
        self.told: list[tuple[str, str]] = []
        config = Config(recorder=RecorderConfig(output=folder))
        ingest: Any = SimpleNamespace(close_run=lambda run_id, reason: self.told.append((run_id, reason)))
        self.runs = OpenRuns(config, SimpleNamespace(), self.board, ingest)  # type: ignore[arg-type]
        self.made: dict[str, FakeRun] = {}
        self.runs._make = self._make  # type: ignore[method-assign, assignment]

    def _make(self, header: Any, owner: str) -> FakeRun:
        return self.made.setdefault(header.run_id, FakeRun(header.run_id[0]))

    def start(self, name: str) -> FakeRun:
        run: Any = self.runs.on_start(header_of(name))
        return run

    def tick(self) -> None:
        self.runs.tick(time.monotonic(), drain_s=7.0, hurry=lambda: False)

    def until_closed(self, count: int) -> None:
        deadline_s = time.monotonic() + 30
        while len(self.runs.closed) < count:
            assert time.monotonic() < deadline_s
            self.tick()
            time.sleep(0.01)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_run_that_cannot_be_written_is_closed_and_the_others_go_on(stage: Stage) -> None:
    bad, good = stage.start("a"), stage.start("b")
    bad.failure = DiskError("the disk failed")
    stage.until_closed(1)
    assert [run.run_id for run in stage.runs.closed] == ["a" * 32]
    assert bad.drained_s == 0.0
    ((run_id, reason),) = stage.told
    assert run_id == "a" * 32
    assert "the disk failed" in reason
    assert list(stage.runs.failures) == ["a" * 32]
    assert "the disk failed" in stage.board.snapshot().notes[-1].text
    ticks = good.ticks
    stage.tick()
    assert good.ticks > ticks
    assert good.state is RunState.OPEN


def test_of_two_daemons_that_name_a_run_in_one_second_the_second_takes_another_name(
    stage: Stage, tmp_path: Path
) -> None:
    header = header_of("a")
    path = stage.runs._folder.new_path(header.name)
    other = RunLock(path)  # which the other daemon has; its file is not made yet
    other.acquire()
    recorder = stage.runs._created(path, header, "")
    recorder.stop()
    other.release()
    assert recorder.paths[0] != path
    with open_run(recorder.paths[0]) as run:
        assert run.provenance["file"] == recorder.paths[0].name


def test_a_run_that_takes_its_time_to_close_holds_up_nobody_and_is_not_begun_again_meanwhile(
    stage: Stage,
) -> None:
    slow, other = stage.start("a"), stage.start("b")
    slow.may_close.clear()
    slow.end()
    stage.tick()
    assert slow.drained_s == 7.0 or len(stage.runs) == 2
    stage.tick()
    assert other.ticks >= 2
    with pytest.raises(NotYet):
        stage.start("a")
    slow.may_close.set()
    stage.until_closed(1)
    assert stage.start("b") is other
    assert [summary.name for summary in stage.runs.summaries()] == ["b"]


def test_runs_that_take_long_to_close_do_not_pile_up(stage: Stage) -> None:
    slow = [stage.start(name) for name in "abcdefgh"]
    for run in slow:
        run.may_close.clear()
        run.end()
    stage.tick()
    with pytest.raises(NotYet):
        stage.start("i")
    assert [run.hurried() for run in slow] == [True] + [False] * 7
    for run in slow:
        run.may_close.set()
    stage.until_closed(8)
    assert stage.start("i").state is RunState.OPEN


def test_a_run_that_could_not_be_closed_in_order_is_told(stage: Stage) -> None:
    run = stage.start("a")
    run.close_failure = ValueError("unforeseen")
    run.end()
    stage.until_closed(1)
    assert "ValueError: unforeseen" in str(stage.runs.failures["a" * 32])


def test_a_run_that_is_over_leaves_figures_and_nothing_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_runs, "REMEMBERED", 2)
    gone = []
    for number, name in enumerate("abcd"):
        run = stage.start(name)
        run.end()
        gone.append(weakref.ref(run))
        stage.made.clear()
        del run
        while stage.runs.written != 2 * (number + 1) or stage.runs.unclosed:
            stage.tick()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4
    assert [run.run_id[0] for run in stage.runs.closed] == ["c", "d"]
    assert stage.runs.written == 8


def test_a_daemon_that_closes_takes_no_further_run(stage: Stage) -> None:
    run = stage.start("a")
    shown: list[int] = []
    stage.runs.close_all(drain_s=1.5, hurry=lambda: False, show=lambda: shown.append(1))
    assert run.drained_s == 1.5
    assert [each.paths for each in stage.runs.closed] == [(Path("a.h5"),)]
    with pytest.raises(UserError, match="closing"):
        stage.start("b")


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/x",
        "a\0b",
        "\u2603" * 200,
        'a<b>c:d"e/f\\g|h?i*',
        "",
        "..",
        "\x1b]0;evil\x07",
        "C:x",
        "\ud800",
    ],
)
def test_whatever_a_run_is_called_its_file_lies_in_the_folder(tmp_path: Path, name: str) -> None:
    output = tmp_path / "a" / "runs"
    output.mkdir(parents=True)
    config = Config(
        recorder=RecorderConfig(output=output, time_points=2),
        engine=EngineConfig(method="linear", device="cpu"),
    )
    engine = EngineProcess(config.engine, waiting_bytes=1 << 20)
    ingest = Ingest("tcp://127.0.0.1:*")
    runs = OpenRuns(config, engine, StatusBoard(), ingest)
    run = runs.on_start(make_header(name=name))
    run.close(drain_s=0.0, hurry=lambda: True)
    ingest.stop()
    engine.stop()
    (path,) = output.glob("*.h5")
    assert [each.name for each in tmp_path.rglob("*.h5")] == [path.name]
    assert path.name.isprintable()
    assert not set(path.name) & set('<>:"/\\|?*')
    with open_run(path) as opened:
        assert opened.header.name == run.header.name


@pytest.mark.parametrize("error", [OSError("the share is gone"), MemoryError(), ValueError("odd")])
def test_a_run_that_cannot_be_made_is_declined_and_nothing_else(stage: Stage, error: Exception) -> None:
    other = stage.start("b")

    def make(header: Any, owner: str) -> FakeRun:
        raise error

    stage.runs._make = make  # type: ignore[method-assign, assignment]
    with pytest.raises(RunError, match=f"cannot be recorded .{type(error).__name__}"):
        stage.start("a")
    stage.tick()
    assert other.ticks == 1


@pytest.mark.parametrize(
    "changes",
    [{"voxel_size_um": (3.0, 1.0, 1.0)}, {"shape": (5, 16, 25)}, {"profile_weights": (0.5, 0.5)}],
    ids=["pixel", "region", "beam"],
)
def test_a_run_that_is_open_takes_no_sender_that_says_other_things_of_it(stage: Stage, changes: Any) -> None:
    """A driver that goes on with `serve --resume` says what its camera is now, not what it was."""
    run: Any = stage.start("a")
    header = run.header
    assert stage.runs.on_start(header.model_copy(update={"source": "another", "sweeps": 7})) is run
    with pytest.raises(ConfigError, match="another geometry or beam"):
        stage.runs.on_start(header.model_copy(update=changes))


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Callable[..., OpenRuns]]:
    """Yield a maker of runs with real files, whose engine was not started."""

    def make(**settings: object) -> OpenRuns:
        config = Config.model_validate({"recorder": {"output": tmp_path}, **settings})
        engine = EngineProcess(config.engine, waiting_bytes=1 << 30)
        made.append(OpenRuns(config, engine, StatusBoard(), Ingest("tcp://127.0.0.1:*")))
        return made[-1]

    made: list[OpenRuns] = []
    yield make
    for runs in made:
        runs._ingest.stop()
        runs.close_all(drain_s=0.0, hurry=lambda: True, show=lambda: None)


TOO_MUCH = {
    "positions": (
        {"positions": tuple(map(str, range(9_999)))},
        {},
        "9999 positions, and this daemon takes 1000: raise wire.positions",
    ),
    "memory for a million slices": (
        {"shape": (1_000_000, 16, 24), "sweeps": 1},
        {"engine": {"memory_gb": 32, "memory": "sweep"}},
        "may take 42.9 GB for 1000000 x 16 x 24 voxels .* there are 32.0 GB",
    ),
    "memory of any machine": (
        {"shape": (1_000_000, 45, 45), "sweeps": 1},
        {"engine": {"memory": "sweep"}},
        "may take 219.6 GB",
    ),
    "covariances between a million slices": (  # each with each
        {"shape": (1_000_000, 16, 24), "sweeps": 1},
        {"engine": {"memory_gb": 32}},
        "may take 128,0.... GB for 1000000 x 16 x 24 voxels",
    ),
    "a time point": (
        {"shape": (100_000, 16, 24), "sweeps": 1},
        {"recorder": {"time_point_gb": 0.05}, "engine": {"memory": "sweep"}},
        "One time point of all 1 position takes 0.0789 GB, and this daemon takes 0.05 GB",
    ),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_run_that_is_too_much_is_declined_before_a_byte_is_reserved(
    real: Callable[..., OpenRuns], tmp_path: Path, what: str
) -> None:
    changes, settings, sentence = TOO_MUCH[what]
    settings.setdefault("recorder", {}).setdefault("output", tmp_path)
    runs = real(**settings)
    with pytest.raises(UserError, match=sentence):
        runs.on_start(make_header(**changes))
    assert list(tmp_path.iterdir()) == []
    assert len(runs) == 0


def test_a_start_that_takes_long_holds_up_no_other_start(real: Callable[..., OpenRuns]) -> None:
    runs = real()
    runs._ingest.start(runs.on_start)
    many = make_header(run_id="f" * 32, positions=tuple(map(str, range(600))), sweeps=1)
    with Peer(runs._ingest.address) as slow, Peer(runs._ingest.address) as quick:
        slow.say(RunStart(header=many))
        quick.start()
        quick.say(frame_parts(0))
        assert quick.confirmed(1) == [0]
        assert slow.hears_nothing(0.0), "its file takes seconds"
        wait_until(lambda: len(runs) == 2, timeout_s=60)
        assert slow.hear().attempt == 0


def test_runs_of_one_name_that_begin_in_the_same_second_get_a_file_each(
    real: Callable[..., OpenRuns], tmp_path: Path
) -> None:
    runs = real()
    together = threading.Barrier(4)

    def start(number: int) -> None:
        together.wait(10)
        runs.on_start(make_header(run_id=f"{number:032x}", sweeps=1))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(runs) == 4
    assert len(list(tmp_path.glob("*.h5"))) == 4
