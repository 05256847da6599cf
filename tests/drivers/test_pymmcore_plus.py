"""Acquisitions of pymmcore-plus, followed by the signals of its real core with the demo devices."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import mm_test_adapters
import numpy as np
import pytest
from support.driver_support import Daemon, Outbox, passive_config, wait_until

from microdiffusion.config.models import Config
from microdiffusion.drivers import attach

pymmcore_plus = pytest.importorskip(
    "pymmcore_plus",
    reason='pymmcore-plus is not installed: pip install "microdiffusion-daemon[pymmcore-plus]"',
)
useq = pytest.importorskip("useq")

STEP_UM = 10.0
STACK = {"bottom": 0, "top": 40, "step": STEP_UM}  # 5 slabs
TIMES = {"interval": 0, "loops": 3}


def demo_config(**tables: Any) -> Config:
    """Return a configuration for the demo camera and a stack of slabs from 0 to 40 µm."""
    return passive_config(
        sweep={"length_um": STEP_UM},
        volume={"z0_um": -4.0, "shape_z": 25, "voxel_z_um": 2.0, "pixel_um": None},
        **{"wire": {"send_buffer_mb": 64}, **tables},
    )


@pytest.fixture
def core() -> Iterator[Any]:
    """Return a core with the demo devices, whose acquisitions are small."""
    core = pymmcore_plus.CMMCorePlus()
    core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
    core.loadSystemConfiguration(f"{mm_test_adapters.device_adapter_path()}/MMConfig_demo.cfg")
    core.setROI(0, 0, 48, 32)
    core.setExposure(1.0)
    core.mda.engine.restore_initial_state = False
    yield core
    core.unloadAllDevices()


def run(core: Any, sequence: Any) -> list[Any]:
    """Run a sequence and return its images as the acquisition itself got them."""
    images: list[Any] = []

    def keep(pixels: Any) -> None:
        images.append(pixels)

    core.mda.events.frameReady.connect(keep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core.mda.run(sequence)
    core.mda.events.frameReady.disconnect(keep)
    return images


@pytest.mark.acquisition
def test_every_frame_of_a_real_acquisition_arrives_with_its_place(core: Any, daemon: Daemon) -> None:
    notes: list[str] = []
    sequence = useq.MDASequence(
        time_plan=TIMES,
        stage_positions=[{"x": 0, "y": 0, "name": "A"}, {"x": 100, "y": 0}],
        channels=[{"config": "DAPI", "exposure": 2}, {"config": "FITC", "exposure": 3}],
        z_plan=STACK,
        axis_order="tpcz",
    )
    with attach(demo_config(), address=daemon.address, note=notes.append) as mdd:
        mdd.follow(core)
        images = run(core, sequence)
    assert wait_until(lambda: len(daemon.ends) == 1)
    assert mdd.problem is None
    (header,) = daemon.headers
    assert (header.channels, header.positions) == (("DAPI", "FITC"), ("A", "1"))
    assert header.shape == (25, 32, 48)
    assert header.voxel_size_um[1:] == (1.0, 1.0)  # the pixel size that the core knows
    places = [
        (f.info.sweep, f.info.position, f.info.channel, f.info.index, f.info.stage.z_um, f.info.exposure_ms)
        for f in daemon.frames
    ]
    assert places == [
        (t, p, c, z, STEP_UM * z, 2.0 + c)
        for t in range(3)
        for p in range(2)
        for c in range(2)
        for z in range(5)
    ]
    for frame, image in zip(daemon.frames, images, strict=True):
        np.testing.assert_array_equal(frame.pixels, image)
    times = [frame.info.camera_time_s for frame in daemon.frames]
    assert times == sorted(times)
    assert daemon.ends[0].reason == "finished"
    assert "60 frames passed on, 60 acknowledged" in notes[-1]


@pytest.mark.acquisition
def test_a_hardware_sequenced_stack_has_the_depths_of_its_events(core: Any, outbox: Outbox) -> None:
    core.setProperty("Z", "UseSequences", "Yes")
    with attach(demo_config()) as mdd:
        mdd.follow(core)
        run(core, useq.MDASequence(time_plan=TIMES, z_plan=STACK))
    mdd.raise_if_failed()
    assert [info.stage.z_um for info, _ in outbox.put_frames] == 3 * [0.0, 10.0, 20.0, 30.0, 40.0]


@pytest.mark.acquisition
def test_an_autofocus_takes_no_frame_and_does_not_move_the_slabs(core: Any, outbox: Outbox) -> None:
    plan = {"autofocus_device_name": "Autofocus", "autofocus_motor_offset": 5.0, "axes": ("t",)}
    sequence = useq.MDASequence(
        time_plan=TIMES,
        stage_positions=[(0, 0, 20)],
        z_plan={"range": 40, "step": STEP_UM},
        autofocus_plan=plan,
        keep_shutter_open_across="z",
    )
    with attach(demo_config()) as mdd:
        mdd.follow(core)
        run(core, sequence)
    mdd.raise_if_failed()
    assert [info.stage.z_um for info, _ in outbox.put_frames] == 3 * [0.0, 10.0, 20.0, 30.0, 40.0]


@pytest.mark.acquisition
def test_frames_that_a_sequence_leaves_out_leave_the_others_in_their_places(
    core: Any, outbox: Outbox
) -> None:
    channels = ["FITC", {"config": "DAPI", "acquire_every": 2}]
    with attach(demo_config()) as mdd:
        mdd.follow(core)
        run(core, useq.MDASequence(time_plan=TIMES, channels=channels, z_plan=STACK))
    mdd.raise_if_failed()
    assert {(info.sweep, info.channel) for info, _ in outbox.put_frames} == {
        (0, 0), (0, 1), (1, 0), (2, 0), (2, 1),
    }  # fmt: skip


@pytest.mark.acquisition
def test_positions_and_channels_of_one_name_are_told_apart(core: Any, outbox: Outbox) -> None:
    positions = [{"x": x, "y": 0, "name": "cell"} for x in (0, 50)]
    channels = [{"config": "FITC", "exposure": ms} for ms in (1, 2)]
    plan = {"stage_positions": positions, "channels": channels, "z_plan": STACK}
    with attach(demo_config()) as mdd:
        mdd.follow(core)
        run(core, useq.MDASequence(time_plan=TIMES, **plan))
    mdd.raise_if_failed()
    places = {(info.position, info.channel, info.exposure_ms) for info, _ in outbox.put_frames}
    assert places == {(p, c, 1.0 + c) for p in range(2) for c in range(2)}


UNEVEN = [(0, 0, 0), {"x": 1, "y": 1, "z": 0, "sequence": {"z_plan": {**STACK, "top": 20}}}]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a grid": ({"grid_plan": {"rows": 1, "columns": 2}, "z_plan": STACK}, r"is not one of .*'grid'"),
    "a channel without its stack": (
        {"channels": ["FITC", {"config": "DAPI", "do_stack": False}], "z_plan": STACK, "axis_order": "tpcz"},
        "1 slab of channel DAPI, position 0 and 5 of channel FITC",
    ),
    "a position with another stack": (
        {"stage_positions": UNEVEN, "z_plan": STACK},
        "3 slabs of channel default, position 1 and 5 of channel default, position 0",
    ),
    "no stack": ({}, "has one slab, .* plan 5"),
    "out of the volume": ({"z_plan": {"bottom": 0, "top": 80, "step": 20}}, "set volume.z0_um"),
}


@pytest.mark.acquisition
@pytest.mark.parametrize(("plan", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name_before_anything_is_sent(
    core: Any, outbox: Outbox, plan: dict[str, Any], words: str
) -> None:
    notes: list[str] = []
    with attach(demo_config(), note=notes.append) as mdd:
        mdd.follow(core)
        images = run(core, useq.MDASequence(time_plan=TIMES, **plan))
    assert len(images) >= 3  # the acquisition itself goes on
    assert len(notes) == 1
    with pytest.raises(Exception, match=words):
        mdd.raise_if_failed()
    assert not outbox.started


@pytest.mark.acquisition
def test_the_run_ends_with_the_acquisition_also_without_a_with_block(core: Any, outbox: Outbox) -> None:
    mdd = attach(demo_config())
    mdd.follow(core)
    run(core, useq.MDASequence(time_plan=TIMES, z_plan=STACK))
    assert wait_until(lambda: outbox.finished == "finished")
    run(core, useq.MDASequence(time_plan=TIMES, z_plan=STACK))  # another one is not ours
    assert len(outbox.put_frames) == 15
    assert mdd.problem is None


@pytest.mark.acquisition
def test_a_canceled_acquisition_ends_as_such(core: Any, outbox: Outbox) -> None:
    with attach(demo_config()) as mdd:
        mdd.follow(core)
        core.mda.events.frameReady.connect(cancel := _after(7, core.mda.cancel))
        run(core, useq.MDASequence(time_plan=TIMES, z_plan=STACK))
        del cancel
    assert outbox.finished == "acquisition canceled"
    assert 7 <= len(outbox.put_frames) < 15


def _after(count: int, act: Callable[[], None]) -> Callable[[Any], None]:
    seen: list[int] = []

    def slot(_: Any) -> None:
        seen.append(1)
        if len(seen) == count:
            act()

    return slot


@pytest.mark.acquisition
def test_a_hook_that_is_closed_too_early_says_so_and_the_acquisition_goes_on(
    core: Any, outbox: Outbox
) -> None:
    notes: list[str] = []
    mdd = attach(demo_config(), note=notes.append)
    mdd.follow(core)
    core.mda.events.frameReady.connect(close := _after(6, lambda: threading.Thread(target=mdd.close).start()))
    images = run(core, useq.MDASequence(time_plan={"interval": 0.05, "loops": 6}, z_plan=STACK))
    del close
    assert len(images) == 30
    assert wait_until(lambda: outbox.finished is not None)
    assert sum("run_mda(sequence, block=True)" in note for note in notes) == 1
