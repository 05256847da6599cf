"""Somebody else's acquisition, followed through the NDTiff data set that it saves."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.driver_support import SLABS_UM, Daemon, DatasetWriter, Watch, image_of, wait_until

from microdiffusion.daemon.commands.acquire import _judge as judge
from microdiffusion.drivers.passive.geometry import Image
from microdiffusion.drivers.passive.ndtiff_tail import INDEX, GrowingDataset, dataset_folder, is_complete
from microdiffusion.drivers.plan import ResumeFrom
from microdiffusion.errors import AcquisitionError, GeometryError, MissingFileError

IMAGES = [image_of(t, z) for t in range(2) for z in range(3)]


def write(root: Path, images: list[Image] = IMAGES, **options: Any) -> Path:
    """Write a data set to its end and return its folder."""
    writer = DatasetWriter(root, **options)
    for image in images:
        writer.put(image)
    writer.finish()
    return writer.folder


def tiff_of(folder: Path) -> Path:
    (path,) = folder.glob("*.tif")
    return path


def assert_same(found: list[Image], written: list[Image]) -> None:
    assert [image.axes for image in found] == [image.axes for image in written]
    for one, other in zip(found, written, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


# The files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes_in_metadata", [True, False], ids=["axes in the metadata", "axes in the index"])
def test_each_image_is_found_as_soon_as_it_is_written(tmp_path: Path, axes_in_metadata: bool) -> None:
    writer = DatasetWriter(tmp_path, axes_in_metadata=axes_in_metadata)
    dataset = GrowingDataset(writer.folder)
    assert list(dataset.images()) == []
    for image in IMAGES:
        writer.put(image)
        if not axes_in_metadata:
            writer.flush_index()
        assert_same(list(dataset.images()), [image])
        assert not dataset.is_complete
        assert not is_complete(writer.folder)
    writer.finish()
    assert list(dataset.images()) == []
    assert dataset.is_complete
    assert is_complete(writer.folder)
    dataset.close()


def test_an_index_that_lags_behind_only_delays(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path, axes_in_metadata=False)
    dataset = GrowingDataset(writer.folder)
    for image in IMAGES:
        writer.put(image)
    assert list(dataset.images()) == []
    writer.finish()
    assert_same(list(dataset.images()), IMAGES)
    dataset.close()


class Written:
    """The bytes of a data set whose axes are in its index."""

    def __init__(self, folder: Path) -> None:
        self.tiff = tiff_of(folder).read_bytes()
        self.index = (folder / INDEX).read_bytes()
        self.name = tiff_of(folder).name


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(write(tmp_path_factory.mktemp("written"), axes_in_metadata=False))


def _laid_out(content: bytes, length: int, *, zeros: bool) -> bytes:
    """Return what has been written of a file so far: the rest is zeros, or missing."""
    return content[:length] + bytes(len(content) - length + 4096 if zeros else 0)


@settings(max_examples=60)
@given(data=st.data(), java=st.booleans())
def test_wherever_writing_stands_only_whole_images_come_and_all_of_them_at_last(
    tmp_path_factory: pytest.TempPathFactory,
    written: Written,
    data: st.DataObject,
    java: bool,
) -> None:
    tiff, index, name = written.tiff, written.index, written.name
    folder = tmp_path_factory.mktemp("growing")
    dataset = GrowingDataset(folder)
    found: list[Image] = []
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tiff)), max_size=4)))
    index_cuts = sorted(
        data.draw(st.lists(st.integers(0, len(index)), min_size=len(cuts), max_size=len(cuts)))
    )
    for cut, index_cut in zip(cuts, index_cuts, strict=True):
        # In place, as the reader has the file open.
        _overwrite(folder / name, _laid_out(tiff, cut, zeros=True))
        _overwrite(folder / INDEX, _laid_out(index, index_cut, zeros=java))
        found += dataset.images()
        assert dataset.damaged == 0
    _overwrite(folder / name, tiff)
    _overwrite(folder / INDEX, index)
    found += dataset.images()
    dataset.close()
    assert_same(found, IMAGES)
    assert dataset.damaged == 0


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(content)
        file.truncate()


def test_a_data_set_of_several_files_is_followed_from_one_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ndstorage import ndtiff_file

    # The writer leaves 5 MB of each file free; an image has 768 bytes here.
    monkeypatch.setattr(ndtiff_file, "MAX_FILE_SIZE", 5_000_000 + 4000)
    writer = DatasetWriter(tmp_path)
    dataset = GrowingDataset(writer.folder)
    found: list[Image] = []
    for image in IMAGES:
        writer.put(image)
        found += dataset.images()
    writer.finish()
    found += dataset.images()
    dataset.close()
    assert len(list(writer.folder.glob("*.tif"))) > 1
    assert_same(found, IMAGES)


def test_full_resolution_is_what_counts_in_a_pyramid(tmp_path: Path) -> None:
    folder = write(tmp_path / "Full resolution")
    folder.rename(tmp_path / "moved")
    (tmp_path / "Full resolution").rmdir()
    (tmp_path / "moved").rename(tmp_path / "Full resolution")
    assert dataset_folder(tmp_path) == tmp_path / "Full resolution"
    assert dataset_folder(tmp_path / "Full resolution") == tmp_path / "Full resolution"


def test_a_folder_of_other_things_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "img_000.tif").write_bytes(b"II*\0")
    assert dataset_folder(tmp_path) is None
    assert dataset_folder(tmp_path / "nowhere") is None


def test_an_image_whose_metadata_are_damaged_is_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path)
    content = bytearray(tiff_of(folder).read_bytes())
    at = content.index(json.dumps({"time": 0, "z": 1})[1:-1].encode())
    content[at : at + 3] = b"\xff\xff\xff"
    tiff_of(folder).write_bytes(content)
    dataset = GrowingDataset(folder)
    assert_same(list(dataset.images()), [IMAGES[0], *IMAGES[2:]])
    assert dataset.damaged == 1
    dataset.close()


def _first_file_missing(folder: Path) -> None:
    tiff_of(folder).rename(folder / "run_NDTiffStack_1.tif")


def _not_ndtiff(folder: Path) -> None:
    tiff_of(folder).write_bytes(b"II*\0" + bytes(8) + b"something else")


def _patch_tag(folder: Path, tag: int, value: int) -> None:
    content = bytearray(tiff_of(folder).read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    for place in range(first + 2, first + 2 + 13 * 12, 12):
        if struct.unpack_from("<H", content, place)[0] == tag:
            struct.pack_into("<I", content, place + 8, value)
    tiff_of(folder).write_bytes(content)


UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file is missing": (_first_file_missing, r"File 0 .* is missing, but there is run_NDTiffStack_1.tif"),
    "not NDTiff": (_not_ndtiff, "is not NDTiff"),
    "compressed": (lambda folder: _patch_tag(folder, 259, 5), "compressed"),
    "colour": (lambda folder: _patch_tag(folder, 277, 3), "in colour"),
    "32 bit": (lambda folder: _patch_tag(folder, 279, 4 * 16 * 24), "neither 8 nor 16 bit"),
}


@pytest.mark.parametrize(("harm", "text"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_refused_in_a_sentence(
    tmp_path: Path, harm: Callable[[Path], None], text: str
) -> None:
    folder = write(tmp_path)
    harm(folder)
    dataset = GrowingDataset(folder)
    with pytest.raises(AcquisitionError, match=text):
        list(dataset.images())
    dataset.close()


def test_a_damaged_index_is_told_with_its_place(tmp_path: Path) -> None:
    folder = write(tmp_path, axes_in_metadata=False)
    index = bytearray((folder / INDEX).read_bytes())
    index[5:8] = b"\xff\xff\xff"
    (folder / INDEX).write_bytes(index)
    dataset = GrowingDataset(folder)
    with pytest.raises(AcquisitionError, match="damaged at byte 0"):
        list(dataset.images())
    dataset.close()


@settings(max_examples=100)
@given(data=st.data())
def test_whatever_a_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, written: Written, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    for name, original in ((written.name, written.tiff), (INDEX, written.index)):
        content = bytearray(original)
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
        (folder / name).write_bytes(content)
    dataset = GrowingDataset(folder)
    try:
        found: Iterator[Image] = dataset.images()
        assert sum(1 for _ in found) + dataset.damaged <= 1000
    except AcquisitionError:
        pass
    finally:
        dataset.close()


# Following ------------------------------------------------------------------------------------------


def sweeps(times: range, slabs: int = 4) -> list[Image]:
    return [image_of(t, z) for t in times for z in range(slabs)]


def assert_received(daemon: Daemon, images: list[Image]) -> None:
    assert [frame.info.seq for frame in daemon.frames] == list(range(len(images)))
    for frame, image in zip(daemon.frames, images, strict=True):
        assert (frame.info.sweep, frame.info.index) == (image.axes["time"], image.axes["z"])
        np.testing.assert_array_equal(frame.pixels, image.pixels)


def test_a_data_set_that_appears_is_followed_from_the_first_image_to_its_end_and_then_the_next(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    write(tmp_path, sweeps(range(2)), name="old")
    follower = watch(tmp_path)
    follower.wait_for_note("waiting for a data set")
    for number in range(2):
        writer = DatasetWriter(tmp_path, name="new")
        came = len(daemon.frames)
        for image in sweeps(range(3)):
            writer.put(image)
        assert wait_until(lambda came=came: len(daemon.frames) == came + 12)
        writer.finish()
        assert wait_until(lambda number=number: len(daemon.ends) == number + 1)
    assert len(daemon.headers) == 2
    assert [end.reason for end in daemon.ends] == ["finished", "finished"]
    assert [end.announced for end in daemon.ends] == [12, 12]
    follower.close()
    assert follower.failure is None


def _save(root: str, may_end: Any, pipe: Any) -> None:
    """Run somebody's own acquisition, which saves, and tell what it saved."""
    import mm_test_adapters
    from pycromanager import Acquisition, multi_d_acquisition_events, start_headless

    adapters = mm_test_adapters.device_adapter_path()
    start_headless(adapters, config_file=os.path.join(adapters, "MMConfig_demo.cfg"), python_backend=True)
    events = multi_d_acquisition_events(
        num_time_points=4, z_start=6, z_end=42, z_step=12, channel_group="Channel", channels=["FITC", "DAPI"],
        order="tzc",
    )  # fmt: skip
    with Acquisition(directory=root, name="mine", show_display=False) as acquisition:
        acquisition.acquire(events)
        may_end.wait(20)
    dataset = acquisition.get_dataset()
    axes = [event["axes"] for event in events]
    pipe.send([(place, float(dataset.read_image(**place).mean())) for place in axes])


@pytest.mark.acquisition
def test_a_real_acquisition_is_followed_while_it_saves(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    may_end = context.Event()
    child = context.Process(target=_save, args=(str(tmp_path), may_end, there))
    follower = watch(tmp_path)
    follower.wait_for_note("waiting for a data set")
    child.start()
    try:
        # All images, before the acquisition has closed any file.
        assert wait_until(lambda: len(daemon.frames) == 32, 40)
        assert daemon.ends == []
        may_end.set()
        assert here.poll(20)
        saved = here.recv()
        assert wait_until(lambda: len(daemon.ends) == 1)
        (header,) = daemon.headers
        assert header.channels == ("FITC", "DAPI")
        assert header.shape == (24, 512, 512)
        for frame, (axes, mean) in zip(daemon.frames, saved, strict=True):
            info = frame.info
            assert (info.sweep, info.index, header.channels[info.channel]) == (
                axes["time"], axes["z"], axes["channel"]
            )  # fmt: skip
            assert info.stage.z_um == SLABS_UM[info.index]
            assert float(frame.pixels.mean()) == mean
        child.join(15)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_a_data_set_that_had_begun_before_is_followed_from_its_first_image(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    images = sweeps(range(3))
    writer = DatasetWriter(tmp_path / "day", name="run")
    for image in images[:5]:
        writer.put(image)
    watch(tmp_path)
    assert wait_until(lambda: len(daemon.frames) == 5)
    for image in images[5:]:
        writer.put(image)
    writer.finish()
    assert wait_until(lambda: len(daemon.ends) == 1)
    assert_received(daemon, images)


def test_a_folder_that_is_a_data_set_is_read_to_its_end(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    images = sweeps(range(5))
    follower = watch(write(tmp_path, images))
    follower.join()
    assert follower.failure is None
    assert follower.stats is not None
    assert follower.stats.acknowledged == 20
    assert_received(daemon, images)
    assert follower.notes[-1] == "the data set run_1 has ended (finished)"


def test_a_data_set_that_cannot_be_used_is_told_and_the_next_is_followed(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    follower = watch(tmp_path)
    follower.wait_for_note("waiting for a data set")
    write(tmp_path, [image_of(t, z, z_um=500.0 + z) for t in range(2) for z in range(2)], name="elsewhere")
    follower.wait_for_note(
        "the data set elsewhere_1 is skipped: The slabs of the first time point reach from"
    )
    write(tmp_path, sweeps(range(2)), name="good")
    assert wait_until(lambda: len(daemon.ends) == 1)
    assert len(daemon.frames) == 8


def test_a_program_that_died_ends_its_run_after_the_stated_silence(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    writer = DatasetWriter(tmp_path)
    for image in sweeps(range(2)):
        writer.put(image)
    writer.abandon()
    follower = watch(writer.folder, wire={"silent_s": 0.5}, acquisition={"sweep_interval_s": 0.1})
    follower.join()
    assert [end.reason for end in daemon.ends] == ["nothing new"]
    assert len(daemon.frames) == 8
    assert "nothing new has been saved for 0.6 s: the run is closed" in follower.notes


def test_a_daemon_that_is_not_there_yet_costs_nothing_and_is_waited_for(
    tmp_path: Path, watch: Callable[..., Watch]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    images = sweeps(range(40))
    # A buffer of a tenth of the data: the rest waits on the disk.
    follower = watch(write(tmp_path, images), address=address, wire={"send_buffer_mb": 0.012})
    follower.wait_for_note("has begun")
    with Daemon(address) as daemon:
        follower.join()
        assert follower.failure is None
        assert_received(daemon, images)
        assert (daemon.ends[0].announced, daemon.ends[0].dropped) == (160, 0)


def test_the_daemon_can_pause_and_stop_the_reading(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    writer = DatasetWriter(tmp_path)
    for image in sweeps(range(2)):
        writer.put(image)
    follower = watch(writer.folder)
    assert wait_until(lambda: len(daemon.frames) == 8)
    daemon.tell("pause")
    time.sleep(0.3)
    for image in sweeps(range(2, 4)):
        writer.put(image)
    time.sleep(0.3)
    assert len(daemon.frames) == 8
    daemon.tell("go")
    assert wait_until(lambda: len(daemon.frames) == 16)
    daemon.tell("stop")
    follower.join()
    assert daemon.ends[0].reason == "stopped"
    writer.finish()


def test_a_run_that_is_gone_on_with_gets_what_it_lacks_and_nothing_twice(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    images = sweeps(range(4))
    writer = DatasetWriter(tmp_path)
    for image in images[:8]:
        writer.put(image)
    first = watch(tmp_path)
    assert wait_until(lambda: len(daemon.frames) == 8)
    first.close()
    for image in images[8:]:
        writer.put(image)
    writer.finish()
    resume = ResumeFrom(daemon.headers[0].run_id, sweep=2, seq=1 << 32, time_s=1.0)
    watch(tmp_path, resume=resume)
    assert wait_until(lambda: len(daemon.frames) >= 16)
    assert wait_until(lambda: daemon.ends[0].announced == 16)
    assert_received(daemon, images)
    assert {header.run_id for header in daemon.headers} == {resume.run_id}
    assert daemon.headers[0] == daemon.headers[-1]


@pytest.mark.parametrize(
    ("tables", "kind", "text"),
    [
        ({"acquisition": {"watch": Path("nowhere")}}, MissingFileError, "nowhere does not exist"),
        ({"volume": {"z0_um": 200.0}}, GeometryError, "set volume.z0_um"),
    ],
    ids=["no folder", "geometry"],
)
def test_what_is_wrong_ends_it_with_a_sentence(
    tmp_path: Path,
    daemon: Daemon,
    watch: Callable[..., Watch],
    tables: dict[str, Any],
    kind: type[Exception],
    text: str,
) -> None:
    follower = watch(write(tmp_path, sweeps(range(2))), **tables)
    follower.join()
    assert isinstance(follower.failure, kind)
    assert text in str(follower.failure)
    assert daemon.headers == []


def test_images_that_nothing_places_are_a_failure_and_finished_data_sets_are_mentioned(
    tmp_path: Path, watch: Callable[..., Watch]
) -> None:
    folder = write(tmp_path, axes_in_metadata=False)
    (folder / INDEX).unlink()
    follower = watch(folder, wire={"silent_s": 1.0}, acquisition={"sweep_interval_s": 0.0})
    follower.join()
    assert isinstance(follower.failure, AcquisitionError)
    assert "has no image that is whole and says its axes, or has them in an NDTiff.index" in str(
        follower.failure
    )
    waiting = watch(tmp_path)
    waiting.wait_for_note("1 finished data set is left alone (run_1): to read one, name it in")


def test_what_is_left_out_of_a_data_set_is_in_the_account_of_its_run(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    images = [image_of(t, z, position=name) for name in ("A", "B") for t in range(2) for z in range(4)]
    follower = watch(write(tmp_path, images))
    follower.join()
    assert follower.stats is not None
    assert (follower.stats.put, follower.stats.dropped) == (8, 8)
    (end,) = daemon.ends
    assert end.reason == "finished; 8 images without a place in the run left out"
    assert (end.announced, end.dropped) == (16, 8)
    with pytest.raises(AcquisitionError, match="8 frames did not reach the daemon"):
        judge(follower.stats)


def test_what_an_earlier_data_set_left_out_is_not_forgotten_over_the_next(
    tmp_path: Path, daemon: Daemon, watch: Callable[..., Watch]
) -> None:
    follower = watch(tmp_path)
    follower.wait_for_note("waiting for a data set")
    write(tmp_path, [image_of(t, z) for t, slabs in ((0, 3), (1, 4)) for z in range(slabs)], name="a")
    assert wait_until(lambda: len(daemon.ends) == 1)
    write(tmp_path, sweeps(range(2)), name="b")
    assert wait_until(lambda: len(daemon.ends) == 2)
    follower.close()
    assert follower.stats is not None
    assert follower.stats.dropped == 1


def _cut(folder: Path) -> None:
    tiff_of(folder).write_bytes(tiff_of(folder).read_bytes()[:-3000])


def _zero(folder: Path) -> None:
    content = tiff_of(folder).read_bytes()
    tiff_of(folder).write_bytes(content[:-3000] + bytes(3000))


def _cut_index(folder: Path) -> None:
    index = (folder / INDEX).read_bytes()
    # Axes come in any order.
    (folder / INDEX).write_bytes(index[: index.index(b'"z": 2', len(index) // 2) + 40])


@pytest.mark.parametrize("axes_in_metadata", [True, False], ids=["axes in the metadata", "axes in the index"])
@pytest.mark.parametrize("harm", [_cut, _zero, _cut_index], ids=["cut", "zeroed", "index cut"])
def test_images_that_a_data_set_lacks_are_counted(
    tmp_path: Path,
    daemon: Daemon,
    watch: Callable[..., Watch],
    harm: Callable[[Path], None],
    axes_in_metadata: bool,
) -> None:
    folder = write(tmp_path, sweeps(range(3)), axes_in_metadata=axes_in_metadata)
    harm(folder)
    follower = watch(folder, wire={"silent_s": 0.5}, acquisition={"sweep_interval_s": 0.1})
    follower.join()
    assert follower.stats is not None
    lost = 12 - len(daemon.frames)
    assert (lost == 0) is (harm is _cut_index and axes_in_metadata)
    assert follower.stats.dropped == lost
    assert (f"{lost} images damaged or missing" in follower.notes[-1]) == (lost > 0)


def test_an_index_that_is_damaged_and_not_needed_counts_no_image_twice(tmp_path: Path) -> None:
    folder = write(tmp_path, sweeps(range(3)))
    index = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(index[: (last := index.rindex(b"{"))] + b"[" + index[last + 1 :])
    with closing(GrowingDataset(folder)) as dataset:
        assert len(list(dataset.images())) == 12
        dataset.finish()
        assert dataset.damaged == 0


def test_what_comes_too_late_is_counted_beside_what_never_came(tmp_path: Path) -> None:
    folder = write(tmp_path, sweeps(range(3)))
    _cut(folder)
    with closing(GrowingDataset(folder)) as dataset:
        next(dataset.images())
        dataset.finish()
        assert dataset.damaged == 11


@pytest.mark.parametrize("number", [1, 2, -1])
def test_a_file_that_a_data_set_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, watch: Callable[..., Watch]
) -> None:
    from ndstorage import ndtiff_file

    monkeypatch.setattr(ndtiff_file, "MAX_FILE_SIZE", 5_000_000 + 4000)
    folder = write(tmp_path, sweeps(range(4)))
    files = sorted(folder.glob("*.tif"), key=lambda path: (len(path.name), path.name))
    assert len(files) > 3
    files[number].unlink()
    follower = watch(folder)
    follower.join()
    assert isinstance(follower.failure, AcquisitionError)
    assert files[number].name in str(follower.failure)
