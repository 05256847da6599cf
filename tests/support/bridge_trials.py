"""Trials of `mdd serve` on a stand-in for Micro-Manager that dies or stands still, by seed.

A trial is a phase (before the first image, in a sweep, between sweeps, while closing), a deed and a moment in
that phase. From the deed on, the run must be closed in time, with the sentence and a sound file.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from microdiffusion import open_run
from microdiffusion.errors import MddError
from microdiffusion.runfile import verify_run
from support.bridge_standin import MicroManager
from support.driver_support import wait_until
from support.mdd_process import Mdd, free_port

PHASES = ("before the first image", "in a sweep", "between sweeps", "while closing")
DEEDS = {"die": 10.0, "freeze": 20.0}
"""What Micro-Manager does, and how soon the run must be over then."""
BEFORE = (
    *("getVersionInfo", "isSequenceRunning", "getROI", "setROI", "setExposure", "setPosition", "getPosition"),
    *(
        "RemoteAcquisitionFactory",
        "createAcquisition",
        "RemoteImageProcessor",
        "addImageProcessor",
        "startPush",
    ),
    *("RemoteNotificationHandler", "getEventPort", "getSummaryMetadata", "get-class", "destructor", "image"),
)
CLOSING = {
    "checkForExceptions": 1, "abort": 1, "waitForCompletion": 1, "notificationHandlingComplete": 1,
    "setPosition": 3, "setExposure": 2, "clearROI": 2, "getROI": 2,
}  # fmt: skip
"""Methods, and the number of the call that comes while closing: the ones before are made at the start."""
LOST = ("Micro-Manager has ended or no longer answers at port", "Micro-Manager did not ")


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial went: the seconds from the deed to the end of the command, and what was wrong."""

    phase: str
    deed: str
    moment: str
    seconds: float
    problems: tuple[str, ...]


def play(seed: int, folder: Path) -> Trial:
    """Play the trial of a seed in a new folder."""
    draw = random.Random(seed)  # noqa: S311 no secret
    phase, deed = PHASES[seed % 4], tuple(DEEDS)[seed // 4 % 2]
    fault: dict[str, object] = {"do": deed}
    if phase == "before the first image":
        fault |= {"at": draw.choice(BEFORE)}
    elif phase == "in a sweep":
        fault |= {"at": "image", "count": draw.randint(2, 60)}
    elif phase == "while closing":
        at = draw.choice(list(CLOSING))
        fault |= {"at": at, "count": CLOSING[at]}
    folder.mkdir(parents=True)
    with MicroManager(fault=fault if "at" in fault else None) as scope:
        arguments = _arguments(scope.port, draw, between=phase == "between sweeps")
        with Mdd("serve", *arguments, folder=folder) as mdd:
            if phase == "while closing":
                mdd.wait_for(lambda: _has_frames(folder))
                time.sleep(draw.uniform(0.0, 0.5))
                mdd.send(signal.SIGTERM)
            elif phase == "between sweeps":
                mdd.wait_for(lambda: _has_frames(folder))
                time.sleep(draw.uniform(0.2, 2.5))
                scope.kill() if deed == "die" else scope.freeze()
            wait_until(lambda: _has_struck(scope) or not mdd.look(), 60.0)
            struck = _has_struck(scope)
            began_s = time.monotonic()
            code = mdd.finish(60.0)
            seconds = time.monotonic() - began_s
            problems = [] if struck else ["the deed was never done"]
            problems += _judge(mdd, folder, code, phase)
            if seconds > DEEDS[deed]:
                problems.append(f"it took {seconds:.1f} s")
    moment = f"{fault.get('at', 'from outside')} {fault.get('count', '')}".strip()
    return Trial(phase, deed, moment, seconds, tuple(problems))


def _has_struck(scope: MicroManager) -> bool:
    return not scope.is_running() or scope.is_frozen()


def _arguments(port: int, draw: random.Random, *, between: bool) -> list[str]:
    settings = {
        "acquisition.backend": "java", "acquisition.port": port,
        "acquisition.exposure_ms": draw.choice([1, 5, 20]),
        "acquisition.sweep_interval_s": 600 if between else 0,
        "camera.width": 32, "camera.height": 24, "volume.shape_z": 24,
        "engine.method": "linear", "recorder.output": "runs", "wire.journal": "journal",
        "wire.data": f"tcp://127.0.0.1:{free_port()}", "wire.status": f"tcp://127.0.0.1:{free_port()}",
        "wire.control": f"tcp://127.0.0.1:{free_port()}",
    }  # fmt: skip
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*.h5"))


def _has_frames(folder: Path) -> bool:
    for path in _runs(folder):
        with contextlib.suppress(MddError), open_run(path) as run:  # it may be in the making
            return run.closed or run.frame_numbers().size > 0
    return False


def _judge(mdd: Mdd, folder: Path, code: int, phase: str) -> list[str]:
    problems = []
    said = mdd.out + mdd.err
    if not any(text in said for text in LOST):
        problems.append(f"not said: {said.strip()[-600:]}")
    if phase != "while closing" and code != 3:
        problems.append(f"exit code {code}")
    if phase != "before the first image" and not _runs(folder):
        problems.append("no run file")
    for path in _runs(folder):
        with open_run(path) as run:
            if not run.closed:
                problems.append(f"{path.name} was not closed")
        if not verify_run(path).sound:
            problems.append(f"{path.name} is not sound")
    if left := mdd.orphans():
        problems.append(f"left behind: {left}")
    return problems
