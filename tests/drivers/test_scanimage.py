"""ScanImage's TIFF files, written by its specification and followed while they grow."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.driver_support import SLABS_UM, Daemon, Watch, wait_until
from support.scanimage_files import ScanImageWriter, scan_of

from microdiffusion.drivers.passive.geometry import Image
from microdiffusion.drivers.passive.scanimage_tail import GrowingSeries, begins_recording
from microdiffusion.errors import AcquisitionError

TWO_CHANNELS = {"hChannels__channelSave": "[1;3]"}
FLYBACK = {"hStackManager__numFramesPerVolumeWithFlyback": "6"}
SLOW = {"hFastZ__enable": "false", "hStackManager__stackMode": "'slow'", **FLYBACK}  # which it does not have
LOOP = {"acqState": "'loop'", "acqsPerLoop": "3"}


def write(path: Path, numbers: Any = range(1, 13), acquisition: int = 1, **options: Any) -> Path:
    """Write the frames of these numbers, the last one as the end of the acquisition, and close the file."""
    settings_ = {name: value for name, value in options.items() if name not in ("channels", "end")}
    writer = ScanImageWriter(path, **settings_)
    for number in numbers:
        for channel in range(options.get("channels", 1)):
            is_end = options.get("end", True) and number == numbers[-1]
            writer.put(scan_of(10 * number + channel), number, acquisition, end=is_end)
    writer.close()
    return path


def read(path: Path) -> list[Image]:
    """Return all images of a recording."""
    with closing(GrowingSeries(path)) as series:
        return list(series.images())


def counts_of(number: int, channel: int = 0) -> Any:
    return (scan_of(10 * number + channel).astype(int) + 32768).astype(np.uint16)


def places(images: list[Image]) -> list[tuple[Any, ...]]:
    return [tuple(image.axes[axis] for axis in image.axes) for image in images]


# The files ------------------------------------------------------------------------------------------


def test_what_the_tests_write_is_scanimages_for_others_too(tmp_path: Path) -> None:
    with tifffile.TiffFile(write(tmp_path / "scan_00001.tif")) as file:
        assert file.is_scanimage
        assert len(file.pages) == 12
        assert file.scanimage_metadata["FrameData"]["SI.hStackManager.zs"] == [6, 18, 30, 42]
        np.testing.assert_array_equal(file.pages[3].asarray(), scan_of(40))


def test_signed_pixels_depth_and_time_come_from_the_headers(tmp_path: Path) -> None:
    images = read(write(tmp_path / "scan_00001.tif"))
    assert places(images) == [(t, z) for t in range(3) for z in range(4)]
    for number, image in enumerate(images, 1):
        assert image.pixels.dtype == np.uint16
        np.testing.assert_array_equal(image.pixels, counts_of(number))
    assert images[0].pixels.min() < 32768  # a negative pixel stays below the others
    assert [image.stage.z_um for image in images[:4] if image.stage] == list(SLABS_UM)
    assert images[5].number(("PixelSize_um",)) == 0.5
    assert images[5].number(("ElapsedTime-ms",)) == pytest.approx(165.0)


def test_channels_vary_fastest_and_flyback_frames_are_left_out(tmp_path: Path) -> None:
    images = read(write(tmp_path / "scan_00001.tif", channels=2, **TWO_CHANNELS, **FLYBACK))
    assert places(images) == [(t, z, c) for t in range(2) for z in range(4) for c in (1, 3)]
    np.testing.assert_array_equal(images[-1].pixels, counts_of(10, 1))  # frames 5, 6, 11 and 12 are flyback


BEFORE_2020: dict[str, str | None] = {
    "hStackManager__numFramesPerVolume": None,
    "hStackManager__numFramesPerVolumeWithFlyback": None,
    "hStackManager__actualNumSlices": None,
    "hStackManager__numSlices": "4",
}


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        pytest.param(
            {
                "hFastZ__numDiscardFlybackFrames": "2",
                "hFastZ__numFramesPerVolume": "6",
                "hStackManager__framesPerSlice": "20",  # only of slow stacks
            },
            2,
            id="two",
        ),
        pytest.param(
            {
                "hFastZ__discardFlybackFrames": "false",
                "hFastZ__numDiscardFlybackFrames": "1",
                "hFastZ__numFramesPerVolume": "4",
            },
            3,
            id="none, whatever its number",
        ),
    ],
)
def test_flyback_frames_of_versions_before_2020_are_left_out(
    tmp_path: Path, changes: dict[str, str], times: int
) -> None:
    images = read(write(tmp_path / "scan_00001.tif", **BEFORE_2020, **changes))
    assert places(images) == [(t, z) for t in range(times) for z in range(4)]


@pytest.mark.parametrize(("slices", "times"), [("4", 3), ("1", 12)])
def test_an_old_slow_stack_is_known_by_its_slices(tmp_path: Path, slices: str, times: int) -> None:
    older = BEFORE_2020 | {
        "hFastZ__enable": "false",
        "hStackManager__enable": None,
        "hStackManager__numSlices": slices,
        "hStackManager__framesPerSlice": "1" if slices == "4" else "600",
    }
    assert places(read(write(tmp_path / "scan_00001.tif", **older))) == [
        (t, z) for t in range(times) for z in range(int(slices))
    ]


@pytest.mark.parametrize("rois", ['[{"name": "a"}]', '{"name": "a"}'])
def test_a_single_region_is_read_although_mroi_is_on(tmp_path: Path, rois: str) -> None:
    # As on mesoscopes, where it always is; the header's lines and fields of view are of another scan then.
    group = f'{{"RoiGroups": {{"imagingRoiGroup": {{"rois": {rois}}}}}}}'
    images = read(write(tmp_path / "scan_00001.tif", hRoiManager__mroiEnable="1", rois=group))
    assert places(images) == [(t, z) for t in range(3) for z in range(4)]
    assert images[0].number(("PixelSize_um",)) is None


def test_the_size_of_a_pixel_is_that_of_the_saved_ones(tmp_path: Path) -> None:
    # Lines that are averaged are fewer in the image than in the header.
    averaged = {"hScan2D__LineAveragingLineCount": "2", "hRoiManager__linesPerFrame": "32"}
    images = read(write(tmp_path / "scan_00001.tif", **averaged))
    assert images[0].number(("PixelSize_um",)) == 0.5


def test_a_slow_stack_that_averages_has_a_frame_for_each_slice(tmp_path: Path) -> None:
    averaged = {
        **SLOW,
        "hScan2D__logAverageFactor": "5",
        "hStackManager__framesPerSlice": "5",
        "hStackManager__numFramesPerVolume": "20",
        "hStackManager__numFramesPerVolumeWithFlyback": "22",
        "hStackManager__zs": f"[{' '.join(f'{z:g}' for z in SLABS_UM for _ in range(5))}]",
    }
    images = read(write(tmp_path / "scan_00001.tif", range(5, 41, 5), **averaged))
    assert places(images) == [(t, z) for t in range(2) for z in range(4)]
    assert [image.stage.z_um for image in images[:4] if image.stage] == list(SLABS_UM)


def test_frames_that_are_missing_leave_the_others_in_their_places(tmp_path: Path) -> None:
    images = read(write(tmp_path / "scan_00001.tif", [1, 2, 4, 5, 8]))
    assert places(images) == [(0, 0), (0, 1), (0, 3), (1, 0), (1, 3)]


def test_a_recording_goes_on_in_the_next_file(tmp_path: Path) -> None:
    first = write(tmp_path / "scan_00002_00001.tif", range(1, 8), end=False)
    write(tmp_path / "scan_00002_00002.tif", range(8, 13))
    write(tmp_path / "scan_00003_00001.tif", range(1, 5))  # another recording
    assert places(read(first)) == [(t, z) for t in range(3) for z in range(4)]
    (tmp_path / "scan_00002_00002.tif").rename(tmp_path / "scan_00002_00003.tif")
    with pytest.raises(AcquisitionError, match=r"A file before scan_00002_00003.tif is missing"):
        read(first)


def test_the_acquisitions_of_a_loop_are_one_recording(tmp_path: Path) -> None:
    files = [tmp_path / f"scan_{number:05d}.tif" for number in (1, 2, 3, 4)]
    for acquisition, path in enumerate(files[:3], 1):
        # The second one was aborted after half of its volume.
        write(path, range(1, 5 if acquisition != 2 else 3), acquisition, end=acquisition != 2, **SLOW, **LOOP)
    write(files[3], range(1, 5), 1, **SLOW, **LOOP)  # the next loop
    assert [begins_recording(path) for path in files] == [True, False, False, True]
    assert places(read(files[0])) == [
        *((0, z) for z in range(4)), (1, 0), (1, 1), *((2, z) for z in range(4)),
    ]  # fmt: skip


REFUSED: dict[str, tuple[dict[str, str | None], str]] = {
    "several frames a slice": (
        {"hStackManager__framesPerSlice": "5", "hStackManager__numFramesPerVolume": "20", **SLOW},
        "saves 20 images for 4 slices: .* log average factor",
    ),
    "averaged flyback": (
        {
            "hScan2D__logAverageFactor": "2",
            "hStackManager__numFramesPerVolume": "8",
            "hStackManager__numFramesPerVolumeWithFlyback": "9",
        },
        "set the log average factor to 1",
    ),
    "several frames a slice of a fast stack": (
        {"hStackManager__framesPerSlice": "2", "hStackManager__numFramesPerVolume": "8", **FLYBACK},
        "saves 8 images for 4 slices: .* set the frames per slice to 1",
    ),
    "mROI": (
        {"hRoiManager__mroiEnable": "1", "rois": '{"RoiGroups": {"imagingRoiGroup": {"rois": [{}, {}]}}}'},
        "mROI",
    ),
    "mROI of unknown regions": ({"hRoiManager__mroiEnable": "1", "rois": '{"RoiGroups": 5}'}, "mROI"),
    "no depths": ({"hStackManager__zs": None}, "depth of 0 of 4 slices"),
    "an endless depth": ({"hStackManager__zs": "[6 18 30 1e999]"}, "depth of 3 of 4 slices"),
    "a negative number of slices and no depths": (
        {
            "hStackManager__actualNumSlices": "-4",
            "hStackManager__numSlices": "-4",
            "hStackManager__numFramesPerVolume": None,
            "hStackManager__zs": "[]",
        },
        "depth of 0 of 1 slice ",
    ),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AcquisitionError, match=words):
        read(write(tmp_path / "scan_00001.tif", **changes))


def test_a_disk_that_gives_little_at_a_time_gives_whole_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sparing(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            return super().read(min(size, 100))

    path = write(tmp_path / "scan_00001.tif")
    monkeypatch.setattr(Path, "open", lambda place, *_, **__: Sparing(place))
    images = read(path)
    assert places(images) == [(t, z) for t in range(3) for z in range(4)]
    np.testing.assert_array_equal(images[-1].pixels, counts_of(12))


def test_numbers_without_sense_are_none(tmp_path: Path) -> None:
    images = read(write(tmp_path / "scan_00001.tif", hChannels__channelSave="1e999", end=False))
    assert places(images) == [(t, z) for t in range(3) for z in range(4)]
    with closing(GrowingSeries(write(tmp_path / "scan_00002.tif", [1, 10**300, 2]))) as series:
        assert places(list(series.images())) == [(0, 0), (0, 1)]
        assert series.damaged == 1


def test_pixels_of_another_kind_and_other_tiffs_are_refused(tmp_path: Path) -> None:
    writer = ScanImageWriter(tmp_path / "float_00001.tif")
    writer.put(scan_of(1).astype(np.float32), 1)
    writer.close()
    with pytest.raises(AcquisitionError, match="not signed 16 bit"):
        read(tmp_path / "float_00001.tif")
    tifffile.imwrite(tmp_path / "other_00001.tif", scan_of(1))
    assert begins_recording(tmp_path / "other_00001.tif") is False
    with pytest.raises(AcquisitionError, match="not a BigTIFF file of ScanImage"):
        read(tmp_path / "other_00001.tif")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "scan_00001.tif"
    return write(path, channels=2, **TWO_CHANNELS, **FLYBACK).read_bytes()


@settings(max_examples=60)
@given(data=st.data())
def test_wherever_writing_stands_only_whole_images_come_and_all_of_them_at_last(
    tmp_path_factory: pytest.TempPathFactory, written: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("growing") / "scan_00001.tif"
    path.touch()
    series, found = GrowingSeries(path), []
    for cut in sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=5))):
        with path.open("r+b") as file:
            file.write(written[:cut])
        found += series.images()
        assert not series.is_complete or cut == len(written)
    with path.open("r+b") as file:
        file.write(written)
    found += series.images()
    assert series.is_complete
    series.close()
    assert places(found) == [(t, z, c) for t in range(2) for z in range(4) for c in (1, 3)]
    assert series.damaged == 0
    for image, (t, z, c) in zip(found, places(found), strict=True):
        np.testing.assert_array_equal(image.pixels, counts_of(1 + 6 * t + z, c // 2))


@settings(max_examples=80)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=4, max_size=4)), max_size=5))
def test_whatever_a_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, written: bytes, changes: list[tuple[int, bytes]]
) -> None:
    content = bytearray(written)
    for at, change in changes:
        place = at % len(content)
        content[place : place + 4] = change
    path = tmp_path_factory.mktemp("hostile") / "scan_00001.tif"
    path.write_bytes(content)
    begins_recording(path)
    with closing(GrowingSeries(path)) as series, suppress(AcquisitionError):
        assert sum(1 for _ in series.images()) <= 24


# Following ------------------------------------------------------------------------------------------


def test_a_recording_is_followed_while_it_grows_and_then_the_next(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    follower = watch(tmp_path, camera={"offset": 5.0, "gain": 20.0}, volume={"pixel_um": None})
    follower.wait_for_note("waiting for a data set")
    for recording in (1, 2):
        came, number = len(daemon.frames), 0
        for part in (1, 2):
            writer = ScanImageWriter(tmp_path / f"bessel_{recording:05d}_{part:05d}.tif", **TWO_CHANNELS)
            for _ in range(6):
                number += 1
                for channel in range(2):
                    writer.put(scan_of(10 * number + channel), number, end=number == 12)
            assert wait_until(lambda count=came + 2 * number: len(daemon.frames) == count)
            writer.close()
        assert wait_until(lambda recording=recording: len(daemon.ends) == recording)
    header = daemon.headers[0]
    assert len(daemon.headers) == 2
    assert (header.channels, header.frames_per_sweep) == (("1", "3"), 4)
    assert header.voxel_size_um == (2.0, 0.5, 0.5)
    assert (header.camera.offset, header.camera.gain) == (32773.0, 20.0)
    assert header.source == "ScanImage recording bessel_00001_00001.tif"
    for index, frame in enumerate(daemon.frames[:24]):
        info = frame.info
        assert (info.sweep, info.index, info.channel) == (index // 8, index // 2 % 4, index % 2)
        assert info.stage.z_um == SLABS_UM[info.index]
        np.testing.assert_array_equal(frame.pixels, counts_of(index // 2 + 1, index % 2))
    assert [(end.announced, end.dropped, end.reason) for end in daemon.ends] == 2 * [(24, 0, "finished")]


def test_a_file_is_read_to_its_end_and_one_that_was_aborted_ends_after_the_stated_silence(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    writer = ScanImageWriter(tmp_path / "scan_00001.tif")
    for number in range(1, 7):
        writer.put(scan_of(10 * number), number)
    writer.abandon()
    options = {"wire": {"silent_s": 0.5}, "acquisition": {"sweep_interval_s": 0.1}}
    follower = watch(tmp_path / "scan_00001.tif", **options)
    follower.join()
    assert follower.failure is None
    assert [(end.announced, end.reason) for end in daemon.ends] == [(6, "nothing new")]
    follower = watch(write(tmp_path / "scan_00002.tif"))
    follower.join()
    assert [(end.announced, end.reason) for end in daemon.ends[1:]] == [(12, "finished")]


def test_what_is_refused_is_told_and_the_next_recording_is_followed(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    follower = watch(tmp_path)
    follower.wait_for_note("waiting for a data set")
    write(tmp_path / "a_00001.tif", hRoiManager__mroiEnable="1")
    follower.wait_for_note("the data set a_00001.tif is skipped: ScanImage saves several regions")
    write(tmp_path / "b_00001.tif", hStackManager__zs="[106 118 130 142]")
    follower.wait_for_note(
        "the data set b_00001.tif is skipped: The slabs of the first time point reach from"
    )
    write(tmp_path / "c_00001.tif")
    assert wait_until(lambda: len(daemon.ends) == 1)
    assert len(daemon.frames) == 12
    assert re.search(r"c_00001", daemon.headers[-1].source)


def test_a_folder_that_goes_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AcquisitionError, match="cannot be read any more"):
        read(tmp_path / "gone" / "scan_00001.tif")


def test_a_disk_that_fails_is_told_and_the_next_recording_is_followed(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GrowingSeries.images

    def images(series: GrowingSeries) -> Iterator[Image]:
        for number, image in enumerate(whole(series)):
            if number == 5 and not daemon.ends:
                raise OSError(errno.EIO, "Input/output error")
            yield image

    monkeypatch.setattr(GrowingSeries, "images", images)
    follower = watch(tmp_path)
    follower.wait_for_note("waiting for a data set")
    write(tmp_path / "a_00001.tif")
    follower.wait_for_note("the data set a_00001.tif is skipped: The data set")
    assert wait_until(lambda: len(daemon.ends) == 1)
    write(tmp_path / "b_00001.tif")
    assert wait_until(lambda: len(daemon.ends) == 2)
    assert [end.reason for end in daemon.ends] == ["broken off", "finished"]


def test_recordings_that_are_over_are_left_alone(tmp_path: Path, watch: Callable[..., Watch]) -> None:
    path = write(tmp_path / "old_00001.tif")
    os.utime(path, (1e9, 1e9))
    watch(tmp_path).wait_for_note("1 finished data set is left alone (old_00001.tif)")
