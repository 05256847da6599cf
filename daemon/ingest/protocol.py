"""The conversation with the senders: what each message means for its run, and the answer to it.

    unknown --start--> starting --on_start--> open --end--> ended ----+
                          ^                    |--silence--> silent --+-- start --> starting
                          |                    +---abort---> closed --+

No thread and no socket: `Ingest` calls everything on its thread, hands in the time, and sends what goes to
`answer`. Nothing here waits. The state is the run's own (`RunSink.state`). The latest runs that are over are
remembered, to answer late and repeated messages rightly: a frame that such a run has is acknowledged again;
another one makes its sender ask for the run to be resumed.

An `MddError` from a run aborts it and is told to its sender; any other exception goes through.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from microdiffusion import __version__, wire
from microdiffusion.daemon.ingest.intake import RunIntake, SenderState, frame_bytes
from microdiffusion.daemon.ingest.sink import RunSink, RunState
from microdiffusion.errors import MddError, WireError
from microdiffusion.header import RunHeader

REMEMBERED_RUNS = 32

Answer: TypeAlias = wire.Ack | wire.Refuse | wire.Tell


class NotYet(Exception):  # no error, an answer of `on_start`
    """Raised by `on_start` where it cannot say yet: nothing is answered, and the sender asks again."""


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
        Asks for a run that a sender wants to start; `begin` or `turn_away` follows when that is known.
    wake : callable
        Called on any thread when a receipt is complete: has `acknowledge` called on this one.
    runs, silent_s, max_frame_bytes
        As for `Ingest`.
    """

    def __init__(
        self,
        *,
        answer: Callable[[bytes, Answer], None],
        ask: Callable[[RunHeader], None],
        wake: Callable[[], object],
        runs: int,
        silent_s: float,
        max_frame_bytes: int,
    ) -> None:
        self._answer = answer
        self._ask = ask
        self._wake = wake
        self._most_runs = runs
        self._silent_s = silent_s
        self._max_frame_bytes = max_frame_bytes
        self.runs: dict[str, RunIntake] = {}  # in the order of their start
        self._starting: dict[str, _Starting] = {}
        self.refused = Counter[str]()

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
        """Refuse a run that was asked for; raises `error` again where it is a mistake in the daemon."""
        asking = self._starting.pop(run_id)
        if isinstance(error, NotYet):
            return
        if isinstance(error, MddError):
            self._refuse(asking.peer, _declined(run_id, str(error)))
            return
        self._refuse(asking.peer, _declined(run_id, f"the daemon failed: {error}"))
        raise error

    def begin(self, run_id: str, sink: RunSink, now_s: float) -> None:
        """Open a run that was asked for."""
        asking = self._starting.pop(run_id)
        if sink.state is not RunState.OPEN:
            return  # it was closed this very moment: its sender asks again
        intake = self.runs.pop(run_id, None)
        if intake is None or intake.run is not sink:
            intake = RunIntake(sink, self._wake)
        over = [key for key, each in self.runs.items() if not each.is_open]
        for key in over[: max(0, len(over) - REMEMBERED_RUNS + 1)]:
            del self.runs[key]
        self.runs[run_id] = intake
        self._open(intake, asking, now_s)

    def tell(self, message: wire.Tell) -> None:
        """Tell a run's drivers what is wanted of them, and again until the run is over."""
        intake = self.runs.get(message.run)
        if intake is not None and intake.is_open:
            intake.told = message
            self._answer_all(intake, message)

    def close_run(self, run_id: str, reason: str) -> None:
        """Abort a run, if it is open, and tell its senders; one that has ended is left as it is."""
        intake = self.runs.get(run_id)
        if intake is not None and intake.is_open:
            intake.run.abort(reason)
        if intake is not None and intake.run.state is RunState.CLOSED:
            self._answer_all(intake, _not_open(intake))

    def look_for_silence(self, now_s: float, *, stood_still_s: float = 0.0) -> None:
        """Close runs whose senders are gone; `stood_still_s` since the last look was not their silence."""
        for intake in self.runs.values():
            for sender in intake.senders.values():
                sender.heard_s += stood_still_s
            if intake.is_open and now_s - intake.heard_s > self._silent_s:
                with self._aborting_if_it_fails(intake):
                    intake.run.silent(f"its sender said nothing for {self._silent_s:g} s.")

    def acknowledge(self) -> None:
        """Acknowledge the frames whose receipts are complete."""
        for run_id, intake in self.runs.items():
            for peer, seqs in intake.acknowledged():
                self._answer(peer, wire.Ack(run=run_id, received=seqs))

    def _on_broken(self, peer: bytes, error: WireError) -> None:
        refusal = wire.Refuse(run=error.run, seq=error.seq, reason=error.reason, text=str(error)[:2000])
        if error.seq is not None or error.reason == wire.Reason.VERSION:
            self._refuse(peer, refusal)
        else:
            self.refused[str(error.reason)] += 1

    def _on_frame(self, peer: bytes, message: wire.RunFrame, now_s: float) -> None:
        intake, frame = self.runs.get(message.run), message.frame
        seq = frame.info.seq
        if intake is None:
            self._refuse(peer, _unknown_run(message.run))
            return
        intake.sender_of(seq).heard(peer, now_s)
        if intake.has(seq):
            intake.repeat(seq)
        elif not intake.is_open:
            self._refuse(peer, _not_open(intake))
        elif (objection := intake.objection(frame)) is not None:
            reason, text = objection
            self._refuse(peer, wire.Refuse(run=message.run, seq=seq, reason=reason, text=text))
        else:
            try:  # the context manager costs as much as the rest of this
                intake.run.frame(frame, intake.admit(frame))
            except MddError as error:
                self._abort(intake, error)

    def _on_start(self, peer: bytes, message: wire.RunStart, now_s: float) -> None:
        header, run_id = message.header, message.header.run_id
        asking = _Starting(header, peer, message.attempt, message.first_seq)
        if run_id in self._starting:
            if header == self._starting[run_id].header:
                self._starting[run_id] = asking
            else:
                self._refuse(peer, _declined(run_id, "a run of the same number begins with another header"))
            return
        intake = self.runs.get(run_id)
        if intake is not None:
            known = intake.is_open and header == intake.run.header
            # A sender that missed the answer to its `end` starts again; that alone opens nothing.
            ended = intake.run.state is RunState.ENDED and message.first_seq in intake.senders
            if known or (ended and not intake.asks_for_more):
                self._open(intake, asking, now_s)
                return
        others = [each.run.header for each in self.runs.values() if each.is_open and each is not intake]
        if len(others) + len(self._starting) >= self._most_runs:
            names = ", ".join(repr(other.name) for other in others[:3]) or "just beginning"
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

    def _open(self, intake: RunIntake, asking: _Starting, now_s: float) -> None:
        with self._aborting_if_it_fails(intake):
            intake.started(asking.first_seq, asking.peer, now_s)
            self._answer(asking.peer, intake.opening(asking.first_seq, asking.attempt, __version__))
            if intake.told is not None and intake.is_open:
                self._answer(asking.peer, intake.told)

    def _on_progress(self, peer: bytes, message: wire.RunProgress, now_s: float) -> None:
        intake, sender = self._sender(message)
        if intake is None or sender is None:
            self._refuse(peer, _unknown_run(message.run))
        elif sender.heard(peer, now_s):
            if intake.is_open:
                with self._aborting_if_it_fails(intake):
                    intake.run.progress(message)
                if intake.told is not None:  # the connection may have lost it
                    self._answer(peer, intake.told)
            elif intake.run.state is not RunState.ENDED:
                self._refuse(peer, _not_open(intake))

    def _on_end(self, peer: bytes, message: wire.RunEnd, now_s: float) -> None:
        intake, sender = self._sender(message)
        if intake is None or sender is None:
            self._refuse(peer, _unknown_run(message.run))
        elif sender.heard(peer, now_s):
            if intake.is_open:
                with self._aborting_if_it_fails(intake):
                    intake.ended(message)
            if sender.end == message and intake.run.state in (RunState.OPEN, RunState.ENDED):
                self.acknowledge()
                self._answer(peer, wire.Ack(run=message.run, ended=True))
            else:
                self._refuse(peer, _not_open(intake))

    def _sender(self, message: wire.RunProgress | wire.RunEnd) -> tuple[RunIntake | None, SenderState | None]:
        intake = self.runs.get(message.run)
        return intake, None if intake is None else intake.senders.get(message.first_seq)

    @contextlib.contextmanager
    def _aborting_if_it_fails(self, intake: RunIntake) -> Iterator[None]:
        try:
            yield
        except MddError as error:
            self._abort(intake, error)

    def _abort(self, intake: RunIntake, error: MddError) -> None:
        intake.run.abort(str(error))
        self._answer_all(intake, _not_open(intake))

    def _answer_all(self, intake: RunIntake, answer: Answer) -> None:
        for sender in intake.senders.values():
            self._answer(sender.peer, answer)

    def _refuse(self, peer: bytes, refusal: wire.Refuse) -> None:
        self.refused[str(refusal.reason)] += 1
        intake = self.runs.get(refusal.run or "")
        if intake is not None:
            intake.refused[str(refusal.reason)] += 1
        self._answer(peer, refusal)


def _not_open(intake: RunIntake) -> wire.Refuse:
    """Say that a run takes no more frames; a sender whose run can be resumed is asked to start it."""
    run = intake.run
    if run.state is RunState.CLOSED:
        return wire.Refuse(run=run.header.run_id, reason=wire.Reason.CLOSED, text=run.reason[:2000])
    intake.asks_for_more = True
    why = run.reason if run.state is RunState.SILENT else f"the run is over ({run.reason})."
    text = f"{why} Send start to resume it."
    return wire.Refuse(run=run.header.run_id, reason=wire.Reason.UNKNOWN_RUN, text=text[:2000])


def _declined(run_id: str, text: str) -> wire.Refuse:
    return wire.Refuse(run=run_id, reason=wire.Reason.DECLINED, text=text[:2000])


def _unknown_run(run_id: str) -> wire.Refuse:
    text = f"run {run_id} has not been started here; send start first."
    return wire.Refuse(run=run_id, reason=wire.Reason.UNKNOWN_RUN, text=text)
