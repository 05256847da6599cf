from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import frame, put_sweep, recorder, started, volume, wait

from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.offline.repair import repair_run
from microdiffusion.daemon.recorder.segment import Segment
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.schema import Status
from microdiffusion.runfile.verify import verify_run


def killed(folder: Path) -> Path:
    """Return a run as a kill would leave it: the bytes of one that goes on."""
    source = folder / "going" / "run.h5"
    target = started(recorder(source, time_points=100))
    for sweep in range(3):
        put_sweep(target, sweep)
    target.put_frame(frame(3, 0))
    wait(lambda: target.counts[Status.WRITTEN] == 3 and target.queue_bytes == 0)
    path = folder / "run.h5"
    path.write_bytes(source.read_bytes())
    target.stop()
    return path


def test_killed_run_is_closed_with_a_status_for_what_was_begun(tmp_path: Path) -> None:
    path = killed(tmp_path)
    report = repair_run(path)
    assert report.sound
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["volume"][2], volume(2))
    with open_run(path) as run:
        assert run.closed
        assert run.status.tolist() == [1, 1, 1, Status.LOST]
        np.testing.assert_array_equal(run.projections[3, 0], frame(3, 0).pixels)
    again = path.read_bytes()
    assert repair_run(path).done == []
    assert path.read_bytes() == again


def test_file_that_a_daemon_writes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path))
    put_sweep(target, 0)
    assert main(["repair", str(path)]) == 2
    assert "being written" in capsys.readouterr().err
    target.stop()
    assert verify_run(path).sound
    assert main(["repair", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(path), "done": [], "faults": [], "sound": True
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n" + bytes(40)])
def test_other_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(content)
    assert main(["repair", str(path)]) in (2, 3)
    assert path.read_bytes() == content


def test_foreign_hdf5_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w", libver="v110") as file:
        file["x"] = 1
    content = path.read_bytes()
    assert main(["repair", str(path)]) == 3
    assert path.read_bytes() == content


def test_a_gap_whose_reason_was_being_taken_back_has_one_again(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path))
    put_sweep(target, 0)
    target.mark(1, 0, 0, Status.LOST, "half of its frames did not come")
    target.stop()
    # A kill in the middle of a volume that is made later: the reason goes first, then the status.
    segment = Segment.open(path)
    segment.write("mdd/closed", (), 0)
    segment.write("mdd/reason", (1,), b"")
    segment.close()
    assert not verify_run(path).sound
    assert repair_run(path).sound
    with open_run(path) as run:
        (gap,) = run.gaps()
        assert "killed" in gap.reason
