"""A status snapshot in words: figures with their units, the headline figures, the line of the log.

Pure functions.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

from microdiffusion.daemon.status.models import HEADLINE, Latency, RunSummary, StatusSnapshot
from microdiffusion.text import IN_WORDS, USUAL_ERROR, count_noun, in_noise

Level = Literal["info", "warning", "error"]

LITTLE_DISK = 2_000_000_000
"""Free bytes below which the disk is shown as an error."""


class Tile(NamedTuple):
    """A headline figure, what stands below it, how serious that is, and the history that is its trend."""

    label: str
    figure: str
    below: str = ""
    level: Level = "info"
    trend: str = ""


def state_of(snapshot: StatusSnapshot) -> str:
    """Return the daemon's state, "paused" where it runs and every run that is open was told to pause."""
    told = {run.state for run in snapshot.runs}
    return "paused" if snapshot.state == "running" and told == {"pause"} else snapshot.state


def run_line(run: RunSummary) -> str:
    """Return one of several runs in a line."""
    text = f"{run.name}, {run.state}, {count_noun(run.frames, 'frame')}, {count_noun(run.written, 'volume')}"
    if run.waiting:
        text += f", {count_noun(run.waiting, 'sweep waiting', 'sweeps waiting')}"
    return f"{text}; {run.waits_for}" if run.waits_for else text


def log_line(snapshot: StatusSnapshot) -> str:
    """Return the figures as one line of key=value; no value has a blank in it."""
    return " ".join(f"{key}={value}" for key, value in log_fields(snapshot))


def log_fields(snapshot: StatusSnapshot) -> list[tuple[str, str | int | float]]:
    """Return the figures of the line, rounded, in its order; docs/monitoring.md says what each means."""
    frames, volumes, quality = snapshot.frames, snapshot.volumes, snapshot.quality
    pairs: list[tuple[str, str | int | float]] = [
        ("state", snapshot.state),
        ("elapsed_s", round(snapshot.elapsed_s)),
        ("sweep", snapshot.sweep.number),
        ("frames", frames.received),
        ("frame_rate_hz", round(snapshot.frame_rate_hz, 1)),
        ("missing", frames.missing),
        ("dropped_by_sender", frames.dropped_by_sender),
        ("refused", frames.refused),
        ("written", volumes.written),
        ("lost", volumes.lost),
        ("skipped", volumes.skipped),
        ("failed", volumes.failed),
        ("runs", len(snapshot.runs)),
        ("sweeps_waiting", sum(run.waiting for run in snapshot.runs)),
    ]
    if snapshot.engine.building:
        pairs.append(("building", snapshot.engine.building.replace(" ", "_")))
    if latency := snapshot.latencies.get(HEADLINE):
        pairs += [(f"{HEADLINE}_p50_s", round(latency.p50, 3)), (f"{HEADLINE}_p95_s", round(latency.p95, 3))]
    for name, error in (("held_out_error", quality.held_out_error), ("residual", quality.residual)):
        if error is not None and error <= IN_WORDS:
            pairs.append((name, round(error, 3)))
    if quality.served:
        pairs.append(("served", quality.served))
    pairs += [(f"queue_{name}_mb", round(part.bytes / 1e6, 1)) for name, part in snapshot.queues.items()]
    pairs += [(f"memory_{name}_mb", round(mb)) for name, mb in snapshot.memory_mb.items()]
    if snapshot.disk_free_bytes is not None:
        pairs.append(("disk_free_gb", round(snapshot.disk_free_bytes / 1e9, 1)))
    pairs.append(("alarms", len(snapshot.alarms)))
    if snapshot.time_utc:
        pairs.append(("time", snapshot.time_utc))
    return pairs


def size(number: float) -> str:
    """Return bytes in the unit that reads best: "3.1 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.5 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def seconds(value: float) -> str:
    """Return a short time in the unit that reads best: "12 ms", "0.41 s"."""
    if value < 0.0995:
        return f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"


def duration(value: float) -> str:
    """Return a long time as h:mm:ss."""
    minutes, rest = divmod(int(value), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def times(time_utc: str) -> str:
    """Return a time of day here and in UTC: "23:14:05 CEST, 21:14:05 UTC"."""
    if not time_utc:
        return ""
    utc = datetime.fromisoformat(time_utc)
    local = utc.astimezone()
    shown = f"{utc:%H:%M:%S} UTC"
    return shown if local.utcoffset() == utc.utcoffset() else f"{local:%H:%M:%S} {local:%Z}, {shown}"


def figures(snapshot: StatusSnapshot) -> list[Tile]:
    """Return the headline figures, the most important first: what has no room is left out."""
    latency = snapshot.latencies.get(HEADLINE)
    frames, volumes, quality = snapshot.frames, snapshot.volumes, snapshot.quality
    without = _listed({"lost": volumes.lost, "failed": volumes.failed, "skipped": volumes.skipped})
    absent = _listed(
        {"missing": frames.missing, "dropped": frames.dropped_by_sender, "refused": frames.refused}
    )
    waiting = sum(run.waiting for run in snapshot.runs)
    free, memory, error = snapshot.disk_free_bytes, snapshot.memory_mb, quality.held_out_error
    return [
        Tile(
            "sweep → disk",
            seconds(latency.p50) if latency else "–",
            f"p95 {seconds(latency.p95)}" if latency else "",
            trend="latency_s",
        ),
        Tile(
            "volumes",
            f"{volumes.written} written",
            without or (f"none lost, {waiting} waiting" if waiting > 1 else "none lost"),
            "error" if volumes.lost or volumes.failed else "warning" if without else "info",
            trend="residual",
        ),
        Tile(
            "held-out error",
            in_noise(error) if error is not None else "–",
            "" if error is None else USUAL_ERROR if error <= IN_WORDS else "no noise to go by",
            trend="held_out_error",
        ),
        Tile(
            "frames",
            f"{snapshot.frame_rate_hz:.1f} /s",
            f"{frames.received}, {absent or 'none missing'}",
            "warning" if absent else "info",
            trend="frame_rate_hz",
        ),
        Tile(
            "disk",
            f"{size(free)} free" if free is not None else "–",
            snapshot.run.file.replace("\\", "/").rpartition("/")[2],
            "error" if free is not None and free < LITTLE_DISK else "info",
        ),
        Tile(
            "memory",
            size(1e6 * sum(memory.values())) if memory else "–",
            ", ".join(f"{name} {mb:.0f} MB" for name, mb in memory.items() if name != "daemon"),
        ),
    ]


def stages_of(snapshot: StatusSnapshot) -> list[tuple[str, Latency]]:
    """Return the latencies of the stages that make up the headline, their total first."""
    parts = [(name, part) for name, part in snapshot.latencies.items() if name != HEADLINE]
    return sorted(parts, key=lambda part: part[0] != "total")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)
