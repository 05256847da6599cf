"""Run files that are renamed, removed, replaced or copied from outside while they are written.

A frame that was acknowledged is in a file that opens, or the run said before that it failed.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.run_file_writer import (
    FRAMES,
    frame,
    header,
    put_sweep,
    recorder,
    resumed,
    started,
    wait,
    when_recorded,
)

from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.recorder.segment import Segment
from microdiffusion.errors import DiskError, MddError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.verify import verify_run

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Python opens files without FILE_SHARE_DELETE: Windows lets nobody rename or remove an open one",
)

SWEEPS = 12


def rename(path: Path) -> None:
    path.rename(path.with_name("old.h5"))


def rename_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def remove(path: Path) -> None:
    path.unlink()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)  # the recorder may just make a further file there
    path.unlink(missing_ok=True)


def copy(path: Path) -> None:
    shutil.copyfile(path, path.with_name("copy.h5"))


def replace_by_a_copy(path: Path) -> None:
    copy(path)
    path.with_name("copy.h5").replace(path)


def replace_by_another(path: Path) -> None:
    other = path.with_name("other.tmp")
    other.write_bytes(b"another file")
    other.replace(path)


def make_read_only(path: Path) -> None:
    path.chmod(0o444)


HARMLESS = (copy, make_read_only)
ACTS = (rename, rename_folder, remove, remove_folder, replace_by_a_copy, replace_by_another, *HARMLESS)


def recorded(folder: Path) -> dict[int, np.ndarray]:
    """Return every frame that a file below a folder has, by its number."""
    found: dict[int, np.ndarray] = {}
    for path in folder.rglob("*.h5"):
        try:
            with open_run(path, missing="ignore") as run:
                seqs = run.values("frames/seq")
                for t, slot in np.argwhere(seqs >= 0).tolist():
                    found[int(seqs[t, slot])] = run.projections[t, slot]
        except MddError:
            continue  # what took the place of the file
    return found


def trial(folder: Path, act: Callable[[Path], None], after: int, pause_s: float, **config: int) -> str:
    """Write frames, `act` upon the file after some, and return how the run failed; empty: it did not."""
    path = folder / "runs" / "run.h5"
    target = started(recorder(path, **config))
    taken: list[int] = []
    for number in range(SWEEPS * FRAMES):
        if number == after:
            time.sleep(pause_s)
            act(target.paths[-1])
        one = frame(*divmod(number, FRAMES))
        target.put_frame(one, when_recorded(partial(taken.append, number)))
    failure = ""
    try:
        target.stop()
    except DiskError as error:
        failure = str(error)
    there = recorded(folder)
    lost = set(taken) - set(there)
    assert not lost, f"{act.__name__} after {after}: {len(lost)} of {len(taken)} are gone; {failure}"
    for number in taken:
        np.testing.assert_array_equal(there[number], frame(*divmod(number, FRAMES)).pixels)
    if not failure:
        assert len(taken) == SWEEPS * FRAMES
        assert verify_run(path).faults == []
    return failure


def begun(folder: Path, sweeps: int = 1, **config: int) -> tuple[Path, Recorder]:
    """Return a run file with some sweeps, and its recorder, which waits for more."""
    path = folder / "run.h5"
    target = started(recorder(path, **config))
    for sweep in range(sweeps):
        put_sweep(target, sweep)
    wait(lambda: target.queue_bytes == 0)
    return path, target


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_no_acknowledged_frame_is_lost_with_the_name_of_its_file(
    tmp_path: Path, act: Callable[[Path], None]
) -> None:
    failure = trial(tmp_path, act, after=SWEEPS * FRAMES // 2, pause_s=0.0)
    assert bool(failure) == (act not in HARMLESS)
    if failure:
        assert "while it was written" in failure


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_no_acknowledged_frame_is_lost_at_any_moment(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 no secret
    act = ACTS[seed % len(ACTS)]
    time_points = draw.choice([3, 8, SWEEPS])
    trial(
        tmp_path,
        act,
        after=draw.randrange(1, SWEEPS * FRAMES),
        pause_s=draw.choice([0.0, draw.random() / 100]),
        time_points=time_points,
    )


def test_a_run_without_frames_notices_within_a_ledger_that_its_file_is_gone(tmp_path: Path) -> None:
    path, target = begun(tmp_path)
    path.unlink()
    target.put_ledger(Ledger())
    with pytest.raises(DiskError, match=r"run_rescued\.h5") as caught:
        wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    assert "stay with their sender" in str(caught.value)
    rescued = tmp_path / "run_rescued.h5"
    assert target.paths == [rescued]
    with open_run(rescued) as run:
        assert run.written().tolist() == [0]
        np.testing.assert_array_equal(run.projections[0, 1], frame(0, 1).pixels)
    again = resumed(rescued)  # its sender's other frames find their place there
    again.start()
    put_sweep(again, 1)
    again.stop()
    assert verify_run(rescued).faults == []
    assert verify_run(rescued).frames == 2 * FRAMES


def test_a_file_that_goes_while_the_run_is_closed_is_not_closed_well(tmp_path: Path) -> None:
    path, target = begun(tmp_path)
    path.unlink()
    with pytest.raises(DiskError, match="removed"):
        target.stop()
    assert set(recorded(tmp_path)) == set(range(FRAMES))


def test_an_earlier_file_that_was_exchanged_is_not_written(tmp_path: Path) -> None:
    path, target = begun(tmp_path, 6, time_points=1)
    other = tmp_path / "other" / "run.h5"
    foreign = recorder(other, run=header(run_id="f" * 32), time_points=1)
    foreign.stop()
    first = other.read_bytes()
    other.replace(path)
    target.put_frame(frame(0, 0, seq=77))
    with pytest.raises(DiskError, match="replaced"):
        wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    assert path.read_bytes() == first


def test_a_file_that_is_cut_is_told(tmp_path: Path) -> None:
    path, target = begun(tmp_path)
    os.truncate(path, 5000)
    taken: list[int] = []
    target.put_frame(frame(1, 0), when_recorded(partial(taken.append, 0)))
    with pytest.raises(DiskError, match="cut"):
        wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    assert taken == []


@pytest.mark.parametrize("most", [None, 4], ids=["all open", "four open"])
def test_every_file_of_a_run_is_rescued_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    if most:
        monkeypatch.setattr("microdiffusion.daemon.recorder.files.open_files", lambda: most)
    path, target = begun(tmp_path / "runs", SWEEPS, time_points=1)
    names = [each.name for each in target.paths]
    assert len(names) == SWEEPS
    remove_folder(path)
    target.put_ledger(Ledger())
    with pytest.raises(DiskError) as caught:
        wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    gone = [name for name in names if f"{name} cannot be rescued" in str(caught.value)]
    assert gone == (names[1 : SWEEPS - most - 1] if most else [])  # the first is written to now and then
    there = set(recorded(tmp_path))
    lost = {sweep for sweep, name in enumerate(names) if name in gone}
    assert there == {seq for seq in range(SWEEPS * FRAMES) if seq // FRAMES not in lost}


@pytest.mark.parametrize("number", [0, 2, 5], ids=["the first", "one between", "the last"])
@pytest.mark.parametrize("act", [remove, rename, replace_by_another], ids=lambda act: act.__name__)
def test_where_one_of_its_files_lost_its_name_the_run_is_whole_nevertheless(
    tmp_path: Path, act: Callable[[Path], None], number: int
) -> None:
    _, target = begun(tmp_path, 6, time_points=1)
    act(target.paths[number])
    target.put_ledger(Ledger())
    with pytest.raises(DiskError):
        wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    first = target.paths[0]
    again = resumed(first)  # its sender's other frames find their place there
    again.start()
    put_sweep(again, 6)
    again.stop()
    assert verify_run(first).faults == []
    assert verify_run(first).frames == 7 * FRAMES


def test_a_file_that_cannot_follow_the_others_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Segment, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self.path))

    monkeypatch.setattr(Segment, "move", refused)
    path, target = begun(tmp_path, 3, time_points=1)
    rename(path)
    target.put_ledger(Ledger())
    with pytest.raises(DiskError) as caught:
        wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    assert "Rename run_s001.h5 to old_s001.h5: mdd could not (Permission denied)." in str(caught.value)
    assert "All that there is" not in str(caught.value)


def older_self(path: Path) -> bytes:
    return path.with_name("backup.tmp").read_bytes()


def another_run(path: Path) -> bytes:
    other = path.parent / "other" / path.name
    recorder(other, run=header(run_id="f" * 32)).stop()
    return other.read_bytes()


def noise(path: Path) -> bytes:
    return random.Random(0).randbytes(path.stat().st_size)  # noqa: S311 no secret


@pytest.mark.parametrize("content", [older_self, another_run, noise], ids=lambda content: content.__name__)
def test_nothing_is_acknowledged_in_a_file_that_was_overwritten_in_place(
    tmp_path: Path, content: Callable[[Path], bytes]
) -> None:
    path, target = begun(tmp_path)
    shutil.copyfile(path, path.with_name("backup.tmp"))
    put_sweep(target, 1)
    put_sweep(target, 2)
    wait(lambda: target.queue_bytes == 0)
    new = content(path)
    with path.open("r+b") as file:  # as `cp` does, and what synchronises folders
        file.write(new)
    taken: list[int] = []
    for index in range(FRAMES):
        target.put_frame(frame(3, index), when_recorded(partial(taken.append, index)))
    with pytest.raises(DiskError, match="overwritten"):
        wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    assert taken == []
