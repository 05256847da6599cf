"""Runs of several files of which some were not copied: whatever reads them says which."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from support.run_file_writer import header, put_sweep, recorder, started

from microdiffusion import open_run
from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.recorder.opening import resume_recorder
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.files import open_volume
from microdiffusion.runfile.schema import segment_path

FILES = 4
SUBSETS = [
    subset for length in range(1, FILES) for subset in combinations(range(FILES), length)
]  # of what was copied: 14
PRINTS = (
    "info RUN",
    "info RUN --json",
    "verify RUN",
    "verify RUN --json",
    "report RUN --output OUT.html",
)
REFUSES = (
    "export RUN --to ome-zarr --output OUT",
    "export RUN --to ome-tiff --output OUT.ome.tif",
    "export RUN --to nrrd --output OUT",
    "export RUN --to bdv --output OUT.h5",
    "export RUN --to bdv --link --output OUT.h5",
    "repack RUN OUT.h5",
    "repack RUN --in-place",
    "snapshot RUN OUT.h5",
    "repair RUN",
    "reconstruct RUN",
    "reconstruct RUN --output OUT.h5",
    "serve --resume RUN",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of four files, closed."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    target = started(recorder(path, time_points=1))
    for sweep in range(FILES):
        put_sweep(target, sweep)
    target.stop()
    assert len(target.paths) == FILES
    return path


def copied(whole: Path, folder: Path, subset: tuple[int, ...]) -> tuple[Path, list[str]]:
    """Copy some files of the run; return its first file, and the names of those that lack."""
    for number in subset:
        source = segment_path(whole, number)
        shutil.copyfile(source, folder / source.name)
    run = folder / whole.name
    lacking = [segment_path(run, n).name for n in range(FILES) if n not in subset]
    return run, lacking if 0 in subset else [run.name]


def mdd(command: str, run: Path) -> tuple[int, str]:
    """Run a command; return its exit code and what it says."""
    out, err = io.StringIO(), io.StringIO()
    place = {"RUN": str(run), "OUT": str(run.with_name("out"))}
    words = []
    for word in command.split():
        stem, dot, rest = word.partition(".")
        words.append(place.get(stem, stem) + dot + rest)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    said = out.getvalue() + err.getvalue()
    page = run.with_name("out.html")
    return code, said + (page.read_text("utf-8") if page.is_file() else "")


@pytest.mark.parametrize("command", [*PRINTS, *REFUSES])
def test_every_command_says_which_files_of_a_run_are_missing(
    whole: Path, tmp_path: Path, command: str
) -> None:
    for subset in SUBSETS:
        folder = tmp_path / "".join(map(str, subset))
        folder.mkdir()
        run, lacking = copied(whole, folder, subset)
        before = {each: each.read_bytes() for each in folder.iterdir()}
        code, said = mdd(command, run)
        for name in lacking:
            assert name in said, (command, subset, said)
        assert "missing" in said, (command, subset, said)
        if command in REFUSES:
            assert code in (2, 3), (command, subset, said)
            assert {each: each.read_bytes() for each in folder.iterdir() if each.is_file()} == before
        elif 0 in subset:
            assert code == (3 if command.startswith("verify") else 0), (command, subset, said)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_open_run_warns_or_refuses_and_reads_up_to_the_gap(
    whole: Path, tmp_path: Path, subset: tuple[int, ...]
) -> None:
    run, lacking = copied(whole, tmp_path, subset)
    if 0 not in subset:
        with pytest.raises(MissingFileError, match=r"run\.h5 is missing, the first file"):
            open_run(run)
        further = segment_path(run, subset[0])
        with pytest.warns(UserWarning, match=r"run\.h5 of it is missing"), open_run(further) as opened:
            assert [path.name for path in opened.missing_files] == ["run.h5"]
        return
    with pytest.warns(UserWarning, match="missing: copy all files") as caught:
        opened = open_run(run)
    with opened:
        assert [path.name for path in opened.missing_files] == lacking
        there = next(n for n in range(FILES) if n not in subset)
        assert len(opened) == there
        assert opened.volume[there - 1].any()
    assert all(name in str(caught[0].message) for name in lacking)
    with pytest.raises(MissingFileError, match="missing"):
        open_run(run, missing="refuse")
    open_run(run, missing="ignore").close()


@pytest.mark.parametrize(
    "read", [lambda run: __import__("microdiffusion.adapters.napari_layers", fromlist=["x"]).run_layers(run)]
)
def test_a_viewer_warns(whole: Path, tmp_path: Path, read: Callable[[Path], object]) -> None:
    run, _ = copied(whole, tmp_path, (0, 2))
    with pytest.warns(UserWarning, match=r"run_s001\.h5, run_s003\.h5 of it are missing"):
        read(run)


def test_a_run_is_not_resumed_in_a_part_of_it(whole: Path, tmp_path: Path) -> None:
    run, _ = copied(whole, tmp_path, (0, 1))
    before = run.read_bytes()
    with pytest.raises(MissingFileError, match=r"run_s002\.h5, run_s003\.h5"):
        resume_recorder(run, RecorderConfig(), on_written=lambda written: None)
    assert run.read_bytes() == before


@pytest.mark.parametrize("command", [*PRINTS, *REFUSES])
def test_a_further_file_knows_of_the_others_that_are_missing(
    whole: Path, tmp_path: Path, command: str
) -> None:
    for subset in SUBSETS:
        folder = tmp_path / "".join(map(str, subset))
        folder.mkdir()
        run, lacking = copied(whole, folder, subset)
        for number in set(subset) - {0}:
            code, said = mdd(command, segment_path(run, number))
            assert all(name in said for name in lacking), (command, subset, number, said)
            assert "missing" in said, (command, subset, number, said)
            if command in REFUSES:
                assert code in (2, 3), (command, subset, said)


@pytest.mark.parametrize("command", PRINTS)
def test_a_further_file_whose_first_one_is_damaged_says_so(whole: Path, tmp_path: Path, command: str) -> None:
    run, _ = copied(whole, tmp_path, (0, 1, 2, 3))
    run.write_bytes(run.read_bytes()[:4000])
    code, said = mdd(command, segment_path(run, 2))
    assert code in (0, 2, 3)
    assert "run.h5 cannot be read" in said


def test_another_run_under_the_first_file_s_name_is_not_its_first_file(whole: Path, tmp_path: Path) -> None:
    run, _ = copied(whole, tmp_path, (1, 2))
    recorder(run, run=header(run_id="f" * 32)).stop()
    with pytest.raises(MissingFileError, match=r"run\.h5 .*another file has the name run\.h5"):
        open_run(segment_path(run, 1), missing="refuse")


@pytest.mark.parametrize("number", range(FILES))
def test_no_file_of_a_run_is_taken_for_a_volume(whole: Path, number: int) -> None:
    with pytest.raises(InputFileError, match=r"mdd export .*run.*h5 --to ome-tiff"):
        open_volume(segment_path(whole, number))


def test_a_whole_run_is_told_to_be_whole(whole: Path) -> None:
    with open_run(whole) as opened:
        assert opened.missing_files == []
    with open_run(segment_path(whole, 2)) as opened:
        assert opened.missing_files == []
    for command in ("info RUN", "verify RUN"):
        code, said = mdd(command, whole)
        assert code == 0
        assert "copy all files" not in said
