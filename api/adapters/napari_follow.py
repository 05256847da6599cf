"""The reader that `napari.yaml` names, and layers that grow while their run goes on.

Imports neither napari nor Qt before a viewer is there. Owns a timer in napari's own loop (Qt's, main thread).
At each tick, unless the one before is under way, a worker thread looks how long the run is and reads the
newest volume, so that a slow disk does not stop the user from turning the specimen; back in the main thread
the layers get their new length. A view of the last time point moves on with it, a view of an earlier one
stays. It ends when the run was closed, when the layers or the window are gone, and when the file can no
longer be read, which the status line says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdiffusion.adapters.napari_layers import Layer, Shown, brightness, run_layers
from microdiffusion.errors import GapError
from microdiffusion.runfile import attribute_of, open_hdf5

POLL_MS = 250
_GRACE_TICKS = 40  # until the layers have to be in a viewer
_MOST_WATCHED = 16  # positions; looking at each of thousands would take longer than a sweep

_following: set[Follower] = set()


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[Layer]] | None:
    """Return the reader of a run file; None for any other file, which other plugins may read."""
    if not isinstance(path, str) or not Path(path).is_file():
        return None
    try:
        with open_hdf5(Path(path)) as file:
            first = attribute_of(Path(path), file, "segment") == 0 and "mdd_layout" in file.attrs
    except Exception:  # HDF5 raises nearly anything on foreign or damaged files
        return None
    return read if first else None


def read(path: Any) -> list[Layer]:
    """Return the layers of a run, and let them grow where there is a napari window and the run is open."""
    layers = run_layers(Path(path))
    follow_soon([layer[1]["metadata"]["mdd"] for layer in layers])
    return layers


@dataclass(frozen=True, slots=True)
class WatchedState:
    """State of a run: T, the number of volumes of each watched position, and whether it is closed."""

    length: int
    written: tuple[int, ...]
    closed: bool


def look(shown: Shown) -> WatchedState:
    """Return the state of a layer's run; in any thread."""
    sources = shown.levels[0].sources[:_MOST_WATCHED]
    runs = [source.open() for source in sources]
    closed = runs[0].closed  # before looking, so that nothing written before the close is missed
    length = max(run.used for run in runs)
    return WatchedState(max(length, 1), tuple(len(run.written()) for run in runs), closed)


def follow_soon(shown: list[Shown]) -> Follower | None:
    """Follow layers that napari is about to show; None without a window, or where the run is closed."""
    if not shown or "qtpy" not in sys.modules or look(shown[0]).closed:
        return None
    from qtpy.QtWidgets import QApplication

    if QApplication.instance() is None:
        return None
    return Follower(shown)


class Follower:
    """Lets the layers of `shown` grow; created and used in the main thread."""

    def __init__(self, shown: list[Shown]) -> None:
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QApplication

        self._shown = shown
        self._last: WatchedState | None = None
        self._viewer: Any = None
        self._looking = False
        self._ticks = 0
        self._timer = QTimer(QApplication.instance())
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._tick)
        self._timer.start()
        _following.add(self)  # the timer alone does not keep it alive

    def stop(self) -> None:
        """Stop following."""
        self._timer.stop()
        self._viewer = None
        _following.discard(self)

    def _tick(self) -> None:
        self._ticks += 1
        if self._looking:
            return
        if self._viewer is None:
            self._viewer = self._find()
        if self._viewer is None or not self._layers():
            # Not shown yet, or no longer.
            if self._viewer is not None or self._ticks > _GRACE_TICKS:
                self.stop()
            return
        from napari.qt.threading import create_worker

        self._looking = True
        create_worker(
            _look_and_warm,
            self._shown[0],
            self._last,
            _connect={"returned": self._take, "errored": self._give_up, "finished": self._looked},
        )

    def _find(self) -> Any:
        import napari

        viewer = napari.current_viewer()
        return viewer if viewer is not None and self._layers(viewer) else None

    def _layers(self, viewer: Any = None) -> list[Any]:
        viewer = viewer or self._viewer
        # By identity: the metadata stay with a layer, whatever happens to it.
        return [
            layer
            for layer in viewer.layers
            if any(layer.metadata.get("mdd") is shown for shown in self._shown)
        ]

    def _looked(self) -> None:
        self._looking = False

    def _give_up(self, error: Exception) -> None:
        if self._viewer is not None:
            self._viewer.status = f"The run is no longer followed: {error}"
        self.stop()

    def _take(self, state: WatchedState) -> None:
        """Give the layers their new length."""
        if self._viewer is None:
            return
        if self._last is None or (state.length, state.written) != (self._last.length, self._last.written):
            dims = self._viewer.dims
            first = self._last is None or not any(self._last.written)
            follows = first or dims.current_step[0] >= dims.nsteps[0] - 1
            for layer in self._layers():
                self._grow(layer, state, first=first)
            if follows:
                dims.set_current_step(0, state.length - 1)
        self._last = state
        if state.closed:
            self.stop()

    def _grow(self, layer: Any, state: WatchedState, *, first: bool) -> None:
        old = layer.metadata["mdd"]
        new = old.grown(state.length)
        self._shown = [new if one is old else one for one in self._shown]
        layer.metadata["mdd"] = new
        layer.data = new.data
        if first and any(state.written):
            layer.contrast_limits = brightness(new)


def _look_and_warm(shown: Shown, last: WatchedState | None) -> WatchedState:
    """Return the state, and read what will be shown next; in a thread of napari's pool."""
    state = look(shown)
    if last is None or state.length != last.length:
        for level in shown.levels:
            with suppress(GapError):
                level.sources[0].read(state.length - 1, level.channel)
    return state
