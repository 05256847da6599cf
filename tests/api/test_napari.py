"""Runs in napari: found by its manifest, shown in µm, growing while the run goes on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import SHAPE, header, put_volume, recorder, started, volume, wait

from microdiffusion.adapters import napari_control
from microdiffusion.adapters.napari_control import ask_daemon, newest_run
from microdiffusion.adapters.napari_follow import get_reader, read
from microdiffusion.adapters.napari_layers import LayerData
from microdiffusion.errors import ConfigError
from microdiffusion.runfile.copy import snapshot_run
from microdiffusion.runfile.schema import Status

TESTS = Path(__file__).parents[1]


def write(path: Path, **changes: object) -> Path:
    run = header(**changes)
    target = started(recorder(path, run=run))
    for sweep in range(2):
        for position in range(len(run.positions)):
            for channel in range(len(run.channels)):
                put_volume(target, sweep, channel, position)
    target.mark(2, 0, 0, Status.SKIPPED, "the engine was too slow")
    target.stop()
    return path


def test_only_run_files_are_ours(tmp_path: Path) -> None:
    ours = write(tmp_path / "run.h5")
    assert get_reader(str(ours)) is read
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["volume"] = np.zeros((2, 3, 4))
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    (tmp_path / "cut.h5").write_bytes(ours.read_bytes()[:3000])
    for name in ("other.h5", "text.h5", "cut.h5", "absent.h5"):
        assert get_reader(str(tmp_path / name)) is None, name
    assert get_reader([str(ours), str(ours)]) is None
    snapshot_run(ours, tmp_path / "copy.h5")
    assert get_reader(str(tmp_path / "copy.h5")) is read
    assert get_reader(str(tmp_path)) is None


def test_a_layer_is_a_channel_in_um(tmp_path: Path) -> None:
    layers = read(str(write(tmp_path / "run.h5", channels=("GFP", "RFP"), positions=("a", "b", "c"))))
    assert [kind for _, _, kind in layers] == ["image"] * 4  # and the hidden uncertainty of each
    data, arguments, _ = layers[1]
    assert isinstance(data, LayerData)  # too small for a pyramid
    assert data.shape == (3, 3, *SHAPE)
    assert arguments["name"] == "run RFP"
    assert arguments["axis_labels"] == ["t", "position", "z", "y", "x"]
    assert arguments["scale"] == [1.0, 1.0, 2.0, 0.5, 0.25]
    assert arguments["translate"] == [0.0, 0.0, -5.0, 0.0, 0.0]
    np.testing.assert_array_equal(data[1, 2], volume(1, channel=1, position=2))


def test_the_map_of_uncertainty_lies_where_its_voxels_do(tmp_path: Path) -> None:
    path, shape, edge = tmp_path / "run.h5", (4, 64, 64), 32
    target = started(recorder(path, run=header(shape=shape)))
    blocks = np.arange(4 * edge * edge, dtype=np.float32).reshape(4, edge, edge) + 1
    put_volume(target, 0, volume=volume(0, shape=shape), uncertainty_map=blocks)
    target.stop()
    data, arguments, _ = read(str(path))[1]
    assert arguments["name"] == "run uncertainty"
    assert not arguments["visible"]
    np.testing.assert_array_equal(np.asarray(data)[0], blocks)
    assert arguments["scale"] == [1.0, 2.0, 1.0, 0.5]  # a block is two voxels wide
    assert arguments["translate"] == [0.0, -5.0, 0.25, 0.125]


@pytest.mark.parametrize(
    "index",
    [
        1,
        -2,
        (0, 3),
        (slice(None), 2, slice(4, 9)),
        (..., 5),
        (1, slice(None), slice(None, None, 2)),
        slice(0, 0),
    ],
    ids=str,
)
def test_layer_data_are_indexed_like_an_array(tmp_path: Path, index: object) -> None:
    (data, _, _) = read(str(write(tmp_path / "run.h5")))[0]
    whole = np.stack([volume(0), volume(1), np.full(SHAPE, np.nan, np.float32)])
    assert data.shape == whole.shape
    np.testing.assert_array_equal(data[index], whole[index])
    with pytest.raises(IndexError, match="index 3"):
        data[3]


def test_a_run_without_a_volume_yet_can_be_opened(tmp_path: Path) -> None:
    target = started(recorder(tmp_path / "run.h5"))
    (data, _, _) = read(str(tmp_path / "run.h5"))[0]
    assert np.isnan(np.asarray(data)).all()
    put_volume(target, 0)
    wait(lambda: bool(np.isfinite(data[0]).all()))
    target.stop()


@pytest.mark.skipif(importlib.util.find_spec("npe2") is None, reason="npe2 is not installed")
def test_the_manifest_is_found_and_valid(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5")
    code = (
        "import sys, npe2; manager = npe2.PluginManager.instance(); manager.discover(); "
        "print([c.plugin_name for c in manager.iter_compatible_readers([sys.argv[1]])]); "
        "print(len(npe2.read([sys.argv[1]], stack=False, plugin_name='microdiffusion-daemon')))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    names, layers = ran.stdout.splitlines() or ("", "")
    assert "microdiffusion-daemon" in names, ran.stderr
    assert layers == "2"


def _screen() -> list[str] | None:
    """Return what to put before a command that draws with OpenGL; None where nothing can."""
    if sys.platform != "linux":
        return []
    found = shutil.which("xvfb-run")  # Qt's own "offscreen" has no OpenGL
    return None if found is None else [found, "-a", "-s", "-screen 0 1400x1000x24"]


@pytest.mark.skipif(importlib.util.find_spec("napari") is None, reason="napari is not installed")
@pytest.mark.skipif(importlib.util.find_spec("qtpy") is None, reason="napari has no Qt to draw with")
@pytest.mark.skipif(_screen() is None, reason="there is no xvfb-run")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("story", ["grows", "removed"])
def test_a_window_follows_a_run(tmp_path: Path, story: str) -> None:
    napari = {"NAPARI_CONFIG": str(tmp_path / "napari.yaml"), "LIBGL_ALWAYS_SOFTWARE": "1"}
    environment = {**os.environ, **napari, "PYTHONPATH": str(TESTS)}
    ran = subprocess.run(
        [
            *(_screen() or []),
            sys.executable,
            "-m",
            "support.napari_window",
            story,
            str(tmp_path / "run.h5"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )
    assert (ran.returncode, ran.stdout.splitlines()[-1:]) == (0, ["well"]), ran.stderr[-4000:]


def test_the_panel_finds_the_newest_run_that_is_here(tmp_path: Path) -> None:
    for number, name in enumerate(("old.h5", "new.h5")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    names = {f"run_{number}_file": str(tmp_path / name) for number, name in enumerate(("new.h5", "old.h5"))}
    assert newest_run({"written": 3, "run_0": "new", **names}) == (tmp_path / "new.h5", True)
    assert newest_run({"run_0_file": "/elsewhere/run.h5"}) == (None, True)
    # The system refuses to look: pathlib lets that through, as for a folder of another user.
    assert newest_run({"run_9_file": f"/{'x' * 300}.h5", **names}) == (tmp_path / "new.h5", True)
    assert newest_run({"written": 3}) == (None, False)


def test_the_panel_asks_the_daemon_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(napari_control, "ask", lambda address, command, **_: asked.append(address))
    file = tmp_path / "my.toml"
    file.write_text('[wire]\ncontrol = "tcp://127.0.0.1:6752"\n')
    for where in ("", "tcp://127.0.0.1:7752", str(file)):
        ask_daemon(where, "status")
    assert asked == ["tcp://127.0.0.1:5752", "tcp://127.0.0.1:7752", "tcp://127.0.0.1:6752"]
    with pytest.raises(ConfigError, match="public key is not known"):
        ask_daemon("tcp://192.0.2.1:5752", "status")


@pytest.mark.skipif(importlib.util.find_spec("npe2") is None, reason="npe2 is not installed")
def test_the_manifest_has_the_panel() -> None:
    code = (
        "import npe2; manager = npe2.PluginManager.instance(); manager.discover(); "
        "(one,) = [w for w in manager.iter_widgets() if w.plugin_name == 'microdiffusion-daemon']; "
        "print(one.display_name, one.get_callable().__name__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.stdout == "Live acquisition control_panel\n", ran.stderr


@pytest.mark.skipif(importlib.util.find_spec("napari") is None, reason="napari is not installed")
@pytest.mark.skipif(importlib.util.find_spec("qtpy") is None, reason="napari has no Qt to draw with")
@pytest.mark.timeout(120)
def test_the_panel_controls_a_daemon_and_shows_its_newest_run(tmp_path: Path) -> None:
    napari = {"NAPARI_CONFIG": str(tmp_path / "napari.yaml"), "QT_QPA_PLATFORM": "offscreen"}
    ran = subprocess.run(
        [sys.executable, "-m", "support.napari_panel", str(tmp_path / "run.h5")],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, **napari, "PYTHONPATH": str(TESTS)},
    )
    assert (ran.returncode, ran.stdout.splitlines()[-1:]) == (0, ["well"]), ran.stderr[-4000:]
