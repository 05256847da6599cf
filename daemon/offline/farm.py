"""Many pieces over a Dask cluster, or one after the other here: what is next, what failed, what is left.

`work_through` submits a piece when those that it needs are done and a worker is free, so that a worker has
one piece and no other suffers where it dies. A piece whose worker dies is done again by another: that is held
against it only where it had begun and came no farther than ever before, and so many times in a row. One that
raises has failed, and those that need it with it, the others go on. Where the scheduler is lost, what is done
stays done: the client waits for it to come back, and submits the rest again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from microdiffusion import __version__
from microdiffusion.daemon.offline.pieces import Piece, PieceDone, Work, check_version, is_done, run_piece
from microdiffusion.errors import MddError

if TYPE_CHECKING:
    from microdiffusion.config import Config
    from microdiffusion.daemon.offline.cluster import Where
    from microdiffusion.daemon.signals import StopRequest
    from microdiffusion.engines.pipeline import Engine

_TOPIC = "mdd-pieces"
_TELL_EVERY_S = 0.5
_LIVES = 5  # workers that may die over a piece, one after the other, without a step further
_RECONNECT_S = 60.0
_NEW_S = 1.0  # between two looks for more workers than there were
_LOOK_S = 0.1  # between two looks at who is there, and at a request to stop
_one_at_a_time = threading.Lock()  # in a worker of several threads

Tell = Callable[[float, float, int], None]
"""Called with the steps that are done, all steps, and the pieces that are done."""


@dataclass(slots=True)
class Outcome:
    """Pieces that were done and that failed.

    Attributes
    ----------
    done : list of Piece
    failed : dict of str to str
        Names of pieces that were not done, and why.
    seconds : dict of str to float
        What each piece took its worker.
    opening_s : float
        Seconds in which workers opened their engines.
    served : dict of str to str
        Answers that were served in the network's place, and why.
    """

    done: list[Piece] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    opening_s: float = 0.0
    served: dict[str, str] = field(default_factory=dict)

    def take(self, piece: Piece, answer: PieceDone) -> None:
        """Note a piece that is done."""
        self.done.append(piece)
        self.seconds[piece.name] = answer.seconds
        self.opening_s += answer.opening_s
        for name, why in answer.served:
            self.served.setdefault(name, why)


class _Steps:
    """The steps that are done; a piece's count once, however often it was begun.

    `take` is for any thread, the others for the main one, which alone prints: it may raise.
    """

    def __init__(self, pieces: Sequence[Piece], tell: Tell) -> None:
        self._steps = {str(piece.output): piece.steps for piece in pieces}
        self._done = dict.fromkeys(self._steps, 0)
        self._begun: set[str] = set()
        self._before: dict[str, int] = {}
        self._deaths: dict[str, int] = {}
        self._pieces = 0
        self._tell = tell
        self._told: tuple[int, int] | None = None

    def take(self, output: str, done: int) -> None:
        """Note how far a piece is."""
        if output in self._done:
            self._begun.add(output)
            self._done[output] = max(self._done[output], done)

    def tell(self) -> None:
        """Tell of what is new."""
        now = sum(self._done.values()), self._pieces
        if now != self._told:
            self._told = now
            self._tell(now[0], sum(self._steps.values()), now[1])

    def finish(self, piece: Piece) -> None:
        """Note that a piece is done, and tell."""
        self._pieces += 1
        self.take(str(piece.output), piece.steps)
        self.tell()

    def submitted(self, piece: Piece) -> None:
        """Note that a worker is to do a piece."""
        name = str(piece.output)
        self._begun.discard(name)
        self._before[name] = self._done[name]

    def is_deadly(self, piece: Piece) -> bool:
        """Note that a piece's worker died; return whether the piece is given up for it."""
        name = str(piece.output)
        if name in self._begun:
            farther = self._done[name] > self._before[name]
            self._deaths[name] = 0 if farther else self._deaths.get(name, 0) + 1
        return self._deaths.get(name, 0) >= _LIVES


def work_through_here(
    pieces: Sequence[Piece], work: Work, tell: Tell = lambda done, steps, pieces: None
) -> Outcome:
    """Do pieces one after the other in this process."""
    outcome, steps, lost = Outcome(), _Steps(pieces, tell), set[Path]()

    def now(output: str, done: int) -> None:
        steps.take(output, done)
        steps.tell()

    for piece in pieces:
        if _lacks(piece, lost, outcome):
            continue
        try:
            outcome.take(piece, run_piece(piece, work, _engine, _teller(now, piece)))
            steps.finish(piece)
        except Exception as error:  # the others do not suffer
            _fail(piece, _reason(error), lost, outcome)
    return outcome


def work_through(
    pieces: Sequence[Piece],
    work: Work,
    client: Any,
    where: Where,
    tell: Tell = lambda done, steps, pieces: None,
    stop: StopRequest | None = None,
) -> Outcome:
    """Do pieces on a cluster.

    Parameters
    ----------
    pieces : sequence of Piece
        In an order that works: those that one needs come before it.
    client : dask.distributed.Client
    stop : StopRequest, optional
        Looked at again and again.

    Raises
    ------
    KeyboardInterrupt
        A stop was requested: what is done stays done.
    """
    if where.threads_each is not None:
        engine = work.config.engine.model_copy(update={"threads": where.threads_each})
        work = replace(work, config=work.config.model_copy(update={"engine": engine}))
    outcome, steps, lost = Outcome(), _Steps(pieces, tell), set[Path]()
    # The longest first: none is left alone at the end.
    waiting, running = sorted(pieces, key=lambda piece: -piece.steps), dict[Any, Piece]()
    undone = {piece.output for piece in pieces}
    ended: SimpleQueue[Any] = SimpleQueue()
    workers = _Workers(client)

    def submit_what_can() -> None:
        for piece in list(waiting):
            if _lacks(piece, lost, outcome):
                waiting.remove(piece)
            elif undone.isdisjoint(piece.needs) and len(running) < workers.count(len(running)):
                waiting.remove(piece)
                steps.submitted(piece)
                # Not pure: a piece may be submitted again.
                future = client.submit(_do, piece, work, __version__, where.local, pure=False)
                running[future] = piece
                future.add_done_callback(ended.put)

    def take(piece: Piece, future: Any) -> None:
        answer = _answer(future, piece)
        if answer is not None:
            outcome.take(piece, answer)
            undone.discard(piece.output)
            steps.finish(piece)
        elif future.status == "error":
            error = future.exception()
            if not _is_killed(error) or steps.is_deadly(piece):
                _fail(piece, _reason(error), lost, outcome)
            else:
                workers.forget()
                waiting.insert(0, piece)
        elif _connected(client):  # the scheduler was lost, and is there again
            waiting.insert(0, piece)
        else:
            _fail(piece, "Dask's scheduler was lost", lost, outcome)

    client.subscribe_topic(_TOPIC, lambda event: steps.take(*event[1]))
    try:
        while running or waiting:
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            submit_what_can()
            if not running and waiting and where.local is not None and workers.gone_s > _RECONNECT_S:
                for piece in waiting:
                    _fail(piece, "no worker starts any more: see what else this machine does", lost, outcome)
                break
            with contextlib.suppress(Empty):
                future = ended.get(timeout=_LOOK_S)
                take(running.pop(future), future)
            steps.tell()
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(running))
            client.unsubscribe_topic(_TOPIC)
    return outcome


class _Workers:
    """The workers of a cluster, looked at now and then."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._count = 0
        self._looked_s = float("-inf")
        self._there_s = time.monotonic()

    def count(self, busy: int) -> int:
        """Return how many pieces they can do at a time; `busy` they do."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= (_LOOK_S if busy < self._count else _NEW_S):
            with contextlib.suppress(Exception):  # of the connection: as many as there were
                self._count = sum(self._client.nthreads().values())
            self._looked_s = now_s
            if self._count:
                self._there_s = now_s
        return self._count

    def forget(self) -> None:
        """Look again at the next question: one has died."""
        self._looked_s, self._count = float("-inf"), 0

    @property
    def gone_s(self) -> float:
        """Seconds without any."""
        return time.monotonic() - self._there_s


def _answer(future: Any, piece: Piece) -> PieceDone | None:
    """Return a worker's report; None where the piece is not done, as the file says if a report is lost."""
    if future.status == "error":
        return None
    try:
        report: PieceDone = future.result(timeout=_RECONNECT_S)
        return report
    except (Exception, asyncio.CancelledError):  # of the connection
        return PieceDone(0.0) if is_done(piece) else None


def _do(piece: Piece, work: Work, version: str, local: int | None) -> PieceDone:
    """Do a piece in a worker."""
    from dask.distributed import get_worker

    check_version(version)
    worker = get_worker()
    if local is not None:
        device = _own_device(work.config, str(worker.name))
        engine = work.config.engine.model_copy(update={"device": device})
        work = replace(work, config=work.config.model_copy(update={"engine": engine}))

    def told(output: str, done: int) -> None:
        worker.log_event(_TOPIC, (output, done))

    with _one_at_a_time:
        told(str(piece.output), 0)  # it has begun
        return run_piece(piece, work, _engine, _teller(told, piece))


def _own_device(config: Config, worker: str) -> str:
    """Return the device of a worker of this machine: GPUs are dealt out in turn."""
    import torch

    wanted = config.engine.device
    if wanted != "auto" or not torch.cuda.is_available() or not worker.isdigit():
        return wanted
    return f"cuda:{int(worker) % torch.cuda.device_count()}"


_engines: dict[str, Engine] = {}


def _engine(config: Config) -> Engine:
    """Return this process's engine, opened for its first piece."""
    key = config.engine.model_dump_json()
    if key not in _engines:
        from microdiffusion.engines.pipeline import open_engine

        _engines.clear()
        _engines[key] = open_engine(config.engine)
    return _engines[key]


def _teller(tell: Callable[[str, int], None], piece: Piece) -> Callable[[int, int], None]:
    """Return a function that tells of a piece's steps, not too often."""
    told_s = float("-inf")

    def step(done: int, steps: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = time.monotonic()
            tell(str(piece.output), done)

    return step


def _lacks(piece: Piece, lost: set[Path], outcome: Outcome) -> bool:
    """Note a piece that needs a failed one."""
    if lost.isdisjoint(piece.needs):
        return False
    _fail(piece, "pieces that it needs were not done", lost, outcome)
    return True


def _fail(piece: Piece, reason: str, lost: set[Path], outcome: Outcome) -> None:
    lost.add(piece.output)
    outcome.failed[piece.name] = reason


def _is_killed(error: BaseException | None) -> bool:
    return type(error).__name__ == "KilledWorker"


def _reason(error: BaseException | None) -> str:
    """Return why a piece failed, one sentence."""
    if _is_killed(error):
        return (
            "worker after worker died over it, without a step further: too little memory? Give them more "
            "with --memory, or cut by time with --cut"
        )
    if isinstance(error, MddError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _connected(client: Any) -> bool:
    """Wait for a client to be connected again; False where it is not in time."""
    until_s = time.monotonic() + _RECONNECT_S
    while time.monotonic() < until_s and client.status in ("connecting", "running"):
        if client.status == "running":
            return True
        time.sleep(0.05)
    return False
