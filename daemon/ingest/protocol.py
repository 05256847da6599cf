"""The conversation with the senders: what each message means for its run, and the answer to it.

    unknown --start--> starting --on_start--> open --end--> ended ----+
                          ^                    |--silence--> silent --+-- start --> starting
                          |                    +--close_run--> closed-+

No thread and no socket: `Ingest` calls everything on its thread, hands in the time, and sends what goes to
`answer`. Nothing here waits. `received`, from whatever peer, never raises but for a mistake in a sink. The
latest runs that are over are remembered, to answer late and repeated messages rightly: a frame that such a
run has is acknowledged again; another one makes its sender ask for the run to go on.

An `MddError` from a sink closes its run and is told to its sender; any other exception goes through.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from microdiffusion import __version__, wire
from microdiffusion.daemon.ingest.run import IngestRun, Line, RunState, frame_bytes
from microdiffusion.daemon.ingest.sink import RunSink
from microdiffusion.errors import MddError, WireError
from microdiffusion.header import RunHeader

REMEMBERED_RUNS = 32

Answer: TypeAlias = wire.Ack | wire.Refuse | wire.Tell


class NotYet(Exception):  # no error, a word of `on_start`
    """What `on_start` raises where it cannot say yet: nothing is answered, and the sender asks again."""


@dataclass(slots=True)
class _Starting:
    """A run that `on_start` is being asked about, and who wants to know."""

    header: RunHeader
    peer: bytes
    attempt: int
    first_seq: int


class IngestProtocol:
    """Keeps the runs and answers their senders.

    Parameters
    ----------
    answer : callable
        Sends a message to a peer, or drops it; does not wait.
    ask : callable
        Somebody wants to start this run: to be followed by `begin` or `turn_away`, whenever that is known.
    taken : callable
        Called on any thread when a frame of a run is safe: has `IngestRun.taken` called on this one.
    runs, silent_s, max_frame_bytes
        As for `Ingest`.
    """

    def __init__(
        self,
        *,
        answer: Callable[[bytes, Answer], None],
        ask: Callable[[RunHeader], None],
        taken: Callable[[IngestRun, int], None],
        runs: int,
        silent_s: float,
        max_frame_bytes: int,
    ) -> None:
        self._answer = answer
        self._ask = ask
        self._taken = taken
        self._most_runs = runs
        self._silent_s = silent_s
        self._max_frame_bytes = max_frame_bytes
        self.runs: dict[str, IngestRun] = {}  # in the order of their start
        self._starting: dict[str, _Starting] = {}
        self.refused = Counter[str]()
        self.forgotten = Counter[str]()  # what runs counted that are not remembered any more

    def received(self, peer: bytes, parts: wire.Parts, now_s: float) -> None:
        """Take a message from `peer` that came at `now_s` (`time.monotonic()`)."""
        try:
            message = wire.decode(parts)
        except WireError as error:
            self._on_broken(peer, error)
            return
        if isinstance(message, wire.RunFrame):
            message.frame.received_s = now_s
            self._on_frame(peer, message, now_s)
        elif isinstance(message, wire.RunStart):
            self._on_start(peer, message, now_s)
        elif isinstance(message, wire.RunProgress):
            self._on_progress(peer, message, now_s)
        elif isinstance(message, wire.RunEnd):
            self._on_end(peer, message, now_s)
        else:
            self.refused[wire.Reason.KIND.value] += 1  # only a daemon says this

    def turn_away(self, run_id: str, error: Exception) -> None:
        """Refuse a run that somebody asked for; raises `error` again where it is a mistake in the daemon."""
        asking = self._starting.pop(run_id)
        if isinstance(error, NotYet):
            return
        if isinstance(error, MddError):
            self._refuse(asking.peer, _declined(run_id, str(error)))
            return
        self._refuse(asking.peer, _declined(run_id, f"the daemon failed: {error}"))
        raise error

    def begin(self, run_id: str, sink: RunSink, now_s: float) -> None:
        """Open a run that somebody asked for."""
        asking = self._starting.pop(run_id)
        run = self.runs.get(run_id)
        if run is not None and run.received is sink.received and run.header == asking.header:
            del self.runs[run_id]
            run.reopen(sink)
        else:
            self._forget(run_id)
            run = IngestRun(asking.header, sink)
        over = [key for key, each in self.runs.items() if each.state is not RunState.OPEN]
        for key in over[: max(0, len(over) - REMEMBERED_RUNS + 1)]:
            self._forget(key)
        self.runs[run_id] = run
        self._open(run, asking, now_s)

    def _forget(self, run_id: str) -> None:
        run = self.runs.pop(run_id, None)
        if run is not None:
            stats = run.stats
            for name in ("frames", "bytes", "duplicates", "out_of_order"):
                self.forgotten[name] += getattr(stats, name)

    def tell(self, message: wire.Tell) -> None:
        """Tell a run's drivers what is wanted of them, and again until the run is over."""
        run = self.runs.get(message.run)
        if run is not None and run.state is RunState.OPEN:
            run.told = message
            self._answer_all(run, message)

    def close_run(self, run_id: str, reason: str) -> None:
        """Close a run from this side and tell its senders; one that is not open is left as it is."""
        run = self.runs.get(run_id)
        if run is not None and run.state is RunState.OPEN:
            run.close(RunState.CLOSED, reason)
            self._answer_all(run, _not_open(run))

    def look_for_silence(self, now_s: float, *, stood_still_s: float = 0.0) -> None:
        """Close runs whose sender is gone; `stood_still_s` since the last time was nobody's silence."""
        for run in self.runs.values():
            for line in run.lines.values():
                line.heard_s += stood_still_s
            if run.state is RunState.OPEN and now_s - run.heard_s > self._silent_s:
                with self._closing_if_it_fails(run):
                    run.fall_silent(f"its sender said nothing for {self._silent_s:g} s.")

    def confirm(self) -> None:
        """Acknowledge what has become safe since the last time."""
        for run in self.runs.values():
            for peer, seqs in run.confirmed():
                self._answer(peer, wire.Ack(run=run.header.run_id, received=seqs))

    def _on_broken(self, peer: bytes, error: WireError) -> None:
        refusal = wire.Refuse(run=error.run, seq=error.seq, reason=error.reason, text=str(error)[:2000])
        if error.seq is not None or error.reason == wire.Reason.VERSION:
            self._refuse(peer, refusal)
        else:
            self.refused[str(error.reason)] += 1

    def _on_frame(self, peer: bytes, message: wire.RunFrame, now_s: float) -> None:
        run, frame = self.runs.get(message.run), message.frame
        seq = frame.info.seq
        if run is None:
            self._refuse(peer, _unknown_run(message.run))
            return
        run.line_of(seq).heard(peer, now_s)
        if run.has(seq):
            run.repeat(seq)
        elif run.state is not RunState.OPEN:
            self._refuse(peer, _not_open(run))
        elif (objection := run.objection(frame)) is not None:
            reason, text = objection
            self._refuse(peer, wire.Refuse(run=message.run, seq=seq, reason=reason, text=text))
        else:
            try:  # the context manager costs as much as the rest of this
                run.take(frame, partial(self._taken, run))
            except MddError as error:
                self._close_failed(run, error)

    def _on_start(self, peer: bytes, message: wire.RunStart, now_s: float) -> None:
        header, run_id = message.header, message.header.run_id
        asking = _Starting(header, peer, message.attempt, message.first_seq)
        if run_id in self._starting:
            if header == self._starting[run_id].header:
                self._starting[run_id] = asking
            else:
                self._refuse(peer, _declined(run_id, "a run of the same number begins with another header"))
            return
        run = self.runs.get(run_id)
        if run is not None:
            if run.state is RunState.OPEN and header != run.header:
                self._refuse(peer, _declined(run_id, "a run of the same number is open with another header"))
                return
            # A sender that missed the answer to its `end` begins anew; that alone opens nothing.
            missed = run.state is RunState.ENDED and message.first_seq in run.lines and not run.asks_for_more
            if run.state is RunState.OPEN or missed:
                self._open(run, asking, now_s)
                return
        open_runs = [run.header.name for run in self.runs.values() if run.state is RunState.OPEN]
        if len(open_runs) + len(self._starting) >= self._most_runs:
            names = ", ".join(map(repr, open_runs[:3])) or "just beginning"
            text = (
                f"{self._most_runs} runs are open here already ({names}): wait for one to end (a run whose "
                f"sender is gone ends after {self._silent_s:g} s), or raise wire.runs."
            )
            self._refuse(peer, wire.Refuse(run=run_id, reason=wire.Reason.BUSY, text=text))
            return
        if frame_bytes(header) > self._max_frame_bytes:
            text = (
                f"its frames have {frame_bytes(header) / 1e6:.1f} MB, and this daemon takes "
                f"{self._max_frame_bytes / 1e6:.1f} MB: raise wire.max_frame_mb there"
            )
            self._refuse(peer, _declined(run_id, text))
            return
        self._starting[run_id] = asking
        self._ask(header)

    def _open(self, run: IngestRun, asking: _Starting, now_s: float) -> None:
        with self._closing_if_it_fails(run):
            run.started(asking.first_seq, asking.peer, now_s)
            self._answer(asking.peer, run.opening(asking.first_seq, asking.attempt, __version__))
            if run.told is not None and run.state is RunState.OPEN:
                self._answer(asking.peer, run.told)

    def _on_progress(self, peer: bytes, message: wire.RunProgress, now_s: float) -> None:
        run, line = self._line(message)
        if run is None or line is None:
            self._refuse(peer, _unknown_run(message.run))
        elif line.heard(peer, now_s):
            if run.state is RunState.OPEN:
                with self._closing_if_it_fails(run):
                    run.progressed(message)
                if run.told is not None:  # the line may have swallowed it
                    self._answer(peer, run.told)
            elif run.state is not RunState.ENDED:
                self._refuse(peer, _not_open(run))

    def _on_end(self, peer: bytes, message: wire.RunEnd, now_s: float) -> None:
        run, line = self._line(message)
        if run is None or line is None:
            self._refuse(peer, _unknown_run(message.run))
        elif line.heard(peer, now_s):
            if run.state is RunState.OPEN:
                with self._closing_if_it_fails(run):
                    run.ended(message)
            if line.end == message and run.state in (RunState.OPEN, RunState.ENDED):
                self.confirm()
                self._answer(peer, wire.Ack(run=message.run, ended=True))
            else:
                self._refuse(peer, _not_open(run))

    def _line(self, message: wire.RunProgress | wire.RunEnd) -> tuple[IngestRun | None, Line | None]:
        run = self.runs.get(message.run)
        return run, None if run is None else run.lines.get(message.first_seq)

    @contextlib.contextmanager
    def _closing_if_it_fails(self, run: IngestRun) -> Iterator[None]:
        try:
            yield
        except MddError as error:
            self._close_failed(run, error)

    def _close_failed(self, run: IngestRun, error: MddError) -> None:
        run.close(RunState.CLOSED, str(error))
        self._answer_all(run, _not_open(run))

    def _answer_all(self, run: IngestRun, answer: Answer) -> None:
        for line in run.lines.values():
            self._answer(line.peer, answer)

    def _refuse(self, peer: bytes, refusal: wire.Refuse) -> None:
        self.refused[str(refusal.reason)] += 1
        run = self.runs.get(refusal.run or "")
        if run is not None:
            run.count_refused(refusal.reason)
        self._answer(peer, refusal)


def _not_open(run: IngestRun) -> wire.Refuse:
    """Say that a run takes no more frames; a sender whose run can be gone on with is asked to start it."""
    if run.state is RunState.CLOSED:
        return wire.Refuse(run=run.header.run_id, reason=wire.Reason.CLOSED, text=run.reason[:2000])
    run.asks_for_more = True
    text = f"{run.reason} Send start to go on with it."
    return wire.Refuse(run=run.header.run_id, reason=wire.Reason.UNKNOWN_RUN, text=text[:2000])


def _declined(run_id: str, text: str) -> wire.Refuse:
    return wire.Refuse(run=run_id, reason=wire.Reason.DECLINED, text=text[:2000])


def _unknown_run(run_id: str) -> wire.Refuse:
    text = f"run {run_id} has not been started here; send start first."
    return wire.Refuse(run=run_id, reason=wire.Reason.UNKNOWN_RUN, text=text)
