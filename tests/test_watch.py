"""Somebody else's acquisition, followed through the NDTiff data set that it saves."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver_support import DatasetWriter, image_of
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion.drivers.layout import Image
from microdiffusion.drivers.ndtiff_tail import INDEX, GrowingDataset, dataset_folder, is_complete
from microdiffusion.errors import AcquisitionError

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
