"""A panel in napari for a running daemon: start, pause, go on, stop, and its newest run in the viewer.

`napari.yaml` names `control_panel`. Imports neither napari nor Qt before the panel is opened. The panel owns
a timer in napari's own loop (Qt's, main thread). The daemon is asked on worker threads: one command at a
time, and beside it the status together with a look for the run file, so that neither a daemon nor a disk that
does not answer stops the window or the commands. The run that is shown grows by `napari_follow`, as any run
that is opened by hand. It asks while it can be seen and ends with its window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from microdiffusion.config import Config, load_config
from microdiffusion.wire import Answer, ask, client_security

POLL_MS = 1000
COMMANDS = {"start": "Start", "pause": "Pause", "go": "Go on", "stop": "Stop"}
PLUGIN = "microdiffusion-daemon"


def ask_daemon(where: str, command: str) -> Answer:
    """Send a command to a daemon: at an address, or at the `wire.control` of a file or preset.

    Empty: the daemon on this machine, at the usual port.

    Raises
    ------
    UserError
        Nobody answers, the daemon refuses, or the file is unusable.
    """
    is_address = where.startswith("tcp://")
    config = Config() if is_address or not where else load_config(where)
    address = where if is_address else config.wire.control
    return ask(address, command, security=client_security(config.wire, address))


def newest_run(values: Mapping[str, Any]) -> tuple[Path | None, bool]:
    """Return the newest run file that a status names and this machine has, and whether it names any."""
    names = [
        str(value) for name, value in values.items() if name.startswith("run_") and name.endswith("_file")
    ]
    changed_s: dict[Path, float] = {}
    for path in map(Path, names):
        with suppress(OSError):  # absent, or in a folder that this user may not look into
            if path.is_file():
                changed_s[path] = path.stat().st_mtime
    return max(changed_s, key=changed_s.__getitem__, default=None), bool(names)


def control_panel() -> Any:
    """Return the panel, a QWidget, for the viewer that is open."""
    import napari

    return ControlPanel(napari.current_viewer()).widget


class ControlPanel:
    """The panel and what it knows; created and used in the main thread.

    Parameters
    ----------
    viewer : napari.Viewer
        Where the newest run is opened.
    ask : callable
        As `ask_daemon`.
    """

    def __init__(self, viewer: Any, ask: Callable[[str, str], Answer] = ask_daemon) -> None:
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import (
            QCheckBox,
            QHBoxLayout,
            QLabel,
            QLineEdit,
            QPushButton,
            QVBoxLayout,
            QWidget,
        )

        self._viewer, self._ask = viewer, ask
        self._asked: set[str] = set()  # for "status" or "command", what is not answered yet
        self._waiting: list[str] = []  # commands that are to be sent
        self._shown: Path | None = None
        self.widget = QWidget()
        self.widget.mdd = self  # nothing else keeps it alive
        self.where = QLineEdit()
        self.where.setPlaceholderText("my.toml, or tcp://HOST:5752; empty: this machine")
        self.buttons = {name: QPushButton(label) for name, label in COMMANDS.items()}
        row = QHBoxLayout()
        for name, button in self.buttons.items():
            button.clicked.connect(partial(self._command, name))
            row.addWidget(button)
        self.live = QCheckBox("show the newest run")
        self.live.setChecked(True)
        self.state, self.said = QLabel("looking for a daemon"), QLabel("")
        column = QVBoxLayout(self.widget)
        column.addWidget(self.where)
        column.addLayout(row)
        for each in (self.live, self.state, self.said):
            column.addWidget(each)
        self.state.setWordWrap(True)
        self.said.setWordWrap(True)
        column.addStretch()
        self._timer = QTimer(self.widget)
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._next)
        self._timer.start()
        self.widget.destroyed.connect(self._end)

    def _end(self, *_: Any) -> None:
        self._viewer = None

    def _command(self, name: str, *_: Any) -> None:
        self._waiting.append(name)
        self._next()

    def _next(self) -> None:
        """Send the oldest command, and ask for the status, unless an answer of that kind is awaited."""
        if self._viewer is None or not self.widget.isVisible():
            return
        where = self.where.text().strip()
        if "status" not in self._asked:
            self._work("status", self.state, self._status, where)
        if self._waiting and "command" not in self._asked:
            self._work("command", self.said, self._obey, where, self._waiting.pop(0))

    def _work(self, kind: str, label: Any, work: Callable[..., tuple[str, Path | None]], *words: str) -> None:
        """Work on a worker thread; then `label` says the text and the run is shown, or it says the error."""
        from napari.qt.threading import create_worker

        def take(found: tuple[str, Path | None]) -> None:
            tell(found[0])
            self._show(found[1])

        def tell(text: object) -> None:
            if self._viewer is not None:
                label.setText(str(text))

        def over() -> None:
            self._asked.discard(kind)
            if self._waiting:
                self._next()

        self._asked.add(kind)
        create_worker(work, *words, _connect={"returned": take, "errored": tell, "finished": over})

    def _obey(self, where: str, command: str) -> tuple[str, None]:
        return self._ask(where, command).text, None

    def _status(self, where: str) -> tuple[str, Path | None]:
        """Return the state that the daemon tells, and its newest run on this machine."""
        answer = self._ask(where, "status")
        path, is_named = newest_run(answer.values)
        text = f"{answer.text}; {answer.values.get('written', 0)} volumes written"
        if is_named and path is None:
            text += "; its run file is not on this machine"
        return text, path

    def _show(self, path: Path | None) -> None:
        """Open a run that was not opened yet, at its newest volume."""
        if path is None or path == self._shown or self._viewer is None or not self.live.isChecked():
            return
        self._shown = path  # also where it cannot be: it would be tried again each second
        try:
            self._viewer.open(str(path), plugin=PLUGIN)
        except Exception as error:  # an error that leaves a slot of Qt ends napari
            self.said.setText(f"{path.name} cannot be shown: {error}; once it can, open it by hand")
            return
        self._viewer.dims.set_current_step(0, self._viewer.dims.nsteps[0] - 1)
