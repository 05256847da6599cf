"""Both directions of a session: the first sweep as good as the last, what changed meanwhile kept apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from support.session_scene import Volume, psnr, run, session, specimen, spot, sweep_of

from microdiffusion.engines.inr.smoother import Trail
from microdiffusion.frames import Reconstruction


def both_ways(truth: Callable[[int], Volume], sweeps: int, folder: Path) -> list[Reconstruction]:
    reconstructor = session("session")
    sweeps_of = [sweep_of(truth(number), number) for number in range(sweeps)]
    with Trail(folder) as trail:
        for sweep in sweeps_of:
            reconstructor.look_ahead(sweep, trail)
        found = [reconstructor.reconstruct(sweep, trail=trail) for sweep in reversed(sweeps_of)]
    assert not any(folder.iterdir())
    return found[::-1]


def test_the_first_sweep_of_a_still_specimen_is_as_good_as_the_last(tmp_path: Path) -> None:
    truth = specimen()
    live = [psnr(result, truth) for result in run(lambda number: truth, 10)]
    results = both_ways(lambda number: truth, 10, tmp_path)
    scores = [psnr(result, truth) for result in results]
    assert scores[0] > live[0] + 3.0
    assert scores[0] > scores[9] - 0.5
    assert min(np.array(scores) - live) > -0.2
    assert results[0].still > 0.8
    assert results[9].volume == pytest.approx(run(lambda number: truth, 10)[9].volume, abs=2e-3)


def test_what_is_there_for_some_sweeps_is_in_no_others(tmp_path: Path) -> None:
    structure = specimen()
    centre = tuple(
        int(each)
        for each in np.argwhere(ndimage.minimum_filter(structure, 7) == structure.min())[0].clip(8, 23)
    )
    place = spot((centre[0], centre[1], centre[2]))

    def truth(number: int) -> Volume:
        return np.asarray(structure + 0.8 * place * (5 <= number < 9), np.float32)

    results = both_ways(truth, 14, tmp_path)
    light = np.array([(result.volume - structure)[place > 0.6].mean() for result in results])
    there = np.array([5 <= number < 9 for number in range(14)])
    assert light[there].min() > 0.3
    assert np.abs(light[~there]).max() < 0.15


def test_a_drift_is_known_in_both_directions(tmp_path: Path) -> None:
    structure = specimen()

    def truth(number: int) -> Volume:
        return np.asarray(
            ndimage.shift(structure, (0.1 * number, 0.1 * number, 0.0), order=3, mode="nearest"), np.float32
        )

    live = run(truth, 12)
    results = both_ways(truth, 12, tmp_path)
    gains = [
        psnr(a, truth(n)) - psnr(b, truth(n)) for n, (a, b) in enumerate(zip(results, live, strict=True))
    ]
    assert gains[0] > 3.0
    assert np.mean(gains) > 0.5
    assert [result.drift for result in results] == [result.drift for result in live]


def test_a_sweep_that_was_not_looked_at_is_named(tmp_path: Path) -> None:
    with Trail(tmp_path) as trail, pytest.raises(KeyError):
        session("session").reconstruct(sweep_of(specimen(), 3), trail=trail)
