"""`mdd evaluate --sweeps`: courses, what is scored of them, and the files that come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.session_scene import specimen

from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.engines.evaluation.courses import Active, Drifting, Still, Watch
from microdiffusion.engines.evaluation.methods import parse_methods
from microdiffusion.engines.evaluation.protocol import Protocol
from microdiffusion.engines.evaluation.runner import EvaluationPlan
from microdiffusion.engines.evaluation.sessions import SessionPlan, evaluate_sessions, session_sweeps
from microdiffusion.errors import ConfigError, InputFileError

SWEEPS = 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "volumes"
    place.mkdir()
    np.save(place / "blobs.npy", specimen())
    return place


def watch(course: Still) -> Watch:
    slices = len(course.structure)
    return Watch(course, np.ones(slices, np.bool_), np.ones((course.sweeps, slices), np.bool_))


def test_the_truth_itself_scores_as_true() -> None:
    course = Active(specimen(), 16)
    scored = watch(course)
    for sweep in reversed(range(16)):
        scored.add(sweep, course.truth(sweep))
    scores = scored.scores()
    assert min(scores["psnr_db"]) == 120
    assert scores["correlation"] == pytest.approx(1)
    assert scores["slope"] == pytest.approx(1)
    assert (scores["slope_error"], scores["onset_delay"]) == (pytest.approx(0), 0)
    assert scores["flicker"] < 0.01
    assert scores["spots"] == course.active


def test_halved_late_and_flickering_answers_are_told_so() -> None:
    course = Active(specimen(), 16)
    rng = np.random.default_rng(0)
    scored = watch(course)
    for sweep in range(16):
        before = course.truth(max(sweep - 1, 0))
        volume = course.structure + 0.7 * (before - course.structure)
        scored.add(sweep, (volume * (1 + 0.05 * rng.standard_normal())).astype(np.float32))
    scores = scored.scores()
    assert scores["correlation"] < 0.95
    assert scores["slope"] < 0.9
    assert scores["onset_delay"] >= 0.5
    assert scores["flicker"] == pytest.approx(0.05, rel=0.5)


def test_a_drifting_specimen_has_no_voxel_that_flickers() -> None:
    course = Drifting(specimen(), SWEEPS)
    assert np.argmax(course.truth(7).sum((1, 2))) >= np.argmax(course.truth(0).sum((1, 2)))
    scored = watch(course)
    scored.add(7, course.truth(7))
    assert "flicker" not in scored.scores()


def test_sweeps_of_a_session_are_those_of_an_acquisition() -> None:
    course = Still(specimen(), SWEEPS)
    header, sweeps = session_sweeps(course, Protocol(step=8.0), SessionPlan(SWEEPS), 0)
    starts = [header.centres_of(sweep.stage)[0] for sweep in sweeps]
    assert len({round(float(start), 3) for start in starts}) == SWEEPS
    assert [len(sweep.held_out_stage) for sweep in sweeps] == [1, 0, 0, 0] * 2
    _, fixed = session_sweeps(course, Protocol(step=8.0), SessionPlan(SWEEPS, "fixed"), 0)
    assert len({float(sweep.stage.z_um[0]) for sweep in fixed}) == 1
    assert not np.array_equal(fixed[0].projections, fixed[1].projections)


def test_what_learns_beats_what_forgets(folder: Path) -> None:
    methods = parse_methods("linear,inr:memory=sweep,inr")
    engine = {"device": "cpu", "threads": 1}
    plan = EvaluationPlan([folder / "blobs.npy"], methods, steps=(8.0,), engine=engine)
    results = evaluate_sessions(plan, SessionPlan(SWEEPS, offline=True))
    last = {row["method"]: row["psnr_db"][-1] for row in results.rows}
    first = {row["method"]: row["psnr_db"][0] for row in results.rows}
    assert list(last) == ["linear", "inr:memory=sweep", "inr", "inr, offline"]
    assert last["inr"] > last["inr:memory=sweep"] + 2
    assert first["inr, offline"] > first["inr"] + 2


def test_too_few_sweeps_or_no_room_for_a_spot_is_said() -> None:
    with pytest.raises(ConfigError, match="--sweeps 8 or more"):
        SessionPlan(3)
    with pytest.raises(InputFileError, match="larger crop"):
        Active(specimen()[:, :12, :12], SWEEPS)


def test_command_writes_tables_rows_json_and_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    code = cli.main(
        [
            *("evaluate", str(folder), "--sweeps", "8", "--offsets", "golden", "--activity", "--drift"),
            *("--methods", "linear,inr", "--steps", "8", "--offline", "--device", "cpu"),
            *("--json", str(tmp_path / "r.json")),
            *("--markdown", str(tmp_path / "r.md"), "--pictures", str(tmp_path / "pictures")),
        ]
    )
    assert code == 0
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert content["protocol"]["sweeps"] == 8
    assert content["methods"] == ["linear", "inr", "inr, offline"]
    assert len(content["rows"]) == 3 * 3
    assert not content["skipped"]
    table = (tmp_path / "r.md").read_text(encoding="utf-8")
    for words in ("## Step 8", "`inr, offline`", "onset delay", "Drift", "correlation / slope"):
        assert words in table
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"blobs_step8_sweeps.png", "blobs_step8_traces.png"}


def test_flags_of_a_session_want_its_sweeps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(folder), "--activity"]) == 2
    assert "--sweeps 16" in capsys.readouterr().err
