"""How a status snapshot looks on a screen.

Pure functions of one snapshot, what the user chose to see and the size that there is, so `mdd serve` and
`mdd top` show the same, and a test needs no terminal. A screen is a list of lines, each a list of rich
segments.

From the top: state and progress; one to six tiles (the headline figures, with how they went); alarms; the
preview; stages, queues and notes; the keys. A small terminal has the preview as a strip of three images and
one line per topic; a large one has it unfolded like a box beside the details.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style

from microdiffusion.daemon.dashboard.contrast import windowed
from microdiffusion.daemon.dashboard.halfblock import Line
from microdiffusion.daemon.dashboard.lines import alarm_lines, cropped, footer, help_lines
from microdiffusion.daemon.dashboard.preview import Painter
from microdiffusion.daemon.dashboard.sparkline import sparkline
from microdiffusion.daemon.dashboard.state import Choices
from microdiffusion.daemon.status import (
    Tile,
    depth_of,
    duration,
    figures,
    run_line,
    seconds,
    size,
    stages,
    state_of,
)
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from microdiffusion.daemon.status import Preview, StatusSnapshot

PLAIN = Style()
BOLD = Style(bold=True)
DIM = Style(dim=True)
GOOD = Style(color="green")
WARN = Style(color="yellow")
BAD = Style(color="red", bold=True)
ACCENT = Style(color="cyan")

STATE_STYLES = {"running": GOOD, "closed": GOOD, "failed": BAD}
LEVEL_STYLES = {"info": DIM, "warning": WARN, "error": BAD}

TILE_WIDTH = 20
DETAILS_WIDTH = 54
"""Columns of the details in a large terminal."""


def screen(
    snapshot: StatusSnapshot,
    width: int,
    height: int,
    *,
    colour: bool,
    bars: bool = True,
    preview: bool = True,
    choices: Choices | None = None,
    painter: Painter | None = None,
) -> list[Line]:
    """Return at most `height` lines of at most `width` cells.

    Parameters
    ----------
    colour
        Whether the preview may use coloured half blocks.
    bars
        Whether trends may use characters beyond ASCII.
    preview
        Whether to draw it at all.
    choices
        What the user has chosen.
    painter
        How the preview is drawn; None: as `colour` says.
    """
    choices = choices or Choices()
    painter = painter or Painter("blocks" if colour else "none")
    painter.begin()
    if choices.help:
        lines = help_lines(choices, width, height)
        return [list(Segment.adjust_line_length(line, width, pad=False)) for line in lines]
    drawing = _Drawing(snapshot.preview, choices, painter)
    top = [_header(snapshot, width), _rule(width), *_tiles(figures(snapshot), snapshot, width, bars)]
    most = 6 if height >= 34 else 2
    top += alarm_lines(snapshot, width, max(0, min(most, height - len(top) - 2)))
    keys = [footer(snapshot, choices, width)] if height >= 12 else []
    height -= len(keys)
    if preview and width >= 2 * DETAILS_WIDTH and height >= 33:
        lines = [*top, _rule(width), *_beside(snapshot, width, height - len(top) - 1, drawing)]
    else:
        bottom = [_stages_line(snapshot, width), _queues_line(snapshot, width)]
        notes = _notes(snapshot, width)
        room = height - len(top) - len(bottom) - 1
        kept = notes[-min(2, max(0, room)) :] if room > 0 else []
        rows = room - 2
        middle = [_rule(width)]
        if preview and rows >= 4:
            middle = _strip(drawing, snapshot.session, width, rows)
        elif room > 2:
            kept = notes[-room:]
        lines = [*top, *middle, *bottom, *kept]
    lines = [*lines[:height], *([] for _ in range(height - len(lines))), *keys]
    return [list(Segment.adjust_line_length(line, width, pad=False)) for line in lines]


def bar(share: float, width: int, style: Style = ACCENT) -> Line:
    """Return a bar of `width` cells that is filled to `share` (0 to 1)."""
    filled = round(width * min(1.0, max(0.0, share)))
    return [Segment("━" * filled, style), Segment("─" * (width - filled), DIM)]


def _header(snapshot: StatusSnapshot, width: int) -> Line:
    state = state_of(snapshot)
    left = [Segment(f" ● {state}", STATE_STYLES.get(state, WARN))]
    if snapshot.run.name:
        left += [Segment(f"  {snapshot.run.name}", BOLD)]
    if len(snapshot.runs) > 1:
        left += [Segment(f" (1 of {len(snapshot.runs)} runs)", DIM)]
    left += [Segment("  "), *_progress(snapshot)]
    engine = snapshot.engine
    steps = f" {count_noun(engine.steps, 'step')}" if engine.method == "mdd" else ""
    device = engine.building or engine.device
    since = [Segment(f"{duration(snapshot.elapsed_s)} ")]
    what = [Segment(f"{engine.method}{steps}  {device}  ", DIM)] if engine.method else []
    for right in ([*what, *since], since):
        gap = width - _length(left) - _length(right)
        if gap >= 1:
            return [*left, Segment(" " * gap), *right]
    return left


def _progress(snapshot: StatusSnapshot) -> Line:
    sweep = snapshot.sweep
    if not sweep.count:
        return [Segment("no frame yet", DIM)]
    return [
        Segment(f"sweep {sweep.number} "),
        *bar(sweep.received / sweep.count, 10),
        Segment(f" {sweep.received}/{sweep.count}", DIM),
    ]


class _Drawing:
    """The preview's images as the user wants them, and what draws them."""

    def __init__(self, preview: Preview | None, choices: Choices, painter: Painter) -> None:
        self.preview = preview
        self.painter = painter
        self.name = ""
        if preview is None:
            return
        slices = preview.slices if choices.slices else None
        self.sliced = slices is not None
        self.name = "middle slices" if self.sliced else "projections"
        held = next(iter(choices.held.values()), None)
        self.images = windowed(
            preview,
            slices or preview.images,
            choices.contrast,
            choices.gamma_step,
            choices.held.get(choices.session, held),
        )

    def drawn(self, number: int, scale: float) -> tuple[list[Line], int]:
        """Return the lines of an image (0 XY, 1 XZ, 2 YZ) and their width."""
        image = self.images[number]
        rows = max(1, round(image.shape[0] * scale / self.painter.aspect))
        columns = max(1, round(image.shape[1] * scale))
        return self.painter.lines(image, rows=rows, columns=columns), columns


TRENDS = ("latency_s", "residual", "held_out_error", "frame_rate_hz")
"""What is drawn under the first tiles: how the figure went, over the last volumes or four minutes."""


def _trends(tiles: int, snapshot: StatusSnapshot, cell: int, bars: bool) -> Line:
    line: Line = []
    for name in TRENDS[:tiles]:
        label = "residual " if name == "residual" else ""
        trend = sparkline(snapshot.history.get(name, ()), cell - 3 - len(label), ascii_only=not bars)
        label = label if trend else ""
        line.append(Segment(f" {label}", DIM))
        line.append(Segment(set_cell_size(trend, cell - 1 - len(label)), ACCENT))
    return line


def _tiles(tiles: list[Tile], snapshot: StatusSnapshot, width: int, bars: bool) -> list[Line]:
    shown = tiles[: max(1, min(len(tiles), width // TILE_WIDTH))]
    cell = width // len(shown)
    rows: list[Line] = [[], [], []]
    if snapshot.history:
        rows.append(_trends(len(shown), snapshot, cell, bars))
    for label, headline, below, level in shown:
        for row, text, look in zip(
            rows[:3], (label.upper(), headline, below), (DIM, BOLD, LEVEL_STYLES[level]), strict=True
        ):
            row.append(Segment(set_cell_size(f" {cropped(text, cell - 2)}", cell), look))
    return rows


def _strip(drawing: _Drawing, session: str, width: int, rows: int) -> list[Line]:
    """Return XY, XZ and YZ side by side under a rule with their names, `rows` lines and the rule."""
    preview = drawing.preview
    if preview is None:
        return [_rule(width), *_centred("no volume yet", width, rows)]
    z, y, x = preview.size
    gap = 2
    scale = min(1.0, drawing.painter.aspect * rows / max(y, z), (width - 2 - 2 * gap) / (2 * x + z))
    names, lines = [Segment("─", DIM)], [[Segment(" ")] for _ in range(rows)]
    for number, name in enumerate(("XY", "XZ", "YZ")):
        image = preview.images[number]
        drawn, columns = drawing.drawn(number, scale)
        name += " slice" if drawing.sliced else ""
        extent = (
            f"{name} {image.shape[0] * preview.pixel_um:.0f} × {image.shape[1] * preview.pixel_um:.0f} µm"
        )
        label = f" {extent if len(extent) + 2 <= columns else name} "
        names += [Segment(label), Segment("─" * (columns + gap - len(label)), DIM)]
        for row, line in enumerate(lines):
            line += drawn[row] if row < len(drawn) else [Segment(" " * columns)]
            line.append(Segment(" " * gap))
    names.append(Segment(_ruled(_title(preview, drawing.name, session), width - _length(names)), DIM))
    return [names, *lines]


def _title(preview: Preview, name: str, session: str) -> str:
    """Return what a preview is of: "middle slices, sweep 12, run · 488"."""
    sweep = f", sweep {preview.sweep}" if preview.sweep >= 0 else ""
    return f"{name}{sweep}{f', {session}' if session else ''}"


def _ruled(text: str, width: int) -> str:
    """Return a rule that ends with a text, where there is room for it."""
    if width < 12:
        return "─" * max(0, width)
    label = f" {cropped(text, width - 4)} ─"
    return label.rjust(width, "─")


def _beside(snapshot: StatusSnapshot, width: int, height: int, drawing: _Drawing) -> list[Line]:
    """Return the details with the unfolded preview at their right, `height` lines."""
    right = _unfolded(drawing, snapshot.session, width - DETAILS_WIDTH - 2, height)
    # What the preview leaves, the details take.
    split = width - max(_length(line) for line in right) - 2
    left = _details(snapshot, split, height)
    lines = []
    for row in range(height):
        line = left[row] if row < len(left) else []
        lines.append(
            [*Segment.adjust_line_length(line, split + 1), *(right[row] if row < len(right) else [])]
        )
    return lines


def _unfolded(drawing: _Drawing, session: str, width: int, height: int) -> list[Line]:
    """Return XY with YZ at its right and XZ below, on one scale; the picture may be enlarged."""
    preview = drawing.preview
    if preview is None:
        return _centred("no volume yet", width, height)
    z, y, x = preview.size
    gap = 2
    scale = min(2.0, drawing.painter.aspect * (height - 2) / (y + z), (width - gap) / (x + z))
    (xy, columns), (xz, below), (yz, _) = (drawing.drawn(number, scale) for number in range(3))
    pixel = preview.pixel_um
    rest = _title(preview, drawing.name, session)
    lines: list[Line] = [[Segment(f"{f'XY  {y * pixel:.0f} × {x * pixel:.0f} µm':<{columns + gap}}YZ", DIM)]]
    lines += [[*left, Segment(" " * gap), *right] for left, right in zip(xy, yz, strict=True)]
    room = width - below - gap
    if room > 12:
        xz[0] = [*xz[0], Segment(" " * gap), Segment(cropped(rest, room), DIM)]
    return [*lines, [Segment(f"XZ  {z * pixel:.0f} µm deep", DIM)], *xz]


def _details(snapshot: StatusSnapshot, width: int, height: int) -> list[Line]:
    lines: list[Line] = []
    longest = max((part.p95 for _, part in stages(snapshot)), default=0.0)
    _section(lines, "stages, median and p95")
    for name, part in stages(snapshot):
        lines.append(
            [
                Segment(f" {name:<13}"),
                *bar(part.p50 / longest if longest else 0.0, 16),
                Segment(f" {seconds(part.p50):>8} {seconds(part.p95):>8}"),
            ]
        )
    _section(lines, "queues")
    for name, depth in snapshot.queues.items():
        share = depth.bytes / depth.limit if depth.limit else 0.0
        style = BAD if share > 0.9 else WARN if share > 0.5 else ACCENT
        text = depth_of(depth.bytes, depth.limit)
        lines.append([Segment(f" {name:<13}"), *bar(share, 16, style), Segment(f" {text:>17}")])
    quality = snapshot.quality
    if quality.candidates:
        _section(lines, f"error on the held-out projection of sweep {quality.held_out_sweep}, x noise")
        worst = max(quality.candidates.values())
        for name, error in sorted(quality.candidates.items(), key=lambda item: item[1]):
            served = name == quality.served
            lines.append(
                [
                    Segment(f" {name:<13}", BOLD if served else PLAIN),
                    *bar(error / worst if worst else 0.0, 16, GOOD if served else ACCENT),
                    Segment(f" {error:>8.2f}"),
                ]
            )
    _section(lines, "run")
    run, engine = snapshot.run, snapshot.engine
    shape = " x ".join(str(length) for length in run.shape or ())
    voxel = " x ".join(f"{edge:g}" for edge in run.voxel_size_um or ())
    rows = (
        ("source", run.source),
        ("volume", f"{shape}, voxel {voxel} µm" if shape else ""),
        ("sweeps", str(run.sweeps or "")),
        ("engine", engine.weights),
        ("device", engine.device_reason and f"{engine.device}: {engine.device_reason}"),
        ("building", engine.building),
        ("file", run.file),
    )
    for name, text in rows:
        if text:
            fitting = cropped(text, width - 10, left=name == "file")
            lines.append([Segment(f" {name:<8}", DIM), Segment(fitting)])
    if len(snapshot.runs) > 1:
        _section(lines, "all runs")
        lines += [[Segment(f" {cropped(run_line(each), width - 2)}")] for each in snapshot.runs]
    notes = _notes(snapshot, width)
    if notes and height - len(lines) > 2:
        _section(lines, "notes")
        lines += notes[-(height - len(lines)) :]
    return lines


def _section(lines: list[Line], title: str) -> None:
    if lines:
        lines.append([])
    lines.append([Segment(f" {title.upper()}", DIM)])


def _stages_line(snapshot: StatusSnapshot, width: int) -> Line:
    # The total first: it is what may not be cut off.
    parts = sorted(stages(snapshot), key=lambda stage: stage[0] != "total")
    return _pairs("stages", [(name, seconds(part.p50)) for name, part in parts], width)


def _queues_line(snapshot: StatusSnapshot, width: int) -> Line:
    parts = [(name, size(depth.bytes)) for name, depth in snapshot.queues.items()]
    if snapshot.disk_free_bytes is not None:
        parts.append(("disk", f"{size(snapshot.disk_free_bytes)} free"))
    return _pairs("queues", parts, width)


def _pairs(title: str, parts: list[tuple[str, str]], width: int) -> Line:
    """Return as many whole pairs as there is room for."""
    line = [Segment(f" {title:<8}", DIM)]
    for name, text in parts:
        pair = [Segment(f"{name} ", DIM), Segment(f"{text}  ")]
        if _length(line) + _length(pair) > width + 1:
            break
        line += pair
    return line


def _notes(snapshot: StatusSnapshot, width: int) -> list[Line]:
    return [
        [
            Segment(f" {duration(note.elapsed_s)} ", DIM),
            Segment(cropped(note.text, width - 10), LEVEL_STYLES[note.level]),
        ]
        for note in snapshot.notes
    ]


def _rule(width: int) -> Line:
    return [Segment("─" * width, DIM)]


def _centred(text: str, width: int, rows: int) -> list[Line]:
    lines: list[Line] = [[] for _ in range(rows)]
    if rows:
        lines[rows // 2] = [Segment(text.center(width), DIM)]
    return lines


def _length(line: Line) -> int:
    return Segment.get_line_length(line)
