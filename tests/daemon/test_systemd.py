"""What the service manager hears."""

from __future__ import annotations

import importlib.resources
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from microdiffusion.daemon.server.systemd import ServiceManager

unix_only = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="datagram sockets with a path")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with listening:
        yield listening


@unix_only
def test_systemd_hears_ready_alive_and_stopping(manager: socket.socket) -> None:
    service = ServiceManager()
    assert service.interval_s == 2.0
    service.ready("listening")
    assert manager.recv(4096) == b"READY=1\nSTATUS=listening"
    service.alive("listening")
    assert manager.recv(4096) == b"WATCHDOG=1"
    service.alive("12 volumes")  # too soon for another sign of life, but there is something new
    assert manager.recv(4096) == b"STATUS=12 volumes"
    service.stopping()
    assert manager.recv(4096) == b"STOPPING=1"


@unix_only
def test_a_watchdog_for_another_process_is_not_answered(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert ServiceManager().interval_s is None


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    service = ServiceManager()
    service.ready("listening")
    service.alive("well")
    service.stopping()


@unix_only
def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    ServiceManager().ready("listening")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there")
def test_systemd_accepts_the_unit_that_ships(tmp_path: Path) -> None:
    shipped = importlib.resources.files("microdiffusion.configs") / "services" / "mdd.service"
    unit = tmp_path / "mdd.service"
    # The program of this environment stands for the one of the user's.
    unit.write_text(
        shipped.read_text("utf-8").replace("/opt/mdd/bin/mdd", str(Path(sys.executable).parent / "mdd")),
        encoding="utf-8",
    )
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in found.stderr.splitlines() if "mdd.service" in line]
    assert complaints == []
