"""The panel in napari against a control channel that answers, without a screen; in a process of its own.

The viewer is napari's model of one, since Qt's "offscreen" has no OpenGL. Says "well" where all of it holds.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import napari
import numpy as np
from napari.components import ViewerModel
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication

from microdiffusion import wire
from microdiffusion.adapters import napari_control
from microdiffusion.adapters.napari_follow import _following
from microdiffusion.daemon.control import ControlServer
from microdiffusion.errors import UserError
from support.napari_window import until
from support.run_file_writer import header, put_volume, recorder, started


def main(path: Path) -> None:
    heard: list[str] = []
    asked: list[str] = []
    newest = [path]
    over = threading.Event()
    target = started(recorder(path, run=header(name="neurons")))

    def obey(command: wire.Command) -> tuple[str, dict[str, wire.Value]]:
        if command.command == "status":
            asked.append(command.command)
            return "reconstructing", {"written": 1, "run_0": "neurons", "run_0_file": str(newest[-1])}
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

    # What is no run, or is still copied, is tried once.
    newest.append(path.with_name("broken.h5"))
    newest[-1].write_text("no run at all")
    tried: list[str] = []
    panel._viewer = SimpleNamespace(
        open=lambda name, plugin: tried.append(name) or viewer.open(name, plugin=plugin)
    )
    until(lambda: panel.said.text().startswith("broken.h5 cannot be shown: "), "a run that cannot be opened")
    before = len(asked)
    until(lambda: len(asked) > before + 3, "the status again")
    assert tried == [str(newest[-1])]

    # A disk that does not answer, as of a network drive that is gone, stops neither window nor commands.
    found = threading.Event()
    stuck = threading.Event()
    napari_control.newest_run = lambda values: (stuck.set(), found.wait(30), (None, True))[2]
    until(stuck.is_set, "a disk that does not answer")
    panel.buttons["pause"].click()
    until(lambda: heard[4:] == ["pause"], "a command meanwhile")
    found.set()
    until(lambda: panel.state.text().endswith("its run file is not on this machine"), "the disk's answer")

    widget.close()
    widget.deleteLater()
    application.sendPostedEvents(widget, QEvent.Type.DeferredDelete)  # which no nested loop delivers
    until(lambda: panel._viewer is None and not panel._asked, "the end")
    target.stop()
    until(lambda: not _following, "the end of following")
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
