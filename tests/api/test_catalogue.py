"""The catalogue: every run below a folder, whatever became of it, and an index that nobody has to trust."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import h5py
import pytest
from support.run_file_writer import SHAPE, header, put_sweep, put_volume, recorder, started, wait

import microdiffusion.runfile.catalogue as catalogue
from microdiffusion import list_runs, open_run, to_pandas
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.paths import catalogue_folder
from microdiffusion.runfile.schema import Status
from microdiffusion.runfile.verify import verify_run

OLD_S = 100.0


def write(path: Path, sweeps: int = 3, **more: object) -> Path:
    """Write a closed run whose last sweep is lost; it looks as if it had lain there for a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = started(recorder(path, **more))  # type: ignore[arg-type]
    for sweep in range(sweeps - 1):
        put_sweep(target, sweep)
    target.mark(sweeps - 1, 0, 0, Status.LOST, "no frame came")
    target.stop()
    age(path.parent)
    return path


def age(folder: Path) -> None:
    """Make files old enough for the index to keep what is known of them."""
    then = time.time() - OLD_S
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("made") / "run.h5")


@pytest.fixture(autouse=True)
def _index_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has an index, and the clock says that every file is settled (times of change are real)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(catalogue, "catalogue_folder", lambda: tmp_path / "cache" / "catalogues")
    monkeypatch.setattr(catalogue, "_SETTLED_NS", -OLD_S * 1e9)


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    """Return a folder of four runs at several depths."""
    root = tmp_path / "data"
    for name in ("a.h5", "2026/b.h5", "2026/may/c.h5", "2026/may/d.h5"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(made, root / name)
    return root


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that are opened from now on."""
    names: list[str] = []
    read = catalogue.read_entry

    def noted(path: Path, further: object = ()) -> object:
        names.append(path.name)
        return read(path, further)  # type: ignore[arg-type]

    monkeypatch.setattr(catalogue, "read_entry", noted)
    return names


def names(folder: Path) -> list[str]:
    return sorted(Path(each.path).relative_to(folder).as_posix() for each in list_runs(folder))


def index_of(folder: Path) -> Path:
    return catalogue._index_of(folder)


def test_an_entry_says_what_the_run_says(folder: Path) -> None:
    (entry,) = list_runs(folder / "2026/may")[:1]
    with open_run(entry.path) as run:
        assert (entry.name, entry.run_id, entry.created_utc) == (
            run.header.name,
            run.header.run_id,
            run.created_utc,
        )
        assert (entry.state, entry.problem) == (run.state, "") == ("closed", "")
        assert (entry.shape, entry.voxel_size_um) == (SHAPE, run.voxel_size_um)
        assert (
            (entry.bytes, entry.files, entry.time_points) == (run.nbytes, 1, run.used) == (run.nbytes, 1, 3)
        )
        assert (entry.written, entry.lost, entry.skipped, entry.failed) == (2, 1, 0, 0)
        ledger = run.ledger
        assert entry.frames_received == ledger.received == 6
        assert (entry.frames_announced, entry.frames_missing) == (ledger.announced, ledger.missing)
        assert entry.held_out_error == 2.5
        assert entry.served == "tikhonov 2"
        assert entry.weights == "sha256:abc"
        assert entry.duration_s == pytest.approx(1.2)


def test_several_files_channels_and_positions_are_one_entry(tmp_path: Path) -> None:
    run = header(channels=("GFP", "RFP"), positions=("left", "right"))
    target = started(recorder(tmp_path / "long.h5", run=run, time_points=2))
    for sweep in range(5):
        for channel in range(2):
            put_sweep(target, sweep, channel, 1)
    target.stop()
    assert (tmp_path / "long_s002.h5").exists()
    (entry,) = list_runs(tmp_path)
    assert (entry.path, entry.files, entry.time_points) == (str(tmp_path / "long.h5"), 3, 5)
    assert (entry.written, entry.channels, entry.positions) == (10, ("GFP", "RFP"), ("left", "right"))
    assert entry.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.h5"))


def test_missing_files_of_a_run_are_named(tmp_path: Path) -> None:
    target = started(recorder(tmp_path / "long.h5", time_points=2))
    for sweep in range(6):
        put_sweep(target, sweep)
    target.stop()
    middle, aside = tmp_path / "long_s001.h5", tmp_path / "aside"
    middle.rename(aside)
    (entry,) = list_runs(tmp_path)
    assert (entry.state, entry.missing_files) == ("incomplete", ("long_s001.h5",))
    assert "long_s001.h5" in entry.problem
    aside.rename(middle)
    (entry,) = list_runs(tmp_path)
    assert (entry.state, entry.files) == ("closed", 3)
    (tmp_path / "long.h5").unlink()
    entries = list_runs(tmp_path)
    assert [each.state for each in entries] == ["incomplete", "incomplete"]
    assert "first file is not there" in entries[0].problem


def test_a_run_that_is_only_named_like_a_further_file_is_listed(folder: Path, made: Path) -> None:
    shutil.copy2(made, folder / "a_s001.h5")
    assert "a_s001.h5" in names(folder)
    assert "a_s001.h5" in names(folder)  # by the index


def test_running_and_interrupted_runs_are_told_apart(tmp_path: Path) -> None:
    target = started(recorder(tmp_path / "now.h5"))
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    (entry,) = list_runs(tmp_path)
    assert (entry.state, entry.written, entry.problem) == ("running", 1, "")
    shutil.copy(tmp_path / "now.h5", tmp_path / "cut.h5")
    put_sweep(target, 1)
    wait(lambda: target.counts[Status.WRITTEN] == 2)
    found = {Path(each.path).name: (each.state, each.written) for each in list_runs(tmp_path)}
    assert found == {"now.h5": ("running", 2), "cut.h5": ("interrupted", 1)}
    target.stop()
    found = {Path(each.path).name: (each.state, each.written) for each in list_runs(tmp_path)}
    assert found == {"now.h5": ("closed", 2), "cut.h5": ("interrupted", 1)}


def test_looking_at_a_run_does_not_keep_anybody_from_writing_it(tmp_path: Path) -> None:
    """`mdd list` holds a lock for a moment; a daemon that resumes the run just then waits for it."""
    target = started(recorder(tmp_path / "run.h5"))
    put_sweep(target, 0)
    target.stop()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            list_runs(tmp_path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for number in range(20):
            started(recorder(tmp_path / f"next{number}.h5")).stop()
    finally:
        ended.set()
        looking.join()


def damaged(folder: Path, kind: str) -> Path:
    path = folder / "2026/b.h5"
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[: len(content) // 2]
    elif kind == "empty":
        content = bytearray()
    elif kind == "no HDF5":
        content[:8] = b"12345678"
    elif kind == "noise":
        content[8:4096] = os.urandom(4088)
    elif kind == "a part is gone":
        with h5py.File(path, "r+") as file:
            del file["mdd/status"]
        return path
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["cut", "empty", "no HDF5", "noise", "a part is gone"])
def test_a_damaged_run_is_named_and_the_others_are_listed(folder: Path, kind: str) -> None:
    assert len(list_runs(folder)) == 4
    path = damaged(folder, kind)
    for _ in range(2):  # read, then from the index
        found = {each.path: each for each in list_runs(folder)}
        assert len(found) == 4
        bad = found.pop(str(path))
        assert bad.state == "damaged"
        assert "damaged" in bad.problem or "absent" in bad.problem
        assert {each.state for each in found.values()} == {"closed"}


def test_a_damaged_run_of_the_catalogue_is_one_that_verify_faults(folder: Path) -> None:
    assert not verify_run(damaged(folder, "cut")).sound


def test_another_version_is_unreadable_here_and_not_damaged(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "r+") as file:
        del file.attrs["mdd_layout"]
        file.attrs.create("mdd_layout", b"7.0", dtype="S3")
    (entry,) = (each for each in list_runs(folder) if each.path == str(folder / "a.h5"))
    assert entry.state == "unreadable"
    assert "7.0" in entry.problem


def test_other_files_are_passed_over(folder: Path) -> None:
    with h5py.File(folder / "stack.h5", "w") as file:
        file["volume"] = [[[1.0]]]
    (folder / "notes.txt").write_text("x")
    (folder / "out.zarr").mkdir()
    shutil.copy2(folder / "a.h5", folder / "out.zarr/inside.h5")
    shutil.copy2(folder / "a.h5", folder / ".hidden.h5")
    assert names(folder) == ["2026/b.h5", "2026/may/c.h5", "2026/may/d.h5", "a.h5"]


def test_only_what_changed_is_opened(folder: Path, opened: list[str], made: Path) -> None:
    everything = list_runs(folder)
    assert sorted(opened) == ["a.h5", "b.h5", "c.h5", "d.h5"]
    opened.clear()
    assert list_runs(folder) == everything
    assert opened == []
    (folder / "2026/may/d.h5").unlink()  # deleted, moved, new
    (folder / "2026/may/c.h5").rename(folder / "moved.h5")
    shutil.copy2(made, folder / "new.h5")
    assert names(folder) == ["2026/b.h5", "a.h5", "moved.h5", "new.h5"]
    assert sorted(opened) == ["moved.h5", "new.h5"]


def test_a_file_that_changed_behind_its_times_is_opened_again(folder: Path, opened: list[str]) -> None:
    """Copied over with the same size and time of change, as tools for synchronising do."""
    list_runs(folder)
    path = folder / "a.h5"
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.seek(8)
        stream.write(b"\xff" * 64)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    opened.clear()
    assert {each.state for each in list_runs(folder) if each.path == str(path)} == {"damaged"}
    assert opened == ["a.h5"]


def test_a_file_of_this_moment_is_not_trusted_the_next_time(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_SETTLED_NS", 2_000_000_000)
    list_runs(folder)
    opened.clear()
    list_runs(folder)
    assert len(opened) == 4


@pytest.mark.parametrize(
    "harm",
    [
        lambda index: index.unlink(),
        lambda index: index.write_bytes(b""),
        lambda index: index.write_bytes(index.read_bytes()[:-20]),
        lambda index: index.write_bytes(index.read_bytes().replace(b'"written":2', b'"written":9')),
        lambda index: index.write_bytes(b"\x00" * 1000),
        lambda index: index.write_bytes(_signed(b'{"a.h5": 1}')),
        lambda index: index.write_bytes(_signed(b"[]")),
        lambda index: (index.unlink(), index.mkdir()),
    ],
    ids=["gone", "empty", "cut", "changed", "zeros", "of another shape", "a list", "a folder"],
)
def test_the_index_heals(folder: Path, harm: object) -> None:
    everything = list_runs(folder)
    index = index_of(folder)
    assert b'"written":2' in index.read_bytes()
    harm(index)  # type: ignore[operator]
    assert list_runs(folder) == everything
    assert list_runs(folder) == everything
    if not index.is_dir():
        assert len(catalogue._read_index(index)) == 4


def _signed(body: bytes) -> bytes:
    return catalogue._title(body) + b"\n" + body


def test_an_index_of_another_folder_does_no_harm(folder: Path, tmp_path: Path) -> None:
    list_runs(folder)
    other = tmp_path / "other"
    shutil.copytree(folder / "2026", other)
    shutil.copy(index_of(folder), index_of(other))
    assert names(other) == ["b.h5", "may/c.h5", "may/d.h5"]


def test_where_nothing_can_be_written_the_answer_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(catalogue, "catalogue_folder", lambda: tmp_path / "file" / "catalogues")
    assert len(list_runs(folder)) == len(list_runs(folder)) == 4


def test_nothing_is_written_among_the_data(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    list_runs(folder)
    assert sorted(folder.rglob("*")) == before


def test_several_at_once_agree(folder: Path) -> None:
    everything = list_runs(folder)
    index_of(folder).unlink()
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(list_runs(folder))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [everything] * 6
    assert len(catalogue._read_index(index_of(folder))) == 4
    assert [path.name for path in index_of(folder).parent.iterdir() if path.suffix == ".tmp"] == []


def test_a_folder_and_a_file_that_may_not_be_read_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may be allowed everything, so the system's refusal is played."""
    scandir, opening = os.scandir, Path.open

    def refused(path: Path) -> object:
        if Path(path).name == "may":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def kept_shut(self: Path, *args: object, **more: object) -> object:
        if self.name == "a.h5":
            raise PermissionError(13, "Permission denied", str(self))
        return opening(self, *args, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        patch.setattr(Path, "open", kept_shut)
        found = {Path(each.path).name: each for each in list_runs(folder)}
    assert {name: each.state for name, each in found.items()} == {
        "a.h5": "unreadable",
        "b.h5": "closed",
        "may": "unreadable",
    }
    assert "rights" in found["a.h5"].problem
    assert "rights" in found["may"].problem
    assert {each.state for each in list_runs(folder)} == {"closed"}  # allowed again


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="takes another user's place")
def test_another_user_s_folder_is_named(folder: Path) -> None:
    code = (
        "import os, sys, h5py, pydantic; from microdiffusion import list_runs\n"
        "import microdiffusion.runfile.catalogue\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for each in list_runs(sys.argv[1]): print(each.state, os.path.basename(each.path))"
    )
    # What is imported later has to be readable, too: an environment in a private folder is not.
    probe = f"import os; os.setuid(65534); open({catalogue.__file__!r})"
    if subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("another user cannot read this environment")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        root = Path(shutil.copytree(folder, Path(place) / "data"))
        (root / "2026/may").chmod(0o700)
        command = [sys.executable, "-c", code, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")) == ["", "closed a.h5", "closed b.h5", "unreadable may"]


def test_links_to_folders_do_not_lead_round_in_circles(folder: Path) -> None:
    try:
        (folder / "2026/again").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert len(list_runs(folder)) == 4


def test_no_folder_and_a_file_are_refused(folder: Path) -> None:
    with pytest.raises(MissingFileError, match="no folder"):
        list_runs(folder / "gone")
    with pytest.raises(InputFileError, match="is a file"):
        list_runs(folder / "a.h5")


def test_thousands_take_seconds_and_again_a_moment(tmp_path: Path, made: Path, opened: list[str]) -> None:
    """Two thousand names of two files, in forty folders."""
    copies = [shutil.copy2(made, tmp_path / f"copy{number}") for number in range(2)]
    for number in range(2000):
        where = tmp_path / "data" / f"day{number % 40:02d}"
        where.mkdir(parents=True, exist_ok=True)
        os.link(copies[number % 2], where / f"run{number:04d}.h5")
    began_s = time.process_time()
    found = list_runs(tmp_path / "data")
    cold_s = time.process_time() - began_s
    assert len(found) == len(opened) == 2000
    began_s = time.process_time()
    assert list_runs(tmp_path / "data") == found
    warm_s = time.process_time() - began_s
    assert len(opened) == 2000
    assert cold_s < 30
    assert warm_s < 3


def test_the_command_prints_a_line_each_and_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(folder, "cut")
    assert main(["list", str(folder), "--quiet"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["started", "state"]
    assert sum("closed" in line.split() and "2/3" in line for line in lines) == 3
    assert f"damaged: {path}: it cannot be read as HDF5" in text or f"damaged: {path}: cannot be read" in text
    assert lines[-1].startswith("4 runs (3 closed, 1 damaged)")
    assert main(["list", str(folder), "--state", "damaged", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"]
    assert (entry["path"], entry["state"]) == (str(path), "damaged")
    assert main(["list", str(folder / "gone")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    (folder / "none").mkdir()
    assert main(["list", str(folder / "none")]) == 0
    assert capsys.readouterr().out.startswith("no runs below")


def test_a_name_that_is_no_text_is_listed(
    folder: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        shutil.copy2(made, folder / os.fsdecode(b"odd\xff\n.h5"))
    except (OSError, UnicodeError):
        pytest.skip("no such names here")
    for _ in range(2):
        assert len(list_runs(folder)) == 5
        assert main(["list", str(folder)]) == 0
        assert main(["list", str(folder), "--json"]) == 0
    assert len(catalogue._read_index(index_of(folder))) == 4


def test_a_table_of_pandas_has_a_row_each(folder: Path) -> None:
    pytest.importorskip("pandas")
    damaged(folder, "empty")
    table = to_pandas(list_runs(folder))
    assert len(table) == 4
    assert table.query("state == 'closed'").written.sum() == 6
    assert str(table.created_utc.dt.tz) == "UTC"
    assert table.created_utc.isna().sum() == 1
    assert list(to_pandas([]).columns) == list(table.columns)


def test_the_index_lies_in_the_user_s_cache() -> None:
    assert catalogue_folder().name == "catalogues"


def test_later_volumes_of_a_closed_run_are_seen(folder: Path, made: Path) -> None:
    """Whatever writes into a closed run changes the file's times."""
    list_runs(folder)
    shutil.copy(made, folder / "source.h5")
    (folder / "source.h5").replace(folder / "a.h5")
    target = started(recorder(folder / "b2.h5"))
    put_volume(target, 0)
    target.stop()
    assert len(list_runs(folder)) == 5
