"""Outputs in the making: what a killed process left of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from microdiffusion.daemon.doctor.disk import remains
from microdiffusion.files import leftovers, staged

KILLED = """
import os, signal, sys
from pathlib import Path
from microdiffusion.files import staged
with staged(Path(sys.argv[1])) as (path,):
    path.write_bytes(b"half")
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
"""


def kill_while_making(path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert len(leftovers(path.parent, path.name)) == 1


def test_what_a_killed_copy_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    kill_while_making(tmp_path / "copy.h5")
    kill_while_making(tmp_path / "other.h5")
    with staged(tmp_path / "copy.h5") as (path,):
        path.write_bytes(b"whole")
    assert sorted(each.name.partition(".part-")[0] for each in tmp_path.iterdir()) == [".other.h5", "copy.h5"]


def test_what_a_killed_copy_left_is_named_by_the_doctor(tmp_path: Path) -> None:
    assert remains(tmp_path).level == "ok"
    kill_while_making(tmp_path / "copy.h5")
    finding = remains(tmp_path)
    assert finding.level == "warning"
    assert ".copy.h5.part-" in finding.text


def test_an_output_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    with staged(tmp_path / "copy.h5") as (path,):
        path.write_bytes(b"half")
        assert leftovers(tmp_path) == []
        assert remains(tmp_path).level == "ok"
