"""Which file of a folder is which run's, and what a daemon that was killed left there."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from support.run_file_writer import frame, header, recorder, started

from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.recorder.opening import create_recorder, resume_recorder
from microdiffusion.daemon.runs.folder import RunFolder
from microdiffusion.errors import InputFileError

A, B = "a" * 32, "b" * 32


def write(path: Path, run_id: str) -> None:
    target = started(recorder(path, run=header(run_id=run_id)))
    target.put_frame(frame(0, 0))
    target.stop()


def test_a_run_is_found_by_its_number_among_other_files(tmp_path: Path) -> None:
    write(tmp_path / "one.h5", A)
    write(tmp_path / "two.h5", B)
    (tmp_path / "notes.h5").write_bytes(b"no HDF5 at all")
    (tmp_path / "empty.h5").write_bytes(b"")
    finder = RunFolder(tmp_path)
    assert finder.find(A) == tmp_path / "one.h5"
    assert finder.find(B) == tmp_path / "two.h5"
    assert finder.find("c" * 32) is None


def test_a_file_that_appears_or_is_exchanged_later_is_seen(tmp_path: Path) -> None:
    finder = RunFolder(tmp_path)
    assert finder.find(A) is None
    write(tmp_path / "one.h5", A)
    assert finder.find(A) == tmp_path / "one.h5"
    (tmp_path / "one.h5").unlink()
    assert finder.find(A) is None


def test_of_two_files_of_a_run_the_recorded_one_is_found_not_the_one_made_from_it(tmp_path: Path) -> None:
    write(tmp_path / "zz_recorded.h5", A)
    time.sleep(0.01)
    write(tmp_path / "aa_reconstructed.h5", A)
    assert RunFolder(tmp_path).find(A) == tmp_path / "zz_recorded.h5"


def go_on(path: Path, *frames: int) -> None:
    target = resume_recorder(path, RecorderConfig(), on_written=lambda written: None)
    target.start()
    for number in frames:
        target.put_frame(frame(*divmod(number, 3)))
    target.stop()


@pytest.mark.parametrize("names", [("run.h5", "aa_backup.h5"), ("run.h5", "zz_backup.h5")])
def test_a_run_goes_on_in_the_file_that_holds_most_not_in_a_copy_of_it(
    tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    original, backup = (tmp_path / name for name in names)
    write(original, A)
    shutil.copyfile(original, backup)
    go_on(original, 1, 2)
    os.utime(backup)  # a backup may be touched later
    assert RunFolder(tmp_path).find(A) == original
    assert f"a copy of it is {backup.name}" in caplog.text


@pytest.mark.parametrize("backup", ["aa_backup.h5", "zz_backup.h5"])
def test_of_equal_copies_the_one_with_its_own_name_is_the_run(tmp_path: Path, backup: str) -> None:
    path = tmp_path / "run.h5"
    target = create_recorder(
        path,
        header(run_id=A),
        RecorderConfig(time_points=2),
        frames_per_sweep=3,
        configuration="{}",
        provenance={"file": "run.h5"},
        on_written=lambda written: None,
    )
    target.stop()
    shutil.copyfile(path, tmp_path / backup)
    assert RunFolder(tmp_path).find(A) == path


def test_copies_that_went_different_ways_are_refused_with_both_names(tmp_path: Path) -> None:
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    write(one, A)
    shutil.copyfile(one, two)
    go_on(one, 1)
    go_on(two, 2)
    with pytest.raises(InputFileError, match=r"(one\.h5 and two|two\.h5 and one)\.h5 are copies"):
        RunFolder(tmp_path).find(A)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes with names of files")
@pytest.mark.timeout(20)
def test_a_pipe_that_is_named_like_a_run_file_holds_up_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    write(tmp_path / "run.h5", A)
    assert RunFolder(tmp_path).find(A) == tmp_path / "run.h5"
    assert RunFolder(tmp_path).unclosed() == []


def test_only_a_run_that_nobody_closed_is_named(tmp_path: Path) -> None:
    write(tmp_path / "closed.h5", A)
    target = started(recorder(tmp_path / "open.h5", run=header(run_id=B)))
    try:
        assert RunFolder(tmp_path).unclosed() == [tmp_path / "open.h5"]
    finally:
        target.stop()
    assert RunFolder(tmp_path).unclosed() == []


def test_what_a_killed_daemon_was_making_is_removed_later_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "run.h5", A)
    old, new = tmp_path / ".old.h5.tmp", tmp_path / ".new.h5.tmp"
    for path in (old, new):
        path.write_bytes(b"room")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    os.utime(tmp_path / "run.h5", (long_ago, long_ago))
    RunFolder(tmp_path).remove_remains()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        ".new.h5.tmp",
        "run.h5",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_nowhere_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "gone.h5").symlink_to(tmp_path / "nowhere.h5")
    assert RunFolder(tmp_path).unclosed() == []
    assert RunFolder(tmp_path).find(A) is None
