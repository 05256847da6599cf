"""What must hold after any fault; each function returns what is wrong, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion import open_run
from microdiffusion.runfile.reader import Run
from support.fault_stage import WRITTEN, Source, Stage, first_files
from support.mdd_process import port_is_free


@dataclass(frozen=True)
class Expected:
    """How a scenario must end.

    Attributes
    ----------
    source : Source or None
        Where the frames came from; None where that is a camera, whose pixels nobody knows.
    runs : int
    whole : int
        So many of the runs hold every frame of the source.
    closed : bool
        The runs were closed in order.
    missing : tuple of str
        Reasons that the ledger may name for what is missing.
    volumes : str
        "all" where every sweep must have its volume, "settled" where some may be lost or given up for a
        reason that the file states, "any" where not even one need be written.
    """

    source: Source | None
    runs: int = 1
    whole: int = 1
    closed: bool = True
    missing: tuple[str, ...] = ()
    volumes: str = "settled"


def check(stage: Stage, expected: Expected) -> list[str]:
    """Return everything that is wrong at the end of a scenario; its processes must have been ended."""
    stage.watcher.stop()
    problems = list(stage.watcher.problems)
    problems += [f"left over: process {text}" for text in stage.left()]
    problems += [
        f"port {port} is held" for port in (stage.data, stage.status, stage.control) if not port_is_free(port)
    ]
    problems += [f"left over in the journal: {name}" for name in journal_files(stage.journal)]
    files = first_files(stage.output)
    if len(files) != expected.runs:
        problems.append(f"{expected.runs} runs expected, there are {[path.name for path in files]}")
    strays = [path.name for path in stage.output.iterdir() if path.name.endswith(".tmp")]
    problems += [f"left over: {name}" for name in strays]
    whole = written = frames = 0
    for path in files:
        try:
            with open_run(path, check=False) as run:  # what is damaged is for the judges to find
                complaints = list(check_run(stage, run, expected))
                written += int((run.status == WRITTEN).sum())
                present = int(np.isfinite(run.values("frames/z_um")).sum())
                whole += expected.source is None or present == expected.source.frames
                frames += present
        except Exception as error:  # whatever it is, it is a finding
            complaints = [f"it cannot be read: {type(error).__name__}: {error}"]
        complaints += verify(stage, path)
        problems += [f"{path.name}: {text}" for text in complaints]
    if whole < expected.whole:
        problems.append(f"{expected.whole} of the runs must hold every frame, {whole} do")
    # A folder of two runs: a status counts those of both.
    if written < stage.watcher.announced:
        problems.append(f"{stage.watcher.announced} volumes were announced, {written} are there")
    stage.facts |= {"frames": frames, "volumes": written, "kept": len(stage.watcher.volumes)}
    return problems


def check_run(stage: Stage, run: Run, expected: Expected) -> Iterator[str]:
    """Yield what is wrong with one run."""
    with h5py.File(run.path) as file:
        if file["mdd/status"].shape[0] == 0 or "volume" not in file:
            yield "plain h5py does not find the volumes"
    if expected.closed and not run.closed:
        yield "not closed"
    for (name, t), volume in stage.watcher.volumes.items():
        if name == run.path.name and not _is_there(run, t, volume):
            yield f"volume {t} is not as it was when it was announced"
    yield from check_ledger(run, expected)
    if expected.source is not None:
        yield from check_frames(run, expected.source)
    yield from check_volumes(run, expected)


def _is_there(run: Run, t: int, volume: NDArray[Any]) -> bool:
    return t < len(run) and run.status[t] == WRITTEN and np.array_equal(run.volume[t], volume)


def check_ledger(run: Run, expected: Expected) -> Iterator[str]:
    """Yield where the numbers do not add up."""
    ledger = {column.name: getattr(run.ledger, column.name) for column in fields(run.ledger)}
    there = np.isfinite(run.values("frames/z_um"))
    reasons = ("dropped_by_sender", "unsent", "damaged", "on_the_line")
    if ledger["announced"] != ledger["received"] + ledger["missing"]:
        yield f"announced is not received and missing: {ledger}"
    if ledger["missing"] != sum(ledger[name] for name in reasons):
        yield f"the reasons do not add up to what is missing: {ledger}"
    if int(there.sum()) != ledger["received"] - ledger["unplaced"]:
        yield f"{there.sum()} frames in the file, but {ledger}"
    if strange := [name for name in reasons if ledger[name] and name not in expected.missing]:
        yield f"frames are missing that must not be ({', '.join(strange)}): {ledger}"
    seqs = run.values("frames/seq")[there]
    if np.unique(seqs).size != seqs.size:
        yield "a frame is there twice"


def check_frames(run: Run, source: Source) -> Iterator[str]:
    """Yield where frames are not those of the source."""
    there = np.argwhere(np.isfinite(run.values("frames/z_um")))
    wrong = [
        (int(t), int(index))
        for t, index in there
        if not np.array_equal(run.projections[t, index], source.pixels[t, index])
    ]
    if wrong:
        yield f"frames that are not the source's (sweep, index): {wrong[:10]}"


def check_volumes(run: Run, expected: Expected) -> Iterator[str]:
    """Yield which sweeps are not settled as they must be."""
    status = run.status
    begun = run.values("frames_received") > 0
    if expected.closed and (unsettled := np.flatnonzero(begun & (status == 0))).size:
        yield f"sweeps that nobody settled: {unsettled.tolist()}"
    if expected.volumes == "all" and not (status[begun] == WRITTEN).all():
        reasons = [bytes(reason).rstrip(b"\0").decode() for reason in run.values("reason")]
        told = {t: reasons[t] for t in np.flatnonzero(begun & (status != WRITTEN)).tolist()}
        yield f"sweeps without a volume: {told}"
    if expected.volumes != "any" and not (status == WRITTEN).any():
        yield "not one volume"


def verify(stage: Stage, path: Path) -> list[str]:
    """Return what `mdd verify` says against a run file."""
    mdd = stage.run("verify", "verify", path)
    code = mdd.finish(60)
    return [] if code == 0 else [f"mdd verify ended with {code}: {(mdd.out + mdd.err).strip()[-400:]}"]


def journal_files(folder: Path) -> list[str]:
    """Return what undelivered frames are in a folder of journals; locks are nothing."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    ]
