"""A volume of a run file made again from its projections: the same bits, or it is said that it cannot be."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.mdd_process import Mdd, free_port
from support.sample_data import SHAPE, write_sample

from microdiffusion import open_run
from microdiffusion.config.models import Config
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.offline.recompute import NO_RECIPE, NO_STATE, recompute
from microdiffusion.daemon.offline.reconstruct import reconstruct_file
from microdiffusion.runfile.layout import Status

SWEEPS = 6


@pytest.fixture(scope="module")
def recorded(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a few sweeps, merged, half of them with a projection held out."""
    folder = tmp_path_factory.mktemp("recorded")
    engine = {"weights": weights, "device": "cpu", "threads": 1, "steps": 2, "guidance": 0.5}
    config = Config.model_validate({"engine": engine})
    source, path = write_sample(folder / "projections.h5", SWEEPS), folder / "run.h5"
    reconstruct_file(source, path, config=config)
    return path


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    path.write_bytes(recorded.read_bytes())
    return path


def outcomes(path: Path, **wanted: object) -> dict[int, str]:
    return {each.time_point: each.outcome for each in recompute(path, **wanted)}  # type: ignore[arg-type]


def test_every_volume_is_made_again_bit_by_bit(run: Path) -> None:
    assert outcomes(run) == dict.fromkeys(range(SWEEPS), "exact")


def test_one_time_point_takes_those_before_it_and_says_nothing_of_them(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[int, int]] = []
    found = list(recompute(run, time_points=[3], progress=lambda done, total: made.append((done, total))))
    assert [each.outcome for each in found] == ["exact"]
    assert made[-1] == (4, 4)
    assert main(["reconstruct", str(run), "--check", "--time-points", "1,3-4"]) == 0
    assert "3 of 3 volumes bit-exact" in capsys.readouterr().out


def test_a_volume_that_was_changed_differs_and_by_how_much(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(run, "r+") as file:
        file["volume"][2, 3, 4, 5] += 7
        crc = file["mdd/crc32"][2]
        file["mdd/crc32"][2] = crc ^ 1
    assert outcomes(run) == dict.fromkeys(range(SWEEPS), "exact") | {2: "differs"}
    assert main(["reconstruct", str(run), "--check"]) == 3
    assert "time point 2: differs" in capsys.readouterr().out


def test_what_began_from_an_unknown_state_is_not_claimed(run: Path) -> None:
    with h5py.File(run, "r+") as file:
        file["mdd/from_state"][3] = 12345
        file["mdd/recipe"][5] = 0
    found = {each.time_point: each for each in recompute(run)}
    assert [found[t].outcome for t in range(3)] == ["exact"] * 3
    assert [found[t].why for t in (3, 4, 5)] == [NO_STATE, NO_STATE, NO_RECIPE]


def test_a_frame_that_came_after_its_volume_is_left_out(run: Path, recorded: Path) -> None:
    """As where a sweep's time was over: the file has the frame, the volume has not."""
    with h5py.File(run, "r+") as file:
        used = file["mdd/frames/used"][:]
        assert (used == (file["mdd/frames/seq"][:] >= 0)).all()
        used[4, 1] = 0
        file["mdd/frames/used"][:] = used
    found = outcomes(run)
    assert found[3] == "exact"
    assert found[4] == "differs"


def test_other_machines_are_named_before_anything_is_made(run: Path) -> None:
    with h5py.File(run, "r+") as file:
        recipes = file["mdd/recipes"][:]
        recipe = json.loads(recipes[0])
        recipe["processor"], recipe["versions"]["torch"] = "a slide rule", "0.1"
        recipes[0] = json.dumps(recipe).encode()
        file["mdd/recipes"][:] = recipes
    told: list[str] = []
    first = next(recompute(run, on_difference=told.append))
    assert first.outcome == "exact"
    assert any(text.startswith("processor: a slide rule then") for text in told)
    assert any(text.startswith("torch: 0.1 then") for text in told)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--time-points", "99"], "has no volume"),
        (["--time-points", "3-1"], "such as 3,7-9"),
        (["--output", "x.h5"], "writes nothing"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    run: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", str(run), "--check", *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the engine by what it has loaded")
@pytest.mark.parametrize("policy", ["live", "archive"])
def test_a_run_of_the_daemon_with_an_engine_that_died_is_made_again(
    weights: Path, tmp_path: Path, policy: str
) -> None:
    sweeps = 24
    source, output = write_sample(tmp_path / "projections.h5", sweeps), tmp_path / "runs"
    settings = {
        "engine.weights": weights,
        "engine.threads": 1,
        "engine.policy": policy,
        "engine.backlog": 1,
        "engine.checkpoint_s": 0.2,
        "recorder.time_points": sweeps,
        "wire.control": f"tcp://127.0.0.1:{free_port()}",
    }
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    arguments = ["replay", source, "--serve", "--output", output, "--rate", 12, *pairs]

    def volumes() -> int:
        files = sorted(output.glob("*.h5")) if output.is_dir() else []
        with contextlib.suppress(OSError):
            if files:
                with open_run(files[0]) as opened:
                    return int(np.count_nonzero(opened.status == Status.WRITTEN))
        return 0

    with Mdd(*arguments, folder=tmp_path) as mdd:
        mdd.wait_for(lambda: volumes() >= 3)
        mdd.engine().kill()
        assert mdd.finish() == 0, mdd.err
    (path,) = output.glob("*.h5")
    with open_run(path) as opened:
        assert opened.volume.shape[1:] == SHAPE
        written = np.flatnonzero(opened.status == Status.WRITTEN)
        assert any("died" in event.text for event in opened.events)
    found = Counter(each.outcome for each in recompute(path))
    # What the file cannot know is said; what it claims holds.
    assert found["differs"] == 0
    assert found["exact"] + found["impossible"] == len(written)
    assert found["exact"] >= 3
