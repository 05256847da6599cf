"""The examination on paper: lines in groups for people, one JSON object for a bug report."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from microdiffusion import __version__
from microdiffusion.daemon.doctor.finding import Level
from microdiffusion.daemon.doctor.packages import installed
from microdiffusion.daemon.doctor.run import Line
from microdiffusion.text import count_noun

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "bold red"}
WIDTH = 80
_LABEL, _NAME = 8, 20
_PACKAGES = (
    "numpy", "scipy", "h5py", "pyzmq", "pydantic", "rich", "torch", "openvino", "onnx", "onnxscript",
    "tensorrt", "tensorrt-rtx-cu13-bindings", "pycromanager", "mmpycorex", "pyjavaz", "pymmcore",
    "mm-test-adapters",
)  # fmt: skip


def worst(lines: Sequence[Line]) -> Level:
    """Return the worst of what was found."""
    levels = [line.finding.level for line in lines]
    return max(levels, key=list(Level).index, default=Level.OK)


def page(lines: Sequence[Line], width: int = WIDTH) -> Text:
    """Return the lines in their groups, wrapped at `width`."""
    text = Text()
    theme = None
    for line in lines:
        if line.theme != theme:
            text.append(("\n" if theme else "") + line.theme + "\n", style="bold")
            theme = line.theme
        _append(text, line, width)
    text.append("\n" + summary(lines) + "\n")
    return text


def summary(lines: Sequence[Line]) -> str:
    """Return the sentence at the end."""
    counts = {level: sum(line.finding.level is level for line in lines) for level in Level}
    if counts[Level.FAILURE]:
        return (
            f"{_many(counts[Level.FAILURE], 'failure')} and {_many(counts[Level.WARNING], 'warning')}: mend "
            "the failures first, a run would stop at them."
        )
    if counts[Level.WARNING]:
        return f"No failure, {_many(counts[Level.WARNING], 'warning')}: a run can start."
    return "All is well."


def report(lines: Sequence[Line], configuration: str) -> dict[str, Any]:
    """Return everything for a bug report: versions and findings; no key, and the home folder as ~."""
    home = os.path.expanduser("~")  # pathlib's raises where there is none

    def tidy(text: str) -> str:
        return text.replace(home, "~") if len(home) > 1 else text

    return {
        "mdd": __version__,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := installed(name))},
        "configuration": tidy(configuration),
        "result": str(worst(lines)),
        "checks": [
            {
                "theme": line.theme,
                "name": line.finding.name,
                "level": str(line.finding.level),
                "text": tidy(line.finding.text),
                "cure": tidy(line.finding.cure),
            }
            for line in lines
        ],
    }


def _append(text: Text, line: Line, width: int) -> None:
    found = line.finding
    indent = " " * (_LABEL + _NAME + 2)
    room = max(width - len(indent), 20)
    first, *rest = textwrap.wrap(found.text, room, break_on_hyphens=False) or [""]
    text.append(f"  {found.level:<{_LABEL - 1}} ", style=STYLES[found.level])
    text.append(f"{found.name:<{_NAME - 1}} {first}\n")
    for more in rest:
        text.append(f"{indent}{more}\n")
    for number, more in enumerate(textwrap.wrap(found.cure, room - 3, break_on_hyphens=False)):
        text.append(f"{indent}{'-> ' if number == 0 else '   '}{more}\n", style="bold")


def _many(count: int, noun: str) -> str:
    return count_noun(count, noun) if count else f"no {noun}s"
