"""The gallery's scripts, each as a reader would start it, on a run that the real engine made."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.sample_data import write_sample

pytest.importorskip("matplotlib")
GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not GALLERY.is_dir(), reason="the documentation is not here"),
]


@pytest.fixture(scope="module")
def run_file(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of four time points, reconstructed by `mdd reconstruct`."""
    folder = tmp_path_factory.mktemp("gallery")
    projections = write_sample(folder / "projections.h5", sweeps=4)
    command = [shutil.which("mdd", path=str(Path(sys.executable).parent)) or "mdd", "reconstruct"]
    command += [str(projections), "--output", str(folder / "run.h5"), "--set", f"engine.weights={weights}"]
    command += ["--set", "engine.threads=1", "--set", "engine.inr.cold_steps=6"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert ran.returncode == 0, ran.stderr
    return folder / "run.h5"


def start(script: str, *arguments: object, folder: Path) -> str:
    """Run a script in a folder; return what it said."""
    ran = subprocess.run(
        [sys.executable, str(GALLERY / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=folder,
        env=dict(os.environ, MPLCONFIGDIR=str(folder), PYTHONUTF8="1"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def assert_picture(path: Path) -> None:
    """It is a picture with something on it."""
    from matplotlib.image import imread

    pixels = imread(path)
    assert min(pixels.shape[:2]) > 200
    assert pixels[..., :3].std() > 0.02


@pytest.mark.parametrize("script", ["timelapse", "roi_traces", "segmentation", "live"])
def test_a_script_draws_its_picture(run_file: Path, tmp_path: Path, script: str) -> None:
    start(f"{script}.py", run_file, "--output", "picture.png", folder=tmp_path)
    assert_picture(tmp_path / "picture.png")


def test_traces_are_a_table_with_a_row_for_each_time_point(run_file: Path, tmp_path: Path) -> None:
    start("roi_traces.py", run_file, "--table", "traces.csv", "--regions", 3, folder=tmp_path)
    head, *rows = (tmp_path / "traces.csv").read_text().splitlines()
    assert head.split(",")[:2] == ["time_s", "roi_1_dff"]
    assert len(rows) == 4


def test_the_time_lapse_is_also_a_film(run_file: Path, tmp_path: Path) -> None:
    from PIL import Image

    start("timelapse.py", run_file, "--film", "film.gif", folder=tmp_path)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4


def test_live_tells_each_time_point_as_it_comes(run_file: Path, tmp_path: Path) -> None:
    said = start("live.py", run_file, folder=tmp_path)
    assert [line.split(":")[0] for line in said.splitlines()[:4]] == [f"time point {t}" for t in range(4)]


@pytest.mark.skipif(importlib.util.find_spec("napari") is None, reason="napari is not installed")
@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="there is no xvfb-run")
def test_napari_draws_in_three_dimensions(run_file: Path, tmp_path: Path) -> None:
    script = str(GALLERY / "napari_3d.py")
    settings = {"NAPARI_CONFIG": str(tmp_path / "n.yaml"), "LIBGL_ALWAYS_SOFTWARE": "1"}
    ran = subprocess.run(
        [
            "xvfb-run",
            "-a",
            "-s",
            "-screen 0 1400x1000x24",
            sys.executable,
            script,
            str(run_file),
            "--output",
            "3d.png",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=tmp_path,
        env=dict(os.environ, **settings),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert_picture(tmp_path / "3d.png")
