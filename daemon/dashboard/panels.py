"""The panels of figures: a list, one function each.

A panel takes a snapshot and the space that it may use, and returns a rich renderable, or None where there is
nothing to show. To add one, write its function and name it in `PANELS`: large terminals show it, and `mdd top
--once` prints it; `LINES` are the panels of small terminals, in one line each. What a panel shows comes from
the snapshot (`status.models`). Pure functions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from microdiffusion.daemon.dashboard.preview import Painter
from microdiffusion.daemon.dashboard.state import Choices
from microdiffusion.daemon.status import (
    Alarm,
    StatusSnapshot,
    duration,
    figures,
    run_line,
    seconds,
    size,
    stages_of,
    state_of,
    times,
)
from microdiffusion.text import IN_WORDS, count_noun, in_noise

# The terminal's own sixteen colours, never black or white: they fit dark and light terminals.
BOLD, DIM, ACCENT, GOOD, WARN, BAD = "bold", "dim", "cyan", "green", "yellow", "bold red"
LEVEL_STYLES = {"info": DIM, "warning": WARN, "error": BAD}
BAR_WIDTH = 16


@dataclass(frozen=True, slots=True)
class Space:
    """Columns and lines to draw in, the user's choices, and what draws images and trends."""

    width: int
    height: int
    choices: Choices
    painter: Painter


class Row(NamedTuple):
    """A figure; `share` (0 to 1) fills a bar, `short` is its text where there is little room."""

    name: str
    text: str
    short: str = ""
    share: float | None = None
    style: str = ""
    """Of the bar, or of the text where there is none."""
    name_style: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Figures under a title, one a line; all in one line where `options.height` is 1.

    `label` goes before their names on the plain page; a figure without a bar takes `lines` at most.
    """

    title: str
    rows: Sequence[Row]
    label: str = ""
    lines: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        if options.height == 1:
            yield self._in_one_line(options.max_width)
            return
        yield Text(f" {self.title.upper()}", DIM)
        bars = any(row.share is not None for row in self.rows)
        for row in self.rows:
            if bars:
                drawn = Text(" " * BAR_WIDTH) if row.share is None else bar(row.share, BAR_WIDTH, row.style)
                yield Text.assemble((f" {row.name:<13}", row.name_style), drawn, f" {row.text:>18}")
            else:
                for name, text in zip_longest(
                    [row.name], self._wrapped(row, options.max_width - 10), fillvalue=""
                ):
                    yield Text.assemble((f" {name:<8} ", DIM), (text, row.style))

    def _wrapped(self, row: Row, width: int) -> list[str]:
        if self.lines == 1:  # cut where it is drawn
            return [row.text]
        return textwrap.wrap(row.text, max(width, 1), max_lines=self.lines, placeholder="…")

    def _in_one_line(self, width: int) -> Text:
        line = Text(f" {self.title:<8}", DIM)
        for row in self.rows:
            pair = Text.assemble((f"{row.name} ", DIM), f"{row.short or row.text}  ")
            if line.cell_len + pair.cell_len > width + 1:
                break
            line.append_text(pair)
        return line


def bar(share: float, width: int, style: str = "") -> Text:
    """Return a bar of `width` cells that is filled to `share` (0 to 1)."""
    filled = round(width * min(1.0, max(0.0, share)))
    return Text.assemble(("━" * filled, style or ACCENT), ("─" * (width - filled), DIM))


def stages(snapshot: StatusSnapshot, space: Space) -> Section:
    """Show how long the engine's stages take, median and 95th percentile."""
    parts = stages_of(snapshot)
    longest = max((part.p95 for _, part in parts), default=0.0) or 1.0
    rows = []
    for name, part in parts:
        median = seconds(part.p50)
        rows.append(Row(name, f"{median}, p95 {seconds(part.p95)}", median, share=part.p50 / longest))
    return Section("stages", rows, label="stage")


def queues(snapshot: StatusSnapshot, space: Space) -> Section:
    """Show the free disk space, what waits, and how much may wait."""
    rows = []
    if snapshot.disk_free_bytes is not None:
        rows.append(Row("disk", f"{size(snapshot.disk_free_bytes)} free"))
    for name, depth in snapshot.queues.items():
        share = depth.bytes / depth.limit if depth.limit else 0.0
        style = BAD if share > 0.9 else WARN if share > 0.5 else ACCENT
        limit = f" of {size(depth.limit)}" if depth.limit else ""
        rows.append(Row(name, size(depth.bytes) + limit, size(depth.bytes), share, style))
    return Section("queues", rows, label="queue")


def answers(snapshot: StatusSnapshot, space: Space) -> Section | None:
    """Show how well each answer predicted the last held-out projection."""
    quality = snapshot.quality
    if not quality.candidates:
        return None
    best, worst = min(quality.candidates.values()), max(quality.candidates.values()) or 1.0
    unit, per = ("× noise", 1.0) if best <= IN_WORDS else ("× the best", best)
    rows = []
    for name, error in sorted(quality.candidates.items(), key=lambda item: item[1]):
        style, name_style = (GOOD, BOLD) if name == quality.served else (ACCENT, "")
        rows.append(Row(name, f"{error / per:.2f}", share=error / worst, style=style, name_style=name_style))
    title = f"error on the held-out projection of sweep {quality.held_out_sweep}, {unit}"
    return Section(title, rows, label="error")


def run(snapshot: StatusSnapshot, space: Space) -> Section:
    """Show what is recorded, and what reconstructs it."""
    run, engine = snapshot.run, snapshot.engine
    shape = " x ".join(str(length) for length in run.shape or ())
    voxel = " x ".join(f"{edge:g}" for edge in run.voxel_size_um or ())
    method = f"{engine.method}, {count_noun(engine.steps, 'step')}, guidance {engine.guidance:g}"
    rows = [
        Row("served", ", as ".join(filter(None, (snapshot.quality.served, snapshot.quality.why)))),
        Row("adaptive", snapshot.adaptive),
        Row("source", run.source),
        Row("volume", f"{shape}, voxel {voxel} µm" if shape else ""),
        Row("sweeps", str(run.sweeps or "")),
        Row("engine", f"{method}, {engine.weights}" if engine.method else ""),
        Row("device", engine.device + (f" ({engine.device_reason})" if engine.device_reason else "")),
        Row("building", engine.building),
        Row("file", run.file),
    ]
    return Section("run", [row for row in rows if row.text], lines=3)


def runs(snapshot: StatusSnapshot, space: Space) -> Section | None:
    """Show all runs, where there are several."""
    if len(snapshot.runs) < 2:
        return None
    rows = [Row(str(number), run_line(each)) for number, each in enumerate(snapshot.runs, 1)]
    return Section("all runs", rows, label="run")


def notes(snapshot: StatusSnapshot, space: Space) -> Section | None:
    """Show the latest notes that fit under the title."""
    latest = snapshot.notes[-max(0, space.height - 1) :] if space.height > 1 else ()
    rows = [
        Row(duration(note.elapsed_s), " ".join(note.text.split()), style=LEVEL_STYLES[note.level])
        for note in latest
    ]
    return Section("notes", rows) if rows else None


def source(snapshot: StatusSnapshot, space: Space) -> Section | None:
    """Show the light and the pace of the run that is shown: what its camera sends, what is behind."""
    run, backlog_s = snapshot.shown_run, snapshot.backlog_s
    if run is None or run.silent_s is None:
        return None
    rows = [
        Row("frame", f"{seconds(run.silent_s)} ago, {100 * run.saturated:.2g} % of its pixels saturated"),
        Row("journal", f"{size(run.journal_bytes)} with the sender" if run.journal_bytes else ""),
    ]
    if backlog_s and backlog_s >= 1:  # one that comes and goes with each sweep is none
        waiting = count_noun(sum(each.waiting for each in snapshot.runs), "sweep")
        rows.append(Row("backlog", f"{waiting}, about {duration(backlog_s)} to catch up"))
    return Section("source", [row for row in rows if row.text])


def session(snapshot: StatusSnapshot, space: Space) -> Section | None:
    """Show what the session has learned: what keeps still, where it drifts, and how sure the volume is."""
    learned, sure = snapshot.learned, snapshot.sureness
    rows = []
    if learned is not None:
        drift = ", ".join(f"{axis} {um:+.2f}" for axis, um in zip("zyx", learned.drift_um, strict=True))
        rows += [
            Row("still", f"{100 * learned.still:.0f} % of the voxels", f"{100 * learned.still:.0f} %"),
            Row("drift", f"{drift} µm"),
        ]
    if sure is not None:
        slope = f"brightness {sure.brightness_slope:.2f} ± {sure.brightness_slope_sd:.2f}"
        short = f"± {sure.uncertainty_rms:.3g} counts"
        covered = sure.interval_coverage
        held = (
            "" if covered is None else f", {100 * covered:.0f} % of a held-out projection where 90 % is right"
        )
        rows.append(Row("sure", f"{short}, {slope}{held}", short))
    return Section("session", rows) if rows else None


PANELS = (stages, queues, source, answers, session, run, runs)
"""From the top; `notes` take the room that is left."""
LINES = (stages, queues)


def page(snapshot: StatusSnapshot) -> str:
    """Return everything but the preview as plain text, a figure a line."""
    sweep, residual = snapshot.sweep, snapshot.quality.residual
    rows = [
        ("state", f"{state_of(snapshot)}, {duration(snapshot.elapsed_s)}"),
        ("time", times(snapshot.time_utc)),
        *(
            (f"alarm {alarm.level}", f"for {age(alarm, snapshot)} {alarm.text}: {alarm.fix}")
            for alarm in snapshot.alarms
        ),
        ("run", f"{snapshot.run.name} {snapshot.run.id}"),
        ("sweep", f"{sweep.number}, {sweep.received}/{sweep.count} frames"),
        *((tile.label, ", ".join(filter(None, tile[1:3]))) for tile in figures(snapshot)),
        ("residual", "" if residual is None else in_noise(residual)),
    ]
    for panel in PANELS:
        section = panel(snapshot, Space(0, 0, Choices(), Painter()))
        if section is not None:
            rows += [(f"{section.label} {row.name}", row.text) for row in section.rows]
    rows += [(note.level, f"{duration(note.elapsed_s)} {note.text}") for note in snapshot.notes]
    return "\n".join(f"{name.strip():<18} {text.strip()}" for name, text in rows if text.strip(" ,"))


def age(alarm: Alarm, snapshot: StatusSnapshot) -> str:
    """Return how long an alarm has stood."""
    return duration(max(0.0, snapshot.elapsed_s - alarm.since_s))
