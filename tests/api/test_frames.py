"""Stage positions: one value for a frame, one for a sweep, whatever axes they have."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from microdiffusion.frames import (
    FRAME_FIELDS,
    STAGE_AXES,
    FrameInfo,
    StagePosition,
    StagePositions,
    frame_info,
)

UNSORTED = StagePositions.along_z([30.0, 6.0, 18.0, 6.0])


def test_the_axes_of_the_stage_are_fields_of_a_frame_by_their_own_names() -> None:
    info = FrameInfo(seq=3, sweep=1, index=0, count=4, stage=StagePosition(4.5))
    values = {field.name: field.plain(info) for field in FRAME_FIELDS}
    assert values["z_um"] == 4.5
    assert values.keys() >= STAGE_AXES.keys()
    assert "stage" not in values
    assert frame_info(values) == info


def test_positions_are_one_value_for_all_frames_of_a_sweep() -> None:
    assert StagePositions.of(list(UNSORTED)).z_um.tolist() == [30, 6, 18, 6]
    assert list(UNSORTED[np.array([2, 0])]) == [StagePosition(18.0), StagePosition(30.0)]
    assert (UNSORTED[:1] + UNSORTED[3:]).z_um.tolist() == [30, 6]
    assert StagePositions.read(UNSORTED.columns).values.tolist() == UNSORTED.values.tolist()
    assert pickle.loads(pickle.dumps(UNSORTED)).z_um.tolist() == [30, 6, 18, 6]  # noqa: S301


def test_equal_positions_keep_their_order() -> None:
    assert UNSORTED.order().tolist() == [1, 3, 2, 0]
    assert sorted(UNSORTED) == list(UNSORTED[UNSORTED.order()])


@pytest.mark.parametrize(("z_um", "step_um"), [([], 0.0), ([4.0], 0.0), ([0.0, 6.0, 12.0, 30.0], 6.0)])
def test_the_step_is_the_usual_distance_of_neighbours(z_um: list[float], step_um: float) -> None:
    assert StagePositions.along_z(z_um).step_um == step_um


def test_distances_are_between_all_of_both() -> None:
    one, other = StagePositions.along_z([0.0, 10.0]), StagePositions.along_z([1.0, 4.0, 10.0])
    assert one.distances_um(other).tolist() == [[1, 4, 10], [9, 6, 0]]
    assert other.between(StagePositions.along_z([2.0, 10.0])).tolist() == [False, True, False]


def test_two_frames_at_one_depth_are_no_step() -> None:
    assert StagePositions.along_z([0.0, 0.0, 12.0, 12.0, 24.0, 24.0]).step_um == 12.0
    assert StagePositions.along_z([27.0, 27.0]).step_um == 0.0
