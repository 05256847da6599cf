"""Describe a run file, even while the run is being recorded.

mdd info runs/demo.h5
mdd info runs/demo.h5 --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from microdiffusion.daemon.cli import options, say, say_json
from microdiffusion.daemon.offline import duration_s, grouped_gaps, position_facts, sparkline
from microdiffusion.daemon.status import size
from microdiffusion.runfile import Run
from microdiffusion.text import IN_WORDS, USUAL_ERROR, count_noun, in_noise

_REASONS = 4  # why the network was not served


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_run(parser, quiet=False)


def run(args: Namespace) -> int:
    """Open the run and describe it."""
    from microdiffusion.runfile import lacking_sentence, open_run

    if args.json:
        say_json(_described(args.run))
        return 0
    with open_run(args.run, missing="ignore") as opened:
        say(f"{args.run}: {opened.state}")
        positions = opened.header.positions
        if missing := opened.missing_files:
            say(f"  files        {lacking_sentence(args.run, missing)}")
        for name, text in (*_when(opened), *_facts(opened)):
            say(f"  {name:<12} {text}")
    for number, position in enumerate(positions[1:], start=1):
        say(f"position {number} ({position})")
        with open_run(args.run, position=number, missing="ignore") as opened:
            for name, text in _facts(opened):
                if name in ("time points", "gaps", "latency", "held-out", "served"):
                    say(f"  {name:<12} {text}")
    say(f"  open it      microdiffusion.open_run({str(args.run)!r}).volume[0], h5py, mdd export")
    return 0


def _described(path: Path) -> dict[str, Any]:
    """Return the run, with all of its positions, as JSON can hold it."""
    from microdiffusion.runfile import open_run

    with open_run(path, missing="ignore") as opened:
        header = opened.header
        facts = {
            "file": str(path),
            "closed": opened.closed,
            "name": header.name,
            "run_id": header.run_id,
            "source": header.source,
            "created_utc": opened.created_utc,
            "bytes": opened.nbytes,
            "files": [part.name for part in opened.paths],
            "missing_files": [part.name for part in opened.missing_files],
            "shape": list(opened.volume.shape),
            "dtype": str(opened.volume.dtype),
            "voxel_size_um": list(opened.voxel_size_um),
            "channels": list(header.channels),
            "ledger": asdict(opened.ledger),
            "events": len(opened.events),
            "provenance": opened.provenance,
        }
    positions = []
    for number, name in enumerate(header.positions):
        with open_run(path, position=number, missing="ignore") as opened:
            positions.append({"position": name} | position_facts(opened))
    return facts | {"positions": positions}


def _when(opened: Run) -> Iterator[tuple[str, str]]:
    """Yield when the run was, how long it took, and its size on the disk."""
    from datetime import datetime

    try:
        began = datetime.fromisoformat(opened.created_utc)
        yield "started", f"{began.astimezone():%Y-%m-%d %H:%M:%S %Z}, {began:%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # no date, or one that this system cannot handle
        pass
    if (length_s := duration_s(opened)) is not None:
        yield "length", f"{length_s:.4g} s by the camera's clock"
    yield "on disk", f"{size(opened.nbytes)} in {count_noun(len(opened.paths), 'file')}"


def _facts(opened: Run) -> Iterator[tuple[str, str]]:
    import numpy as np

    from microdiffusion.runfile import EFFORTS, RUNTIMES, Status, coded, summary_lines

    lines = summary_lines(opened)
    header, ledger = opened.header, opened.ledger
    yield "run", f"{header.name} {header.run_id}" + (f", {header.source}" if header.source else "")
    yield "volume", lines["volume"]
    for name, several in (("channels", header.channels), ("positions", header.positions)):
        if len(several) > 1:
            yield name, ", ".join(several)
    yield "time points", lines["time points"]
    if why_not := grouped_gaps(opened):
        yield "gaps", "; ".join(f"{n} {status}: {reason}" for (status, reason), n in why_not[:3])
    yield "frames", lines["frames"]
    reasons = ("dropped_by_sender", "unsent", "damaged", "on_the_line")
    if ledger.missing:
        why = {name: getattr(ledger, name) for name in reasons}
        yield "missing", ", ".join(f"{number} {name}" for name, number in why.items() if number)
    others = {name: getattr(ledger, name) for name in ("duplicates", "refused", "unplaced")}
    if any(others.values()):
        yield "besides", ", ".join(f"{number} {name}" for name, number in others.items() if number)
    if decided := [(t, text) for t, text in enumerate(opened.decisions()) if text]:
        yield "adaptive", f"{count_noun(len(decided), 'sweep')}, the last, {decided[-1][0]}: {decided[-1][1]}"
    if alarms := [event.text for event in opened.events if event.kind == "quality"]:
        more = f"; and {len(alarms) - 3} more" if len(alarms) > 3 else ""
        yield "alarms", "; ".join(alarms[:3]) + more
    if events := opened.events:
        last = events[-1]
        yield "events", f"{len(events)}, the last after {last.time_s:.0f} s: {last.kind}, {last.text}"

    written = np.nonzero(opened.status == Status.WRITTEN)  # places, as the run may grow meanwhile
    for label, dataset in (("latency", "latency_s"), ("held-out", "held_out_error")):
        values = opened.values(dataset)[written]
        values = values[np.abs(values) < 1e100]  # of a damaged file they may be anything
        if not values.size:
            continue
        p50, p95 = np.percentile(values, (50, 95))
        if label == "latency":
            text = f"median {p50:.3g} s, p95 {p95:.3g} s"
        elif p50 > IN_WORDS:
            yield label, f"{in_noise(p50)}: frames without noise, or not of what the volume shows"
            continue
        else:
            text = f"median {in_noise(p50)} ({USUAL_ERROR}), p95 {p95:.3g}"
        yield label, f"{text}  {sparkline(opened.values(dataset))}"
    yield from _sureness(opened, written)
    if later := int(np.count_nonzero(opened.values("later")[written])):
        yield "later", f"{later} of them reconstructed later, from the recorded frames"
    yield "served", lines["served"]
    for event in [event for event in events if event.kind == "served"][:_REASONS]:
        yield "", event.text
    for label, words in (("runtime", RUNTIMES), ("effort", EFFORTS)):
        if text := coded(opened, label, words):
            yield label, text
    for name in ("device", "weights"):
        if name in opened.provenance:
            yield name, opened.provenance[name]


def _sureness(opened: Run, written: Any) -> Iterator[tuple[str, str]]:
    """Yield how far the volumes at the places `written` may be off, from layout 1.4 on."""
    import numpy as np

    try:
        sizes, slopes, covered = (
            opened.values(name)[written]
            for name in ("uncertainty_rms", "brightness_slope", "interval_coverage")
        )
    except KeyError:
        return
    if np.isfinite(sizes).any():
        size, slope = sizes[np.isfinite(sizes)][-1], slopes[np.isfinite(sizes)][-1]
        text = f"{size:.3g} counts in the last volume, slope of its brightness {slope:.2f}, estimated"
        if np.isfinite(covered).any():
            text += f"; {np.nanmean(covered):.0%} of held-out pixels in intervals of 90 %"
        yield "uncertain by", text
