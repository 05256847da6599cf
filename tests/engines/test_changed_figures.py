"""Figures and texts in a run file that no mdd wrote: each command says a sentence, or does its work."""

from __future__ import annotations

import errno
from pathlib import Path

import h5py
import pytest
from support.run_file_writer import put_sweep, recorder, started

from microdiffusion.daemon.cli.dispatch import main


def codes(file: h5py.File) -> None:
    for name in ("served", "runtime", "effort"):
        file[f"mdd/{name}"][...] = 200
    file["mdd/status"][0] = 77


def extremes(file: h5py.File) -> None:
    for name in ("acquired_s", "latency_s", "residual", "held_out_error"):
        file[f"mdd/{name}"][...] = [-1e308, 1e308]
    file["mdd/events/count"][...] = 1 << 62


def brackets(file: h5py.File) -> None:
    file["mdd/engine"][...] = b"[" * 16000


CHANGES = {
    "codes": codes,
    "extremes": extremes,
    "brackets": brackets,
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_each_command_says_a_sentence_or_does_its_work(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path, configuration="[" * 100_000 if change == "brackets" else "{}"))
    for sweep in range(2):
        put_sweep(target, sweep)
    target.stop()
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    for command in (
        ["info", "--json"],
        ["info"],
        ["verify"],
        ["report", "--output", str(tmp_path / "page.html")],
        ["export", "--to", "bdv", "--output", str(tmp_path / "bdv.xml")],
        ["repair"],
    ):
        name, *options = command
        assert main([name, str(path), *options]) in (0, 2, 3), command
        told = capsys.readouterr().err
        assert "unexpected error" not in told, command
        assert told.count("\n") <= 1, command


@pytest.mark.parametrize("command", ["verify", "repair", "export"])
def test_a_folder_that_may_not_be_looked_into_is_said_to_be_that(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(path: Path, **_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for look in ("exists", "is_file"):
        monkeypatch.setattr(Path, look, forbidden)
    options = ["--to", "nrrd"] if command == "export" else []
    assert main([command, str(tmp_path / "run.h5"), *options]) == 2
    assert "cannot be used (Permission denied)" in capsys.readouterr().err
