"""Completion with the Tab key: what the shell is given for the line so far."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MDD = Path(sys.executable).with_name("mdd.exe" if os.name == "nt" else "mdd")


def completed(line: str, tmp_path: Path) -> list[str]:
    """Return what would be offered at the end of `line`, by argcomplete's own protocol."""
    answer = tmp_path / "answer"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "",
    }
    subprocess.run([MDD], env=environment, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    return [word.strip() for word in answer.read_text(encoding="utf-8").split("\n") if word.strip()]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mdd ", {"serve", "verify", "config"}),
        ("mdd rec", {"reconstruct"}),
        ("mdd serve --dem", {"--demo"}),
        ("mdd serve --set engine.inr.", {"engine.inr.rank=", "engine.inr.bandwidth_z="}),
        ("mdd serve --config dem", {"demo"}),
        ("mdd reconstruct --method ", {"tikhonov", "linear"}),
        ("mdd verify ru", {"run.h5"}),
        ("mdd config ", {"check", "show"}),
    ],
)
def test_the_tab_key_offers(line: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "run.h5").touch()
    assert offered <= set(completed(line, tmp_path))


def test_the_documented_line_gives_a_script_that_bash_takes() -> None:
    register = MDD.with_name("register-python-argcomplete")
    if not Path("/bin/bash").exists() or not register.exists():
        pytest.skip("no bash here")
    script = subprocess.run([register, "mdd"], capture_output=True, check=True, text=True, timeout=60).stdout
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True, timeout=60)
    assert "mdd" in script
