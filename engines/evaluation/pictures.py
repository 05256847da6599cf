"""Pictures of an evaluation: how the answers look, and how sessions go.

matplotlib draws, without a display; it is needed only where pictures are asked for. All panels of a volume
share one grey scale, 0 to 1, so a brighter panel means more light.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.engines.evaluation.protocol import Case
from microdiffusion.engines.evaluation.runner import Row
from microdiffusion.errors import DependencyError

_ZOOM = 36  # voxels along each edge of the zoomed part
_CELLS = 10


def volume_picture(path: Path, name: str, step: float, case: Case, answers: dict[str, NDArray[Any]]) -> None:
    """Draw truth, projection and answers: a slice (XY), a section (XZ), and a part of the section enlarged.

    The slice is taken where two slabs meet, where interpolation has the least information; the section
    crosses the brightest row; the enlarged part is where the truth changes most along z.
    """
    truth = case.truth
    distance = np.abs(np.arange(len(truth))[:, None] - case.header.centres_of(case.sweep.stage))
    z = _between_slabs(case, distance.min(axis=1))
    row = int(np.argmax(np.sort(truth[case.seen], axis=0)[-3:].mean(axis=0).mean(axis=1)))
    top, left = _busiest(truth[:, row], case.seen)
    edge_z, edge_x = min(_ZOOM, truth.shape[0]), min(_ZOOM, truth.shape[2])
    columns = {"truth": truth, "projections": case.sweep.projections[distance.argmin(axis=1)], **answers}
    heights = [truth.shape[1] / truth.shape[2], truth.shape[0] / truth.shape[2], edge_z / edge_x]
    figure, axes = _figure(3, len(columns), 1.9 * len(columns), 1.9 * sum(heights) + 0.6, heights)
    for column, (title, volume) in enumerate(columns.items()):
        section = volume[:, row]
        views = (volume[z], section, section[top : top + edge_z, left : left + edge_x])
        for panel, view in zip(axes[:, column], views, strict=True):
            panel.imshow(view, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
            panel.set(xticks=[], yticks=[])
        axes[0, column].set_title(title, fontsize=8)
        across = left + edge_x * np.array([0, 1, 1, 0, 0]) - 0.5
        along = top + edge_z * np.array([0, 0, 1, 1, 0]) - 0.5
        axes[1, column].plot(across, along, color="orange", linewidth=0.7)
    for line, label in enumerate((f"XY, z = {z}", f"XZ, y = {row}", "XZ, enlarged")):
        axes[line, 0].set_ylabel(label, fontsize=8)
    figure.suptitle(f"{name}, step {step:g}", fontsize=9)
    figure.savefig(path, dpi=130)


def sweep_curves(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draw PSNR and SSIM against the sweep, for each course and method of one volume and step."""
    courses = list(dict.fromkeys(row["course"] for row in rows))
    figure, axes = _figure(2, len(courses), 4.2 * len(courses), 5.4)
    for column, course in enumerate(courses):
        for row in (row for row in rows if row["course"] == course):
            for line, score in enumerate(("psnr_db", "ssim")):
                sweeps = np.arange(1, len(row[score]) + 1)
                axes[line, column].plot(sweeps, row[score], marker="o", markersize=2.5, label=row["method"])
        axes[0, column].set_title(course, fontsize=9)
        axes[1, column].set_xlabel("sweep")
    axes[0, 0].set_ylabel("PSNR, dB")
    axes[1, 0].set_ylabel("SSIM")
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)


def cell_traces(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draw ΔF/F of ten spots, five of them active, as it was and as each method tells it."""
    true = np.array(rows[0]["traces"]["true"])
    active = int(rows[0]["spots"])
    shown = range(min(_CELLS, len(true)))
    figure, axes = _figure(2, (len(shown) + 1) // 2, 1.5 * len(shown) + 1, 4.6)
    sweeps = np.arange(1, true.shape[1] + 1)
    for panel, number in zip(axes.flat, shown, strict=False):
        panel.plot(sweeps, true[number], color="black", linewidth=2.5, label="truth")
        for row in rows:
            panel.plot(sweeps, row["traces"]["told"][number], linewidth=1, label=row["method"])
        panel.set_title(f"cell {number + 1}" + ("" if number < active else ", still"), fontsize=8)
        panel.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=6)
    for panel in axes[:, 0]:
        panel.set_ylabel("ΔF/F", fontsize=8)
    for panel in axes[-1]:
        panel.set_xlabel("sweep", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)


def object_views(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draw the brightest object of each kind and origin, there and not there: truth and answers (XZ)."""
    shown = [row for row in rows if "view" in row]
    objects = list(dict.fromkeys((row["kind"], row["origin"]) for row in shown))
    methods = list(dict.fromkeys(row["method"] for row in shown))
    columns = len(methods) + 1
    figure, axes = _figure(len(objects), 2 * columns, 2.2 * columns + 0.6, 1.1 * len(objects) + 0.7)
    for panel in axes.flat:
        panel.set_axis_off()
    for row in shown:
        line, first = objects.index((row["kind"], row["origin"])), 0 if row["there"] else columns
        places = (first, first + 1 + methods.index(row["method"]))
        for column, view in zip(places, row["view"], strict=True):
            panel = axes[line, column]
            panel.imshow(view, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
            where = "there" if row["there"] else "not there"
            title_of = f"truth, {where}" if column == first else row["method"]
            if line == 0:
                panel.set_title(title_of, fontsize=6)
    for line, (kind, origin) in enumerate(objects):
        axes[line, 0].text(
            -0.1,
            0.5,
            f"{kind}, {origin}",
            fontsize=6,
            rotation=90,
            ha="right",
            va="center",
            transform=axes[line, 0].transAxes,
        )
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=130)


def check_matplotlib() -> None:
    """Raise DependencyError now rather than after hours of computing."""
    _figure(1, 1, 1, 1)


def _between_slabs(case: Case, distance: NDArray[np.float64]) -> int:
    """Return the slice in the middle of the volume with the greatest distance (Z,) to any slab's centre."""
    off = np.abs(np.arange(len(distance)) - len(distance) / 2)
    near = off <= max(2.0, np.diff(case.header.centres_of(case.sweep.stage)).max())
    return int(np.argmax(np.where(near & case.seen, distance, -1)))


def _busiest(section: NDArray[Any], seen: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the corner (z, x) of the part of a section (Z, X) that changes most along z."""
    energy = np.square(np.diff(section, axis=0, append=section[-1:])) * seen[:, None]
    parts = np.lib.stride_tricks.sliding_window_view(energy, [min(_ZOOM, n) for n in section.shape])
    sums = parts.sum(axis=(2, 3))
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(top), int(left)


def _figure(
    rows: int, columns: int, width: float, height: float, ratios: list[float] | None = None
) -> tuple[Any, Any]:
    """Return a figure and its panels (rows, columns); no global state is touched."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            'Pictures need matplotlib: python -m pip install "microdiffusion-daemon[analysis]".'
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
