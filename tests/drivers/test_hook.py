"""The hook for somebody's own acquisition: it passes images on, and never gets in the way."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.driver_support import Daemon, Image, Outbox, image_of, passive_config, wait_until

from microdiffusion.config.models import Config
from microdiffusion.drivers import attach
from microdiffusion.errors import AcquisitionError, ConfigError, GeometryError

TIMES, SLABS = 4, 5
STEP_UM = 10.0


def demo_config(**wire: Any) -> Config:
    """Return a configuration for the demo camera and a stack of `SLABS` slabs from 0 µm on."""
    return passive_config(
        sweep={"length_um": STEP_UM},
        volume={"z0_um": -4.0, "shape_z": 25, "voxel_z_um": 2.0, "pixel_um": None},
        wire={"send_buffer_mb": 64, **wire},
    )


# A real acquisition ---------------------------------------------------------------------------------


def _acquire(config: Config, address: str, root: str, way: str, pipe: Connection[Any, Any]) -> None:
    """Run somebody's own acquisition, with our hook in it, and tell what it saved."""
    import mm_test_adapters
    from pycromanager import Acquisition, multi_d_acquisition_events, start_headless

    adapters = mm_test_adapters.device_adapter_path()
    start_headless(
        adapters, config_file=os.path.join(adapters, "MMConfig_demo.cfg"), python_backend=True
    )  # fmt: skip
    events = multi_d_acquisition_events(
        num_time_points=TIMES, z_start=0, z_end=STEP_UM * (SLABS - 1), z_step=STEP_UM
    )
    notes: list[str] = []
    began_s = time.monotonic()
    with attach(config, address=address, note=notes.append, finish_s=1.5) as mdd:
        ways = {"process": {"image_process_fn": mdd.process}, "saved": {"image_saved_fn": mdd.saved}}
        directory = root if way == "process" else None  # `saved` reads back from the memory, too
        with Acquisition(directory=directory, name="mine", show_display=False, **ways[way]) as acquisition:
            acquisition.acquire(events)
        took_s = time.monotonic() - began_s
        dataset = acquisition.get_dataset()
        means = [float(dataset.read_image(time=t, z=z).mean()) for t in range(TIMES) for z in range(SLABS)]
    pipe.send((means, notes, str(mdd.problem), took_s))


@pytest.fixture
def somebody(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Run an acquisition in a process of its own; return what it has to tell."""
    context = multiprocessing.get_context("spawn")
    children = []

    def acquire(config: Config, address: str, way: str = "process") -> Any:
        here, there = context.Pipe()
        child = context.Process(target=_acquire, args=(config, address, str(tmp_path), way, there))
        child.start()
        children.append(child)
        assert here.poll(40)
        told = here.recv()
        child.join(15)
        assert child.exitcode == 0
        return told

    yield acquire
    for child in children:
        child.kill()


@pytest.mark.acquisition
@pytest.mark.parametrize("way", ["process", "saved"])
def test_every_image_is_passed_on_and_saved_as_it_was(somebody: Callable[..., Any], way: str) -> None:
    with Daemon() as daemon:
        means, notes, problem, _ = somebody(demo_config(), daemon.address, way)
        assert wait_until(lambda: len(daemon.ends) == 1)
        places = [(f.info.seq, f.info.sweep, f.info.index, f.info.count) for f in daemon.frames]
        assert places == [(t * SLABS + z, t, z, SLABS) for t in range(TIMES) for z in range(SLABS)]
        assert [f.info.stage.z_um for f in daemon.frames] == [
            STEP_UM * z for _ in range(TIMES) for z in range(SLABS)
        ]
        assert [float(f.pixels.mean()) for f in daemon.frames] == means
        assert len(set(means)) > 1
        assert (daemon.ends[0].announced, daemon.ends[0].reason) == (TIMES * SLABS, "finished")
        assert daemon.headers[0].shape == (25, 512, 512)
        assert problem == "None"
        assert f"{TIMES * SLABS} frames passed on" in notes[-1]


@pytest.mark.acquisition
def test_without_a_daemon_the_acquisition_goes_on_as_ever(somebody: Callable[..., Any]) -> None:
    means, notes, problem, took_s = somebody(demo_config(), "tcp://127.0.0.1:9")
    assert len(means) == TIMES * SLABS
    assert problem == "None"
    assert "20 frames passed on, 0 acknowledged, 20 lost" in notes[-1]
    assert took_s < 10.0


# By itself ------------------------------------------------------------------------------------------


class Dataset:
    """What an `image_saved_fn` gets."""

    def __init__(self, images: list[Image]) -> None:
        self._images = {tuple(sorted(image.axes.items())): image for image in images}

    def read_image(self, **axes: Any) -> Any:
        return self._images[tuple(sorted(axes.items()))].pixels

    def read_metadata(self, **axes: Any) -> Any:
        return dict(self._images[tuple(sorted(axes.items()))].metadata)


SWEEP = [image_of(0, z) for z in range(4)]


def metadata_of(image: Image) -> dict[str, Any]:
    return {**image.metadata, "Axes": dict(image.axes)}


def test_images_come_back_as_they_were(outbox: Outbox) -> None:
    with attach(passive_config()) as mdd:
        for image in SWEEP:
            metadata = metadata_of(image)
            pixels, returned = mdd.process(image.pixels, metadata)
            assert pixels is image.pixels
            assert returned is metadata
    assert [info.index for info, _ in outbox.put_frames] == [0, 1, 2, 3]
    assert outbox.finished == "finished"
    mdd.raise_if_failed()


GARBAGE: dict[str, tuple[Any, Any]] = {
    "nothing": (None, None),
    "no axes": (np.zeros((16, 24), np.uint16), {}),
    "axes of another kind": (np.zeros((16, 24), np.uint16), {"Axes": 7}),
    "no image": (None, {"Axes": {"time": 0, "z": 0}}),
    "a list": ([[1, 2]], {"Axes": {"time": 0, "z": 0}}),
    "colour": (np.zeros((16, 24, 3), np.uint8), {"Axes": {"time": 0, "z": 0}}),
}


@pytest.mark.parametrize(("image", "metadata"), GARBAGE.values(), ids=GARBAGE)
def test_whatever_comes_nothing_is_raised_and_it_is_told_once(
    outbox: Outbox, image: Any, metadata: Any
) -> None:
    notes: list[str] = []
    with attach(passive_config(), note=notes.append) as mdd:
        for _ in range(3):
            assert mdd.process(image, metadata) == (image, metadata)
    assert len(notes) == 1
    assert mdd.problem is not None
    assert not outbox.started
    with pytest.raises(AcquisitionError):
        mdd.raise_if_failed()


def test_what_does_not_fit_is_told_once_and_nothing_is_sent(outbox: Outbox) -> None:
    notes: list[str] = []
    with attach(passive_config(volume={"z0_um": 90.0}), note=notes.append) as mdd:
        for time_point in range(3):
            for image in SWEEP:
                assert mdd.process(image.pixels, metadata_of(image_of(time_point, 0)))[0] is image.pixels
    assert len(notes) == 1
    assert notes[0].startswith("mdd receives no more images of this acquisition")
    assert not outbox.started


def test_by_default_a_problem_is_a_warning_in_the_log(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    with attach(passive_config()) as mdd:
        mdd.process(None, {})  # type: ignore[arg-type]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "KeyError" in record.message


def test_what_stays_in_the_journal_is_a_warning_that_says_how_to_deliver_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = passive_config(wire={"journal": tmp_path, "journal_gb": 1.0})
    with attach(config, address="tcp://127.0.0.1:9", finish_s=0.1) as mdd:
        for image in SWEEP:
            mdd.process(image.pixels, metadata_of(image))
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "4 were not delivered and are in the journal: see `mdd deliver`" in record.message


def test_a_broken_sender_and_a_broken_note_do_not_reach_the_acquisition(outbox: Outbox) -> None:
    outbox.broken = True

    def note(_: str) -> None:
        raise ZeroDivisionError

    with attach(passive_config(), note=note) as mdd:
        for image in SWEEP:
            mdd.process(image.pixels, metadata_of(image))
    assert "RuntimeError: broken" in str(mdd.problem)
    assert outbox.finished is not None
    assert outbox.finished.startswith("broken off")


def test_a_daemon_that_says_stop_gets_no_more(outbox: Outbox) -> None:
    with attach(passive_config()) as mdd:
        for image in SWEEP:
            mdd.process(image.pixels, metadata_of(image))
        outbox.wanted = "stop"
        mdd.process(image_of(1, 0).pixels, metadata_of(image_of(1, 0)))
    assert len(outbox.put_frames) == 4
    assert "has stopped the run" in str(mdd.problem)


def test_saving_is_not_held_up_by_reading(outbox: Outbox) -> None:
    may_read = threading.Event()

    class Slow(Dataset):
        def read_image(self, **axes: Any) -> Any:
            assert may_read.wait(10)
            return super().read_image(**axes)

    images = [image_of(t, z) for t in range(10) for z in range(4)]
    dataset = Slow(images)
    with attach(passive_config()) as mdd:
        for image in images:
            mdd.saved(dict(image.axes), dataset)
        assert outbox.put_frames == []
        may_read.set()
    assert [info.seq for info, _ in outbox.put_frames] == list(range(40))


def test_an_image_that_cannot_be_read_back_is_told(outbox: Outbox) -> None:
    notes: list[str] = []
    with attach(passive_config(), note=notes.append) as mdd:
        mdd.saved({"time": 0, "z": 0}, Dataset([]))
    assert "KeyError" in notes[0]
    assert not outbox.started


def test_after_closing_images_go_by(outbox: Outbox) -> None:
    mdd = attach(passive_config())
    for image in SWEEP[:2]:
        mdd.process(image.pixels, metadata_of(image))
    mdd.close()
    mdd.close()
    mdd.process(SWEEP[2].pixels, metadata_of(SWEEP[2]))
    mdd.saved({"time": 0, "z": 2}, Dataset(SWEEP))
    assert len(outbox.put_frames) == 2


def test_what_cannot_be_followed_is_refused_at_once(outbox: Outbox) -> None:
    with (
        attach(passive_config()) as mdd,
        pytest.raises(AcquisitionError, match=r"\(CMMCorePlus\), not object"),
    ):
        mdd.follow(object())


def test_what_is_wrong_with_the_configuration_is_said_when_attaching(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="does not fit"):
        attach(passive_config(sweep={"length_um": 500.0}))
    with pytest.raises(ConfigError, match="server_key"):
        attach(passive_config(), address="tcp://192.0.2.1:5750")
    with pytest.raises(ConfigError, match="names no port"):
        attach(passive_config(), address="tcp://127.0.0.1:*")
    file = tmp_path / "my.toml"
    file.write_text("[sweep]\nlength = 3\n")
    with pytest.raises(ConfigError, match="length"):
        attach(file)
