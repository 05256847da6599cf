"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys

import pytest

from microdiffusion.daemon.cli.progress import ProgressBar, duration


def test_without_a_terminal_a_line_comes_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    bar = ProgressBar("", every_s=10.0, clock=lambda: now[0])
    for done in range(1, 101):
        bar(done, 100, title="train")
        now[0] += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 11 of 100, 89 s left"
    assert lines[-1] == "train: 100 of 100"
    assert len(lines) == 10


def test_shares_are_percent_and_a_note_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    bar = ProgressBar("building", every_s=10.0, clock=lambda: now[0])
    for share in (0.1, 0.2, 0.3):
        bar(share, note="loss 2")
        now[0] += 6.0
    assert capsys.readouterr().out == "building: 30%, loss 2, 42 s left\n"


@pytest.mark.parametrize("options", [{}, {"quiet": True, "every_s": 0.0}], ids=["no lines", "quiet"])
def test_else_nothing_is_said(options: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("reading", "planes", **options) as bar:  # type: ignore[arg-type]
        for done in range(3):
            bar(done, 3)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_unless_there_was_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar("building") as bar:
        bar(1.0)
    assert "building" not in capsys.readouterr().err
    with ProgressBar("reading", "planes") as bar:
        bar(2, 5)
        bar(3, 5, title="checking")
    said = capsys.readouterr().err
    assert "2 of 5 planes" in said
    assert "checking" in said


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12240, "3.4 h"), (440640, "5.1 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
