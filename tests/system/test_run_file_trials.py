"""Small versions of `benchmarks/run_file.py`: the file as it is written, watched, killed and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.file_mutations import malformed_files, open_all
from support.run_file_trials import (
    base_of,
    bytes_of_volume,
    kill_trials,
    reader_trial,
    timed_writes,
    truth,
    writing,
)

from microdiffusion.runfile.copy import snapshot_run

SHAPE = (6, 72, 80)


@pytest.mark.slow  # that announced volumes are there is also seen in test_run_file
def test_a_killed_writer_leaves_volumes_with_their_pyramids_whole(tmp_path: Path) -> None:
    found = kill_trials(tmp_path, (12, 160, 160), 8, {})
    assert found["wrong"] == []
    assert found["files"] >= 6
    assert found["announced"] >= 6


def test_readers_see_every_voxel_right_while_the_run_goes_on(tmp_path: Path) -> None:
    found = reader_trial(tmp_path, SHAPE, {}, readers=3, volumes=8, period_s=0.02, phases=1)
    assert found["problems"] == []
    assert found["volumes_read"] == 24


def test_writing_keeps_up_with_plain_writes(tmp_path: Path) -> None:
    """A wide bound; what is measured on a quiet disk is in benchmarks/results/run_file.json."""
    shape = (16, 256, 256)
    size = bytes_of_volume(tmp_path, shape, {})
    assert 1.1 < size / (2 * np.prod(shape)) < 1.5
    raw, ours = timed_writes(tmp_path, shape, 24, {})
    assert min(raw) / min(ours) > 0.05  # the quickest of each: others may use the machine


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("compression", "count"), [("none", 80), ("gzip", 20)])
def test_of_damaged_files_nothing_wrong_is_read(tmp_path: Path, compression: str, count: int) -> None:
    sound, left_open = tmp_path / "sound.h5", tmp_path / "open.h5"
    base = base_of(SHAPE)
    with writing(sound, SHAPE, 4, {}) as target:
        for sweep in range(4):
            volume = truth(sweep, base)
            target.put_frame(sweep, volume[0])
            target.write(sweep, volume.astype(np.float32))
        left_open.write_bytes(sound.read_bytes())  # as a kill would leave it
    if compression != "none":
        snapshot_run(left_open, tmp_path / "packed.h5", compression=compression)
        left_open = tmp_path / "packed.h5"
    files = [*malformed_files(tmp_path, left_open, count, seed=3), left_open]
    findings = open_all(files, tmp_path, sound)
    assert findings.strange == []
    if compression == "none":
        assert findings.outcomes["repaired"] >= 1
    assert findings.outcomes["opened, a part refused"] >= count / 40
    assert findings.outcomes["read: refused"] >= count / 4
