"""Runs over the Java bridge: a stand-in for Micro-Manager works, dies, stands still, refuses.

Everything is measured on the driver's real process. What stands still takes its time to be believed: those
trials, and the campaign over all phases, are slow; here each kind is tried once.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.bridge_standin import TRACE, MicroManager
from support.driver_support import Daemon, changed, wait_until

from microdiffusion.config.models import AcquisitionConfig, Config
from microdiffusion.drivers.micromanager import bridge, server
from microdiffusion.drivers.micromanager.bridge import MicroscopeWatch, watched
from microdiffusion.drivers.micromanager.survey import survey
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.process import DriverProcess
from microdiffusion.errors import AcquisitionError

DEAD_S, FROZEN_S = 10.0, 20.0
"""The promise: so soon the run is closed when Micro-Manager has ended, or stands still."""
LOST = "Micro-Manager has ended or no longer answers at port"


def make(port: int, **tables: Any) -> Config:
    """Return a configuration for the stand-in, changed."""
    base: dict[str, dict[str, Any]] = {
        "acquisition": {"backend": "java", "port": port, "exposure_ms": 2, "sweeps": None},
        "camera": {"width": 32, "height": 24},
        "volume": {"shape_z": 24},
        "wire": {"journal_gb": 0},
    }
    return changed(base, tables)


def ended(driver: DriverProcess, timeout_s: float = 60.0) -> str:
    """Wait for the driver's end and return its error; empty if there was none."""
    assert wait_until(lambda: not driver.alive, timeout_s)
    try:
        driver.raise_if_failed()
    except AcquisitionError as error:
        return str(error)
    return ""


# A run that goes well -----------------------------------------------------------------------------


def test_a_run_over_the_bridge_is_whole_and_leaves_micro_manager_as_it_was(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    with MicroManager() as scope:
        before = scope.state
        config = make(
            scope.port,
            acquisition={
                "sweeps": 2, "channel_group": "Channel", "channels": ["DAPI", "FITC"],
                "positions_um": [[0, 0], [40, -20]],
            },
        )  # fmt: skip
        driver = start(config)
        assert not ended(driver)
        assert not any("acquisition is running" in text for text in driver.take_notes())
        planned = [shot.info for sweep in Plan(config).sweeps() for shot in sweep.shots]
        assert [(f.info.seq, f.info.channel, f.info.position) for f in daemon.frames] == [
            (i.seq, i.channel, i.position) for i in planned
        ]
        assert daemon.headers[0].shape == (24, 24, 32)
        assert daemon.ends[0].reason == "finished"
        found = survey(config.acquisition)
        assert (found.width, found.height, found.is_live) == (64, 48, False)  # what `mdd init` offers
        after = scope.state
        changed = {"moves", "held"}
        assert after["moves"] > before["moves"]
        assert {k: v for k, v in after.items() if k not in changed} == {
            k: v for k, v in before.items() if k not in changed
        }


def test_between_sweeps_the_driver_rests(daemon: Daemon, start: Callable[[Config], DriverProcess]) -> None:
    with MicroManager() as scope:
        driver = start(make(scope.port, acquisition={"sweep_interval_s": 600}))
        assert wait_until(
            lambda: len(daemon.frames) >= 2 and daemon.frames[-1].info.count == len(daemon.frames)
        )
        time.sleep(0.5)
        process = psutil.Process(driver.pid)
        before_s, began_s = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(2.0)
        used = (sum(process.cpu_times()[:2]) - before_s) / (time.monotonic() - began_s)
        assert used < 0.05  # it was half a core
        driver.ask_to_stop()
        assert not ended(driver, 8.0)
        assert daemon.ends[0].reason == "stopped"


# It dies, stands still, refuses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval_s", "fault"),
    [
        (0, {"at": "setROI", "do": "die"}),
        (0, {"at": "createAcquisition", "do": "die"}),
        (0, {"at": "image", "count": 30, "do": "die"}),
        (600, None),
    ],
    ids=["at the start", "before the first image", "in a sweep", "between sweeps"],
)
def test_a_micro_manager_that_ends_ends_the_run_in_order(
    daemon: Daemon, start: Callable[[Config], DriverProcess], interval_s: float, fault: dict[str, Any] | None
) -> None:
    with MicroManager(fault=fault) as scope:
        driver = start(make(scope.port, acquisition={"sweep_interval_s": interval_s}))
        if fault is None:
            assert wait_until(lambda: len(daemon.frames) > 1)
            time.sleep(0.3)
            scope.kill()
        assert wait_until(lambda: not scope.is_running() or not driver.alive)
        assert not scope.is_running(), ended(driver)
        began_s = time.monotonic()
        assert f"{LOST} {scope.port}" in ended(driver)
        assert time.monotonic() - began_s < DEAD_S
        if daemon.headers:
            assert daemon.ends[0].reason == "failed"
            assert daemon.ends[0].announced == len(daemon.frames)


@pytest.mark.parametrize("moment", [pytest.param("in a sweep", marks=pytest.mark.slow), "between sweeps"])
def test_a_stop_ends_although_micro_manager_stands_still(
    daemon: Daemon, start: Callable[[Config], DriverProcess], moment: str
) -> None:
    with MicroManager() as scope:
        driver = start(
            make(scope.port, acquisition={"sweep_interval_s": 0 if moment == "in a sweep" else 600})
        )
        assert wait_until(lambda: len(daemon.frames) > 1)
        time.sleep(0.2)
        scope.freeze()
        began_s = time.monotonic()
        driver.ask_to_stop()
        text = ended(driver)
        assert time.monotonic() - began_s < 10.0
        assert re.search(r"did not (end the acquisition|take a sweep) within 6 s", text) or LOST in text
        assert any("Not put back as they were: focus stage at 3.5" in note for note in driver.take_notes())
        assert daemon.ends[0].announced == len(daemon.frames)


def test_a_daemon_that_does_not_answer_takes_no_time_from_the_microscope(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    # The third time that the stage is sent somewhere by name, it goes back.
    fault = {"at": "setPosition", "count": 3, "do": "dawdle"}
    with MicroManager(fault=fault) as scope:
        before = scope.state
        driver = start(make(scope.port))
        assert wait_until(lambda: len(daemon.frames) > 1)
        daemon.ingest.stop()
        driver.ask_to_stop()
        ended(driver)
        after = scope.state
        assert [after[name] for name in ("z", "roi", "exposure")] == [
            before[name] for name in ("z", "roi", "exposure")
        ], driver.take_notes()


@pytest.mark.slow
@pytest.mark.parametrize("at", ["getImageWidth", "createAcquisition", "image", "abort"])
def test_a_micro_manager_that_stands_still_ends_the_run(
    daemon: Daemon, start: Callable[[Config], DriverProcess], at: str
) -> None:
    with MicroManager(fault={"at": at, "do": "freeze"}) as scope:
        driver = start(make(scope.port))
        if at == "abort":
            assert wait_until(lambda: len(daemon.frames) > 1)
            driver.ask_to_stop()
        assert wait_until(scope.is_frozen)
        began_s = time.monotonic()
        assert ended(driver)
        assert time.monotonic() - began_s < FROZEN_S


def test_java_says_one_thing(daemon: Daemon, start: Callable[[Config], DriverProcess]) -> None:
    with MicroManager(fault={"at": "setExposure", "do": "raise"}) as scope:
        text = ended(start(make(scope.port)))
    assert text == (
        'Micro-Manager did not take its settings (Error in device "Camera": the shutter is stuck): '
        "check the device there."
    )
    assert server.message_of(Exception(TRACE)) == 'Error in device "Camera": the shutter is stuck'
    assert server.message_of(Exception("java.lang.NullPointerException\n\tat a.B.c(B.java:1)")) == (
        "NullPointerException"
    )
    # What a method raises comes as the server prints it, its trace without "at".
    trace = "mmcorej.MMCoreJJNI.CMMCore_setROI(Native Method)\njava.base/java.lang.Thread.run(Thread.java:2)"
    assert server.message_of(Exception(f"java.lang.NullPointerException\n{trace}")) == "NullPointerException"
    assert server.message_of(Exception(f"java.lang.Exception: Camera Busy\n{trace}")) == "Camera Busy"
    assert server.message_of(RuntimeError("Camera: busy.")) == "Camera: busy"
    assert server.message_of(RuntimeError("Busy(1)")) == "Busy(1)"
    assert server.message_of(RuntimeError("")) == "RuntimeError"


STACK = """
    import sys
    import numpy as np
    from microdiffusion.config import Config
    from microdiffusion.drivers.micromanager import take_stack
    from microdiffusion.errors import AcquisitionError

    if __name__ == "__main__":
        try:
            print(take_stack(Config.model_validate_json(sys.argv[1]), np.arange(40.0))[0].shape)
        except AcquisitionError as error:
            sys.exit(str(error))
"""


@pytest.mark.parametrize("dies", [False, True])
def test_a_stack_for_calibration_ends_too(tmp_path: Path, dies: bool) -> None:
    script = tmp_path / "stack.py"
    script.write_text(textwrap.dedent(STACK))
    fault = {"at": "image", "count": 20, "do": "die"} if dies else None
    with MicroManager(fault=fault) as scope:
        config = make(scope.port).model_dump_json()
        done = subprocess.run(
            [sys.executable, str(script), config], capture_output=True, text=True, timeout=30, check=False
        )
    if dies:
        assert done.returncode in (1, 3)
        assert f"{LOST} {scope.port}" in done.stderr
    else:
        assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "(40, 24, 32)"), done.stderr


# Somebody else is there ---------------------------------------------------------------------------


def test_live_view_is_asked_for_before_anything_is_changed(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    with MicroManager(live=True) as scope:
        config = make(scope.port)
        assert "switch Live view off" in ended(start(config))
        state = scope.state
        assert (state["moves"], state["exposure"]) == (0, 25.0)
        assert survey(config.acquisition).is_live
    assert not daemon.headers


def test_a_preset_beyond_latin_1_is_refused_with_the_reason(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    with MicroManager(groups={"Filter": ["蓝", "绿"]}) as scope:
        config = make(scope.port, acquisition={"channel_group": "Filter", "channels": ["蓝"]})
        text = ended(start(config))
    assert "has no preset '蓝', but ?, ?: correct acquisition.channels." in text
    assert "Letters beyond Latin-1 arrive over the bridge as '?'" in text


def test_a_port_has_one_driver(daemon: Daemon, start: Callable[[Config], DriverProcess]) -> None:
    with MicroManager() as scope:
        start(make(scope.port))
        assert wait_until(lambda: len(daemon.frames) > 1)
        moves = scope.state["moves"]
        assert f"Another mdd drives the Micro-Manager at port {scope.port}" in ended(start(make(scope.port)))
        assert scope.state["moves"] == moves
        assert scope.state["roi"] == [16, 12, 32, 24]


def test_an_acquisition_that_seems_to_run_is_told(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    with MicroManager(busy=True) as scope:
        driver = start(make(scope.port, acquisition={"sweeps": 1}))
        assert not ended(driver)
        notes = "\n".join(driver.take_notes())
        assert "Micro-Manager says that an acquisition is running" in notes


def test_an_older_engine_that_cannot_be_asked_is_driven_all_the_same(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    with MicroManager(older=True) as scope:
        assert not ended(start(make(scope.port, acquisition={"sweeps": 1})))


@pytest.mark.slow
def test_a_foreign_program_at_the_next_port_does_not_hold_the_run_up(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        MicroManager(second_port=other.getsockname()[1]) as scope,
    ):
        text = ended(start(make(scope.port)))
        assert f"did not begin an acquisition within {bridge.CALL_S:.0f} s" in text
        assert "that no other program uses the ports from" in text


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("backwards", "moves backwards: sent from"),
        ("restless", "while mdd was not moving it"),
        ("stiff", "was sent to .* and reports 3.5 µm"),
    ],
)
def test_a_stage_that_somebody_moves_is_not_one_that_moves_backwards(
    daemon: Daemon, start: Callable[[Config], DriverProcess], stage: str, text: str
) -> None:
    with MicroManager(stage=stage) as scope:
        assert re.search(text, ended(start(make(scope.port))))
    assert not daemon.headers


@pytest.mark.parametrize(("nudge", "told"), [(4, True), (1, False)], ids=["between sweeps", "in a sweep"])
def test_a_stage_that_is_moved_between_sweeps_is_told_once(
    daemon: Daemon, start: Callable[[Config], DriverProcess], nudge: int, told: bool
) -> None:
    # Five frames; within a sweep the next event sends the stage where it belongs.
    with MicroManager(change={"nudge": nudge}) as scope:
        driver = start(make(scope.port, acquisition={"sweeps": 3, "sweep_interval_s": 0.4}))
        assert not ended(driver)
        notes = [note for note in driver.take_notes() if "while mdd was not moving it" in note]
    assert len(notes) == told
    assert not told or "the focus stage moved from 23 to 28 µm" in notes[0], notes


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"binning": 2}, "binning 2 instead of 1"),
        pytest.param({"bytes": 1}, "pixel type GRAY8 instead of GRAY16", marks=pytest.mark.slow),
        pytest.param({"x": 8}, "region 8-12-32-24 instead of 16-12-32-24", marks=pytest.mark.slow),
    ],
    ids=["binning", "pixel type", "region"],
)
def test_a_changed_camera_ends_the_run_after_a_sweep_without_a_usable_frame(
    daemon: Daemon, start: Callable[[Config], DriverProcess], change: dict[str, Any], name: str
) -> None:
    with MicroManager(change={"after": 12, **change}) as scope:
        driver = start(make(scope.port, acquisition={"exposure_ms": 20}))
        text = ended(driver)
    assert name in text
    assert any("frames cannot be used because of a change" in note for note in driver.take_notes())
    assert len(daemon.frames) == 12
    (end,) = daemon.ends
    assert end.reason == "failed"
    assert end.dropped <= 3 * daemon.headers[0].frames_per_sweep  # two more sweeps were under way


def test_a_camera_that_is_changed_back_goes_on(
    daemon: Daemon, start: Callable[[Config], DriverProcess]
) -> None:
    with MicroManager(change={"after": 12, "until": 14, "binning": 2}) as scope:
        driver = start(make(scope.port, acquisition={"sweeps": 8}))
        assert "2 of" in ended(driver)
    notes = "\n".join(driver.take_notes())
    assert "frames can be used again; 2 were left out" in notes
    assert daemon.ends[0].reason == "finished"
    assert daemon.ends[0].dropped == 2


# The watch ----------------------------------------------------------------------------------------


def test_work_without_an_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "CALL_S", 0.2)
    with MicroManager() as scope, watched(make(scope.port).acquisition, threading.Event().is_set) as watch:
        assert watch.call("add", lambda a, b: a + b, 1, 2) == 3
        with pytest.raises(AcquisitionError, match=r"did not wait within 0 s: .*the ports from"):
            watch.call("wait", threading.Event().wait)
        with pytest.raises(AcquisitionError, match="did not wait"):
            watch.call("do anything else", print)
        assert watch.is_lost


def test_a_stop_shortens_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "STOP_S", 0.2)
    watch = MicroscopeWatch(None, lambda: True)
    with pytest.raises(AcquisitionError, match="did not wait within 0 s"):
        watch.call("wait", threading.Event().wait, limit_s=60.0)


def test_without_a_port_nothing_is_held() -> None:
    config = AcquisitionConfig()
    with watched(config, bool) as first, watched(config, bool) as second:
        assert first.call("say where it is", threading.current_thread) is threading.current_thread()
        assert not second.is_lost
