"""The dashboard's pictures in these pages, from a demo that really runs: SVG, by rich's export.

    python docs/make_screenshots.py

Takes about a minute. What is drawn is what `mdd top` draws of that status in a terminal of that size. On a
machine that has other work the engine falls behind: then nothing is drawn.
"""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.segment import Segment, Segments
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI, TerminalTheme

from microdiffusion.daemon.dashboard.screen import screen
from microdiffusion.daemon.dashboard.state import Choices
from microdiffusion.daemon.status import subscribe
from microdiffusion.daemon.status.models import Alarm, StatusSnapshot

IMAGES = Path(__file__).parent / "images"
VOLUMES = 14
PATIENCE = 3 * VOLUMES
"""By then a machine with nothing else to do has long been without an alarm."""


def main() -> None:
    """Run the demo, watch it, draw."""
    snapshot = watch_demo()
    draw("dashboard_80x24", snapshot, (80, 24), MONOKAI)
    draw("dashboard_120x40", snapshot, (120, 40), DEFAULT_TERMINAL_THEME)
    # What an alarm looks like, said as `alarms` says it: the demo has nothing to complain about.
    alarm = Alarm(
        kind="saturated",
        level="warning",
        text="3.1 % of the camera's pixels are saturated",
        fix="lower the laser's power, the exposure or the camera's gain",
        since_s=snapshot.elapsed_s - 12.0,
    )
    slices = Choices(commands=True, view="middle slices", gamma_step=2)
    draw(
        "dashboard_alarm",
        snapshot.model_copy(update={"alarms": (alarm,)}),
        (100, 30),
        DEFAULT_TERMINAL_THEME,
        slices,
    )


def watch_demo() -> StatusSnapshot:
    """Return the status of a demo after some volumes, its preview included."""
    ports = [f"--set=wire.{name}=tcp://127.0.0.1:{_free_port()}" for name in ("data", "status", "control")]
    status = ports[1].partition("=wire.status=")[2]
    mdd = str(Path(sys.executable).parent / "mdd")
    with tempfile.TemporaryDirectory() as folder:
        daemon = subprocess.Popen(  # noqa: S603
            [mdd, "serve", "--demo", "--headless", "--output", "runs", *ports],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(3.0)
            preview, session = None, ""
            for snapshot in subscribe(status, 60.0):
                if snapshot.preview is not None:
                    preview, session = snapshot.preview, snapshot.session
                calm = not snapshot.alarms and all(run.waiting <= 1 for run in snapshot.runs)
                if snapshot.volumes.written >= VOLUMES and preview is not None and calm:
                    return snapshot.model_copy(update={"preview": preview, "session": session})
                if snapshot.volumes.written >= PATIENCE:
                    raise SystemExit("the machine is too busy: try again when nothing else runs on it")
        finally:
            daemon.terminate()
            daemon.wait(60)
    raise SystemExit("the demo ended early")


def draw(
    name: str,
    snapshot: StatusSnapshot,
    size: tuple[int, int],
    theme: TerminalTheme,
    choices: Choices | None = None,
) -> None:
    """Write one picture."""
    columns, rows = size
    console = Console(
        file=io.StringIO(),
        record=True,
        width=columns,
        height=rows,
        force_terminal=True,
        color_system="truecolor",
    )
    lines = screen(snapshot, columns, rows, choices=choices or Choices(commands=True))
    drawn = [segment for line in lines for segment in (*line, Segment.line())]
    console.print(Segments(drawn), end="", no_wrap=True, crop=False)
    svg = console.export_svg(title=f"mdd top, {columns} x {rows}", theme=theme, unique_id=name)
    # The fonts are on the reader's machine: no page of ours asks another server for one.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
