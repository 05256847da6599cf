"""What other programs need of a run file, as far as it can be checked without them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import header, put_volume, recorder, started

# What MATLAB's h5read and h5readatt know.
NUMBERS = {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "run.h5"
    run = header(channels=("GFP", "RFP"), positions=("a", "b"), shape=(6, 130, 132))
    target = started(recorder(path, run=run, live=True))
    for position in range(2):
        for channel in range(2):
            put_volume(target, 0, channel, position, volume=np.full((6, 130, 132), 300, np.float32))
    target.stop()
    return path


def types(path: Path) -> dict[str, h5py.h5t.TypeID]:
    """Return the type of every dataset and attribute, as it is in the file."""
    found: dict[str, h5py.h5t.TypeID] = {}

    def attributes(name: str, thing: h5py.HLObject) -> None:
        for key in thing.attrs:
            found[f"{name}@{key}"] = thing.attrs.get_id(key).get_type()

    def visit(name: str, thing: h5py.HLObject) -> None:
        attributes(name, thing)
        if isinstance(thing, h5py.Dataset):
            found[name] = thing.id.get_type()

    with h5py.File(path) as file:
        attributes("", file)
        file.visititems(visit)
    return found


def test_there_is_no_type_that_matlab_cannot_read(path: Path) -> None:
    found = types(path)
    assert len(found) > 100
    for name, kind in found.items():
        if isinstance(kind, h5py.h5t.TypeStringID):
            assert not kind.is_variable_str(), name
            continue
        assert isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)), name
        assert kind.dtype.str[1:] in NUMBERS, name
        assert kind.dtype.str[0] in "<|", name


def test_nothing_needs_a_filter_or_another_file(path: Path) -> None:
    with h5py.File(path) as file:

        def visit(name: str, thing: h5py.HLObject) -> None:
            if isinstance(thing, h5py.Dataset):
                assert (thing.chunks, thing.compression, thing.external, thing.is_virtual) == (
                    None,
                    None,
                    None,
                    False,
                ), name

        file.visititems(visit)


def test_nexus_viewers_find_the_volume_by_themselves(path: Path) -> None:
    """The way that h5web and silx take: default after default, to a group of class NXdata."""
    with h5py.File(path) as file:
        where: h5py.Group = file
        for _ in range(3):
            if "default" not in where.attrs:
                break
            where = where[where.attrs["default"].decode()]
        assert where.attrs["NX_class"] == b"NXdata"
        signal = where[where.attrs["signal"].decode()]
        assert signal == file["volume"]
        axes = [name.decode() for name in where.attrs["axes"]]
        assert len(axes) == signal.ndim
        for name, size in zip(axes, signal.shape, strict=True):
            assert name == "." or where[name].shape == (size,)


def test_silx_plots_the_volume_by_default(path: Path) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata")
    with h5py.File(path) as file:
        default = nxdata.get_default(file)
        assert default is not None
        assert default.signal.shape == file["volume"].shape
        assert default.signal == file["volume"]
        assert [axis is not None for axis in default.axes] == [False, False, True, True, True]
