"""The whole screen: the panels, and what stands around them.

From the top: header; one to six tiles (the headline figures and their trends); alarms; the preview with
details; keys. A small terminal has the preview as a strip of three images and a line each for some panels; a
large one has it unfolded like a box beside all of them. Pure functions of one snapshot, the user's choices
and the size that there is, so `mdd serve` and `mdd top` show the same, and a test needs no terminal.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from microdiffusion.daemon.dashboard.panels import (
    ACCENT,
    BAD,
    BOLD,
    DIM,
    GOOD,
    LEVEL_STYLES,
    LINES,
    PANELS,
    WARN,
    Space,
    age,
    bar,
    notes,
)
from microdiffusion.daemon.dashboard.preview import Painter, windowed
from microdiffusion.daemon.dashboard.state import COMMANDING, KEYS, Choices
from microdiffusion.daemon.dashboard.terminal import Line
from microdiffusion.daemon.status import (
    Alarm,
    Preview,
    StatusSnapshot,
    Tile,
    duration,
    figures,
    state_of,
    times,
)
from microdiffusion.text import count_noun

STATE_STYLES = {"running": GOOD, "closed": GOOD, "failed": BAD}
BADGES = {"warning": (" ? ", "reverse yellow"), "error": (" ! ", "reverse bold red")}
TILE_WIDTH = 20
DETAILS_WIDTH = 54
"""Columns of the panels in a large terminal."""
LARGE = (2 * DETAILS_WIDTH, 34)
NOTES_LINES = 4
GAP = 2
SPARKS = "▁▂▃▄▅▆▇█"

_CONSOLE = Console(file=io.StringIO(), force_terminal=True, legacy_windows=False)


def screen(
    snapshot: StatusSnapshot,
    width: int,
    height: int,
    *,
    painter: Painter | None = None,
    choices: Choices | None = None,
    preview: bool = True,
) -> list[Line]:
    """Return at most `height` lines of at most `width` cells.

    `painter` draws the preview, by default in half blocks; `preview` is false where there is to be none.
    """
    space = Space(width, height, choices or Choices(), painter or Painter())
    space.painter.begin()
    if space.choices.help:
        return _lines(_help(space), width)[:height]
    below = _lines(_footer(snapshot, space), width) if height >= 12 else []
    lines = _lines(Group(_header(snapshot, space), _rule(width), _tiles(snapshot, space)), width)
    room = height - len(below) - len(lines)
    most = min(6 if height >= LARGE[1] else 2, room - 1)
    lines += _lines(_alarms(snapshot, replace(space, height=most)), width)
    rest = replace(space, height=height - len(below) - len(lines))
    large = preview and width >= LARGE[0] and height >= LARGE[1]
    lines += _large(snapshot, rest) if large else _small(snapshot, rest, preview=preview)
    lines = lines[: height - len(below)]
    return [*lines, *([] for _ in range(height - len(below) - len(lines))), *below]


def _small(snapshot: StatusSnapshot, space: Space, *, preview: bool) -> list[Line]:
    below = [line for panel in LINES for line in _lines(panel(snapshot, space), space.width, height=1)]
    room = space.height - len(below)
    middle = _lines(_rule(space.width), space.width)
    if preview and room >= 7:
        middle = _strip(snapshot, replace(space, height=room - 2))
        room = 3
    latest = notes(snapshot, replace(space, height=room))
    return [*middle, *below, *(_lines(latest, space.width)[1:] if latest else [])]


def _large(snapshot: StatusSnapshot, space: Space) -> list[Line]:
    height = space.height - 1
    right = _unfolded(snapshot, replace(space, width=space.width - DETAILS_WIDTH - 2, height=height))
    # What the preview leaves, the panels take.
    width = space.width - max(Segment.get_line_length(line) for line in right) - 2
    drawn = (panel(snapshot, replace(space, width=width)) for panel in PANELS)
    sections = [_lines(section, width) for section in drawn if section is not None]
    blank: list[Line] = [[]] * height
    # Lines between the panels are left out rather than the notes, the last figures rather than the newest.
    gap = blank[: sum(len(section) + 1 for section in sections) <= height - NOTES_LINES]
    left = [line for section in sections for line in (*section, *gap)]
    left = left[: height - 2] if snapshot.notes else left
    latest = notes(snapshot, replace(space, height=height - len(left)))
    left += [] if latest is None else _lines(latest, width)
    rows = zip([*left, *blank][:height], [*right, *blank], strict=False)
    beside = [[*Segment.adjust_line_length(line, width + 1), *picture] for line, picture in rows]
    return [*_lines(_rule(space.width), space.width), *beside]


def _lines(renderable: RenderableType, width: int, height: int | None = None) -> list[Line]:
    options = _CONSOLE.options.update(width=width, height=height, no_wrap=True, overflow="ellipsis")
    return _CONSOLE.render_lines(renderable, options, pad=False)


def _header(snapshot: StatusSnapshot, space: Space) -> Text:
    """Show state, run, sweep, engine, and the time since the start."""
    state, sweep, engine = state_of(snapshot), snapshot.sweep, snapshot.engine
    several = f" (1 of {len(snapshot.runs)} runs)" if len(snapshot.runs) > 1 else ""
    left = Text.assemble(
        (f" ● {state}  ", STATE_STYLES.get(state, WARN)), (snapshot.run.name, BOLD), (f"{several}  ", DIM)
    )
    if sweep.count:
        progress = bar(sweep.received / sweep.count, 10)
        left = Text.assemble(
            left, f"sweep {sweep.number} ", progress, (f" {sweep.received}/{sweep.count}", DIM)
        )
    else:
        left.append("no frame yet", DIM)
    since = f"{duration(snapshot.elapsed_s)} "
    steps = f" {count_noun(engine.steps, 'step')}" if engine.method == "mdd" else ""
    what = f"{engine.method}{steps}  {engine.building or engine.device}  " if engine.method else ""
    return _spread(left, [Text.assemble((what, DIM), since), Text(since)], space.width)


def _tiles(snapshot: StatusSnapshot, space: Space) -> Table:
    """Show the headline figures side by side, under each its trend."""
    shown = figures(snapshot)[: max(1, space.width // TILE_WIDTH)]
    grid = Table.grid(expand=True)
    for _ in shown:
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_row(*(Text(f" {tile.label.upper()} ", DIM) for tile in shown))
    grid.add_row(*(Text(f" {tile.figure} ", BOLD) for tile in shown))
    grid.add_row(*(Text(f" {tile.below} ", LEVEL_STYLES[tile.level]) for tile in shown))
    if snapshot.history:
        grid.add_row(*(_trend(tile, snapshot, space.width // len(shown) - 2) for tile in shown))
    return grid


def _trend(tile: Tile, snapshot: StatusSnapshot, width: int) -> Text:
    values = snapshot.history.get(tile.trend, ())
    # The tile of the volumes is a count: its trend says of what it is.
    label = "residual " if tile.trend == "residual" and values else ""
    return Text.assemble((f" {label}", DIM), (sparkline(values, width - len(label)), ACCENT))


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the latest values as at most `width` small bars, the highest one full.

    The lowest is not zero but a tenth below the smallest value, or zero where that is close: a figure that
    hardly changes shows that, and one that doubles shows it, too.
    """
    shown = [value for value in values[-width:] if math.isfinite(value)] if width > 0 else []
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    floor = 0.0 if low < 0.5 * high else 0.9 * low
    if high <= floor:
        return SPARKS[0] * len(shown)
    top = len(SPARKS) - 1
    places = (round(top * (value - floor) / (high - floor)) for value in shown)
    return "".join(SPARKS[min(top, max(0, place))] for place in places)


def _alarms(snapshot: StatusSnapshot, space: Space) -> Group:
    """Show the most urgent alarms; a fix that does not fit has the next line."""
    lines: list[Text] = []
    for number, alarm in enumerate(snapshot.alarms):
        drawn = _alarm(alarm, age(alarm, snapshot), space.width)
        left = len(snapshot.alarms) - number
        if len(lines) + len(drawn) > space.height - (left > 1 and space.height > 2):
            lines.append(Text(f" {count_noun(left, 'more alarm')}", DIM))
            break
        lines += drawn
    return Group(*lines[: max(0, space.height)])


def _alarm(alarm: Alarm, since: str, width: int) -> list[Text]:
    head = Text.assemble(" ", BADGES[alarm.level], (f" {since} ", DIM))
    if head.cell_len + cell_len(alarm.text) + cell_len(alarm.fix) + 3 <= width:
        return [Text.assemble(head, (alarm.text, BOLD), f": {alarm.fix}")]
    return [Text.assemble(head, (alarm.text, BOLD)), Text(" " * head.cell_len + alarm.fix)]


def _footer(snapshot: StatusSnapshot, space: Space) -> Text:
    """Show a question, the answer to the last request, or the keys with the time of day."""
    choices = space.choices
    if choices.asking == "mark":
        return Text(f" remark (Enter saves, Esc cancels): {choices.text}▏", BOLD)
    if choices.asking == "quit":
        return Text(" stop the acquisition and close the run file? y confirms, any other key cancels", BOLD)
    if choices.message:
        return Text(f" {choices.message}", BOLD)
    gamma = f" {choices.gamma_step:+d}" if choices.gamma_step else ""
    keys = {
        "?": "help",
        "q": "quit",
        "space": "pause",
        "s": "snapshot",
        "m": "mark",
        "v": choices.next_view.removeprefix("middle "),
        "c": f"contrast {choices.contrast}{gamma}",
        "tab": "session",
    }
    clock = Text(f"{times(snapshot.time_utc)} ", DIM)
    line = Text(" ")
    for key, what in keys.items():
        pair = Text.assemble((key, BOLD), (f" {what}  ", DIM))
        usable = choices.commands or key not in COMMANDING
        if usable and line.cell_len + pair.cell_len + clock.cell_len < space.width:
            line.append_text(pair)
    return _spread(line, [clock], space.width)


def _help(space: Space) -> Group:
    lines = [Text(" KEYS", BOLD), Text()]
    for key, what in KEYS:
        usable = space.choices.commands or key not in COMMANDING
        note = "" if usable else "  (read-only here)"
        lines.append(Text.assemble((f"  {key:<7}", BOLD), (what + note, "" if usable else DIM)))
    closing = (
        "The figures and the alarms are explained in docs/dashboard.md.",
        "Ctrl-C quits as q does; Ctrl-Z suspends, fg resumes.",
        "?, Esc or q closes this help.",
    )
    return Group(*lines, Text(), *(Text(f"  {text}", DIM) for text in closing))


def _drawn(
    preview: Preview, session: str, space: Space, scale: float
) -> tuple[list[tuple[list[Line], int]], str]:
    """Return the lines and the width of the images XY, XZ and YZ as the user wants them; and their title."""
    choices, painter = space.choices, space.painter
    name = choices.view
    images = preview.ages if name == "age" else preview.slices if name == "middle slices" else None
    if images is None:
        name, images = "projections", preview.images
    if name != "age":
        held = choices.held.get(choices.session, next(iter(choices.held.values()), None))
        images = windowed(preview, images, choices.contrast, choices.gamma_step, held)
    drawn = []
    for image in images:
        rows = max(1, round(image.shape[0] * scale / painter.aspect))
        columns = max(1, round(image.shape[1] * scale))
        drawn.append((painter.lines(image, rows=rows, columns=columns), columns))
    sweep = f"sweep {preview.sweep}" if preview.sweep >= 0 else ""
    title = "age, dark is new" if name == "age" else name
    return drawn, ", ".join(filter(None, (title, sweep, session)))


def _strip(snapshot: StatusSnapshot, space: Space) -> list[Line]:
    """Return XY, XZ and YZ side by side under a rule with their names."""
    preview, width, rows = snapshot.preview, space.width, space.height - 1
    if preview is None:
        return [*_lines(_rule(width), width), *_no_volume(width, rows)]
    z, y, x = preview.size
    scale = min(1.0, space.painter.aspect * rows / max(y, z), (width - 2 - 2 * GAP) / (2 * x + z))
    drawn, title = _drawn(preview, snapshot.session, space, scale)
    kind = " slice" if title.startswith("middle") else ""
    rule = "─"
    lines: list[Line] = [[Segment(" ")] for _ in range(rows)]
    extents = (("XY", y, x), ("XZ", z, x), ("YZ", y, z))
    for (name, down, across), (image, columns) in zip(extents, drawn, strict=True):
        extent = f" {name}{kind} {down * preview.pixel_um:.0f} × {across * preview.pixel_um:.0f} µm "
        label = extent if len(extent) <= columns else f" {name}{kind} "
        rule += label.ljust(columns + GAP, "─")
        for row, line in enumerate(lines):
            line += image[row] if row < len(image) else [Segment(" " * columns)]
            line.append(Segment(" " * GAP))
    room = width - len(rule) - 1
    label = _cropped(f" {title} ", room) if room > 16 else ""
    rule += f"{label}─".rjust(room + 1, "─")
    return [*_lines(Text(rule, DIM), width), *(Segment.adjust_line_length(line, width) for line in lines)]


def _unfolded(snapshot: StatusSnapshot, space: Space) -> list[Line]:
    """Return XY with YZ at its right and XZ below, enlarged twice at most."""
    preview, width, height = snapshot.preview, space.width, space.height
    if preview is None:
        return _no_volume(width, height)
    z, y, x = preview.size
    scale = min(2.0, space.painter.aspect * (height - 2) / (y + z), (width - GAP) / (x + z))
    ((xy, columns), (xz, _), (yz, beside)), title = _drawn(preview, snapshot.session, space, scale)
    pixel = preview.pixel_um
    head = f"XY  {y * pixel:.0f} × {x * pixel:.0f} µm"
    # No wider than the images: they would move with each digit of the sweep's number.
    below = _cropped(f"XZ  {z * pixel:.0f} µm deep, {title}", columns + GAP + beside)
    return [
        *_lines(Text(f"{head:<{columns + GAP}}YZ", DIM), width),
        *([*left, Segment(" " * GAP), *right] for left, right in zip(xy, yz, strict=True)),
        *_lines(Text(below, DIM), width),
        *xz,
    ]


def _spread(left: Text, rights: Sequence[Text], width: int) -> Text:
    """Return `left`, and at the other end the first of `rights` that fits."""
    for right in rights:
        gap = width - left.cell_len - right.cell_len
        if gap >= 1:
            return Text.assemble(left, " " * gap, right)
    return left


def _rule(width: int) -> Text:
    return Text("─" * width, DIM)


def _no_volume(width: int, rows: int) -> list[Line]:
    text = Segment("no volume yet".center(width), Style(dim=True))
    return [[text] if row == rows // 2 else [] for row in range(rows)]


def _cropped(text: str, width: int) -> str:
    cropped = Text(text)
    cropped.truncate(width, overflow="ellipsis")
    return cropped.plain
