"""Lines around the figures: alarms, the line of keys at the bottom, the help, what is asked of the user.

Pure functions of a snapshot and of what the user chose; a line is a list of rich segments. Colours are the
terminal's own sixteen, never black or white, so that they fit a dark and a light one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from microdiffusion.daemon.dashboard.state import COMMANDING, KEYS
from microdiffusion.daemon.status import duration, times
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from microdiffusion.daemon.dashboard.halfblock import Line
    from microdiffusion.daemon.dashboard.state import Choices
    from microdiffusion.daemon.status import Alarm, StatusSnapshot

BOLD = Style(bold=True)
DIM = Style(dim=True)
BADGES = {
    "warning": Style(color="yellow", reverse=True),
    "error": Style(color="red", bold=True, reverse=True),
}


def cropped(text: str, width: int, *, left: bool = False) -> str:
    """Return `text` in at most `width` cells, with … where it was cut."""
    if cell_len(text) <= width:
        return text
    if width < 1:
        return ""
    return f"…{text[len(text) - width + 1 :]}" if left else f"{text[: width - 1]}…"


def alarm_lines(snapshot: StatusSnapshot, width: int, room: int) -> list[Line]:
    """Return the most urgent alarms in at most `room` lines; a cure that does not fit has the next line."""
    lines: list[Line] = []
    for number, alarm in enumerate(snapshot.alarms):
        drawn = _alarm(alarm, snapshot.elapsed_s, width)
        left = len(snapshot.alarms) - number
        if len(lines) + len(drawn) > room - (left > 1 and room > 2):
            if len(lines) < room:
                lines.append([Segment(f" {count_noun(left, 'more alarm')}", DIM)])
            break
        lines += drawn
    return lines[:room]


def _alarm(alarm: Alarm, elapsed_s: float, width: int) -> list[Line]:
    since = duration(max(0.0, elapsed_s - alarm.since_s))
    badge = " ! " if alarm.level == "error" else " ? "
    head: Line = [Segment(" "), Segment(badge, BADGES[alarm.level]), Segment(f" {since} ", DIM)]
    used = sum(segment.cell_length for segment in head)
    if used + cell_len(alarm.text) + cell_len(alarm.cure) + 3 <= width:
        return [[*head, Segment(alarm.text, BOLD), Segment(f": {alarm.cure}")]]
    return [
        [*head, Segment(cropped(alarm.text, width - used), BOLD)],
        [Segment(" " * used), Segment(cropped(alarm.cure, width - used))],
    ]


def footer(snapshot: StatusSnapshot, choices: Choices, width: int) -> Line:
    """Return the last line: a question, what came of the last request, or the keys; and the time of day."""
    if choices.asking == "mark":
        return [Segment(f" remark, then Enter (Esc: none): {choices.text}", BOLD), Segment("▏")]
    if choices.asking == "quit":
        return [Segment(" stop the acquisition, finish and close the run file? y, or any other key", BOLD)]
    clock = times(snapshot.time_utc)
    if choices.message:
        return [Segment(f" {cropped(choices.message, width - 2)}", BOLD)]
    keys = [
        ("?", "help"),
        ("q", "quit"),
        ("space", "pause"),
        ("s", "snapshot"),
        ("m", "mark"),
        ("v", "slices" if not choices.slices else "projections"),
        ("c", f"contrast {choices.contrast}{f' {choices.gamma_step:+d}' if choices.gamma_step else ''}"),
        ("tab", "session"),
    ]
    if not choices.commands:
        keys = [pair for pair in keys if pair[0] not in COMMANDING]
    line: Line = [Segment(" ")]
    room = width - cell_len(clock) - 2
    for key, what in keys:
        pair: Line = [Segment(key, BOLD), Segment(f" {what}  ", DIM)]
        if sum(segment.cell_length for segment in [*line, *pair]) > room:
            continue
        line += pair
    gap = width - sum(segment.cell_length for segment in line) - cell_len(clock) - 1
    return [*line, Segment(" " * gap), Segment(clock, DIM)] if gap >= 0 else line


def help_lines(choices: Choices, width: int, height: int) -> list[Line]:
    """Return the keys and what they do, on the whole screen."""
    lines: list[Line] = [[Segment(" KEYS", BOLD)], []]
    for key, what in KEYS:
        usable = choices.commands or key not in COMMANDING
        note = "" if usable else "  (read-only here)"
        lines.append(
            [Segment(f"  {key:<7}", BOLD), Segment(cropped(what + note, width - 10), None if usable else DIM)]
        )
    lines += [
        [],
        [
            Segment(
                cropped("  What the figures mean, and the table of alarms: docs/dashboard.md.", width), DIM
            )
        ],
        [
            Segment(
                cropped("  Ctrl-C leaves as q does; Ctrl-Z puts this aside, fg brings it back.", width), DIM
            )
        ],
        [],
        [Segment("  any of ? Esc q closes this", DIM)],
    ]
    return lines[:height]
