"""The runs of a daemon: opens, watches and closes them, several at the same time.

Ingest asks `on_start` on a thread for each run, so making a run file, or finding it again, holds up no other
run. A run that is over is closed on a thread too, so that catching up does not hold up the
others. The main thread asks `tick` a few times a second. What fails ends its own run and no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil

from microdiffusion.config import Config
from microdiffusion.daemon.engine import EngineProcess, provenance
from microdiffusion.daemon.ingest import Ingest, NotYet, RunState, admits
from microdiffusion.daemon.recorder import Compressor, Recorder, Written, create_recorder, resume_recorder
from microdiffusion.daemon.runs.folder import RunFolder
from microdiffusion.daemon.runs.live_run import LiveRun
from microdiffusion.daemon.runs.sweeps import RecoveredRun
from microdiffusion.daemon.status import HEADLINE, RunSummary, StatusBoard
from microdiffusion.engines.memory import reconstruction_bytes
from microdiffusion.errors import ConfigError, InputFileError, MddError, RunError, UserError
from microdiffusion.header import RunHeader
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import Status

_MAY_DIFFER = ("sweeps", "source", "adaptive")  # in the header of a run that is resumed
_NAMES = 10  # that are tried for a new run
REMEMBERED = 1000
"""Runs that are over and still named at the end: a service runs for months."""


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """A run that is over: its files, and what became of its time points and frames."""

    run_id: str
    shape: tuple[int, int, int]
    paths: tuple[Path, ...]
    counts: Mapping[Status, int]
    ledger: Ledger

    @classmethod
    def of(cls, run: LiveRun) -> ClosedRun:
        """Return it of a run that was closed."""
        header, recorder = run.header, run.recorder
        return cls(header.run_id, header.shape, tuple(recorder.paths), recorder.counts, recorder.data.ledger)


class OpenRuns:
    """The runs that are open, being opened, and being closed.

    Parameters
    ----------
    ingest : Ingest
        Where the frames come in; to be started with `on_start`.

    Attributes
    ----------
    closed : list of ClosedRun
        Those that are over, in the order in which they ended; the latest `REMEMBERED` of them.
    failures : dict of str to MddError
        Why a run (its run_id) could not be written, or not be closed properly.
    compressor : Compressor
        Of those that are over.
    """

    def __init__(self, config: Config, engine: EngineProcess, board: StatusBoard, ingest: Ingest) -> None:
        self._config = config
        self._engine = engine
        self._board = board
        self._ingest = ingest
        self._folder = RunFolder(config.recorder.output)
        self._lock = threading.Lock()
        self._finding = threading.Lock()  # held while the folder is looked through, not while files are made
        self._closing_all = False
        self._runs: dict[str, LiveRun] = {}  # that are not closed yet
        self._closing: dict[str, Future[None]] = {}  # of these
        self._threads = ThreadPoolExecutor(config.wire.runs, thread_name_prefix="mdd-run")
        self._asked_for: set[str] = set()  # runs that are being closed, and have a sender again
        self._forgotten_written = 0
        self.closed: list[ClosedRun] = []
        self.failures: dict[str, MddError] = {}
        self.compressor = Compressor(config.recorder.compress_after, board.note)

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def unclosed(self) -> list[LiveRun]:
        """All runs that are not closed yet."""
        with self._lock:
            return list(self._runs.values())

    @property
    def _open(self) -> list[LiveRun]:
        """Those that are not being closed either."""
        with self._lock:
            return [run for run_id, run in self._runs.items() if run_id not in self._closing]

    @property
    def written(self) -> int:
        """Volumes that were written, of all runs that there ever were."""
        with self._lock:
            counts = [run.counts for run in self.closed]
        counts += [run.recorder.counts for run in self.unclosed]
        return self._forgotten_written + sum(each[Status.WRITTEN] for each in counts)

    def on_start(self, header: RunHeader, owner: str = "") -> LiveRun:
        """Return the run of a sender (`owner_of`) that says `start`: a new one, or one whose file is there.

        Raises
        ------
        NotYet
            Its file is just being closed, or so many are that one has to make room: the sender shall ask
            again.
        UserError, DiskError, RunError
            The run cannot be recorded.
        """
        run_id = header.run_id
        with self._lock:
            run = self._runs.get(run_id)
            if run is not None and run.state is RunState.OPEN:
                _require_same(run.recorder, header, owner)
                return run
            if run is not None:
                self._asked_for.add(run_id)
                raise NotYet
            if self._closing_all:
                raise UserError("The daemon is closing: start it again for a further run.")
            if len(self._closing) >= self._config.wire.runs:
                # Runs that are caught up take memory as open ones do; the oldest makes room.
                self._asked_for.add(next(iter(self._closing)))
                raise NotYet
        try:
            run = self._make(header, owner)
        except MddError:
            raise
        except Exception as error:  # a folder that is gone, too little memory: no other run's trouble
            raise RunError(f"The run cannot be recorded ({type(error).__name__}: {error}).") from error
        if not self._add(run):  # it was opened while the others were closed
            run.close(drain_s=0.0, hurry=lambda: True)
            raise UserError("The daemon is closing: start it again for a further run.")
        return run

    def resume(self, path: Path, owner: str = "") -> LiveRun:
        """Open a run file again, also for `owner`; on the main thread, before any sender is there.

        Raises
        ------
        MissingFileError, InputFileError, DiskError
            There is no such run file, it is damaged, a copy of one beside it, or another daemon writes it.
        """
        own = RunFolder(path.parent).file_of(path)
        if own != path and not own.samefile(path):
            raise InputFileError(f"{path} is a copy of {own}: resume that one, or move it away.")
        run = self._resumed(own, owner)
        self._add(run)
        return run

    def tick(self, now_s: float, *, drain_s: float, hurry: Callable[[], bool]) -> None:
        """Look after every run; close those that are over, waiting at most `drain_s` for their volumes.

        A run that cannot be written is closed as it is, and its senders told; the others go on.
        """
        runs = self._open
        for run in runs:
            try:
                run.tick(now_s, shown=run is runs[-1])
            except MddError as error:
                self._fail(run, error)
                self.abort(run, f"it cannot be recorded any more: {error}")
                self._close(run, 0.0, hurry)
                continue
            if run.state is not RunState.OPEN:
                self._close(run, drain_s, hurry)
        self._collect()
        self.compressor.look()
        self._board.put(runs=self.summaries())

    def summaries(self) -> tuple[RunSummary, ...]:
        """Return the runs that are not closed yet, in a few figures each."""
        return tuple(run.summary() for run in self.unclosed)

    def tell(self, what: Literal["go", "pause", "stop"], text: str) -> int:
        """Ask the drivers of all open runs; return how many there are."""
        runs = self._open
        for run in runs:
            run.tell(what, text)
        return len(runs)

    def mark(self, text: str) -> int:
        """Put a remark into the files of all open runs; return how many there are."""
        runs = self._open
        for run in runs:
            run.recorder.put_event("mark", text)
        return len(runs)

    def abort(self, run: LiveRun, reason: str) -> None:
        """Have a run take no further frame, and its senders told why; `tick` closes it."""
        run.abort(reason)
        self._ingest.close_run(run.header.run_id, reason)

    def close_all(self, *, drain_s: float, hurry: Callable[[], bool], show: Callable[[], None]) -> None:
        """Close every run, and take no more."""
        with self._lock:
            self._closing_all = True
        for run in self._open:
            self._close(run, drain_s, hurry)
        self._board.put(runs=self.summaries())
        while self._closing:
            wait(list(self._closing.values()), timeout=0.1)
            show()
            self._collect()
        self._board.put(runs=())
        self._threads.shutdown()

    def _make(self, header: RunHeader, owner: str) -> LiveRun:
        """Begin a run, or resume it where its file is there; on a thread of its own."""
        with self._finding:
            found = self._folder.find(header.run_id)
            path = found or self._folder.new_path(header.name)
        if found is not None:
            return self._resumed(found, owner, header)
        self._require_room(header)
        recorder = self._created(path, header, owner)
        recorder.start()
        return self._live(recorder, None)

    def _created(self, path: Path, header: RunHeader, owner: str) -> Recorder:
        """Return the recorder of a new run, under the next name where another daemon has just taken one."""
        for left in reversed(range(_NAMES)):
            try:
                return create_recorder(
                    path,
                    header,
                    self._config.recorder,
                    frames_per_sweep=header.frames_per_sweep,
                    configuration=self._config.model_dump_json(),
                    provenance=provenance(None) | {"file": path.name},
                    on_written=partial(_written, self._board),
                    live=self._config.engine.update == "projection",
                    uncertainty=self._config.engine.uncertainty,
                    owner=owner,
                )
            except InputFileError:
                if not left:
                    raise
                with self._finding:
                    path = self._folder.new_path(header.name)
        raise RunError(f"No name is free for {header.name}: choose another one.")

    def _require_room(self, header: RunHeader) -> None:
        """Raise UserError where a new run is more than this daemon can, or shall, take."""
        most = self._config.wire.positions
        if len(header.positions) > most:
            raise UserError(
                f"The run has {len(header.positions)} positions, and this daemon takes {most}: raise "
                "wire.positions there, or begin several runs."
            )
        engine, info = self._engine.queue.config, self._engine.info
        if (info.device if info is not None else engine.device).startswith("cuda"):
            return  # its memory is another one, which this process cannot ask
        needed = reconstruction_bytes(header, engine, *(run.header for run in self.unclosed))
        given = psutil.virtual_memory().total if engine.memory_gb is None else engine.memory_gb * 1e9
        if needed > given:
            shape = " x ".join(map(str, header.shape))
            raise UserError(
                f"The engine may take {needed / 1e9:,.1f} GB for {shape} voxels and what else is open, and "
                f"there are {given / 1e9:,.1f} GB (engine.memory_gb): send fewer slices or a smaller region."
            )

    def _resumed(self, path: Path, owner: str, wanted: RunHeader | None = None) -> LiveRun:
        """Open a run file again; one that is not the `wanted` run is left as it is."""
        recorder = resume_recorder(path, self._config.recorder, on_written=partial(_written, self._board))
        try:
            if wanted is not None:
                _require_same(recorder, wanted, owner)
            elif not admits(recorder.data.owners, owner):
                recorder.data.write_owner(owner)
            found = RecoveredRun.in_file_of(recorder, self._config.engine.policy)
            recorder.start()
        except BaseException:
            recorder.stop()
            raise
        return self._live(recorder, found)

    def _live(self, recorder: Recorder, found: RecoveredRun | None) -> LiveRun:
        """Return the run of a recorder that has started; where that fails, nothing of it is left running."""
        try:
            return LiveRun(recorder, self._config, self._engine, self._ingest, self._board, found=found)
        except BaseException:
            self._engine.queue.end(recorder.header.run_id)
            recorder.stop()
            raise

    def _add(self, run: LiveRun) -> bool:
        """Take in a run that is open, in place of itself before it was resumed; False: too late."""
        with self._lock:
            if self._closing_all:
                return False
            self.closed = [each for each in self.closed if each.run_id != run.header.run_id]
            self._runs[run.header.run_id] = run
            self._asked_for.discard(run.header.run_id)
            return True

    def _close(self, run: LiveRun, drain_s: float, hurry: Callable[[], bool]) -> None:
        run_id = run.header.run_id

        def hurried() -> bool:
            # Frames must not wait until all is caught up that can be caught up afterwards as well.
            return hurry() or run_id in self._asked_for

        with self._lock:
            self._closing[run_id] = self._threads.submit(run.close, drain_s=drain_s, hurry=hurried)

    def _fail(self, run: LiveRun, error: BaseException) -> None:
        """Keep what went wrong with a run, and tell it once."""
        failure = error if isinstance(error, MddError) else RunError(f"{type(error).__name__}: {error}")
        if run.header.run_id not in self.failures and len(self.failures) < REMEMBERED:
            self.failures[run.header.run_id] = failure
            self._board.note(f"run {run.header.name}: {failure}", "error")

    def _collect(self) -> None:
        """Take in what has been closed."""
        with self._lock:
            done = [(self._runs[key], future) for key, future in self._closing.items() if future.done()]
            for run, _ in done:
                del self._runs[run.header.run_id], self._closing[run.header.run_id]
                self._asked_for.discard(run.header.run_id)
                self.closed.append(ClosedRun.of(run))
            while len(self.closed) > REMEMBERED:
                self._forgotten_written += self.closed.pop(0).counts[Status.WRITTEN]
        for run, future in done:
            error = future.exception()
            if error is not None:
                self._fail(run, error)
            elif run.header.run_id not in self.failures:
                self.compressor.start(run.recorder.paths[0], run.recorder.data.ledger)


def _require_same(recorder: Recorder, wanted: RunHeader, owner: str) -> None:
    """Raise ConfigError where a sender's run is another than the file's, or another sender's."""
    header, path = recorder.header, recorder.paths[0]
    if not admits(recorder.data.owners, owner):
        raise ConfigError(
            f"The run in {path} belongs to another sender, and only that one can resume it: begin a new run."
        )
    if wanted != header.model_copy(update={name: getattr(wanted, name) for name in _MAY_DIFFER}):
        raise ConfigError(
            f"The run in {path} has another geometry or beam than its sender says: begin a new run."
        )


def _written(board: StatusBoard, written: Written) -> None:
    board.add_volume("written")
    if not written.later:
        board.add_latency(HEADLINE, written.latency_s)
