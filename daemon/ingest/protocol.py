"""The conversation with the senders: what each message means for its run, and the answer to it.

    unknown --start--> starting --on_start--> open --end--> ended ----+
                          ^                    |--silence--> silent --+-- start --> starting
                          |                    +---abort---> closed --+

No thread and no socket: `Ingest` calls everything on its thread, hands in the time, and sends what goes to
`answer`. Nothing here waits. The state is the run's own (`RunSink.state`). The latest runs that are over are
remembered, to answer late and repeated messages rightly: a frame that such a run has is acknowledged again;
another one makes its sender ask for the run to be resumed.

A run belongs to who began it: `start` proves that with a secret (of which the run keeps a hash) or with a
key, and binds the connection by which it came. Whatever else comes about a run is refused, counted apart from
what its senders do wrong, and changes nothing.

An `MddError` from a run aborts it and is told to its sender; any other exception goes through.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from microdiffusion import __version__, wire
from microdiffusion.daemon.ingest.intake import (
    MAX_SENDERS,
    Origin,
    RunIntake,
    SenderState,
    admits,
    frame_bytes,
    owner_of,
)
from microdiffusion.daemon.ingest.sink import RunSink, RunState
from microdiffusion.errors import MddError, WireError
from microdiffusion.header import RunHeader

REMEMBERED_RUNS = 32

Answer: TypeAlias = wire.Ack | wire.Refuse | wire.Tell | wire.Feedback
_FOREIGN = "it belongs to another sender, and only that one can resume it: begin a run of your own."


class NotYet(Exception):  # no error, an answer of `on_start`
    """Raised by `on_start` where it cannot say yet: nothing is answered, and the sender asks again."""


@dataclass(slots=True)
class _Starting:
    """A run that `on_start` is being asked about, and who wants to know."""

    header: RunHeader
    origin: Origin
    owner: str
    attempt: int
    first_seq: int


class IngestProtocol:
    """Keeps the runs and answers their senders.

    Parameters
    ----------
    answer : callable
        Sends a message to a peer, or drops it; does not wait.
    ask : callable
        Asks for a run that a sender (`owner_of`) wants to start; `begin` or `turn_away` follows when that is
        known.
    wake : callable
        Called on any thread when a receipt is complete: has `acknowledge` called on this one.
    runs, silent_s, max_frame_bytes
        As for `Ingest`.
    """

    def __init__(
        self,
        *,
        answer: Callable[[Origin, Answer], None],
        ask: Callable[[RunHeader, str], None],
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
        self._waiting: dict[str, dict[Origin, wire.RunStart]] = {}  # for the answer about a run that starts
        self.refused = Counter[str]()

    def received(self, origin: Origin, parts: wire.Parts, now_s: float) -> None:
        """Take a message of `origin` that came at `now_s` (`time.monotonic()`)."""
        try:
            message = wire.decode(parts)
        except WireError as error:
            self._on_broken(origin, error)
            return
        if isinstance(message, wire.RunFrame):
            message.frame.received_s = now_s
            self._on_frame(origin, message, now_s)
        elif isinstance(message, wire.RunStart):
            self._on_start(origin, message, now_s)
        elif isinstance(message, wire.RunProgress):
            self._on_progress(origin, message, now_s)
        elif isinstance(message, wire.RunEnd):
            self._on_end(origin, message, now_s)
        else:
            self.refused[wire.Reason.KIND.value] += 1  # only a daemon says this

    def turn_away(self, run_id: str, error: Exception, now_s: float) -> None:
        """Refuse a run that was asked for; raises `error` again where it is a mistake in the daemon."""
        asking = self._starting.pop(run_id)
        if isinstance(error, MddError):
            self._refuse(asking.origin, _declined(run_id, str(error)))
        elif not isinstance(error, NotYet):
            self._refuse(asking.origin, _declined(run_id, f"the daemon failed: {error}"))
            raise error
        self._hear_next(run_id, now_s)

    def begin(self, run_id: str, sink: RunSink, now_s: float) -> None:
        """Open a run that was asked for."""
        asking = self._starting.pop(run_id)
        if sink.state is not RunState.OPEN:
            self._hear_next(run_id, now_s)  # it was closed this very moment: its sender asks again
            return
        intake = self.runs.pop(run_id, None)
        if intake is None or intake.run is not sink:
            intake = RunIntake(sink, self._wake)
        over = [key for key, each in self.runs.items() if not each.is_open]
        for key in over[: max(0, len(over) - REMEMBERED_RUNS + 1)]:
            del self.runs[key]
        self.runs[run_id] = intake
        self._open(intake, asking, now_s)
        self._hear_next(run_id, now_s)

    def _hear_next(self, run_id: str, now_s: float) -> None:
        """Let those speak who wanted a run while another sender of it was asked about, in their order."""
        waiting = self._waiting.pop(run_id, {})
        while waiting and run_id not in self._starting:
            origin = next(iter(waiting))
            self._on_start(origin, waiting.pop(origin), now_s)
        if waiting:
            self._waiting[run_id] = waiting

    def tell(self, message: wire.Tell) -> None:
        """Tell a run's drivers what is wanted of them, and again until the run is over."""
        intake = self.runs.get(message.run)
        if intake is not None and intake.is_open:
            intake.told = message
            self._answer_all(intake, message)

    def pass_on(self, message: wire.Feedback) -> None:
        """Send a run's drivers what a sweep showed, if the run is open."""
        intake = self.runs.get(message.run)
        if intake is not None and intake.is_open:
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
        """Answer the frames whose receipts are complete."""
        for intake in self.runs.values():
            for origin, answer in intake.answers():
                if isinstance(answer, wire.Refuse):
                    self._refuse(origin, answer)
                else:
                    self._answer(origin, answer)

    def _on_broken(self, origin: Origin, error: WireError) -> None:
        refusal = wire.Refuse(run=error.run, seq=error.seq, reason=error.reason, text=str(error)[:2000])
        if error.seq is not None or error.reason == wire.Reason.VERSION:
            self._refuse(origin, refusal)
        else:
            self.refused[str(error.reason)] += 1

    def _on_frame(self, origin: Origin, message: wire.RunFrame, now_s: float) -> None:
        intake, frame = self.runs.get(message.run), message.frame
        seq = frame.info.seq
        if intake is None:
            self._refuse(origin, _unknown_run(message.run))
            return
        sender = intake.sender_of(seq)
        if not sender.heard(origin, now_s) and not sender.knows(origin):
            self._refuse(origin, _unknown_run(message.run))
        elif intake.has(seq):
            again = intake.repeat(frame)
            if again is None:
                self._refuse(origin, _not_open(intake))
            elif again:
                refusal = wire.Refuse(run=message.run, seq=seq, reason=wire.Reason.FRAME, text=again)
                self._refuse(origin, refusal)
        elif not intake.is_open:
            self._refuse(origin, _not_open(intake))
        elif (objection := intake.objection(frame)) is not None:
            reason, text = objection
            self._refuse(origin, wire.Refuse(run=message.run, seq=seq, reason=reason, text=text))
        else:
            try:  # the context manager costs as much as the rest of this
                intake.run.frame(frame, intake.admit(frame))
            except MddError as error:
                self._abort(intake, error)

    def _on_start(self, origin: Origin, message: wire.RunStart, now_s: float) -> None:
        header, run_id = message.header, message.header.run_id
        owner = owner_of(message.secret, origin.key)
        asking = _Starting(header, origin, owner, message.attempt, message.first_seq)
        under_way = self._starting.get(run_id)
        if under_way is not None:
            if owner != under_way.owner:
                # Of two, at most one is the run's: the other one's answer comes first.
                waiting = self._waiting.setdefault(run_id, {})
                if origin in waiting or len(waiting) < MAX_SENDERS:
                    waiting[origin] = message
            elif header == under_way.header:
                self._starting[run_id] = asking
            else:
                self._refuse(origin, _declined(run_id, "a run of the same number begins with another header"))
            return
        intake = self.runs.get(run_id)
        if intake is not None:
            if not admits(intake.run.owners, owner):
                if not intake.warned:
                    intake.warned = True
                    intake.run.alarm("another sender wanted to resume this run without its secret: refused")
                self._refuse(origin, _declined(run_id, _FOREIGN))
                return
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
            self._refuse(origin, wire.Refuse(run=run_id, reason=wire.Reason.BUSY, text=text))
            return
        if frame_bytes(header) > self._max_frame_bytes:
            text = (
                f"its frames have {frame_bytes(header) / 1e6:.1f} MB, and this daemon takes "
                f"{self._max_frame_bytes / 1e6:.1f} MB: raise wire.max_frame_mb there"
            )
            self._refuse(origin, _declined(run_id, text))
            return
        self._starting[run_id] = asking
        self._ask(header, owner)

    def _open(self, intake: RunIntake, asking: _Starting, now_s: float) -> None:
        with self._aborting_if_it_fails(intake):
            intake.started(asking.first_seq, asking.origin, now_s)
            self._answer(asking.origin, intake.opening(asking.first_seq, asking.attempt, __version__))
            if intake.told is not None and intake.is_open:
                self._answer(asking.origin, intake.told)

    def _on_progress(self, origin: Origin, message: wire.RunProgress, now_s: float) -> None:
        intake, sender = self._sender(origin, message)
        if intake is None or sender is None:
            self._refuse(origin, _unknown_run(message.run))
        elif sender.heard(origin, now_s):
            if intake.is_open:
                with self._aborting_if_it_fails(intake):
                    intake.run.progress(message)
                if intake.told is not None:  # the connection may have lost it
                    self._answer(origin, intake.told)
            elif intake.run.state is not RunState.ENDED:
                self._refuse(origin, _not_open(intake))

    def _on_end(self, origin: Origin, message: wire.RunEnd, now_s: float) -> None:
        intake, sender = self._sender(origin, message)
        if intake is None or sender is None:
            self._refuse(origin, _unknown_run(message.run))
        elif sender.heard(origin, now_s):
            if intake.is_open:
                with self._aborting_if_it_fails(intake):
                    intake.ended(message)
            if sender.end == message and intake.run.state in (RunState.OPEN, RunState.ENDED):
                self.acknowledge()
                self._answer(origin, wire.Ack(run=message.run, ended=True))
            else:
                self._refuse(origin, _not_open(intake))

    def _sender(
        self, origin: Origin, message: wire.RunProgress | wire.RunEnd
    ) -> tuple[RunIntake | None, SenderState | None]:
        """Return the run of a message, and its sender where it comes from that one."""
        intake = self.runs.get(message.run)
        sender = None if intake is None else intake.senders.get(message.first_seq)
        return intake, sender if sender is not None and sender.knows(origin) else None

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
            self._answer(sender.origin, answer)

    def _refuse(self, origin: Origin, refusal: wire.Refuse) -> None:
        self.refused[str(refusal.reason)] += 1
        intake = self.runs.get(refusal.run or "")
        if intake is not None:
            if intake.knows(origin):
                intake.refused[str(refusal.reason)] += 1
            else:
                intake.strangers += 1
        self._answer(origin, refusal)


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
