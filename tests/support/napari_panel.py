"""The panel in napari against a control channel that answers, without a screen; in a process of its own.

The viewer is napari's model of one, since Qt's "offscreen" has no OpenGL. Says "well" where all of it holds.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from napari.components import ViewerModel
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication

from microdiffusion import wire
from microdiffusion.adapters import napari_control
from microdiffusion.daemon.control import ControlServer
from microdiffusion.errors import UserError
from support.run_file_writer import header, put_volume, recorder


def until(there: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    end = time.monotonic() + timeout_s
    while not there():
        QApplication.processEvents()
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)


def main(path: Path) -> None:
    heard: list[str] = []
    over = threading.Event()
    target = recorder(path, run=header(name="neurons"))
    target.start()

    def obey(command: wire.Command) -> tuple[str, dict[str, wire.Value]]:
        if command.command == "status":
            return "reconstructing", {"written": 1, "run_0": "neurons", "run_0_file": str(path)}
        heard.append(command.command)
        if command.command == "go":
            raise UserError("No run is open, so there is nothing to tell.")
        return f"done: {command.command}", {}

    server = ControlServer("tcp://127.0.0.1:*", obey)

    def serve() -> None:
        while not over.wait(0.005):
            server.poll()

    thread = threading.Thread(target=serve)
    thread.start()

    window = napari.Viewer(show=False)
    _, docked = window.window.add_plugin_dock_widget("microdiffusion-daemon", "Live acquisition")
    assert docked.mdd._viewer is window
    window.close()
    application = QApplication.instance()
    viewer = ViewerModel()
    napari.current_viewer = lambda: viewer
    napari_control.POLL_MS = 20
    widget = napari_control.control_panel()
    panel = widget.mdd
    widget.show()
    panel.where.setText("tcp://127.0.0.1:1")  # nobody there: the window lives on
    until(lambda: "No daemon answered" in panel.state.text(), "a daemon that is not there")
    assert not viewer.layers

    panel.where.setText(server.address)
    until(lambda: panel.state.text() == "reconstructing; 1 volumes written", "the status")
    until(lambda: len(viewer.layers) == 1, "the run")
    (layer,) = viewer.layers
    for sweep in range(2):  # it grows, and the newest is shown
        put_volume(target, sweep)
        until(lambda sweep=sweep: layer.data.shape[0] == sweep + 1, f"volume {sweep}")
    until(lambda: viewer.dims.current_step[0] == 1, "the newest volume shown")
    assert np.isfinite(np.asarray(layer.data[1])).all()

    for name in ("start", "pause", "stop"):
        panel.buttons[name].click()
        until(lambda name=name: panel.said.text() == f"done: {name}", name)
    panel.buttons["go"].click()
    until(lambda: "The daemon refused: No run is open" in panel.said.text(), "a refusal")
    assert heard == ["start", "pause", "stop", "go"], heard
    assert len(viewer.layers) == 1  # opened once

    widget.close()
    widget.deleteLater()
    application.sendPostedEvents(widget, QEvent.Type.DeferredDelete)  # which no nested loop delivers
    until(lambda: panel._viewer is None and not panel._asking, "the end")
    target.stop()
    over.set()
    thread.join()
    server.close()
    application.processEvents()
    print("well")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:  # its threads would wait for ever
        traceback.print_exc()
        os._exit(1)
