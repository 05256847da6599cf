"""Pictures of an evaluation: what the answers look like, and how they fall off with the step.

matplotlib draws, without a display; it is asked for only where pictures are wanted. All panels of a volume
share one grey scale, 0 to 1, so what looks brighter is brighter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.engines.evaluation.summary import per_volume
from microdiffusion.errors import DependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from microdiffusion.engines.evaluation.protocol import Case
    from microdiffusion.engines.evaluation.runner import Results

_ZOOM = 36  # voxels along each edge of the zoomed part


def volume_picture(path: Path, name: str, step: float, case: Case, answers: dict[str, NDArray[Any]]) -> None:
    """Draw truth, projection and answers: a slice (XY), a section (XZ), and a part of the section enlarged.

    The slice lies where two slabs meet, which is where interpolation has least to go by; the section
    crosses the brightest row; the enlarged part is where the truth changes most along z.
    """
    figures, patches = _matplotlib()
    truth = case.truth
    z = _between_slabs(case)
    row = int(np.argmax(np.sort(truth[case.seen], axis=0)[-3:].mean(axis=0).mean(axis=1)))
    top, left = _busiest(truth[:, row], case.seen)
    edge_z, edge_x = min(_ZOOM, truth.shape[0]), min(_ZOOM, truth.shape[2])
    nearest = case.sweep.projections[np.abs(case.sweep.z_um - z).argmin()]
    stretched = case.sweep.projections[
        np.abs(case.sweep.z_um[None] - np.arange(len(truth))[:, None]).argmin(axis=1)
    ]
    columns = {"truth": truth, "projections": stretched, **answers}
    depth = truth.shape[0] / truth.shape[2]
    heights = [truth.shape[1] / truth.shape[2], depth, edge_z / edge_x]
    figure, axes = figures(
        3,
        len(columns),
        figsize=(1.9 * len(columns), 1.9 * sum(heights) + 0.6),
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
    )
    for column, (title, volume) in enumerate(columns.items()):
        slice_xy = nearest if title == "projections" else volume[z]
        section = volume[:, row]
        views = (slice_xy, section, section[top : top + edge_z, left : left + edge_x])
        for line, view in enumerate(views):
            panel = axes[line, column]
            panel.imshow(view, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
            panel.set_xticks([])
            panel.set_yticks([])
        axes[0, column].set_title(title, fontsize=8)
        axes[1, column].add_patch(
            patches.Rectangle(
                (left - 0.5, top - 0.5), edge_x, edge_z, fill=False, color="orange", linewidth=0.7
            )
        )
    for line, label in enumerate((f"XY, z = {z}", f"XZ, y = {row}", "XZ, enlarged")):
        axes[line, 0].set_ylabel(label, fontsize=8)
    figure.suptitle(f"{name}, step {step:g}", fontsize=9)
    figure.savefig(path, dpi=130)


def step_curves(path: Path, results: Results) -> None:
    """Draw PSNR and SSIM, means over the volumes that every step has, against the step."""
    figures, _ = _matplotlib()
    steps = sorted({row["step"] for row in results.rows})
    tables = {step: per_volume(row for row in results.rows if row["step"] == step) for step in steps}
    methods = list(dict.fromkeys(row["method"] for row in results.rows))
    figure, axes = figures(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (score, label) in zip(axes, (("psnr_db", "PSNR, dB"), ("ssim", "SSIM")), strict=True):
        for method in methods:
            common = set.intersection(*(set(tables[step].get(method, {})) for step in steps))
            if common:
                means = [
                    np.mean([tables[step][method][volume][score] for volume in common]) for step in steps
                ]
                axis.plot(steps, means, marker="o", markersize=3, label=method)
        axis.set_xlabel("step, slices")
        axis.set_ylabel(label)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def _between_slabs(case: Case) -> int:
    """Return the slice in the middle of the volume that lies farthest from any slab's centre."""
    slices = np.arange(len(case.truth))
    distance = np.abs(slices[:, None] - case.sweep.z_um[None]).min(axis=1)
    near = np.abs(slices - len(slices) / 2) <= max(2.0, np.diff(case.sweep.z_um).max())
    return int(np.argmax(np.where(near & case.seen, distance, -1)))


def _busiest(section: NDArray[Any], seen: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the corner (z, x) of the part of a section (Z, X) that changes most along z."""
    energy = np.square(np.diff(section, axis=0, append=section[-1:])) * seen[:, None]
    edges = [min(_ZOOM, n) for n in section.shape]
    total = np.pad(energy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    height, width = edges
    sums = (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(top), int(left)


def _matplotlib() -> tuple[Any, Any]:
    """Return a maker of figures (closed by themselves: no global state is touched) and the patches."""
    try:
        from matplotlib import patches
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            'Pictures need matplotlib: pip install "microdiffusion-daemon[docs]", or leave out --pictures.'
        ) from error

    def figures(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
        grid = {key: options.pop(key) for key in ("squeeze", "height_ratios") if key in options}
        figure = Figure(**options)
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **grid)

    return figures, patches


def check_available() -> None:
    """Raise DependencyError now rather than after hours of computing."""
    _matplotlib()
