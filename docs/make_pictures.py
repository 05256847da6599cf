"""The pictures of demo runs in these pages: beside the truth, in the gallery, as a report and in napari.

    python docs/make_pictures.py [RUN.h5]

Without a run the demo makes one first, which takes three minutes. The report's picture needs Chromium,
those of napari need napari and a display (`xvfb-run` is one); what cannot be drawn stays as it is.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

import microdiffusion
from microdiffusion.config import Config, EngineConfig
from microdiffusion.drivers.specimen import specimen_of_run
from microdiffusion.engines.pipeline import Reconstructor
from microdiffusion.runfile import Status

mpl.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
VOLUMES = 80


def main() -> None:
    """Draw everything that can be drawn here."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else demo(folder)
        comparison(run)
        for name in ("timelapse", "roi_traces", "segmentation", "live"):
            gallery(name, run, folder)
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser:
            report(browser, run, folder)
        if importlib.util.find_spec("napari"):
            gallery("napari_3d", run, folder)
            napari_window(run)


def demo(folder: Path) -> Path:
    """Return the file of a run of the demo."""
    mdd("serve", "--demo", "--headless", "--volumes", VOLUMES, "--output", folder)
    (path,) = folder.glob("*.h5")
    return path


def mdd(*arguments: object) -> None:
    """Run the command."""
    run_program(sys.executable, "-m", "microdiffusion.daemon.cli", *arguments)


def run_program(*words: object, cwd: Path | None = None) -> None:
    """Run a program; what goes wrong there ends it all."""
    subprocess.run([str(word) for word in words], check=True, cwd=cwd)  # noqa: S603


def comparison(path: Path) -> None:
    """Draw a run's last volume beside the specimen's truth and linear interpolation."""
    with microdiffusion.open_run(path) as run:
        t = int(np.flatnonzero(run.status == Status.WRITTEN)[-1])
        camera, header, sweep = run.header.camera, run.header, run.sweep(t)
        photons = specimen_of_run(Config.model_validate(run.config).specimen, header).volume(
            float(run.times[t])
        )
        truth = camera.offset + (camera.gain or 1.0) * photons
        linear = Reconstructor(header, EngineConfig(method="linear")).reconstruct(sweep).volume
        shown = {"truth": truth, "linear interpolation": linear, "mdd": run.volume[t].astype(np.float32)}
    span = float(np.percentile(truth, 99.9) - camera.offset)
    figure, axes = plt.subplots(2, len(shown), figsize=(3.2 * len(shown), 5.4))
    for (above, below), (name, volume) in zip(axes.T, shown.items(), strict=True):
        image = np.clip((volume - camera.offset) / span, 0, 1) ** 0.7
        middle = image.shape[1] // 2
        views = {f"{name}, xy": image, f"{name}, xz, 16 rows": image[:, middle - 8 : middle + 8]}
        for axis, (title, stack), along in zip((above, below), views.items(), (0, 1), strict=True):
            axis.imshow(
                stack.max(axis=along), cmap="magma", vmin=0, vmax=1, aspect="auto" if along else "equal"
            )
            axis.set_axis_off()
            axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(IMAGES / "demo_comparison.png", dpi=80)


def gallery(name: str, run: Path, folder: Path) -> None:
    """Draw the picture of one of the gallery's scripts."""
    output = IMAGES / "gallery" / f"{name}.png"
    script = DOCS.absolute() / "gallery" / f"{name}.py"
    run_program(sys.executable, script, run.absolute(), "--output", output.absolute(), cwd=folder)


def report(browser: str, run: Path, folder: Path) -> None:
    """Draw the top of a run's report."""
    page = folder / "page.html"
    mdd("report", run, "--output", page)
    to = f"--screenshot={IMAGES / 'report.png'}"
    options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,1500", to)
    run_program(browser, *options, page.as_uri())


def napari_window(run: Path) -> None:
    """Draw napari's whole window, where the picture of the gallery is its canvas."""
    import napari
    from qtpy.QtWidgets import QApplication

    viewer = napari.Viewer(ndisplay=3)
    (layer,) = viewer.open(str(run), plugin="microdiffusion-daemon")
    layer.rendering, layer.colormap, layer.locked_data_level = "mip", "inferno", 0
    viewer.dims.set_current_step(0, VOLUMES // 2)
    viewer.scale_bar.visible = True
    viewer.reset_view()
    viewer.camera.angles = (8.0, 32.0, 60.0)
    viewer.window.resize(1280, 860)
    for _ in range(60):  # let it draw
        QApplication.processEvents()
        time.sleep(0.05)
    viewer.screenshot(str(IMAGES / "napari.png"), canvas_only=False, flash=False)
    viewer.close()


if __name__ == "__main__":
    main()
