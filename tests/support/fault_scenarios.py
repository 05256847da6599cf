"""Faults, each a short run through the real `mdd`: what is broken, when, and how it must end.

`KINDS` holds them by name. A scenario gets a `Stage` whose dice it throws for everything that is random;
it breaks something, sees the run to its end, ends its processes, and says what to expect of the files.
`play` does that and returns what was wrong. The tests play a few of them, `benchmarks/faults.py` hundreds.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from support.bad_line import CUTS
from support.fault_checks import Expected, check
from support.fault_stage import FAULTY_PYTHON, FaultError, Source, Stage, make_source, settings
from support.mdd_process import port_is_free

SWEEPS = 24
RATE_HZ = 30.0
SILENT_S = 4.0


@dataclass(frozen=True)
class Outcome:
    """How a scenario went.

    Attributes
    ----------
    problems : tuple of str
        Empty where all that must hold does.
    facts : dict
        What was random, and what came of it.
    """

    kind: str
    seed: int
    seconds: float
    problems: tuple[str, ...]
    facts: dict[str, Any]


def play(kind: str, seed: int, folder: Path, sources: Path, *, longest_cut_s: float = 30.0) -> Outcome:
    """Play one scenario in a new folder.

    Parameters
    ----------
    sources
        Folder for the projection files, which scenarios share.
    longest_cut_s
        How long a line may be cut.
    """
    started_s = time.monotonic()
    with Stage(folder, f"{kind} {seed}") as stage:
        stage.facts["longest_cut_s"] = longest_cut_s
        try:
            expected = KINDS[kind](stage, make_source(sources, sweeps=SWEEPS))
            problems = check(stage, expected)
        except FaultError as error:
            problems = [str(error)]
        except Exception as error:  # whatever it is, it is a finding
            problems = [f"{type(error).__name__}: {str(error)[-600:]}"]
        stage.watcher.stop()
    facts = {"engine": stage.engine, **stage.facts}
    return Outcome(kind, seed, round(time.monotonic() - started_s, 1), tuple(problems), facts)


# Kills --------------------------------------------------------------------------------------------


def kill_daemon(stage: Stage, source: Source) -> Expected:
    """The daemon is killed, once or twice, and started again; the sender stays."""
    daemon = stage.serve()
    sender = stage.replay(source, RATE_HZ)
    stage.facts["kills"] = kills = stage.dice.randint(1, 2)
    over = False
    for number in range(1, kills + 1):
        stage.moment(source.frames * number // (kills + 2))
        stage.kill(daemon)
        # Everything is there; whether the sender has heard of it is a matter of milliseconds.
        over = stage.watcher.frames >= source.frames
        time.sleep(stage.dice.choice((0.0, 0.5, 2.0)))
        daemon = stage.serve()
    stage.finish(sender)
    if over:
        with suppress(FaultError):
            stage.until(stage.all_closed, "closed run files", 10)
    if over and not stage.all_closed():
        # Nobody is left to speak for the run: it stays as the killed daemon left it, until it is resumed.
        stage.facts["killed after the end"] = True
        daemon.send(signal.SIGTERM)
        stage.finish(daemon)
        (path,) = stage.output.glob("*.h5")
        daemon = stage.serve("--resume", path)
        stage.until(lambda: stage.watcher.written >= SWEEPS, "the volumes of a resumed run")
        daemon.send(signal.SIGTERM)
        stage.finish(daemon)
        return Expected(source, volumes="all")
    stage.close(daemon)
    return Expected(source)


def kill_driver(stage: Stage, source: Source) -> Expected:
    """The sender is killed; what it had on disk is delivered afterwards."""
    stage.settings += [f"wire.silent_s={SILENT_S}", "wire.send_buffer_mb=0.1"]
    daemon = stage.serve()
    line = stage.line()
    sender = stage.replay(source, RATE_HZ, port=line.port)
    stage.moment(source.frames // 6)
    if stage.dice.random() < 0.7:  # so that there is something to leave behind
        line.cut(stage.dice.choice(CUTS))
        time.sleep(stage.dice.uniform(0.5, 2.5))
    stage.kill(sender)
    line.mend()
    _deliver(stage)
    stage.close(daemon)
    return Expected(source, whole=0, missing=("on_the_line", "dropped_by_sender", "unsent"))


def kill_driver_and_daemon(stage: Stage, source: Source) -> Expected:
    """Both are killed; a daemon is started again and gets what the sender had on disk."""
    stage.settings += [f"wire.silent_s={SILENT_S}", "wire.send_buffer_mb=0.1"]
    daemon = stage.serve()
    sender = stage.replay(source, RATE_HZ)
    stage.moment(source.frames // 6)
    first, second = stage.dice.sample([daemon, sender], 2)
    stage.kill(first)
    time.sleep(stage.dice.uniform(0.5, 2.5))
    stage.kill(second)
    daemon = stage.serve()
    time.sleep(stage.dice.uniform(0.0, 2.0))
    _deliver(stage)
    if not stage.all_closed():
        # Nobody had anything left for this run, so no daemon heard of it again: it stays as it was.
        stage.until(lambda: not port_is_free(stage.data), "a daemon that listens")
        daemon.send(signal.SIGTERM)
        stage.finish(daemon)
        return Expected(source, whole=0, closed=False, missing=_KILLED, volumes="any")
    stage.close(daemon)
    return Expected(source, whole=0, missing=_KILLED, volumes="any")


_KILLED = ("on_the_line", "dropped_by_sender", "unsent")


def kill_engine(stage: Stage, source: Source) -> Expected:
    """The engine's worker is killed, up to three times."""
    daemon = stage.serve()
    sender = stage.replay(source, RATE_HZ)
    kills = stage.dice.randint(1, 3)
    killed: set[int] = set()
    for number in range(1, kills + 1):
        stage.moment(source.frames * number // (kills + 2))

        def another() -> bool:
            worker = stage.child(daemon, "libtorch")
            if worker.pid in killed:
                return False
            killed.add(worker.pid)
            with suppress(psutil.Error):
                worker.kill()
            return True

        stage.until(another, "an engine to kill")
    stage.finish(sender)
    stage.close(daemon)
    stage.facts["kills"] = kills
    return Expected(source)


def kill_one_of_two(stage: Stage, source: Source) -> Expected:
    """Two runs at once; the sender of one is killed, the other must not notice."""
    stage.settings += [f"wire.silent_s={SILENT_S}"]
    daemon = stage.serve()
    sender, victim = stage.replay(source, RATE_HZ), stage.replay(source, RATE_HZ)
    stage.moment(source.frames // 3)
    stage.kill(victim)
    stage.finish(sender)
    _deliver(stage)
    stage.until(lambda: stage.watcher.frames >= source.frames, "the frames of the run that lives")
    stage.close(daemon)
    return Expected(source, runs=2, missing=_KILLED)


def kill_demo_daemon(stage: Stage, source: Source) -> Expected:
    """A daemon with a driver of its own is killed, and goes on with the same run."""
    del source
    stage.journal.mkdir(exist_ok=True)
    daemon = stage.serve(demo=True)
    stage.moment(stage.dice.randint(2, 12))
    stage.kill(daemon)
    if left := stage.left():
        raise FaultError(f"children of a killed daemon live on: {left}")
    before = stage.watcher.frames
    (path,) = stage.output.glob("*.h5")
    daemon = stage.serve("--resume", path, demo=True)
    stage.until(lambda: stage.watcher.frames >= before + 6, "frames after the resumption")
    daemon.send(signal.SIGTERM)
    stage.finish(daemon)
    # A stop does not wait for the engine: what it had no time for is made afterwards.
    stage.finish(stage.run("reconstruct", "reconstruct", path))
    return Expected(None, missing=_KILLED, volumes="all")


def kill_demo_driver(stage: Stage, source: Source) -> Expected:
    """The daemon's own driver is killed; the daemon says so and closes, or starts it again."""
    del source
    daemon = stage.serve(demo=True)
    stage.moment(stage.dice.randint(2, 12))
    with suppress(psutil.Error):
        stage.child(daemon, "pymmcore").kill()
    with suppress(AssertionError):
        daemon.finish(8)
    if daemon.process.poll() is None:
        daemon.send(signal.SIGTERM)
    code = daemon.finish(30)
    stage.facts["exit"] = code
    if code not in (0, 3):
        raise FaultError(f"serve ended with {code}: {daemon.err[-400:]}")
    if stage.journal.is_dir() and any(stage.journal.iterdir()):  # the daemon had been slow for a second
        stage.facts["delivered"] = True
        daemon = stage.serve()
        _deliver(stage)
        stage.close(daemon)
    return Expected(None, missing=_KILLED, volumes="any")


def kill_demo_engine(stage: Stage, source: Source) -> Expected:
    """The engine's worker is killed beside a microscope that does not wait."""
    del source
    daemon = stage.serve(demo=True)
    stage.moment(stage.dice.randint(2, 8))
    with suppress(psutil.Error):
        stage.child(daemon, "libtorch").kill()
    before = stage.watcher.written
    stage.until(lambda: stage.watcher.written > before, "volumes after the kill")
    daemon.send(signal.SIGTERM)
    stage.finish(daemon)
    return Expected(None)


# The line -----------------------------------------------------------------------------------------


def absent(stage: Stage, source: Source) -> Expected:
    """The daemon is not there yet when the sender starts."""
    sender = stage.replay(source, RATE_HZ)
    time.sleep(stage.dice.uniform(0.0, 4.0))
    daemon = stage.serve()
    stage.finish(sender)
    stage.close(daemon)
    return Expected(source)


def cut(stage: Stage, source: Source) -> Expected:
    """The line is cut once or twice, for 1 to 30 s, in one of three ways; the memory is far too small."""
    stage.settings += ["wire.send_buffer_mb=0.1"]
    daemon = stage.serve()
    line = stage.line()
    sender = stage.replay(source, RATE_HZ, port=line.port)
    stage.facts["cuts"] = cuts = []
    for number in range(1, stage.dice.randint(1, 2) + 1):
        stage.moment(source.frames * number // 5)
        how = stage.dice.choice(CUTS)
        seconds = stage.facts["longest_cut_s"] ** stage.dice.random()
        cuts.append(f"{how} {seconds:.1f} s")
        line.cut(how)
        time.sleep(seconds)
        line.mend()
    stage.finish(sender)
    stage.close(daemon)
    return Expected(source)


def bit_flips(stage: Stage, source: Source) -> Expected:
    """The line turns bits over, wherever they are, frames of the transport included."""
    daemon = stage.serve()
    line = stage.line()
    sender = stage.replay(source, RATE_HZ, port=line.port)
    stage.moment(1)
    line.flip_every(stage.dice.choice((50_000, 150_000, 500_000)))
    stage.until(lambda: stage.watcher.frames >= source.frames * 0.7, "most frames", 90)
    line.flip_every(0)
    stage.finish(sender)
    stage.close(daemon)
    stage.facts |= {"flipped": line.flipped, "connections": line.connections}
    return Expected(source)


def bad_frames(stage: Stage, source: Source) -> Expected:
    """Frames come twice, late and damaged; the sender's own faults."""
    return _replay_with(stage, source, "duplicate", "reorder", "corrupt")


def lost_frames(stage: Stage, source: Source) -> Expected:
    """The same, and some are lost for good, unannounced."""
    expected = _replay_with(stage, source, "drop", "duplicate", "reorder", "corrupt")
    return Expected(expected.source, whole=0, missing=("on_the_line",))


def _replay_with(stage: Stage, source: Source, *faults: str) -> Expected:
    shares = {name: stage.dice.choice((0.01, 0.01, 0.05, 0.2)) for name in faults}
    stage.facts |= shares
    more = [word for name, share in shares.items() for word in (f"--{name}", str(share))]
    daemon = stage.serve(*settings("wire.sweep_timeout_s=1"))
    stage.finish(stage.replay(source, RATE_HZ * 2, *more, "--seed", stage.dice.randrange(1000)))
    stage.close(daemon)
    return Expected(source)


# The disk and the clock ---------------------------------------------------------------------------


def disk_full(stage: Stage, source: Source) -> Expected:
    """The disk of the run file is full for some seconds in mid-run."""
    disk = stage.small_disk(stage.output, 24)
    stage.facts["disk"] = disk.how
    # Short files, so that there is more than one for which there has to be room.
    stage.settings += ["recorder.time_points=3"]
    daemon = stage.serve()
    sender = stage.replay(source, RATE_HZ)
    stage.moment(source.frames // 8)
    disk.fill()
    time.sleep(stage.dice.uniform(1.0, 6.0))
    disk.free()
    stage.finish(sender)
    stage.close(daemon)
    return Expected(source)


def journal_full(stage: Stage, source: Source) -> Expected:
    """The line is cut, memory is small and the journal's disk is full: frames are dropped, and counted."""
    disk = stage.small_disk(stage.journal, 4)
    stage.facts["disk"] = disk.how
    stage.settings += ["wire.send_buffer_mb=0.1"]
    daemon = stage.serve()
    line = stage.line()
    sender = stage.replay(source, RATE_HZ, port=line.port)
    stage.moment(source.frames // 4)
    disk.fill()
    line.cut(stage.dice.choice(CUTS))
    time.sleep(stage.dice.uniform(1.0, 3.0))
    disk.free()
    line.mend()
    stage.finish(sender)
    stage.close(daemon)
    return Expected(source, whole=0, missing=("dropped_by_sender",))


def disk_slow(stage: Stage, source: Source) -> Expected:
    """The disk takes 5 MB/s; frames come at that rate, and volumes at several times that rate."""
    source = make_source(source.path.parent, sweeps=12, edge=256)
    stage.environment |= {"FAULT_DISK_BYTES_PER_S": "5e6", "PYTHONPATH": str(FAULTY_PYTHON)}
    stage.settings += ["wire.send_buffer_mb=2", "recorder.queue_mb=8"]
    daemon = stage.serve()
    stage.finish(stage.replay(source, 40.0), timeout_s=90.0)
    stage.close(daemon)
    return Expected(source)


def clock(stage: Stage, source: Source) -> Expected:
    """The clock jumps by hours, forwards and back, for one side or for both."""
    file = stage.folder / "clock"
    file.write_text("0", encoding="ascii")
    faulty = {"FAULT_CLOCK": str(file), "PYTHONPATH": str(FAULTY_PYTHON)}
    who = stage.dice.choice(("daemon", "sender", "both"))
    sound = dict(stage.environment)
    stage.environment = sound | (faulty if who != "sender" else {})
    daemon = stage.serve()
    stage.environment = sound | (faulty if who != "daemon" else {})
    sender = stage.replay(source, RATE_HZ)
    jumps = [stage.dice.choice((-1, 1)) * stage.dice.choice((5, 3600, 86_400 * 400)) for _ in range(4)]
    for number, seconds in enumerate(jumps, start=1):
        stage.until(lambda least=source.frames * number // 6: stage.watcher.frames >= least, "frames")
        file.write_text(str(seconds), encoding="ascii")
    stage.finish(sender)
    stage.close(daemon)
    stage.facts |= {"clock": who, "jumps": jumps}
    return Expected(source)


def _deliver(stage: Stage) -> None:
    if (code := stage.deliver()) != 0:
        raise FaultError(f"mdd deliver ended with {code}; {stage.last_words()}")


KINDS: dict[str, Callable[[Stage, Source], Expected]] = {
    "kill-daemon": kill_daemon,
    "kill-driver": kill_driver,
    "kill-driver-and-daemon": kill_driver_and_daemon,
    "kill-engine": kill_engine,
    "kill-one-of-two": kill_one_of_two,
    "kill-demo-daemon": kill_demo_daemon,
    "kill-demo-driver": kill_demo_driver,
    "kill-demo-engine": kill_demo_engine,
    "absent": absent,
    "cut": cut,
    "bit-flips": bit_flips,
    "bad-frames": bad_frames,
    "lost-frames": lost_frames,
    "disk-full": disk_full,
    "journal-full": journal_full,
    "disk-slow": disk_slow,
    "clock": clock,
}
