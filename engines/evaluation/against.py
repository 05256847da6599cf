"""Methods against a dense recording: its sparse parts, scored; and what that says, in sentences.

See `dense.py`. Rows as in `runner.py`: method, step and sweep (from 1), or the run and its time point, with
the scores of `dense.compare`. One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.engines.evaluation.dense import SPOT, Dense, compare, sparse_sweeps
from microdiffusion.engines.evaluation.hallucinations import shown_sweeps
from microdiffusion.engines.evaluation.methods import Method
from microdiffusion.engines.evaluation.runner import Row
from microdiffusion.metrics import seen_slices
from microdiffusion.text import count_noun, markdown_table

_COLUMNS = {
    "error": ("error, % of range", 100.0, 1),
    "bright_error": ("where it is bright", 100.0, 1),
    "psnr_db": ("PSNR dB", 1.0, 2),
    "ssim": ("SSIM", 1.0, 3),
    "slope": ("slope of brightness", 1.0, 2),
    "sharpness": ("z-energy", 1.0, 2),
    "prediction": ("held-out frames, noise", 1.0, 2),
}


def evaluate_against(
    dense: Dense,
    methods: Sequence[Method],
    *,
    steps: Sequence[float],
    most: int,
    engine: Mapping[str, Any],
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Row]:
    """Return the rows of methods over sessions of up to `most` sparse sweeps that the dense recording holds.

    Raises
    ------
    ConfigError, DependencyError, MissingFileError, InputFileError
        A method's device or weights cannot be opened.
    GeometryError
        The recording holds no sparse sweep.
    """
    rows: list[Row] = []
    done, total = 0, len(steps) * len(methods)
    for step in steps:
        made = sparse_sweeps(dense, step, most)
        sweeps = [sweep for sweep, _ in made]
        shown = shown_sweeps(len(sweeps))
        operator = dense.header.operator_at(dense.stage)
        slices = seen_slices(operator[made[0][1]])
        for method in methods:
            progress(done, total, method.name)
            done += 1
            wanted = sweeps if method.learns(engine) else [sweeps[number] for number in shown]
            opened = method.open(engine)
            for number, volume in method.over_time(dense.header, wanted, engine, engine=opened):
                if number in shown:
                    key = {"method": method.name, "step": step, "sweep": number + 1}
                    about = {"slabs": len(sweeps[number].stage)}
                    rows.append(key | about | compare(dense, volume, slices))
    progress(total, total, "done")
    return rows


def compare_run(dense: Dense, name: str, volumes: Iterable[tuple[int, NDArray[np.float32]]]) -> Iterator[Row]:
    """Yield the rows of a run's volumes (Z, Y, X) by time point."""
    for number, volume in volumes:
        yield {"method": name, "step": float("nan"), "sweep": number + 1} | compare(dense, volume)


def against_markdown(dense: Dense, rows: Sequence[Row]) -> str:
    """Return what the reference is, the table, and each method's last row in sentences."""
    lines = [_about(dense), ""]
    for step in dict.fromkeys(str(row["step"]) for row in rows):
        mine = [row for row in rows if str(row["step"]) == step]
        lines += [f"## Step {float(step):g}", ""] if step != "nan" else ["## The run", ""]
        lines += [*_table(mine), ""]
        last = {row["method"]: row for row in mine}
        lines += [f"- {said(row)}" for row in last.values()] + [""]
    return "\n".join(lines)


def said(row: Mapping[str, Any]) -> str:
    """Return a row in sentences."""
    parts = [
        f"`{row['method']}`, sweep {row['sweep']}: is off by {100 * row['error']:.1f} % of the range (rms)"
    ]
    if np.isfinite(row["bright_error"]):
        parts[0] += f", by {100 * row['bright_error']:.1f} % where the specimen is bright"
        parts.append(f"a structure of 100 % is told as {100 * row['slope']:.0f} %")
    if row["spots"]:
        parts.append(f"of {count_noun(row['spots'], 'spot')} of the reference it hides {row['hidden']}")
    if row["shown"]:
        shown = count_noun(row["shown"], "spot")
        parts.append(f"of {shown} that it shows {row['invented']} are not in the reference")
    if np.isfinite(row["prediction"]):
        parts.append(
            f"it predicts frames that nobody had seen to {row['prediction']:.2f} times their noise, the "
            f"reference to {row['reference_prediction']:.2f}"
        )
    return "; ".join(parts) + "."


def _about(dense: Dense) -> str:
    judged = int(dense.judge.sum())
    return (
        f"Reference: {len(dense.stage) - judged} frames, slabs of {dense.slab:.3g} slices at most "
        f"{dense.apart:.2g} apart, by total variation; {judged} more were held out. References of half of "
        f"the frames differ so that each is off by {100 * dense.own_error:.1f} % of the range at least: "
        f"smaller errors cannot be told. A spot stands out by {SPOT:.0%} of the range and fits into a ball "
        "of 3 voxels' radius; hidden and invented are those of which less than half is there."
    )


def _table(rows: Sequence[Row]) -> list[str]:
    titles = ["method", "sweep", *(title for title, _, _ in _COLUMNS.values()), "hidden", "invented"]
    table = []
    for row in rows:
        cells = [f"`{row['method']}`", str(row["sweep"])]
        cells += [f"{times * row[key]:.{digits}f}" for key, (_, times, digits) in _COLUMNS.items()]
        cells += [f"{row['hidden']} of {row['spots']}", f"{row['invented']} of {row['shown']}"]
        table.append(cells)
    return markdown_table(titles, table)
