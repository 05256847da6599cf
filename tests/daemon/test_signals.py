"""Signals that ask for a stop: heard from the first moment, wherever the main thread is."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.fault_checks import first_files
from support.fault_stage import make_source
from support.mdd_process import Mdd, command

from microdiffusion import open_run
from microdiffusion.daemon import signals
from microdiffusion.daemon.cli import options
from microdiffusion.daemon.signals import StopRequest

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="posix signals")


PORTS = [f"--set=wire.{name}=tcp://127.0.0.1:*" for name in ("data", "status", "control")]


@pytest.fixture(autouse=True)
def nobody_used_nohup() -> Iterator[None]:
    """Have a hang-up matter here and in child processes, whatever whoever started the tests had set."""
    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@posix_only
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_asks_for_a_stop_and_the_second_for_one_at_once(number: str) -> None:
    stopping = StopRequest()
    before = signal.getsignal(getattr(signal, number))
    with stopping.heard():
        assert not stopping.wait(0.0)
        os.kill(os.getpid(), getattr(signal, number))
        assert stopping.wait(10.0)
        assert not stopping.hurry
        os.kill(os.getpid(), getattr(signal, number))
        assert stopping.hurry
    assert signal.getsignal(getattr(signal, number)) is before


@posix_only
def test_a_signal_is_heard_wherever_it_comes_in_the_waiting() -> None:
    """An event would stand still for ever: its lock is held while it is waited for, and taken to set it."""
    places = (signals.__file__, threading.__file__)

    def interrupt(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if event == "line" and frame.f_code.co_filename in places:
            signal.raise_signal(signal.SIGTERM)
        return interrupt

    stopping = StopRequest()
    before = sys.gettrace()
    with stopping.heard():
        sys.settrace(interrupt)
        try:
            assert stopping.wait(10.0)
        finally:
            sys.settrace(before)
    assert stopping.times > 1


@posix_only
def test_whoever_starts_it_with_nohup_hears_of_no_hang_up() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stopping = StopRequest()
        with stopping.heard():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping.wait(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)


@posix_only
@pytest.mark.parametrize("name", ["serve", "acquire"])
def test_a_stop_while_the_configuration_is_loaded_is_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from microdiffusion.daemon.cli import dispatch as cli

    real = options.config_from

    def slow(*arguments: object, **named: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(options, "config_from", slow)
    monkeypatch.setenv("MDD_DATA", str(tmp_path))
    output = tmp_path / "runs"
    more = ["--output", str(output), "--headless"] if name == "serve" else []
    driver = ["--set=acquisition.driver=watch", f"--set=acquisition.watch={tmp_path}"]
    journal = [f"--set=wire.journal={tmp_path / 'journal'}"]
    address = "--set=wire.data=tcp://127.0.0.1:5750"  # where nobody will listen
    assert cli.main([name, *more, *driver, *journal, address]) == 0
    assert not output.exists(), "nothing was begun"


@posix_only
def test_a_terminal_that_is_closed_ends_the_run_in_order(tmp_path: Path) -> None:
    import fcntl
    import pty
    import subprocess
    import termios

    source = make_source(tmp_path, sweeps=24)
    output = tmp_path / "runs"
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    arguments = ["replay", source.path, "--serve", "--rate", 5, "--output", output, *PORTS]
    with subprocess.Popen(
        [command(), *map(str, arguments), "--set=engine.method=linear"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=own_terminal,
    ) as process:
        os.close(theirs)
        deadline_s = time.monotonic() + 60
        said = b""
        while not first_files(output) or b"running" not in said:
            assert time.monotonic() < deadline_s, said[-2000:]
            said += os.read(ours, 1 << 16)
        os.close(ours)
        assert process.wait(60) == 0
    (path,) = first_files(output)
    with open_run(path) as run:
        assert run.closed


@posix_only
def test_a_hang_up_of_the_whole_group_closes_in_order(tmp_path: Path) -> None:
    with Mdd(
        "serve",
        "--headless",
        "--output",
        tmp_path / "runs",
        "--set=engine.method=linear",
        *PORTS,
        folder=tmp_path,
    ) as mdd:
        mdd.wait_for((tmp_path / "runs").exists)
        mdd.send(signal.SIGHUP, group=True)
        assert mdd.finish() == 0, mdd.err
        assert "Traceback" not in mdd.err
        assert mdd.orphans() == []
