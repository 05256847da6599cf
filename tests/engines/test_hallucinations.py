"""`mdd evaluate --hallucinations`: objects that are there or not, what is shown of them, and the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.session_scene import specimen

from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.engines.evaluation.hallucination_report import wilson
from microdiffusion.engines.evaluation.hallucinations import (
    Twin,
    comparable_places,
    judge,
    rates,
    shown_sweeps,
    twins,
)
from microdiffusion.engines.evaluation.objects import KINDS, plant

SLAB = 6.0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def structure() -> np.ndarray:
    """A specimen (40, 40, 40) with noise of its own."""
    rng = np.random.default_rng(3)
    volume = np.pad(specimen(), 4, mode="reflect") + 0.01 * rng.standard_normal((40, 40, 40))
    return np.clip(volume, 0, 1).astype(np.float32)


def rows_of(answer: np.ndarray, twin: Twin, bare: np.ndarray) -> list[dict[str, object]]:
    seen = np.ones(len(bare), np.bool_)
    return list(judge(answer, twin, comparable_places(bare, twin.objects, seen, 0), SLAB))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_objects_lie_apart_inside_and_within_the_range(kind: object, structure: np.ndarray) -> None:
    bare, objects = plant(structure, kind, 3, np.random.default_rng(0))  # type: ignore[arg-type]
    assert {each.origin for each in objects} == {"own", "added"}
    assert bare.min() >= 0
    assert bare.max() <= 1
    places = np.array([each.place for each in objects], float)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e3 * np.eye(len(places))
    assert distances.min() >= len(objects[0].light)
    for each in objects:
        assert each.light.min() >= 0
        assert each.light.max() > 0.02
        assert (each.patch(bare) + each.light).max() <= 1 + 1e-6


def test_own_objects_give_the_specimen_back(structure: np.ndarray) -> None:
    bare, objects = plant(structure, KINDS[0], 4, np.random.default_rng(0))
    for each in objects:
        if each.origin == "own":
            each.patch(bare)[...] += each.light
    assert np.allclose(bare, structure, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_truth_finds_all_and_invents_nothing(kind: object, structure: np.ndarray) -> None:
    bare, made = twins(structure, kind, 3, 0)  # type: ignore[arg-type]
    assert np.array_equal(made[0].there, ~made[1].there)
    rows = [row for twin in made for row in rows_of(twin.truth, twin, bare)]
    found = rates(rows)
    assert found["found"][0] == found["found"][1] == len(made[0].objects)
    assert found["invented"][0] == found["echoed"][0] == 0
    assert all(row["contrast"] == pytest.approx(float(row["there"]), abs=1e-4) for row in rows)


def test_the_other_twin_hides_all_and_invents_all(structure: np.ndarray) -> None:
    bare, (one, other) = twins(structure, KINDS[2], 3, 0)
    found = rates(rows_of(other.truth, one, bare))
    assert found["found"][0] == 0
    assert found["invented"][0] == found["invented"][1] > 0


def test_half_of_an_object_in_noise_is_not_shown_but_detected(structure: np.ndarray) -> None:
    bare, (twin, _) = twins(structure, KINDS[2], 3, 0)
    weaker = bare.copy()
    for each, there in zip(twin.objects, twin.there, strict=True):
        each.patch(weaker)[...] += 0.4 * there * each.light
    found = rates(rows_of(weaker, twin, bare))
    assert (found["found"][0], found["detected"][0]) == (0, found["detected"][1])


def test_a_restless_answer_needs_more_contrast(structure: np.ndarray) -> None:
    bare, (twin, _) = twins(structure, KINDS[0], 3, 0)
    restless = twin.truth + 0.3 * np.random.default_rng(1).standard_normal(bare.shape).astype(np.float32)
    calm, noisy = (
        np.mean([row["threshold"] for row in rows_of(a, twin, bare)]) for a in (twin.truth, restless)
    )
    assert noisy > calm + 0.1


def test_what_is_shown_at_two_depths_is_an_echo(structure: np.ndarray) -> None:
    bare, (twin, _) = twins(structure, KINDS[0], 3, 0)
    twice = twin.truth.copy()
    for each, there in zip(twin.objects, twin.there, strict=True):
        z, y, x = each.place
        at = z + 3 if z + 3 + 4 < len(bare) else z - 3
        if there:
            each.patch(twice, (at, y, x))[...] += each.light
    found = rates(rows_of(twice, twin, bare))
    assert found["echoed"][0] >= found["echoed"][1] - 1 > 0


def test_intervals_and_sweeps() -> None:
    assert wilson(0, 40)[0] == 0
    assert wilson(0, 40)[1] == pytest.approx(0.0876, abs=1e-3)
    assert wilson(20, 40) == pytest.approx((0.352, 0.648), abs=1e-3)
    assert shown_sweeps(8) == [0, 1, 3, 7]
    assert shown_sweeps(12) == [0, 1, 3, 7, 11]


def test_command_writes_tables_json_and_pictures(
    structure: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "blobs.npy", structure)
    code = cli.main(
        [
            *("evaluate", str(tmp_path / "blobs.npy"), "--hallucinations", "--objects", "1"),
            *("--methods", "linear", "--steps", "6", "--device", "cpu"),
            *("--json", str(tmp_path / "r.json"), "--pictures", str(tmp_path / "pictures")),
        ]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "invented" in out
    assert "Spines:" in out
    content = json.loads((tmp_path / "r.json").read_text())
    assert {row["sweep"] for row in content["rows"]} == {1, 2, 4, 8}
    entry = next(each for each in content["summary"] if each["kind"] == "all")
    assert entry["found"]["of"] == entry["invented"]["of"] > 0
    assert len(list((tmp_path / "pictures").glob("*objects_sweep*.png"))) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--objects", "3"], "give --hallucinations"), (["--hallucinations", "--drift"], "keep still")],
)
def test_options_that_do_not_go_together_are_refused(
    more: list[str], says: str, structure: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "blobs.npy", structure)
    assert cli.main(["evaluate", str(tmp_path / "blobs.npy"), *more]) == 2
    assert says in capsys.readouterr().err
