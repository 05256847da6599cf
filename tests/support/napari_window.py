"""A napari window on a run that grows, in a process of its own.

What napari itself warns of is no concern of the tests, and nothing of Qt is left behind. Says "well" and
exits with 0 where all of it holds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from qtpy.QtWidgets import QApplication

from microdiffusion import open_run
from microdiffusion.adapters.napari_follow import _following
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.runfile.schema import Status
from support.run_file_writer import header, put_volume, recorder, started

SHAPE = (6, 132, 136)


def until(there: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    end = time.monotonic() + timeout_s
    while not there():
        QApplication.processEvents()
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)


def put(target: Recorder, sweep: int) -> np.ndarray:
    volume = np.random.default_rng(sweep).integers(100, 4000, SHAPE).astype(np.float32)
    put_volume(target, sweep, volume=volume)
    return volume


def main(path: Path) -> None:
    target = started(recorder(path, run=header(shape=SHAPE, name="neurons")))
    put(target, 0)
    with open_run(path) as run:
        until(lambda: bool(run.status[0] == Status.WRITTEN), "the first volume")

    viewer = napari.Viewer(show=False)
    # As the File menu does: napari finds the reader through the installed manifest.
    (layer,) = viewer.open(str(path), plugin="microdiffusion-daemon")
    assert layer.name == "neurons", layer.name
    assert layer.multiscale
    assert [level.shape for level in layer.data] == [(1, *SHAPE), (1, 6, 66, 68), (1, 6, 33, 34)][
        : len(layer.data)
    ]
    np.testing.assert_allclose(layer.scale, [1.0, 2.0, 0.5, 0.25])
    np.testing.assert_allclose(layer.translate, [0.0, -5.0, 0.0, 0.0])

    # It grows, and who looks at the newest is taken along.
    newest = put(target, 1)
    until(lambda: layer.data[0].shape[0] == 2, "a second time point")
    until(lambda: viewer.dims.current_step[0] == 1, "the second time point shown")
    np.testing.assert_array_equal(layer.data[0][1], newest)

    # Who looks back is left in peace; a gap is no dark specimen.
    viewer.dims.set_current_step(0, 0)
    target.mark(2, 0, 0, Status.LOST, "half of its frames did not come")
    put(target, 3)
    until(lambda: layer.data[0].shape[0] == 4, "a gap and a fourth time point")
    assert viewer.dims.current_step[0] == 0
    assert np.isnan(np.asarray(layer.data[0][2])).all()
    viewer.dims.set_current_step(0, 2)
    until(lambda: bool(np.isnan(np.asarray(layer._slice.image.raw)).all()), "the gap shown")

    # When the run is closed nothing looks any longer.
    target.stop()
    until(lambda: not _following, "the end of following")
    assert layer.data[0].shape[0] == 4
    viewer.close()
    print("well")


def without_layer(path: Path) -> None:
    """Removing the layer ends it as well."""
    target = started(recorder(path, run=header(shape=SHAPE)))
    viewer = napari.Viewer(show=False)
    (layer,) = viewer.open(str(path), plugin="microdiffusion-daemon")
    put(target, 0)
    until(lambda: layer.data[0].shape[0] == 1 and layer.contrast_limits[1] > 1000, "the first volume")
    assert _following
    viewer.layers.clear()
    until(lambda: not _following, "the end of following")
    target.stop()
    viewer.close()
    print("well")


if __name__ == "__main__":
    {"grows": main, "removed": without_layer}[sys.argv[1]](Path(sys.argv[2]))
