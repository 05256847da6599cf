"""`mdd reconstruct` in pieces: the same volumes as in one go, over a cluster, whatever dies meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.recorded_sessions import write_recording
from support.sample_data import CAMERA, write_sample

from microdiffusion import open_run
from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import Config, EngineConfig
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.offline.cluster import Where, describe, open_cluster
from microdiffusion.daemon.offline.farm import work_through, work_through_here
from microdiffusion.daemon.offline.pieces import Piece, PieceDone, Work, plan_pieces
from microdiffusion.daemon.offline.reconstruct import reconstruct_file
from microdiffusion.errors import DependencyError, InputFileError
from microdiffusion.frames import FIGURES

ENGINE = EngineConfig(method="inr", device="cpu", threads=1, inr=InrConfig(cold_steps=3))
CONFIG = Config(engine=ENGINE)
SET = ["--method", "inr", "--device", "cpu", "--set", "engine.threads=1", "--set", "engine.inr.cold_steps=3"]


def contents(path: Path) -> Iterator[Any]:
    """Yield what was made: frames, volumes, figures, ages, events but for their times."""
    with open_run(path) as first:
        count = len(first.header.positions)
    for position in range(count):
        with open_run(path, position=position) as run:
            yield from (run.volume.filled(0)[:], run.projections.filled(0)[:], run.status, run.values("age"))
            yield from (run.values(figure.name) for figure in FIGURES)
            yield np.array(sorted(f"{event.kind}: {event.text}" for event in run.events))
            yield np.array(sorted(run.provenance.items() - {("job", run.provenance.get("job", ""))}))


def assert_same(one: Path, other: Path) -> None:
    for left, right in zip(contents(one), contents(other), strict=True):
        assert left.dtype == right.dtype
        assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


def here(pieces: list[Piece], work: Work) -> None:
    outcome = work_through_here(pieces, work)
    assert (len(outcome.done), outcome.failed) == (len(pieces), {})


def whole(source: Path, *, causal: bool = False) -> Path:
    path = source.with_name("whole.h5")
    reconstruct_file(source, path, config=CONFIG, causal=causal)
    return path


def test_sessions_are_pieces_and_give_the_same_file(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "run.h5", 3, channels=2, positions=2, cut_off=True)
    work, output = Work(CONFIG), tmp_path / "assembled.h5"
    pieces, _ = plan_pieces(source, output, work)
    assert len(pieces) == 5
    (tmp_path / ".assembled.h5.0123.pieces").mkdir()  # of other settings, never finished
    told: list[tuple[float, float, int]] = []
    assert not work_through_here(pieces, work, lambda *now: told.append(now)).failed
    assert told[-1] == (told[-1][1], told[-1][1], 5)
    assert_same(whole(source), output)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["assembled.h5", "run.h5", "whole.h5"]
    assert plan_pieces(source, output, work)[0] == []


@pytest.mark.parametrize(
    ("causal", "warm_up"), [(True, None), (True, 9), (False, 9)], ids=["checkpoints", "causal", "both ways"]
)
def test_a_session_cut_by_time_is_the_same_where_pieces_know_all_of_it(
    causal: bool, warm_up: int | None, tmp_path: Path
) -> None:
    source = write_recording(tmp_path / "run.h5", 7)
    work, output = Work(CONFIG, causal, cut=3, warm_up=warm_up), tmp_path / "assembled.h5"
    pieces, _ = plan_pieces(source, output, work)
    assert [len(piece.keys) for piece in pieces] == [3, 3, 1, 0]
    here(pieces, work)
    assert_same(whole(source, causal=causal), output)


def test_a_short_warm_up_changes_volumes_by_less_than_the_noise(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "run.h5", 14)
    work, output = Work(CONFIG, cut=7, warm_up=6), tmp_path / "assembled.h5"
    here(plan_pieces(source, output, work)[0], work)
    with open_run(whole(source)) as one, open_run(output) as other:
        apart = np.abs(one.volume[:].astype(float) - other.volume[:])
        assert 0 < apart.mean() < 0.5 * CAMERA.read_noise
        drifted = [run.values("drift_x_um") for run in (one, other)]
        assert drifted[0][-1] > 0.4
        assert abs(drifted[0][-1] - drifted[1][-1]) < 0.05


def test_what_is_done_stays_done(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "run.h5", 3, positions=2)
    work, output = Work(CONFIG), tmp_path / "assembled.h5"
    pieces, _ = plan_pieces(source, output, work)
    here(pieces[:1], work)
    before = pieces[0].output.read_bytes()
    left, _ = plan_pieces(source, output, work)
    assert left == pieces[1:]
    # Of another method nothing is there.
    other = Work(CONFIG.model_copy(update={"engine": ENGINE.model_copy(update={"method": "linear"})}))
    assert len(plan_pieces(source, output, other)[0]) == 3
    assert pieces[0].output.read_bytes() == before
    here(left, work)
    with pytest.raises(InputFileError, match=r"was not made of run\.h5 with these settings"):
        plan_pieces(source, output, other)


def test_a_piece_that_fails_fails_alone(tmp_path: Path) -> None:
    good = write_recording(tmp_path / "good.h5", 2)
    bad = write_recording(tmp_path / "bad.h5", 2, positions=2)
    work = Work(CONFIG)
    pieces = [
        *plan_pieces(bad, tmp_path / "bad_out.h5", work)[0],
        *plan_pieces(good, tmp_path / "good_out.h5", work)[0],
    ]
    bad.unlink()
    outcome = work_through_here(pieces, work)
    assert [piece.name for piece in outcome.done] == ["good_out.h5"]
    assert outcome.failed.pop("bad_out.h5, assembly") == "pieces that it needs were not done"
    assert all("bad.h5" in why for why in outcome.failed.values())
    assert len(outcome.failed) == 2


def test_several_recordings_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [str(write_sample(tmp_path / f"{name}.h5", sweeps=2)) for name in "ab"]
    folder = tmp_path / "out"
    command = ["reconstruct", *sources, "--output", str(folder), *SET]
    assert cli.main(command) == 0
    assert "2 of 2 pieces done" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("is there already") == 2
    assert_same(whole(tmp_path / "a.h5"), folder / "a.h5")
    (tmp_path / "c").mkdir()
    shutil.copy(tmp_path / "a.h5", tmp_path / "c")
    for wrong, reason in (
        ([*sources], "need --output"),
        ([*sources, "--output", sources[0]], "has to be a folder"),
        ([*sources, str(tmp_path / "c" / "a.h5"), "--output", str(folder)], "would both become"),
        ([sources[0], "--output", str(folder), "--warm-up", "3"], "give --cut N too"),
        ([sources[0], "--output", str(tmp_path / "x.h5"), "--local", "2", "--memory", "0.1"], "--memory GB"),
    ):
        assert cli.main(["reconstruct", *wrong, *SET]) == 2
        assert reason in capsys.readouterr().err


def test_without_dask_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(DependencyError, match=r"pip install 'microdiffusion-daemon\[dask\]'"),
        open_cluster(Where(2)),
    ):
        pass


def test_jobs_of_slurm_ask_for_what_a_worker_needs() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    scripts: list[str] = []

    class Asked(jobqueue.SLURMCluster):  # type: ignore[misc,name-defined] # no SLURM here: only its script
        def scale(self, n: int | None = None, jobs: int = 0) -> None:
            scripts.extend([self.job_script()] * jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobqueue, "SLURMCluster", Asked)
        where = Where(jobs=3, memory_gb=6, threads=4)
        with open_cluster(where) as client:
            assert describe(client, where)[0] == "3 jobs of SLURM, each a worker"
    assert len(scripts) == 3
    assert "#SBATCH --cpus-per-task=4" in scripts[0]
    assert "--nthreads 1 " in scripts[0]
    assert "#SBATCH --mem=6G" in scripts[0]


class KilledWorker(Exception):
    """As Dask says that a task's worker died."""


class Cluster:
    """Workers that die as a script says: by piece, the steps that each attempt tells before its death.

    None: it dies before it has begun. After the last death a piece is done.
    """

    def __init__(self, deaths: dict[str, list[int | None]]) -> None:
        self.deaths = deaths
        self.most = self.running = 0
        self.tell: Any = None

    def subscribe_topic(self, topic: str, handler: Any) -> None:
        self.tell = handler

    def unsubscribe_topic(self, topic: str) -> None:
        pass

    def cancel(self, futures: list[Any]) -> None:
        assert futures == []

    def nthreads(self) -> dict[str, int]:
        return {"one": 1, "other": 1}

    def submit(self, do: Any, piece: Piece, *rest: Any, pure: bool) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        return Attempt(self, piece)


class Attempt:
    """A future of such a cluster."""

    def __init__(self, cluster: Cluster, piece: Piece) -> None:
        self.cluster, self.piece = cluster, piece
        self.status = "error" if cluster.deaths.get(piece.output.name) else "finished"

    def add_done_callback(self, ended: Any) -> None:
        self.cluster.running -= 1
        if self.status == "error":
            steps = self.cluster.deaths[self.piece.output.name].pop(0)
            for done in () if steps is None else (0, steps):
                self.cluster.tell((0.0, (str(self.piece.output), done)))
        ended(self)

    def exception(self) -> Exception:
        return KilledWorker()

    def result(self, timeout: float) -> PieceDone:
        return PieceDone(1.0)


def test_a_death_is_held_against_the_piece_that_comes_no_farther(tmp_path: Path) -> None:
    deaths: dict[str, list[int | None]] = {
        "had_not_begun.h5": [None] * 50,
        "comes_farther.h5": list(range(50)),
        "stays_where_it_was.h5": [3] * 50,
        "dies_at_once.h5": [0] * 50,
        "is_let_alone.h5": [],
    }
    pieces = [Piece(tmp_path / "run.h5", tmp_path / name, tmp_path / name, 100, "mark") for name in deaths]
    cluster = Cluster(deaths)
    told: list[tuple[float, float, int]] = []
    outcome = work_through(pieces, Work(CONFIG), cluster, Where(2), lambda *now: told.append(now))
    done = {"had_not_begun.h5", "comes_farther.h5", "is_let_alone.h5"}
    assert {piece.name for piece in outcome.done} == done
    assert outcome.failed.keys() == deaths.keys() - done
    assert all("worker after worker died over it" in why for why in outcome.failed.values())
    assert (len(deaths["stays_where_it_was.h5"]), len(deaths["dies_at_once.h5"])) == (50 - 6, 50 - 5)
    assert told[-1][2] == 3


def test_a_worker_has_one_piece(tmp_path: Path) -> None:
    names = [f"{number}.h5" for number in range(6)]
    pieces = [Piece(tmp_path / "run.h5", tmp_path / name, tmp_path / name, 10, "mark") for name in names]
    cluster = Cluster({})
    cluster.most = 0
    waiting: list[Any] = []
    cluster.submit = lambda do, piece, *rest, pure: waiting.append(piece) or Attempt(cluster, piece)  # type: ignore
    seen: list[int] = []

    def tell(done: float, steps: float, ready: int) -> None:
        seen.append(len(waiting) - ready)

    work_through(pieces, Work(CONFIG), cluster, Where(2), tell)
    assert max(seen) <= 2


@pytest.fixture(scope="module")
def long_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording that takes a worker far longer than a test."""
    return write_recording(tmp_path_factory.mktemp("long") / "run.h5", 100)


_PROGRAM = """
import sys
from microdiffusion.daemon.cli import main
from microdiffusion.daemon.commands import reconstruct
reconstruct._LINE_EVERY_S = 0.5
sys.exit(main())
"""


def _command(source: Path, folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start `mdd reconstruct` with a worker."""
    slow = ["--set", "engine.inr.cold_steps=2000"]
    words = ["reconstruct", str(source), "--output", str(folder / "out.h5"), "--local", "1", *SET, *slow]
    program = [sys.executable, "-c", _PROGRAM, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True), folder / "out.h5"


def _family(command: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(command.pid).children(recursive=True)


def _ended(command: subprocess.Popen[str], family: list[psutil.Process], output: Path) -> tuple[int, str]:
    """Return exit code and last line of a command that leaves no process and no file behind."""
    assert command.stderr is not None
    with command.stderr:
        said = command.stderr.read()
    code = command.wait(60)
    if command.stdout is not None:
        command.stdout.close()
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert list(output.parent.iterdir()) == []
    return code, said


@pytest.mark.timeout(300)  # processes import torch, on a machine that may be busy
def test_a_reader_that_goes_away_ends_the_command(long_one: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    command, output = _command(long_one, tmp_path)
    assert command.stdout is not None
    assert command.stdout.readline().startswith("1 worker on this machine")
    while not list(tmp_path.glob(".out.h5.part-*/*")):
        assert command.poll() is None
        time.sleep(0.02)
    family = _family(command)
    command.stdout.close()  # before a line of progress
    code, said = _ended(command, family, output)
    assert code == 3
    assert "the same command again does the rest" in said


@pytest.mark.skipif(sys.platform == "win32", reason="a signal there ends a process at once")
@pytest.mark.timeout(300)  # processes import torch, on a machine that may be busy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_command_that_is_stopped_leaves_nothing_behind(number: int, long_one: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    command, output = _command(long_one, tmp_path)
    while not list(tmp_path.glob(".out.h5.part-*/*")):
        assert command.poll() is None
        time.sleep(0.02)
    family = _family(command)
    # As a terminal does: all of them at once.
    for each in [*family, psutil.Process(command.pid)] if number == signal.SIGINT else ():
        each.send_signal(number)
    if number != signal.SIGINT:
        command.send_signal(number)
    code, said = _ended(command, family, output)
    assert code == 130
    assert said.splitlines() == [
        "what is done stays done: the same command again does the rest",
        "mdd: interrupted",
    ]


@pytest.fixture(scope="module")
def two_workers() -> Iterator[tuple[Any, Where]]:
    pytest.importorskip("distributed")
    where = Where(local=2, threads=1)
    with open_cluster(where) as client:
        yield client, where
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
    assert psutil.wait_procs(workers, timeout=10)[1] == []


@pytest.mark.timeout(300)  # two processes import torch, on a machine that may be busy
def test_a_cluster_gives_what_one_process_gives(two_workers: tuple[Any, Where], tmp_path: Path) -> None:
    client, where = two_workers
    source = write_recording(tmp_path / "run.h5", 3, positions=2)
    work, output = Work(CONFIG), tmp_path / "assembled.h5"
    pieces, _ = plan_pieces(source, output, work)
    outcome = work_through(pieces, work, client, where)
    assert (len(outcome.done), outcome.failed) == (3, {})
    assert_same(whole(source), output)
    assert describe(client, where)[0].startswith("2 workers on this machine, 1 thread and ")


@pytest.mark.timeout(300)  # two processes import torch, on a machine that may be busy
def test_a_worker_that_is_killed_costs_its_piece(two_workers: tuple[Any, Where], tmp_path: Path) -> None:
    client, where = two_workers
    source = write_recording(tmp_path / "run.h5", 6, positions=2)
    work, output = Work(CONFIG), tmp_path / "assembled.h5"
    pieces, _ = plan_pieces(source, output, work)
    victims = list(client.run(os.getpid).values())
    killed: list[int] = []

    def kill(done: float, steps: float, ready: int) -> None:
        if done > 0 and victims:
            psutil.Process(victims[0]).kill()
            killed.append(victims.pop(0))
            victims.clear()

    outcome = work_through(pieces, work, client, where, kill)
    assert killed
    assert (len(outcome.done), outcome.failed) == (3, {})
    assert_same(whole(source), output)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["assembled.h5", "run.h5", "whole.h5"]


@pytest.mark.timeout(300)  # two processes import torch, on a machine that may be busy
def test_a_causal_session_goes_on_from_the_piece_before_the_kill(
    two_workers: tuple[Any, Where], tmp_path: Path
) -> None:
    """Killed in the middle of a session: the sweeps before that piece stay, and its volumes are the same."""
    client, where = two_workers
    source = write_recording(tmp_path / "run.h5", 12)
    work, output = Work(CONFIG, causal=True, cut=3), tmp_path / "assembled.h5"
    pieces, _ = plan_pieces(source, output, work)
    there: dict[Path, int] = {}

    def kill(done: float, steps: float, ready: int) -> None:
        if ready == 2 and not there:
            there.update({piece.output: piece.output.stat().st_mtime_ns for piece in pieces[:2]})
            for pid in client.run(os.getpid).values():  # whichever has it: the other waits
                psutil.Process(pid).kill()
        for path, when in there.items():
            assert not path.exists() or path.stat().st_mtime_ns == when  # gone with the assembly

    outcome = work_through(pieces, work, client, where, kill)
    assert there
    assert (len(outcome.done), outcome.failed) == (5, {})
    assert_same(whole(source, causal=True), output)


def test_a_piece_that_fails_in_a_worker_says_why(two_workers: tuple[Any, Where], tmp_path: Path) -> None:
    client, where = two_workers
    source = write_recording(tmp_path / "run.h5", 2)
    work = Work(CONFIG)
    pieces, _ = plan_pieces(source, tmp_path / "out.h5", work)
    source.unlink()
    outcome = work_through(pieces, work, client, where)
    assert list(outcome.failed) == ["out.h5"]
    assert "run.h5" in outcome.failed["out.h5"]
