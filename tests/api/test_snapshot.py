from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from support.run_file_writer import (
    FRAMES,
    frame,
    header,
    put_sweep,
    put_volume,
    recorder,
    resumed,
    started,
    volume,
    wait,
)

from microdiffusion import open_run
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.runs.folder import RunFolder
from microdiffusion.errors import InputFileError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.copy import snapshot_run
from microdiffusion.runfile.schema import Status, segment_path
from microdiffusion.runfile.verify import verify_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def test_copy_of_a_run_in_several_files_is_one_file_with_all_of_it(path: Path) -> None:
    target = recorder(path, time_points=2, run=header(channels=("a", "b"), positions=("p", "q")))
    target.start()
    for sweep in range(5):
        for channel in range(2):
            for index in range(FRAMES):
                seq = (sweep * 2 + channel) * FRAMES + index
                target.put_frame(frame(sweep, index, channel, 1, seq=seq))
            put_volume(target, sweep, channel, 1)
    target.mark(1, 0, 0, Status.SKIPPED, "the engine was busy")
    target.put_event("disk", "it was full")
    target.put_ledger(Ledger(announced=30, announced_known=1))
    target.stop()
    assert segment_path(path, 2).exists()
    copy = path.with_name("copy.h5")
    report = snapshot_run(path, copy)
    assert (report.sound, report.closed, report.files, report.volumes, report.frames) == (
        True,
        True,
        1,
        10,
        30,
    )
    with open_run(path, position=1) as before, open_run(copy, position=1) as after:
        for t in range(5):
            assert np.array_equal(before.volume[t], after.volume[t])
            assert np.array_equal(before.projections[t], after.projections[t])
        for name in ("acquired_s", "residual", "seconds/total", "frames/seq"):
            assert np.array_equal(before.values(name), after.values(name)[: len(before)], equal_nan=True)
        assert (before.ledger, before.events) == (after.ledger, after.events)
    with open_run(copy) as after:
        assert ("the engine was busy", Status.SKIPPED) in [(gap.reason, gap.status) for gap in after.gaps()]


def test_copies_while_the_run_is_written_are_sound_each_time(path: Path) -> None:
    target = started(recorder(path, time_points=4))
    done = threading.Event()

    def write() -> None:
        for sweep in range(28):
            if sweep % 7 == 3:
                for index in range(FRAMES):
                    target.put_frame(frame(sweep, index))
                target.mark(sweep, 0, 0, Status.SKIPPED, "the engine was busy")
            else:
                put_sweep(target, sweep)
            if sweep % 7 == 6:
                put_volume(target, sweep - 3)  # it came after all
            target.put_ledger(Ledger(announced=FRAMES * (sweep + 1)))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    copies = 0
    try:
        while not done.is_set() or not copies:
            copy = path.with_name(f"copy_{copies}.h5")
            report = snapshot_run(path, copy)
            assert report.sound
            with open_run(copy) as opened:
                assert not opened.closed
                assert opened.ledger.received == report.frames
                for t in opened.written().tolist():
                    assert np.array_equal(opened.volume[t], volume(t))
            copies += 1
    finally:
        writer.join()
        target.stop()
    assert verify_run(path).sound


def test_a_run_is_not_gone_on_with_in_its_copy_unless_one_says_so(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    copy = path.with_name("a_copy.h5")  # its name comes before that of the run
    snapshot_run(path, copy)
    target.stop()
    assert RunFolder(path.parent).find(header().run_id) == path
    again = started(resumed(copy))
    put_sweep(again, 1)
    again.stop()
    assert verify_run(copy).sound


def test_snapshot_says_what_the_copy_holds(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    copy = path.with_name("copy.h5")
    assert main(["snapshot", str(path), str(copy)]) == 0
    assert capsys.readouterr().out == (
        f"wrote {copy}: 1 volume and 3 frames of a run that is open, or was cut off, checked\n"
    )
    target.stop()
    assert main(["snapshot", str(path), str(path.with_name("b.h5")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["volumes"] == 1
    with pytest.raises(InputFileError, match="not overwritten"):
        snapshot_run(path, copy)


def test_of_a_damaged_run_no_copy_is_made(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    target.stop()
    content = bytearray(path.read_bytes())
    content[content.index(volume(0).astype("<u2").tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputFileError, match="wrong checksum"):
        snapshot_run(path, path.with_name("copy.h5"))
    assert [one.name for one in path.parent.iterdir()] == ["run.h5"]
