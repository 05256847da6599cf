"""Run files of layout 1.0, made by the code that wrote it, and today's read by who knows only 1.0.

`data/run_1_0.tar.xz` holds `static.h5` with its further file `static_s001.h5`, and `swmr.h5`, which is
compressed: four sweeps of two channels and two positions each. `data/datasets_1_0.json` lists the datasets
of the former by path: shape and type.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import frame, header, put_sweep, recorder, resumed, started

from microdiffusion import open_run
from microdiffusion.export import export_run
from microdiffusion.frames import Frame, FrameInfo, Reconstruction, StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.runfile import LAYOUT_VERSION, RunPlan, Status, snapshot_run, verify_run
from microdiffusion.runfile.schema import datasets

DATA = Path(__file__).parents[1] / "data"
KNOWN: dict[str, tuple[list[int], str]] = json.loads((DATA / "datasets_1_0.json").read_text(encoding="utf-8"))
SHAPE, FRAMES = (4, 66, 66), 3
ADDED = {
    "1.1": {"age", "drift_x_um", "drift_y_um", "drift_z_um", "frames/exposure_ms", "still"},
    "1.2": {"files", "owners"},
    "1.3": {"decision", "frames/refocus_um"},
    "1.4": {
        "brightness_slope",
        "brightness_slope_sd",
        "interval_coverage",
        "interval_width",
        "uncertainty_map",
        "uncertainty_rms",
    },
}
"""Datasets below /mdd that each version brought: files of it are there, and have no others."""
KEYS = [(sweep, channel, position) for sweep in range(4) for channel in range(2) for position in range(2)]
SKIPPED = (2, 1, 0)


def volume(sweep: int, channel: int, position: int) -> np.ndarray:
    levels = 100 * np.arange(SHAPE[0]) + 10 * sweep + 3 * channel + position
    return np.broadcast_to(levels[:, None, None], SHAPE)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return the folder with the files of 1.0."""
    with tarfile.open(DATA / "run_1_0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def check(path: Path) -> None:
    """Compare what a run holds with what was put into it."""
    for position in range(2):
        with open_run(path, position=position) as run:
            assert run.header.name == "made by 1.0"
            for sweep, channel, where in KEYS:
                if where != position or (sweep, channel, where) == SKIPPED:
                    continue
                np.testing.assert_array_equal(run.volume[sweep, channel], volume(sweep, channel, position))
                assert run.pyramid[1][sweep, channel].shape == (4, 33, 33)
                assert run.uncertainty is not None
                assert run.uncertainty[sweep, channel].shape == SHAPE
                infos = [each.info for each in run.frames(sweep, channel)]
                assert [info.index for info in infos] == [0, 1, 2]
                assert [info.stage.z_um for info in infos] == [0.0, 4.0, 8.0]
                assert [info.held_out for info in infos] == [False, False, True]
                assert (
                    run.sweep(sweep, channel).projections[1, 5, 5]
                    == 1100 + 10 * sweep + 3 * channel + position
                )
    with open_run(path) as run:
        assert run.status[SKIPPED[:2]] == Status.SKIPPED
        assert [event.text for event in run.events] == ["it was full"]
        assert run.provenance["device"] == "cpu"
        assert run.ledger.received == len(KEYS) * FRAMES
    report = verify_run(path)
    assert (report.faults, report.volumes, report.frames) == ([], len(KEYS) - 1, len(KEYS) * FRAMES)


@pytest.mark.parametrize("name", ["static.h5", "swmr.h5"])
def test_a_run_of_1_0_is_read_copied_and_exported(old: Path, name: str) -> None:
    check(old / name)
    for compression in ("none", "gzip"):
        copy = old / f"{compression}.h5"
        assert snapshot_run(old / name, copy, compression=compression).sound
        check(copy)
        with h5py.File(copy) as file:
            assert file.attrs["mdd_layout"] == b"1.0"
            assert "mdd/frames/exposure_ms" not in file
    assert export_run(old / name, "bdv").volumes == 2 * (len(KEYS) - 1)  # and their uncertainty


def test_a_run_of_1_0_is_resumed_as_what_it_is(old: Path) -> None:
    path = old / "static.h5"
    target = started(resumed(path))
    seq = len(KEYS) * FRAMES
    for sweep in (2, 4, 5, 6):  # the last of them in a further file
        for index in range(FRAMES):
            stage = StagePosition(4.0 * index)
            info = FrameInfo(seq, sweep, index, FRAMES, stage, channel=1, exposure_ms=20.0)
            target.put_frame(Frame(info, np.full(SHAPE[1:], 7, np.uint16)))
            seq += 1
        made = Reconstruction(np.full(SHAPE, sweep, np.float32), "inr", 1.0)
        assert target.put_volume(sweep, 1, 0, made, acquired_s=float(sweep), received_s=0.0)
    target.stop()
    assert verify_run(path).faults == []
    with open_run(path) as run:
        assert len(run.paths) == 3
        for part in run.paths:
            with h5py.File(part) as file:
                assert file.attrs["mdd_layout"] == b"1.0"
        for sweep in (2, 4, 5, 6):
            assert np.all(run.volume[sweep, 1] == sweep)


def test_a_missing_file_of_a_run_of_1_0_is_known_from_its_ledger(old: Path) -> None:
    run = old / "static.h5"
    with open_run(run) as opened:
        assert opened.missing_files == []
    (old / "static_s001.h5").unlink()
    with pytest.warns(UserWarning, match=r"static_s001\.h5 of it is missing"):
        open_run(run).close()
    assert "static_s001.h5 is missing" in verify_run(run).faults[0]


def test_every_dataset_of_1_0_is_still_there(old: Path) -> None:
    with h5py.File(old / "static.h5") as file:
        header = RunHeader.model_validate_json(file["mdd/run_header"][()])
        configuration = file["mdd/configuration"][()].decode()
    plan = RunPlan(
        header, 3, FRAMES, configuration=configuration, live=True, pyramid=((1, 2, 2),), uncertainty=True
    )
    for version in ("1.0", LAYOUT_VERSION):
        made = {one.path: [list(one.shape), one.dtype] for one in datasets(replace(plan, version=version))}
        assert made.items() >= KNOWN.items() if version != "1.0" else made == KNOWN


def test_a_version_is_not_given_more_datasets_later() -> None:
    plan = RunPlan(header(), 3, FRAMES, live=True, pyramid=((1, 2, 2),), uncertainty=True)
    before = set(KNOWN)
    for version, names in ADDED.items():
        made = {one.path for one in datasets(replace(plan, version=version))}
        assert made - before == {f"mdd/{name}" for name in names}
        before = made
    assert version == LAYOUT_VERSION


def test_a_reader_that_knows_only_1_0_reads_a_file_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path))
    for sweep in range(2):
        put_sweep(target, sweep)
    target.stop()
    with h5py.File(path) as file:
        assert file.attrs["mdd_layout"] == LAYOUT_VERSION.encode()
        retired = [file[f"mdd/{name}"][()] for name in ("recipe", "state", "from_state", "recipes")]
        assert not any(np.asarray(values != np.zeros((), values.dtype)).any() for values in retired)
    # It took the version for what it knows, whatever the minor number.
    monkeypatch.setattr(RunPlan, "minor", 0)
    with open_run(path) as run:
        assert run.volume[1].shape == run.header.shape
        assert [one.info.exposure_ms for one in run.frames(1)] == [0.0] * 3
    assert verify_run(path).faults == []


def test_exposure_of_each_frame_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path))
    sent = [frame(0, index, exposure_ms=10.0 + index) for index in range(3)]
    for each in sent:
        target.put_frame(each)
    waiting = frame(1, 0, exposure_ms=3.5)
    target.put_frame(waiting)
    assert [each.info for each in target.load_frames(1, 0, 0)] == [waiting.info]
    target.stop()
    with open_run(path) as run:
        assert [each.info for each in run.frames(0)] == [each.info for each in sent]
        assert run.values("frames/exposure_ms")[0].tolist() == [10.0, 11.0, 12.0]
