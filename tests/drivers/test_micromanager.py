"""A real pycromanager acquisition with Micro-Manager's demo devices, in its own process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mm_test_adapters
import numpy as np
import psutil
import pytest
from support.driver_support import Daemon, Outbox, changed, spawned, wait_until

from microdiffusion.config.models import AcquisitionConfig, Config
from microdiffusion.drivers.micromanager import acquisition as micromanager
from microdiffusion.drivers.micromanager import core as mm_core
from microdiffusion.drivers.micromanager import server as mm_server
from microdiffusion.drivers.micromanager.bridge import MicroscopeWatch
from microdiffusion.drivers.micromanager.hook import FrameHook
from microdiffusion.drivers.plan import Plan, ResumeFrom
from microdiffusion.drivers.process import DriverProcess
from microdiffusion.drivers.sending import DriverTask
from microdiffusion.errors import AcquisitionError, MissingFileError, UserError
from microdiffusion.frames import StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.sender.delivery import deliver

STOP_S = 5.0
"""The promise: a run that is told to stop is over after this time."""


def make(**tables: Any) -> Config:
    """Return the demo's configuration, changed."""
    base: dict[str, dict[str, Any]] = {
        "acquisition": {"specimen": True, "exposure_ms": 2, "sweeps": 3},
        "camera": {"width": 64, "height": 48, "offset": 100, "gain": 2, "read_noise": 2},
        "specimen": {"neurons": 1, "vessels": 1, "nuclei": 4},
        "volume": {"shape_z": 24},
        "sweep": {"hold_out_every": 2},
        "wire": {"journal_gb": 0},
    }
    return changed(base, tables)


# The real thing -----------------------------------------------------------------------------------


@pytest.mark.acquisition
def test_a_run_delivers_every_planned_frame_in_order(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    config = make()
    driver = start(config)
    assert wait_until(lambda: not driver.alive)
    driver.raise_if_failed()

    planned = [shot.info for sweep in Plan(config).sweeps() for shot in sweep.shots]
    came = [frame.info for frame in daemon.frames]
    assert [(i.seq, i.sweep, i.index, i.count, i.held_out) for i in came] == [
        (i.seq, i.sweep, i.index, i.count, i.held_out) for i in planned
    ]
    # The position comes back from the engine's metadata: it is where the stage was sent.
    np.testing.assert_allclose([i.stage.z_um for i in came], [i.stage.z_um for i in planned])
    assert [i.held_out for i in came if i.index == i.count - 1] == [True, False, True]
    times = [i.camera_time_s for i in came]
    assert times == sorted(times)
    assert times[-1] > 0

    (header,), (end,) = daemon.headers, daemon.ends
    assert header.shape == (24, 48, 64)
    assert header.voxel_size_um == (2.0, 1.0, 1.0)  # the demo's 10x objective
    assert header.sweeps == 3
    assert header.frames_per_sweep == Plan(config).frames_per_sweep_max
    assert "Camera" in header.source
    assert (end.announced, end.dropped, end.reason) == (len(planned), 0, "finished")
    assert driver.stats is not None
    assert driver.stats.acknowledged == len(planned)
    assert any("virtual specimen" in note for note in driver.take_notes())

    from microdiffusion.drivers.specimen import specimen_of_run

    specimen = specimen_of_run(config.specimen, header)
    for frame in daemon.frames[::4]:
        expected = specimen.expected(frame.info.stage, header.profile, frame.info.camera_time_s)
        assert frame.pixels.mean() == pytest.approx(100 + 2 * expected.mean(), rel=0.02)


@pytest.mark.acquisition
def test_channels_positions_and_the_cameras_own_pixels(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    config = make(
        acquisition={
            "specimen": False, "sweeps": 2, "channel_group": "Channel", "channels": ["FITC", "DAPI"],
            "positions_um": [[0, 0], [40, -20]],
        },
        volume={"pixel_um": 0.65},
    )  # fmt: skip
    driver = start(config)
    assert wait_until(lambda: not driver.alive)
    driver.raise_if_failed()
    planned = [shot.info for sweep in Plan(config).sweeps() for shot in sweep.shots]
    assert [(f.info.seq, f.info.channel, f.info.position) for f in daemon.frames] == [
        (i.seq, i.channel, i.position) for i in planned
    ]
    header = daemon.headers[0]
    assert (header.channels, header.positions) == (("FITC", "DAPI"), ("0", "1"))
    assert header.voxel_size_um[1:] == (0.65, 0.65)
    # The demo camera draws a sine wave along each row: nothing like a specimen in noise.
    for frame in daemon.frames:
        assert frame.pixels.dtype == np.uint16
        rows = frame.pixels.astype(float)
        assert np.ptp(rows) > 50
        assert np.mean(np.abs(np.diff(rows, axis=1))) < 0.2 * np.ptp(rows)


@pytest.mark.acquisition
@pytest.mark.parametrize(
    "timing",
    [{"exposure_ms": 20}, {"exposure_ms": 2, "sweep_interval_s": 300}],
    ids=["while taking", "while waiting for the next sweep"],
)
def test_an_endless_run_stops_within_seconds(
    daemon: Daemon, start: Callable[[Config], DriverProcess], timing: dict[str, float]
) -> None:
    driver = start(make(acquisition={"sweeps": None, **timing}))
    assert wait_until(lambda: len(daemon.frames) >= 3)
    began, sweep = time.monotonic(), daemon.frames[-1].info.sweep
    driver.stop()
    assert time.monotonic() - began < STOP_S
    driver.raise_if_failed()
    assert not driver.alive
    assert daemon.ends[0].reason == "stopped"
    assert daemon.ends[0].announced == len(daemon.frames)
    # What was taken are whole sweeps: the running one and the one that waited were finished, no more.
    last = daemon.frames[-1].info
    assert last.index == last.count - 1
    assert last.sweep <= sweep + 2


@pytest.mark.acquisition
def test_a_pause_longer_than_the_silence_takes_no_sweep_and_keeps_the_run() -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(silent_s=1.5))
        driver = DriverProcess(make(acquisition={"sweeps": None}), daemon.address)
        driver.start()
        stack.callback(driver.stop, 5.0)
        assert wait_until(lambda: len(daemon.frames) >= 3)
        daemon.tell("pause")
        notes: list[str] = []

        def is_paused() -> bool:
            notes.extend(driver.take_notes())
            return any("paused" in note for note in notes)

        assert wait_until(is_paused)
        last = daemon.frames[-1].info
        # What had been handed over is finished, no more.
        assert wait_until(lambda: daemon.frames[-1].info.index == daemon.frames[-1].info.count - 1)
        assert daemon.frames[-1].info.sweep <= last.sweep + 2
        time.sleep(0.2)
        taken = len(daemon.frames)
        time.sleep(2.5)
        assert len(daemon.frames) == taken
        assert driver.alive
        daemon.tell("go")
        assert wait_until(lambda: len(daemon.frames) > taken + 5)
        daemon.tell("stop")
        assert wait_until(lambda: not driver.alive)
        driver.raise_if_failed()
        assert len(daemon.headers) == 1
        (end,) = daemon.ends
        assert (end.reason, end.announced) == ("stopped", len(daemon.frames))
        seqs = [frame.info.seq for frame in daemon.frames]
        assert seqs == list(range(len(seqs)))


@pytest.mark.acquisition
def test_a_run_that_is_gone_on_with_takes_the_sweeps_that_are_left(daemon: Daemon) -> None:
    config = make(acquisition={"sweeps": 5})
    resume = ResumeFrom("c" * 32, sweep=3, seq=1 << 32, time_s=12.5)
    driver = DriverProcess(config, daemon.address, resume=resume)
    driver.start()
    assert wait_until(lambda: not driver.alive)
    driver.raise_if_failed()
    planned = [shot.info for sweep in Plan(config).sweeps(first=3, seq=1 << 32) for shot in sweep.shots]
    came = [frame.info for frame in daemon.frames]
    assert [(i.seq, i.sweep, i.index, i.count, i.stage, i.held_out) for i in came] == [
        (i.seq, i.sweep, i.index, i.count, i.stage, i.held_out) for i in planned
    ]
    assert 12.5 <= came[0].camera_time_s < came[-1].camera_time_s < 30
    assert daemon.headers[0].run_id == resume.run_id
    assert driver.stats is not None
    assert driver.stats.acknowledged == len(planned)


def _acquire_with_a_broken_specimen(config: Config, address: str, pipe: Connection[Any, Any]) -> None:
    from microdiffusion.drivers.micromanager import acquisition as micromanager
    from microdiffusion.drivers.specimen import Specimen

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("the specimen is broken")

    Specimen.expected = broken  # type: ignore[assignment,method-assign]
    try:
        micromanager.acquire(DriverTask(config=config, address=address, stop=threading.Event()))
        pipe.send("nothing was raised")
    except AcquisitionError as error:
        pipe.send(str(error))


@pytest.mark.acquisition
def test_an_error_in_the_hook_neither_hangs_the_run_nor_goes_unsaid(daemon: Daemon) -> None:
    config = make(acquisition={"sweeps": 2})
    with spawned(_acquire_with_a_broken_specimen, config, daemon.address) as (child, here):
        assert here.poll(40)
        assert re.fullmatch(
            r"(\d+) of \1 frames could not be used, the first because of "
            r"ZeroDivisionError: the specimen is broken\.",
            here.recv(),
        )
        child.join(15)
        assert child.exitcode == 0


def _acquire_while_somebody_else_works(
    config: Config, address: str, deed: str, pipe: Connection[Any, Any]
) -> None:
    """Run with another thread at the same core; tell how it ended, and what is left of the settings."""
    from mmpycorex import Core, is_pymmcore_active

    def work() -> None:
        while not is_pymmcore_active():
            time.sleep(0.01)
        core = Core()
        if deed == "moves the stage":
            while True:
                core.set_position(core.get_focus_device(), core.get_position() + 0.7)
                time.sleep(0.01)
        while not came.is_set():
            time.sleep(0.01)
        if deed == "changes the binning":
            core.set_property("Camera", "Binning", "2")

    came = threading.Event()
    original = FrameHook.take

    def take(self: FrameHook, image: Any, metadata: Any) -> None:
        original(self, image, metadata)
        if self.taken == 6:
            came.set()

    FrameHook.take = take  # type: ignore[method-assign]
    threading.Thread(target=work, daemon=True).start()
    try:
        micromanager.acquire(DriverTask(config=config, address=address, stop=threading.Event()))
        pipe.send("nothing was raised")
    except AcquisitionError as error:
        pipe.send(str(error))
    core = Core()
    pipe.send((tuple(core.get_roi()), core.get_exposure(), core.get_current_config("Channel")))
    os._exit(0)


@pytest.mark.acquisition
@pytest.mark.parametrize(
    ("deed", "expected"),
    [
        ("changes the binning", "rows 24 instead of 48"),
        ("moves the stage", "while mdd was not moving it"),
        ("does nothing", "nothing was raised"),
    ],
)
def test_somebody_else_at_the_same_core(daemon: Daemon, deed: str, expected: str) -> None:
    acquisition = {"specimen": False, "exposure_ms": 20, "channel_group": "Channel", "channels": ["FITC"]}
    config = make(acquisition=acquisition)
    if deed != "does nothing":
        config = make(acquisition={**acquisition, "sweeps": None})
    with spawned(_acquire_while_somebody_else_works, config, daemon.address, deed) as (_, here):
        assert here.poll(60)
        assert expected in here.recv()
        assert here.poll(10)
        if deed == "does nothing":  # as the demo's configuration leaves it
            assert here.recv() == ((0, 0, 512, 512), 10.0, "DAPI")


@pytest.mark.acquisition
def test_a_daemon_that_turns_the_run_away_ends_it(
    start: Callable[[Config], DriverProcess], daemon: Daemon
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("this disk is for others")

    daemon.ingest._on_start = refuse
    driver = start(make(acquisition={"sweeps": None}))
    assert wait_until(lambda: not driver.alive)
    with pytest.raises(AcquisitionError, match="this disk is for others"):
        driver.raise_if_failed()


@pytest.mark.acquisition
def test_a_stage_that_cannot_go_there_is_refused_before_the_run(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    # The demo's stage goes to 300 µm; the volume does not stop there.
    driver = start(make(volume={"z0_um": 280.0}))
    assert wait_until(lambda: not driver.alive)
    with pytest.raises(AcquisitionError, match=r"does not go to .*Position out of range.*volume\.z0_um"):
        driver.raise_if_failed()
    assert daemon.headers == []


@pytest.mark.acquisition
def test_a_device_that_fails_in_the_middle_ends_the_run_with_its_reason(
    daemon: Daemon, start: Callable[[Config], DriverProcess], tmp_path: Path
) -> None:
    # The second channel asks for a binning that the camera does not have.
    cfg = tmp_path / "lamp.cfg"
    demo = Path(mm_test_adapters.device_adapter_path()) / mm_core.DEMO_CONFIG
    lamp = "\nConfigGroup,Lamp,Good,Camera,Binning,1\nConfigGroup,Lamp,Bad,Camera,Binning,7\n"
    cfg.write_text(demo.read_text(encoding="utf-8") + lamp, encoding="utf-8")
    channels = {"channel_group": "Lamp", "channels": ["Good", "Bad"], "mm_config": cfg}
    driver = start(make(acquisition=channels))
    assert wait_until(lambda: not driver.alive)
    with pytest.raises(AcquisitionError, match=r"broke off .*Changing channels"):
        driver.raise_if_failed()
    assert daemon.ends[0].reason == "failed"
    assert daemon.ends[0].announced == len(daemon.frames) > 0


PARENT = """
    import sys, time
    from microdiffusion.config import Config
    from microdiffusion.drivers.process import DriverProcess

    if __name__ == "__main__":
        driver = DriverProcess(Config.model_validate_json(sys.argv[1]), sys.argv[2])
        driver.start()
        print(driver.pid, flush=True)
        time.sleep(600)
"""


@pytest.mark.acquisition
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("moment", ["before the first frame", "while running"])
def test_a_killed_parent_leaves_no_orphan(daemon: Daemon, tmp_path: Path, moment: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    config = make(acquisition={"sweeps": None}).model_dump_json()
    parent = subprocess.Popen(
        [sys.executable, str(script), config, daemon.address], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            if moment == "while running":
                assert wait_until(lambda: len(daemon.frames) > 5)
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
            assert wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 15)
        finally:
            if child.is_running():
                child.kill()


@pytest.mark.acquisition
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_an_orphan_could_not_deliver_is_delivered_from_its_journal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    script, journal = tmp_path / "parent.py", tmp_path / "journal"
    script.write_text(textwrap.dedent(PARENT))
    config = make(
        acquisition={"sweeps": None, "exposure_ms": 20}, wire={"journal": journal, "journal_gb": 1}
    ).model_dump_json()
    with subprocess.Popen(
        [sys.executable, str(script), config, address], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            assert wait_until(lambda: any(journal.rglob("*.part")))
            parent.kill()
            parent.wait()
            assert wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)
        finally:
            if child.is_running():
                child.kill()
    with Daemon(address) as daemon:
        (delivered,) = deliver(journal, address)
        assert delivered.done
        seqs = [frame.info.seq for frame in daemon.frames]
        assert seqs == list(range(delivered.frames))
        assert daemon.ends[0].announced == len(seqs) > 3
        assert daemon.ends[0].unsent == daemon.ends[0].dropped == 0


@pytest.mark.acquisition
def test_a_child_that_is_killed_is_reported(daemon: Daemon, start: Callable[[Config], DriverProcess]) -> None:
    driver = start(make(acquisition={"sweeps": None}))
    assert wait_until(lambda: len(daemon.frames) > 5)
    assert driver.alive
    psutil.Process(driver.pid).kill()
    assert wait_until(lambda: not driver.alive, 5)
    with pytest.raises(AcquisitionError, match=r"died without giving a reason"):
        driver.raise_if_failed()
    driver.stop()


# Acquisitions that hang ---------------------------------------------------------------------------


class StuckAcquisition:
    """Takes events and never anything else."""

    def acquire(self, events: list[Any]) -> None:
        pass

    def abort(self) -> None:
        pass

    def mark_finished(self) -> None:
        pass

    def await_completion(self) -> None:
        time.sleep(60)


def test_a_microscope_that_falls_silent_is_given_up(
    hook: tuple[FrameHook, Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micromanager, "SILENCE_S", 0.2)
    monkeypatch.setattr(micromanager, "GRACE_S", 0.1)
    config = make()
    task = DriverTask(config=config, address="", stop=threading.Event())
    feeder = micromanager._Feeder(task, hook[0], hook[1], MicroscopeWatch(None, bool), float)  # type: ignore[arg-type]
    with pytest.raises(AcquisitionError, match="No image has come for"):
        feeder.feed(StuckAcquisition(), Plan(config).sweeps())


def test_sweeps_keep_their_interval() -> None:
    config = make(acquisition={"sweeps": 4, "sweep_interval_s": 0.1})
    task = DriverTask(config=config, address="", stop=threading.Event())
    hook = SimpleNamespace(
        outstanding=0, failures=0, failures_in_a_row=0, progress=threading.Event(), expect=lambda _: None
    )
    feeder = micromanager._Feeder(task, hook, Outbox(), MicroscopeWatch(None, bool), float)  # type: ignore[arg-type]
    starts: list[float] = []
    acquisition = SimpleNamespace(acquire=lambda _: starts.append(time.monotonic()))
    before_s = time.monotonic()
    assert feeder.feed(acquisition, Plan(config).sweeps())
    assert all(start >= before_s + 0.1 * number for number, start in enumerate(starts))
    assert len(starts) == 4


def test_an_acquisition_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micromanager, "CLOSE_S", 0.2)
    with pytest.raises(AcquisitionError, match="did not end the acquisition within"):
        micromanager.close_acquisition(StuckAcquisition(), MicroscopeWatch(None, bool), abort=True)


# What can be wrong at the start -------------------------------------------------------------------


def test_no_server_at_the_port_names_port_and_menu() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody can be there
        port = taken.getsockname()[1]
        with pytest.raises(AcquisitionError) as caught:
            mm_core.open_core(AcquisitionConfig(backend="java", port=port))
    assert str(port) in str(caught.value)
    assert "Tools > Options > Run pycro-manager server on port" in str(caught.value)


def test_something_else_at_the_port_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mm_server, "TIMEOUT_S", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(AcquisitionError, match="does not answer as a pycro-manager server"),
    ):
        mm_core.open_core(AcquisitionConfig(backend="java", port=other.getsockname()[1]))


def test_adapters_of_another_interface_come_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pymmcore": "12.5.1.75.0", "mm-test-adapters": "74.20250101"}
    monkeypatch.setattr(mm_core, "version", versions.__getitem__)
    with pytest.raises(AcquisitionError, match=r"interface 75, .* has 74: .*'mm-test-adapters==75\.\*'"):
        mm_core.open_core(AcquisitionConfig())


@pytest.mark.parametrize("key", ["mm_config", "mm_app_path"])
def test_a_missing_file_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(MissingFileError, match=rf"nowhere.*acquisition\.{key}"):
        mm_core.open_core(AcquisitionConfig.model_validate({key: str(tmp_path / "nowhere")}))


def test_a_failure_in_the_child_comes_back_as_its_own_class(
    start: Callable[[Config], DriverProcess], tmp_path: Path
) -> None:
    driver = start(make(acquisition={"driver": "watch", "watch": tmp_path / "nowhere"}))
    assert wait_until(lambda: not driver.alive)
    with pytest.raises(MissingFileError, match="nowhere"):
        driver.raise_if_failed()


CAMERA_ONLY = """
    Property,Core,Initialize,0
    Device,Camera,DemoCamera,DCam
    Property,Core,Initialize,1
    Property,Core,Camera,Camera
"""


def _tell_refusals(configs: list[Config], cfg: Path | None, pipe: Connection[Any, Any]) -> None:
    core = mm_core.open_core(AcquisitionConfig(mm_config=cfg))
    for config in configs:
        try:
            pipe.send(str(mm_core.prepare(core, config, Plan(config))))
        except AcquisitionError as error:
            pipe.send(str(error))


UNSUITABLE = {
    "no such group": (
        {"acquisition": {"channel_group": "Lamp", "channels": ["red"]}},
        "no configuration group 'Lamp', but",
    ),
    "no such preset": (
        {"acquisition": {"channel_group": "Channel", "channels": ["red"]}},
        "has no preset 'red', but",
    ),
    "region too large": ({"camera": {"width": 4000}}, "fewer than the 4000 x 48"),
}


@pytest.mark.acquisition
def test_what_the_instrument_cannot_do_is_said_before_the_run() -> None:
    configs = [make(**tables) for tables, _ in UNSUITABLE.values()]
    with spawned(_tell_refusals, configs, None) as (_, here):
        for name, (_, text) in UNSUITABLE.items():
            assert here.poll(30), name
            assert text in here.recv(), name


@pytest.mark.acquisition
@pytest.mark.parametrize(
    ("text", "expected"),
    [(CAMERA_ONLY, "names no focus stage"), ("Device,Camera,NoSuchLibrary,DCam\n", "does not load")],
    ids=["no stage", "no such adapter"],
)
def test_a_configuration_that_does_not_serve_is_refused(
    tmp_path: Path, start: Callable[[Config], DriverProcess], text: str, expected: str
) -> None:
    cfg = tmp_path / "some.cfg"
    cfg.write_text(textwrap.dedent(text).lstrip())
    driver = start(make(acquisition={"mm_config": cfg}))
    assert wait_until(lambda: not driver.alive)
    with pytest.raises(AcquisitionError, match=expected):
        driver.raise_if_failed()


# The hook -----------------------------------------------------------------------------------------


@pytest.fixture
def hook() -> tuple[FrameHook, Outbox]:
    outbox = Outbox()
    header = RunHeader(
        run_id="0" * 32, shape=(24, 48, 64), voxel_size_um=(2, 1, 1), z0_um=0, profile_weights=(1,),
        profile_spacing_um=12,
    )  # fmt: skip
    hook = FrameHook(outbox, header, [])  # type: ignore[arg-type]
    hook.expect(next(Plan(make()).sweeps()))
    return hook, outbox


METADATA = {
    "Axes": {"time": 0, "z": 1},
    "ElapsedTime-ms": 250.0,
    "ZPosition_um_Intended": 17.5,
    "Exposure": 3.0,
}


def test_a_hook_that_begins_to_rest_while_it_is_released_returns(hook: tuple[FrameHook, Outbox]) -> None:
    releasing = threading.Thread(target=hook[0].release)

    class Due(threading.Event):
        def clear(self) -> None:
            releasing.start()
            releasing.join(0.2)
            super().clear()

    hook[0]._rests, hook[0]._due = True, Due()
    hook[0]._expected.clear()
    taking = threading.Thread(target=hook[0].take, args=(None, METADATA), daemon=True)
    taking.start()
    taking.join(5.0)
    assert not taking.is_alive()


def test_the_hook_takes_time_place_and_exposure_from_the_metadata(hook: tuple[FrameHook, Outbox]) -> None:
    before = hook[0].outstanding
    assert hook[0].take(np.full((48, 64), 7, np.uint8), METADATA) is None
    ((info, pixels),) = hook[1].put_frames
    assert info == replace(info, seq=1, stage=StagePosition(17.5), camera_time_s=0.25, exposure_ms=3.0)
    assert pixels.dtype == np.uint16
    assert hook[0].outstanding == before - 1
    hook[0].raise_if_failed()


BAD_CALLS: dict[str, tuple[Any, Any, str]] = {
    "no metadata": (np.zeros((48, 64)), None, "TypeError"),
    "no axes": (np.zeros((48, 64)), {}, "KeyError"),
    "not asked for": (np.zeros((48, 64)), {"Axes": {"time": 9, "z": 1}}, "an unexpected image"),
    "another size": (np.zeros((9, 9)), METADATA, r"rows 9 instead of 48, columns 9 instead of 64"),
    "no image": (None, METADATA, "AttributeError"),
}


@pytest.mark.parametrize(("image", "metadata", "reason"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_the_hook_never_raises_and_keeps_the_reason(
    hook: tuple[FrameHook, Outbox], image: Any, metadata: Any, reason: str
) -> None:
    assert hook[0].take(image, metadata) is None
    assert hook[0].progress.is_set()
    with pytest.raises(AcquisitionError, match=f"1 of 1 frames .*{reason}"):
        hook[0].raise_if_failed()


def test_a_broken_sender_does_not_reach_the_camera(hook: tuple[FrameHook, Outbox]) -> None:
    hook[1].broken = True
    hook[0].take(np.zeros((48, 64), np.uint16), METADATA)
    with pytest.raises(AcquisitionError, match="RuntimeError: broken"):
        hook[0].raise_if_failed()


def test_the_specimens_noise_depends_on_the_frame_alone(hook: tuple[FrameHook, Outbox]) -> None:
    draws: list[float] = []
    specimen = SimpleNamespace(expected=lambda z, profile, t: np.zeros(1))
    camera = SimpleNamespace(expose=lambda light, rng: draws.append(rng.random()))
    header = hook[0]._header.model_copy(update={"camera": camera})
    for _ in range(2):
        again = FrameHook(hook[1], header, [specimen], seed=4)  # type: ignore[arg-type, list-item]
        again.expect(next(Plan(make()).sweeps()))
        again.take(np.zeros((48, 64)), {**METADATA, "Axes": {"time": 0, "z": 0}})
        again.take(np.zeros((48, 64)), METADATA)
    assert draws[:2] == draws[2:]
    assert draws[0] != draws[1]
