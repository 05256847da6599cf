"""Images of somebody else's acquisition: what its first time point shows, and what is refused."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.driver_support import SLABS_UM, Outbox, image_of, passive_config, pixels_of

from microdiffusion.drivers.passive.geometry import Image
from microdiffusion.drivers.passive.relay import PassiveRun
from microdiffusion.drivers.sending import DriverTask
from microdiffusion.errors import AcquisitionError, GeometryError, MddError
from microdiffusion.header import RunHeader


class Stage:
    """A `PassiveRun` and all that it does."""

    def __init__(self, **tables: Any) -> None:
        self.outbox = Outbox()
        self.headers: list[RunHeader] = []
        self.notes: list[str] = []

        stage = self

        class Task(DriverTask):
            def open_sender(self, header: RunHeader, **_: Any) -> Any:
                stage.headers.append(header)
                return stage.outbox

        task = Task(
            config=passive_config(**tables), address="", stop=threading.Event(), note=self.notes.append
        )
        self.run = PassiveRun(task, source="a test")

    def take(self, images: Sequence[Image]) -> None:
        for image in images:
            self.run.take(image)

    @property
    def places(self) -> list[tuple[int, int, int, int, int]]:
        return [
            (info.sweep, info.channel, info.position, info.index, info.count)
            for info, _ in self.outbox.put_frames
        ]


def sweep_of(time_point: int, slabs: int = 3, **more: Any) -> list[Image]:
    return [image_of(time_point, z, **more) for z in range(slabs)]


def test_the_first_time_point_is_held_back_until_it_has_shown_what_a_sweep_is() -> None:
    stage = Stage()
    stage.take(sweep_of(0))
    assert stage.headers == []
    stage.take([image_of(1, 0)])
    (header,) = stage.headers
    assert header.frames_per_sweep == 3
    assert header.shape == (24, 16, 24)
    assert header.voxel_size_um == (2.0, 0.5, 0.5)
    assert stage.outbox.started
    assert stage.places == [(0, 0, 0, 0, 3), (0, 0, 0, 1, 3), (0, 0, 0, 2, 3), (1, 0, 0, 0, 3)]


def test_images_that_are_as_planned_go_out_with_the_last_of_their_sweep() -> None:
    stage = Stage()
    stage.take(sweep_of(0, slabs=4))
    assert [info.seq for info, _ in stage.outbox.put_frames] == [0, 1, 2, 3]
    assert stage.notes[0].startswith(f"run {stage.headers[0].run_id} has begun: 4 slabs a sweep")


def test_what_the_metadata_say_goes_with_the_frame() -> None:
    stage = Stage()
    stage.take([image_of(0, z, z_um=SLABS_UM[z] + 0.05, metadata={"Exposure": 7.5}) for z in range(4)])
    info, pixels = stage.outbox.put_frames[2]
    assert (info.stage.z_um, info.exposure_ms, info.camera_time_s) == (30.05, 7.5, 0.02)
    np.testing.assert_array_equal(pixels, image_of(0, 2).pixels)


def test_micro_managers_own_names_are_understood() -> None:
    stage = Stage(volume={"pixel_um": None})
    stage.take(
        [
            Image(
                {"time": 0, "z": z, "channel": 0, "position": 0},
                {"ZPositionUm": SLABS_UM[z], "PixelSizeUm": 0.65, "Exposure-ms": 3, "ElapsedTime-ms": 20 * z},
                image_of(0, z).pixels,
            )
            for z in range(4)
        ]
    )
    stage.run.settle()
    assert stage.headers[0].voxel_size_um[1:] == (0.65, 0.65)
    assert [info.stage.z_um for info, _ in stage.outbox.put_frames] == list(SLABS_UM)
    assert stage.outbox.put_frames[0][0].exposure_ms == 3


def test_eight_bit_images_become_sixteen_and_are_copied() -> None:
    stage = Stage()
    pixels = np.full((16, 24), 200, np.uint8)
    stage.take(sweep_of(0, pixels=pixels))
    pixels[:] = 0
    stage.run.settle()
    for _, sent in stage.outbox.put_frames:
        assert sent.dtype == np.uint16
        assert (sent == 200).all()


def test_channels_and_positions_are_learnt_and_named() -> None:
    stage = Stage()
    for time_point in range(2):
        for position in range(2):
            for channel in ("GFP", "RFP"):
                stage.take(sweep_of(time_point, slabs=2, channel=channel, position=position))
    (header,) = stage.headers
    assert (header.channels, header.positions) == (("GFP", "RFP"), ("0", "1"))
    assert stage.places[:8] == [(0, c, p, z, 2) for p in range(2) for c in range(2) for z in range(2)]
    assert stage.run.unplaced == 0


def test_configured_channels_keep_their_order_and_positions_may_come_late() -> None:
    names = {"channel_group": "Channel", "channels": ["DAPI", "GFP"], "positions_um": [[0, 0], [1, 1]]}
    stage = Stage(acquisition=names)
    stage.take(sweep_of(0, channel="GFP", position=0) + sweep_of(1, channel="GFP", position=0))
    stage.take(sweep_of(0, channel="DAPI", position=1))
    assert stage.headers[0].channels == ("DAPI", "GFP")
    assert stage.places[-1] == (0, 0, 1, 2, 3)
    assert stage.run.unplaced == 0


def test_a_last_time_point_that_is_the_only_one_goes_out_at_the_end() -> None:
    stage = Stage()
    stage.take([Image({"z": z}, image_of(0, z).metadata, image_of(0, z).pixels) for z in range(2)])
    stage.run.settle()
    assert stage.places == [(0, 0, 0, 0, 2), (0, 0, 0, 1, 2)]


def test_time_points_are_counted_from_the_first_that_came() -> None:
    stage = Stage()
    stage.take(sweep_of(7) + sweep_of(8))
    assert [place[0] for place in stage.places] == [0, 0, 0, 1, 1, 1]


REFUSED: dict[str, tuple[dict[str, Any], list[Image], type[MddError], str]] = {
    "colour": ({}, sweep_of(0, pixels=np.zeros((16, 24, 3), np.uint8)), AcquisitionError, "in colour"),
    "float": ({}, sweep_of(0, pixels=np.zeros((16, 24))), AcquisitionError, "pixels are float64"),
    "outside": (
        {},
        [image_of(0, 0, z_um=100.0), image_of(0, 1, z_um=112.0)],
        GeometryError,
        r"from 94 to 118 µm, the volume from 0 to 48 µm: set volume.z0_um = 95 and volume.shape_z = 12",
    ),
    "two sizes": (
        {},
        [image_of(0, 0), image_of(0, 1, pixels=np.zeros((8, 8), np.uint16))],
        AcquisitionError,
        "different sizes",
    ),
    "another size": ({"camera": {"width": 32}}, sweep_of(0), AcquisitionError, "24 x 16 pixels, camera"),
    "another axis": ({}, [image_of(0, 0, tile=0), image_of(0, 0, tile=1)], AcquisitionError, "along an"),
    "no time axis": ({}, [image_of(0, 0), image_of(0, 0)], AcquisitionError, "have the same axes"),
    "time is a word": ({}, [Image({"time": "late"}, {}, pixels_of(0))] * 2, AcquisitionError, "'late'"),
    "no pixel size": (
        {"volume": {"pixel_um": None}},
        sweep_of(0, metadata={"PixelSize_um": 0}),
        AcquisitionError,
        "Pixel Size Calibration",
    ),
    "no stage": (
        {},
        [Image({"time": 0, "z": z}, {}, image_of(0, z).pixels) for z in range(3)],
        AcquisitionError,
        r"do not say where the focus stage was .* a sweep of 3 is not the planned one of 4",
    ),
    "unknown channel": (
        {"acquisition": {"channel_group": "Channel", "channels": ["GFP"]}},
        sweep_of(0, channel="Cy5"),
        AcquisitionError,
        r"channel 'Cy5', acquisition.channels has GFP",
    ),
    "a slab skipped": (
        {},
        [image_of(t, z) for t in range(2) for z in (0, 1, 3)],
        AcquisitionError,
        "no slab z = 2, .* 24 µm from 1 to 3, where others are 12 µm apart",
    ),
    "too large": ({"wire": {"send_buffer_mb": 0.002}}, sweep_of(0), AcquisitionError, "wire.send_buffer_mb"),
}


@pytest.mark.parametrize(("tables", "images", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence_before_anything_is_sent(
    tables: dict[str, Any], images: list[Image], kind: type[MddError], text: str
) -> None:
    stage = Stage(**tables)

    def take_all() -> None:
        stage.take(images)
        stage.run.settle()

    with pytest.raises(kind, match=text) as caught:
        take_all()
    assert "\n" not in str(caught.value)
    assert not stage.outbox.started
    assert stage.outbox.put_frames == []


def test_images_without_a_stage_position_lie_where_they_are_planned() -> None:
    stage = Stage()
    stage.take([Image({"time": 0, "z": z}, {}, image_of(0, z).pixels) for z in range(4)])
    stage.run.settle()
    assert [info.stage.z_um for info, _ in stage.outbox.put_frames] == list(SLABS_UM)


def test_tiles_are_refused_also_where_the_first_of_them_is_what_was_planned() -> None:
    stage = Stage()
    with pytest.raises(AcquisitionError, match=r"along an axis that is not one of .*'tile'"):
        stage.take([*sweep_of(0, slabs=4, tile=0), *sweep_of(0, slabs=4, tile=1), image_of(1, 0, tile=0)])
    assert stage.headers == []


def test_a_channel_without_the_whole_stack_is_refused_by_name() -> None:
    stage = Stage()
    with pytest.raises(AcquisitionError, match="1 slab of channel RFP, position 0 and 3 of channel GFP"):
        stage.take(
            [*sweep_of(0, channel="GFP"), image_of(0, 1, channel="RFP"), image_of(1, 0, channel="GFP")]
        )
    assert stage.headers == []


NO_PLACE = {
    "another slab": image_of(1, 9),
    "another channel": image_of(1, 0, channel="Cy5"),
    "before the first": image_of(-1, 0),
    "another size": image_of(1, 0, pixels=np.zeros((9, 9), np.uint16)),
    "another type": image_of(1, 0, pixels=np.zeros((16, 24), np.float32)),
    "another axis": image_of(1, 0, tile=3),
}


@pytest.mark.parametrize("image", NO_PLACE.values(), ids=NO_PLACE)
def test_a_later_image_without_a_place_is_told_once_and_harms_nothing(image: Image) -> None:
    stage = Stage()
    stage.take([*sweep_of(0), image_of(1, 0), image, image, image_of(1, 1)])
    assert stage.run.unplaced == 2
    assert sum("has no place" in note for note in stage.notes) == 1
    assert [info.seq for info, _ in stage.outbox.put_frames] == [0, 1, 2, 3, 4]


def test_a_step_wider_than_the_slab_and_a_volume_deeper_than_the_sweep_are_told() -> None:
    stage = Stage()
    stage.take([image_of(0, 0, z_um=7.0), image_of(0, 1, z_um=27.0)])
    stage.run.settle()
    assert re.search(r"up to 8 µm between neighbouring slabs", stage.notes[0])
    assert re.search(r"15 µm at an end", stage.notes[1])


@given(order=st.permutations(range(8)), times=st.integers(1, 3))
def test_the_same_images_give_the_same_frames_whatever_their_order(order: list[int], times: int) -> None:
    images = [
        image_of(t, z, channel=c) for t in range(times) for c, z in (divmod(number, 4) for number in order)
    ]
    one, two = Stage(), Stage()
    for stage in (one, two):
        stage.take(images)
        stage.run.settle()
    assert one.outbox.put_frames[0][0] == two.outbox.put_frames[0][0]
    assert one.places == two.places
    assert len(set(one.places)) == len(images)
    assert one.run.unplaced == 0


# Depths and names ------------------------------------------------------------------------------------

OWN_RANGES = [
    *sweep_of(0, channel="GFP"),
    *(image_of(0, z, channel="RFP", z_um=SLABS_UM[z] + 20.0) for z in range(3)),
]


@pytest.mark.parametrize("images", [OWN_RANGES, OWN_RANGES[3:] + OWN_RANGES[:3]], ids=["last", "first"])
def test_a_channel_with_a_range_of_its_own_is_named_and_the_advice_fits_all(images: list[Image]) -> None:
    stage = Stage()
    stage.take(images)
    with pytest.raises(GeometryError, match=r"of channel RFP, position 0 reach from 20 to 56 µm") as refused:
        stage.run.settle()
    assert stage.headers == []
    z0_um, shape_z = re.search(
        r"z0_um = (\S+) and volume.shape_z = (\d+) for all", str(refused.value)
    ).groups()
    stage = Stage(volume={"z0_um": float(z0_um), "shape_z": int(shape_z)})
    stage.take(images)
    stage.run.settle()
    assert len(stage.outbox.put_frames) == 6


DEPTHS = {
    "all alike": ([27.0, 27.0, 27.0], "All 3 slabs of the first time point say 27 µm"),
    "two at each": ([6.0, 6.0, 18.0, 18.0], "The slabs 0 and 1 of the first time point are both at 6 µm"),
    "one comes back": ([6.0, 18.0, 6.0], "The slabs 0 and 2 of the first time point are both at 6 µm"),
}


@pytest.mark.parametrize(("depths", "words"), DEPTHS.values(), ids=DEPTHS)
def test_depths_that_say_nothing_are_refused_before_anything_is_sent(depths: list[float], words: str) -> None:
    stage = Stage()
    stage.take([image_of(0, z, z_um=z_um) for z, z_um in enumerate(depths)])
    with pytest.raises(AcquisitionError, match=words):
        stage.run.settle()
    assert stage.headers == []


def test_positions_known_by_name_have_their_places_when_visited_one_after_the_other() -> None:
    stage = Stage(acquisition={"positions_um": [[0, 0], [1, 1]]})
    for name in ("Pos-A", "Pos-B"):
        for time_point in range(2):
            stage.take(sweep_of(time_point, position=name))
    assert stage.headers[0].positions == ("Pos-A", "position 1")
    assert [place[2] for place in stage.places] == 6 * [0] + 6 * [1]
    assert stage.run.unplaced == 0


def test_slabs_may_be_numbered_by_their_depths() -> None:
    stage = Stage()
    stage.take([image_of(t, 12 * z, z_um=SLABS_UM[z]) for t in range(2) for z in range(4)])
    stage.run.settle()
    assert len(stage.outbox.put_frames) == 8


def test_what_is_left_out_is_counted_with_its_reason() -> None:
    stage = Stage()
    for name in ("Pos-A", "Pos-B"):
        for time_point in range(2):
            stage.take(sweep_of(time_point, position=name))
    stats = stage.run.finish("finished")
    assert stats.dropped == stage.run.unplaced == 6
    assert stage.outbox.finished == "finished; 6 images without a place in the run left out"
    assert "acquisition.positions_um" in stage.notes[-1]


def test_one_slab_where_more_are_planned_is_refused() -> None:
    stage = Stage()
    with pytest.raises(AcquisitionError, match=r"has one slab, .* plan 4: let the acquisition number"):
        stage.take([image_of(time_point, 0) for time_point in range(2)])
    assert stage.headers == []


def stacks_of(**slabs: int) -> list[Image]:
    return [image for name, count in slabs.items() for image in sweep_of(0, count, channel=name)]


@pytest.mark.parametrize("order", ["channels", "depths"])
@pytest.mark.parametrize("slabs", [(3, 2), (2, 3), (1, 4), (4, 4, 3), (4, 1, 4)], ids=str)
def test_a_channel_with_fewer_slabs_is_refused_by_name_before_anything_is_sent(
    slabs: tuple[int, ...], order: str
) -> None:
    names = ("GFP", "RFP", "CFP")[: len(slabs)]
    images = stacks_of(**dict(zip(names, slabs, strict=True)))
    if order == "depths":
        images.sort(key=lambda image: image.axes["z"])
    stage = Stage()
    fewest = names[slabs.index(min(slabs))]
    with pytest.raises(
        AcquisitionError, match=rf"{min(slabs)} slabs? of channel {fewest}, .* hold all"
    ) as no:
        stage.take([*images, image_of(1, 0, channel="GFP")])
    assert stage.headers == []
    assert stage.outbox.put_frames == []
    z0, shape_z = re.search(r"volume.z0_um = (\S+) and volume.shape_z = (\d+)", str(no.value)).groups()
    held = Stage(volume={"z0_um": float(z0), "shape_z": int(shape_z)})
    held.take([*(image_of(0, z, channel=name) for name in names for z in range(max(slabs)))])
    held.run.settle()
    assert held.places


def test_an_acquisition_that_ends_in_its_first_time_point_keeps_what_it_has() -> None:
    stage = Stage()
    stage.take(stacks_of(GFP=4, RFP=2))
    stage.run.settle()
    assert len(stage.places) == 6
    other = Stage()  # another channel follows, so the first was not cut off
    other.take(stacks_of(GFP=1, RFP=4))
    with pytest.raises(AcquisitionError, match="1 slab of channel GFP"):
        other.run.settle()


def test_an_image_that_cannot_be_read_does_not_make_a_channel_shorter() -> None:
    stage = Stage()
    stage.run.unread = 1
    stage.take(stacks_of(GFP=4, RFP=3))
    stage.take([image_of(1, 0, channel="GFP")])
    assert len(stage.places) == 8
