"""Plots of a calibration with matplotlib, as PNG or SVG, and of the beam also as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.errors import ConfigError, DependencyError, DiskError

if TYPE_CHECKING:
    from pathlib import Path

    from microdiffusion.daemon.calibration.beam import BeamResult
    from microdiffusion.daemon.calibration.camera import CameraResult

_DARK, _PALE = "#1f4e79", "#9dbfdd"


def beam_text(beam: BeamResult, *, columns: int = 60, rows: int = 17) -> str:
    """Return the profile as text, a line for each depth: █ up to the curve, ░ up to the end of its band."""
    depths = np.linspace(beam.z_um[0], beam.z_um[-1], rows)
    scale = columns / float(beam.high.max())
    curve, high = (np.interp(depths, beam.z_um, scale * value) for value in (beam.weights, beam.high))
    lines = []
    for depth, value, up in zip(depths, np.rint(curve).astype(int), np.rint(high).astype(int), strict=True):
        lines.append(f"{depth:>8.3g} µm │{'█' * value}{'░' * (up - value)}")
    return "\n".join(lines)


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn, before anything is measured.

    Raises
    ------
    DependencyError
        matplotlib is absent.
    ConfigError
        No image format has this ending, or there is no such folder.
    """
    figure, _ = _figure()
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds or not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: give a name that ends in .png or .svg, in a folder that exists.")


def plot_beam(beam: BeamResult, path: Path, title: str) -> None:
    """Draw the profile with its band; raises DiskError where the file cannot be written."""
    figure, axes = _figure()
    peak = float(beam.weights.max())
    axes.fill_between(beam.z_um, beam.low / peak, beam.high / peak, color=_PALE, lw=0, label="95 % interval")
    axes.plot(beam.z_um, beam.weights / peak, color=_DARK, lw=1.8, label="measured profile")
    half = 0.5 * beam.length_um
    arrow = {"arrowstyle": "<->", "color": "#444444", "lw": 1}
    axes.annotate("", (-half, 0.5), (half, 0.5), arrowprops=arrow)
    axes.text(0, 0.52, f"{beam.length_um:.3g} µm", ha="center", va="bottom", color="#222222")
    axes.set(xlabel="depth from the slab's centre, µm", ylabel="intensity, of the maximum", ylim=(0, None))
    axes.set_xlim(float(beam.z_um[0]), float(beam.z_um[-1]))
    low, high = beam.length_interval_um
    what = "tiles" if beam.specimen == "layer" else "beads"
    about = f"{beam.beads} {what}; length {beam.length_um:.4g} µm ({low:.4g} to {high:.4g})"
    wide = beam.length_um > 0.4 * float(beam.z_um[-1] - beam.z_um[0])  # room below the curve, or beside it
    _save(
        figure,
        path,
        f"{title}\n{about}; equivalent box {beam.equivalent_um:.4g} µm",
        "lower center" if wide else "upper right",
    )


def plot_camera(camera: CameraResult, path: Path, title: str) -> None:
    """Draw variance against signal with the gain's line and its band; raises as `plot_beam` does."""
    figure, axes = _figure()
    signal, variance = camera.points.T
    some = np.linspace(0, len(signal) - 1, min(len(signal), 4000)).astype(int)
    label = "blocks of 16 x 16 pixels"
    axes.plot(signal[some], variance[some], ".", ms=2, color=_PALE, label=label, rasterized=True)
    line = np.array([0.0, float(signal.max()) * 1.05])
    low, high = camera.gain_interval
    axes.fill_between(line, low * line, high * line, color="#d98c5f", alpha=0.5, lw=0, label="95 % interval")
    label = f"gain {camera.gain:.4g} counts per photon"
    axes.plot(line, camera.gain * line, color=_DARK, lw=1.6, label=label)
    axes.set(xlabel="light above the offset, counts", ylabel="variance without read noise, counts²")
    axes.set_xlim(0, line[1])
    axes.set_ylim(0, max(float(np.percentile(variance, 99.5)) * 1.1, camera.gain * line[1]))
    about = f"offset {camera.offset:.4g}, read noise {camera.read_noise:.3g} counts"
    _save(figure, path, f"{title}\n{about}; gain {camera.gain:.4g} ({low:.4g} to {high:.4g})", "upper left")


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "--plot needs matplotlib: python -m pip install 'microdiffusion-daemon[docs]', or leave it out."
        ) from error
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path, title: str, legend: str) -> None:
    axes = figure.axes[0]
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc=legend)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise DiskError(
            f"The plot {path} cannot be written ({error}): choose another name or folder."
        ) from error
