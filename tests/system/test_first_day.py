"""The first day: what README and docs/first-volume.md tell a new user to type, typed in their order.

In a folder of its own with a copy of what a clone has there, a home without settings, and stacks of the
user's. What installs packages is left out: they are there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage
from support.mdd_process import free_port

from microdiffusion import open_run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "first-volume.md"]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_TYPED = {
    r"^python -m pip install": "the packages are there",
    r"^pytest$": "this is one",
    r"^mdd serve --demo$": "ends with Ctrl-C; the page's own has --volumes 20",
    r"^mdd serve --config my.toml$": "waits for a running Micro-Manager",
}
"""Lines that are not typed, and why."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each block of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def lines(page: Path) -> list[str]:
    """Return what a page tells to type in a shell, command by command, and its Python."""
    typed = []
    for language, text in blocks(page):
        if language == "python":
            typed.append("python -c " + shlex.quote(text))
        else:
            typed += [part.strip() for line in text.splitlines() for part in line.split("&&")]
    return [line for line in typed if line]


def stack(seed: int) -> np.ndarray:
    """Return threads and cells, as a confocal microscope would show them."""
    rng = np.random.default_rng(seed)
    volume = np.zeros((48, 96, 96), np.float32)
    for _ in range(24):
        walk = np.cumsum(ndimage.gaussian_filter1d(rng.normal(0, 1.5, (400, 3)), 6, axis=0), axis=0)
        z, y, x = ((walk + rng.uniform(10, 80, 3)).astype(int) % volume.shape).T
        volume[z, y, x] += 1.0
    volume = ndimage.gaussian_filter(volume, (0.8, 1.2, 1.2))
    return np.asarray(100 + 3000 * volume / volume.max() + rng.normal(0, 5, volume.shape), np.float32)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Return the new user's folder."""
    desk = tmp_path / "clone"
    (desk / "stacks").mkdir(parents=True)
    shutil.copytree(ROOT / "docs" / "gallery", desk / "docs" / "gallery")
    for number, name in enumerate(("stack.h5", "stacks/stack_01.h5", "stacks/stack_07.h5")):
        with h5py.File(desk / name, "w") as file:
            file["volume"] = stack(number)
            file["volume"].attrs["voxel_size_um"] = (2.0, 1.0, 1.0)
    return desk


def test_the_pages_say_what_to_type() -> None:
    typed = [line for page in PAGES for line in lines(page)]
    for words in (
        "mdd serve --demo --volumes 20",
        "mdd simulate stack.h5",
        "mdd reconstruct projections.h5",
        "mdd evaluate stack.h5",
        "mdd train stacks/",
        "python docs/gallery/timelapse.py",
    ):
        assert any(line.startswith(words) for line in typed), words
    for pattern in NOT_TYPED:
        assert any(re.search(pattern, line) for line in typed), pattern


@pytest.mark.slow
@pytest.mark.acquisition
@pytest.mark.timeout(1500)
def test_a_new_user_gets_through_by_typing_what_stands_there(desk: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    home = {name: str(tmp_path / "home") for name in ("HOME", "USERPROFILE", "XDG_CONFIG_HOME", "APPDATA")}
    ports = {f"MDD_WIRE__{name}": f"tcp://127.0.0.1:{free_port()}" for name in ("DATA", "STATUS", "CONTROL")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    around = os.environ | home | ports | {"PATH": path, "PYTHONUTF8": "1", "MPLBACKEND": "Agg"}
    said = {}
    pages = sorted(PAGES, key=lambda page: page.name == "README.md")  # README's first step is the page's
    for line in [line for page in pages for line in lines(page)]:
        if any(re.search(pattern, line) for pattern in NOT_TYPED):
            continue
        runs = sorted((desk / "runs").glob("*Z.h5"))
        typed = line.replace("RUN.h5", runs[-1].name) if runs else line
        shell = [sys.executable, *shlex.split(typed)[1:]] if line.startswith("python") else typed
        ran = subprocess.run(
            shell,
            shell=isinstance(shell, str),
            cwd=desk,
            env=around,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, f"{typed}\n{ran.stdout[-1000:]}\n{ran.stderr[-2000:]}"
        assert "Traceback" not in ran.stderr
        said[" ".join(line.split()[:2])] = ran.stdout
    assert "1 sweep of 9 projections, voxel 2 x 1 x 1 µm" in said["mdd simulate"]
    assert re.search(
        r"reach [\d.]+ dB in one sweep and [\d.]+ dB after eight, those that ship with mdd [\d.]+ and",
        said["mdd train"],
    )
    assert "| mdd |" in said["mdd evaluate"].replace("`", "")
    assert (desk / "timelapse.png").stat().st_size > 10_000
    with open_run(desk / "run.h5") as run:
        assert "mdd 1" in str(run) or "blend 1" in str(run)
