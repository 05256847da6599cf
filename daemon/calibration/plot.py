"""Pictures of a calibration: with matplotlib as PNG or SVG, else, or besides, as text for the terminal.

The text is drawn with half blocks: two rows of points to a line, the band in a paler block than the
curve; without colours by characters alone. Pure but for the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.errors import ConfigError, DependencyError, DiskError

if TYPE_CHECKING:
    from pathlib import Path

    from microdiffusion.daemon.calibration.beam import BeamResult
    from microdiffusion.daemon.calibration.camera import CameraResult

_DARK, _PALE = "#1f4e79", "#9dbfdd"


def beam_text(beam: BeamResult, *, columns: int = 72, rows: int = 12) -> str:
    """Return the profile as text: █ below the curve, ░ as far as the band reaches, a line for the length."""
    width = max(columns - 8, 24)
    edge = max(float(np.abs(beam.z_um).max()), 1e-9)
    place = np.linspace(-edge, edge, width)
    top = float(max(beam.high.max(), beam.weights.max()))
    curve, high = (np.interp(place, beam.z_um, value) / top for value in (beam.weights, beam.high))
    lines = []
    for row in range(rows, 0, -1):
        line = "".join(
            _cell(float(value), float(up), row, rows) for value, up in zip(curve, high, strict=True)
        )
        label = "1.0" if row == rows else ("0.5" if row == rows // 2 else "")
        lines.append(f"{label:>4} ┤{line.rstrip()}")
    lines.append(f"   0 └{'─' * width}")
    at = [
        round((half / edge + 1) / 2 * (width - 1)) for half in (-0.5 * beam.length_um, 0.5 * beam.length_um)
    ]
    at = [min(max(value, 0), width - 1) for value in at]
    name = f" {beam.length_um:.3g} µm "
    span = at[1] - at[0] - 1
    bar = f"├{name:─^{span}}┤" if span > len(name) else f"├{'─' * max(span, 0)}┤{name}"
    lines.append(" " * (6 + at[0]) + bar)
    left, right = f"{-edge:.3g}", f"{edge:.3g} µm"
    lines.append(f"      {left}{'0':^{max(width - len(left) - len(right), 1)}}{right}")
    return "\n".join(lines)


def _cell(value: float, high: float, row: int, rows: int) -> str:
    """Return the character of one cell; `row` counts from 1 at the bottom."""
    if value * rows >= row - 0.25:
        return "█"
    if value * rows >= row - 0.75:
        return "▄"
    return "░" if high * rows >= row - 0.5 else " "


def camera_text(camera: CameraResult, *, columns: int = 72, rows: int = 10) -> str:
    """Return variance against signal as text: · for a block of pixels, ─ for the line of the gain."""
    width = max(columns - 12, 24)
    signal, variance = camera.points.T
    right, top = (
        float(signal.max()) * 1.05,
        float(max(np.percentile(variance, 99), camera.gain * signal.max())),
    )
    cells = [[" "] * width for _ in range(rows)]
    for x in range(width):
        y = camera.gain * (x + 0.5) / width * right / top * rows
        if 0 <= int(y) < rows:
            cells[int(y)][x] = "─"
    counts = np.zeros((rows, width), int)
    xs = np.clip((signal / right * width).astype(int), 0, width - 1)
    ys = np.clip((variance / top * rows).astype(int), 0, rows - 1)
    np.add.at(counts, (ys, xs), 1)
    for y, x in zip(*np.nonzero(counts), strict=True):
        cells[y][x] = "·" if counts[y, x] < 0.02 * counts.sum() else "●"
    lines = [
        f"{(f'{top:.3g}' if row == rows - 1 else ''):>8} ┤{''.join(cells[row]).rstrip()}"
        for row in range(rows)
    ][::-1]
    lines.append(f"       0 └{'─' * width}")
    lines.append(f"          {'0':<{width - 16}}{f'{right:.3g} counts':>16}")
    return "variance, counts²\n" + "\n".join(lines)


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured.

    Raises
    ------
    DependencyError
        matplotlib is absent.
    ConfigError
        No kind of picture has this ending, or there is no such folder.
    """
    figure, _ = _figure()
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds or not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: give a name that ends in .png or .svg, in a folder that exists.")


def plot_beam(beam: BeamResult, path: Path, title: str) -> None:
    """Draw the profile with its band into a PNG, SVG or PDF.

    Raises
    ------
    DependencyError
        matplotlib is absent.
    DiskError
        The file cannot be written.
    """
    figure, axes = _figure()
    peak = float(beam.weights.max())
    axes.fill_between(beam.z_um, beam.low / peak, beam.high / peak, color=_PALE, lw=0, label="95 % interval")
    axes.plot(beam.z_um, beam.weights / peak, color=_DARK, lw=1.8, label="measured profile")
    half = 0.5 * beam.length_um
    axes.annotate(
        "", (-half, 0.5), (half, 0.5), arrowprops={"arrowstyle": "<->", "color": "#444444", "lw": 1}
    )
    low, high = beam.length_interval
    axes.text(0, 0.52, f"{beam.length_um:.3g} µm", ha="center", va="bottom", color="#222222")
    axes.set(xlabel="depth from the slab's centre, µm", ylabel="intensity, of the maximum", ylim=(0, None))
    axes.set_xlim(float(beam.z_um[0]), float(beam.z_um[-1]))
    axes.set_title(
        f"{title}\n{beam.beads} {'tiles' if beam.specimen == 'layer' else 'beads'}; "
        f"length {beam.length_um:.4g} µm ({low:.4g} to {high:.4g}); "
        f"equivalent box {beam.equivalent_um:.4g} µm",
        fontsize=9,
        loc="left",
    )
    wide = beam.length_um > 0.4 * float(beam.z_um[-1] - beam.z_um[0])  # room below the curve, or beside it
    axes.legend(frameon=False, fontsize=8, loc="lower center" if wide else "upper right")
    _save(figure, path)


def plot_camera(camera: CameraResult, path: Path, title: str) -> None:
    """Draw variance against signal with the gain's line and its band; raises as `plot_beam` does."""
    figure, axes = _figure()
    signal, variance = camera.points.T
    some = np.linspace(0, len(signal) - 1, min(len(signal), 4000)).astype(int)
    axes.plot(
        signal[some],
        variance[some],
        ".",
        ms=2,
        color=_PALE,
        label="blocks of 16 x 16 pixels",
        rasterized=True,
    )
    line = np.array([0.0, float(signal.max()) * 1.05])
    low, high = camera.gain_interval
    axes.fill_between(line, low * line, high * line, color="#d98c5f", alpha=0.5, lw=0, label="95 % interval")
    axes.plot(
        line, camera.gain * line, color=_DARK, lw=1.6, label=f"gain {camera.gain:.4g} counts per photon"
    )
    axes.set(xlabel="light above the offset, counts", ylabel="variance without read noise, counts²")
    axes.set_xlim(0, line[1])
    axes.set_ylim(0, max(float(np.percentile(variance, 99.5)) * 1.1, camera.gain * line[1]))
    axes.set_title(
        f"{title}\noffset {camera.offset:.4g}, read noise {camera.read_noise:.3g} counts; "
        f"gain {camera.gain:.4g} ({low:.4g} to {high:.4g})",
        fontsize=9,
        loc="left",
    )
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    _save(figure, path)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "--plot needs matplotlib: python -m pip install 'microdiffusion-daemon[docs]', or leave it out "
            "for the picture in the terminal."
        ) from error
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise DiskError(
            f"The picture {path} cannot be written ({error}): give a name that ends in .png or .svg."
        ) from error
