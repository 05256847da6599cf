"""The plan: where slabs lie, what is held out, and the events that take them."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion.config.models import Config
from microdiffusion.drivers.plan import Plan, frame_key, load_profile
from microdiffusion.errors import GeometryError, InputFileError, MissingFileError


def make(**tables: Any) -> Config:
    return Config.model_validate(tables)


def test_even_sweeps_start_at_the_volumes_edge_and_odd_ones_half_a_step_deeper() -> None:
    sweep = {"length_um": 12, "offsets": "alternate", "hold_out_every": 0}
    plan = Plan(make(sweep=sweep, volume={"shape_z": 48, "voxel_z_um": 2}))
    even, odd = ([slab.stage.z_um for slab in plan.slabs(number)] for number in (0, 1))
    np.testing.assert_allclose(even, -1 + 6 + 12 * np.arange(8))
    np.testing.assert_allclose(odd, np.array(even[:-1]) + 6)
    assert plan.slabs(2) == plan.slabs(0)


def test_golden_offsets_lie_evenly_whichever_sweeps_are_taken_in_a_row() -> None:
    plan = Plan(make(sweep={"length_um": 12, "hold_out_every": 0}, volume={"shape_z": 48, "voxel_z_um": 2}))
    starts = np.array([plan.slabs(number)[0].stage.z_um for number in range(26)])
    np.testing.assert_array_equal(starts[13:], starts[:13])
    assert starts.min() == 5.0
    for many in (2, 3, 5, 8, 13):
        for first in range(13):
            places = np.sort(starts[first : first + many])
            gaps = np.diff([*places, places[0] + 12.0])
            assert gaps.max() / gaps.min() <= 3.0
    assert len(np.unique(starts)) == 13


def test_with_fixed_offsets_all_sweeps_are_alike() -> None:
    plan = Plan(make(sweep={"offsets": "fixed", "hold_out_every": 0}))
    assert plan.slabs(0) == plan.slabs(1)


def test_the_held_out_frame_is_last_and_half_way_between_neighbours() -> None:
    plan = Plan(make(sweep={"hold_out_every": 3}))
    for number in range(12):
        slabs = plan.slabs(number)
        flags = [slab.held_out for slab in slabs]
        if number % 3:
            assert not any(flags)
            continue
        assert flags == [False] * (len(slabs) - 1) + [True]
        *centres, extra = (slab.stage.z_um for slab in slabs)
        assert np.sort(np.abs(np.array(centres) - extra))[:2] == pytest.approx([6.0, 6.0])


@given(
    every=st.integers(1, 6),
    slabs=st.integers(2, 40),
    overlap=st.floats(0, 0.7),
)
def test_held_out_places_visit_every_pair_before_one_comes_again(
    every: int, slabs: int, overlap: float
) -> None:
    plan = Plan(
        make(
            sweep={"hold_out_every": every, "overlap": overlap, "offsets": "fixed"},
            volume={"shape_z": 6 * slabs},
        )
    )
    pairs = len(plan.slabs(0)) - 2
    places = [plan.slabs(turn * every)[-1].stage for turn in range(2 * pairs)]
    assert len(set(places[:pairs])) == pairs
    assert places[pairs:] == places[:pairs]
    assert all(a != b for a, b in pairwise(places)) or pairs == 1


@given(
    length=st.floats(2, 40),
    overlap=st.floats(0, 0.8),
    every=st.integers(0, 5),
    sweeps=st.integers(1, 9),
)
def test_no_sweep_has_more_frames_than_announced_and_all_slabs_lie_inside(
    length: float, overlap: float, every: int, sweeps: int
) -> None:
    config = make(
        sweep={"length_um": length, "overlap": overlap, "hold_out_every": every},
        volume={"shape_z": 48, "voxel_z_um": 2.0, "z0_um": -17.0},
        acquisition={"sweeps": sweeps},
    )
    plan = Plan(config)
    taken = list(plan.sweeps())
    assert len(taken) == sweeps
    for sweep in taken:
        assert 1 <= len(sweep.shots) <= plan.frames_per_sweep_max
        for shot in sweep.shots:
            assert shot.info.stage.z_um - length / 2 >= -18.0 - 1e-6
            assert shot.info.stage.z_um + length / 2 <= 78.0 + 1e-6


def test_sequence_numbers_run_on_over_sweeps_channels_and_positions() -> None:
    config = make(
        acquisition={
            "channel_group": "Channel", "channels": ["FITC", "DAPI"], "positions_um": [[0, 0], [50, -20]],
            "sweeps": 3, "sweep_interval_s": 2.5, "exposure_ms": 7,
        },
    )  # fmt: skip
    sweeps = list(Plan(config).sweeps())
    shots = [shot for sweep in sweeps for shot in sweep.shots]
    assert [shot.info.seq for shot in shots] == list(range(len(shots)))
    assert [sweep.start_s for sweep in sweeps] == [0.0, 2.5, 5.0]
    assert len({frame_key(shot.event["axes"]) for shot in shots}) == len(shots)
    for shot in shots:
        assert shot.event["z"] == shot.info.stage.z_um
        assert shot.event["exposure"] == shot.info.exposure_ms == 7
        assert shot.event["config_group"] == ["Channel", ("FITC", "DAPI")[shot.info.channel]]
        assert (shot.event["x"], shot.event["y"]) == ((0, 0), (50, -20))[shot.info.position]
        assert shot.event["axes"]["z"] == shot.info.index < shot.info.count
    # Stage moves cost most, so positions are the outermost loop.
    order = [(shot.info.position, shot.info.channel) for shot in sweeps[0].shots]
    assert order == sorted(order)


@given(first=st.integers(0, 7), seq=st.integers(0, 1 << 40), every=st.integers(0, 3))
def test_a_run_that_is_gone_on_with_has_the_plan_it_began_with(first: int, seq: int, every: int) -> None:
    plan = Plan(make(acquisition={"sweeps": 7, "sweep_interval_s": 2.0}, sweep={"hold_out_every": every}))
    whole = list(plan.sweeps())[first:]
    rest = list(plan.sweeps(first=first, seq=seq))
    assert [sweep.number for sweep in rest] == list(range(first, 7))
    assert [sweep.start_s for sweep in rest] == [2.0 * turn for turn in range(7 - first)]
    assert [shot.event for sweep in rest for shot in sweep.shots] == [
        shot.event for sweep in whole for shot in sweep.shots
    ]
    infos = [shot.info for sweep in rest for shot in sweep.shots]
    assert [info.seq for info in infos] == list(range(seq, seq + len(infos)))
    assert [info.held_out for info in infos] == [
        shot.info.held_out for sweep in whole for shot in sweep.shots
    ]


def test_a_plain_run_has_neither_channel_nor_position_axis() -> None:
    shot = next(Plan(make()).sweeps()).shots[0]
    assert set(shot.event["axes"]) == {"time", "z"}
    assert not {"x", "y", "config_group"} & set(shot.event)


def test_an_endless_run_goes_on() -> None:
    last = list(islice(Plan(make()).sweeps(), 5000))[-1]
    assert last.number == 4999


def test_a_slab_longer_than_the_volume_is_refused() -> None:
    with pytest.raises(GeometryError, match="does not fit"):
        Plan(make(sweep={"length_um": 200}))


TABLES = {
    "symmetric": ([-2, -1, 0, 1, 2], 5.0, [1, 2, 3, 2, 1]),
    "leans to the right": ([-1, 0, 1, 2], 5.0, [0, 1, 2, 3, 2]),
    "leans to the left": ([-3, -2, -1, 0], 7.0, [1, 2, 3, 2, 0, 0, 0]),
    "half a bin off": ([-1.5, -0.5, 0.5, 1.5], 4.0, [1, 2, 3, 2]),
}


@pytest.mark.parametrize(("z", "length", "expected"), TABLES.values(), ids=TABLES)
def test_a_measured_profile_has_the_stage_position_in_its_middle(
    tmp_path: Path, z: list[float], length: float, expected: list[float]
) -> None:
    values = [1, 2, 3, 2, 1][: len(z)]
    path = tmp_path / "beam.txt"
    path.write_text("# z  intensity\n" + "\n".join(f"{a} {b}" for a, b in zip(z, values, strict=True)))
    profile = load_profile(make(sweep={"axial_profile": str(path)}).sweep)
    assert profile.length_um == pytest.approx(length)
    np.testing.assert_allclose(profile.weights, np.array(expected) / sum(expected))


BAD_TABLES = {
    "words": "a b\n",
    "one column": "1\n2\n3\n",
    "empty": "",
    "not a number": "0 1\n1 nan\n",
    "negative": "0 1\n1 -1\n",
    "uneven": "0 1\n1 1\n3 1\n",
    "descending": "1 1\n0 1\n",
    "far from the focus": "1000 1\n1001 1\n",
}


@pytest.mark.parametrize("text", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_profile_that_is_no_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "beam.txt"
    path.write_text(text)
    with pytest.raises(InputFileError, match=r"beam\.txt"):
        load_profile(make(sweep={"axial_profile": str(path)}).sweep)


def test_a_missing_profile_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.txt"):
        load_profile(make(sweep={"axial_profile": str(tmp_path / "nowhere.txt")}).sweep)
