"""Recordings held against a dense one of the same specimen: what `mdd evaluate --against` does.

The first channel and position of each count. One thread; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.offline.sweeps import open_recorded
from microdiffusion.errors import InputFileError
from microdiffusion.runfile import open_run, require_run_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from microdiffusion.engines.evaluation import Dense, Method

Progress = Callable[[int, int, str], None]


def read_dense(path: Path, crop: tuple[int, int] | None) -> Dense:
    """Return the reference that all sweeps of a run file or projection file give together.

    Raises
    ------
    InputFileError, MissingFileError
        It is neither, damaged, or has no sweep.
    ConfigError
        It is not dense.
    """
    from microdiffusion.engines.evaluation import dense_reference

    with open_recorded(path) as recorded:
        keys = [key for key in recorded.keys if (key.channel, key.position) == (0, 0)]
        if not keys:
            raise InputFileError(f"{path} holds no frame of its first channel and position: record it again.")
        return dense_reference(recorded.header, [recorded.sweep(key) for key in keys], crop)


def hold_against(
    dense: Dense,
    run: Path | None,
    methods: Sequence[Method],
    *,
    steps: Sequence[float],
    most: int,
    engine: Mapping[str, Any],
    progress: Progress = lambda done, total, text: None,
) -> list[dict[str, Any]]:
    """Return the rows of a run's volumes, or, without one, of methods on sparse parts of the recording.

    Raises
    ------
    InputFileError, MissingFileError, ConfigError
        The run is none, holds no volume, or has other voxels.
    GeometryError
        The recording holds no sparse sweep.
    """
    from microdiffusion.engines.evaluation import compare_run, evaluate_against, in_the_middle, same_grid

    if run is None:
        return evaluate_against(dense, methods, steps=steps, most=most, engine=engine, progress=progress)
    require_run_file(run)
    with open_run(run) as opened:
        whole = (opened.header.shape[0], *dense.whole)
        same_grid(dense.header.model_copy(update={"shape": whole}), opened.header)
        written = [int(number) for number in opened.written(0)][:most]
        if not written:
            raise InputFileError(
                f"{run} holds no volume to score: see mdd info, or run mdd reconstruct first."
            )

        def volumes() -> Iterator[tuple[int, NDArray[np.float32]]]:
            for done, number in enumerate(written):
                progress(done, len(written), f"volume {number}")
                volume = opened.volume[number]
                yield number, in_the_middle(dense, volume if volume.ndim == 3 else volume[0])

        return list(compare_run(dense, run.name, volumes()))
