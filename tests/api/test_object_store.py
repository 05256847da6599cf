"""OME-Zarr in an S3 store, against a real server: whole objects, gone on with, and errors in a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper as asynchronous
from support.run_file_writer import header, put_volume, recorder, started, volume, wait
from support.s3_server import ENVIRONMENT, S3Server, s3_server

from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.errors import ConfigError, InputFileError, MissingFileError, NoRoomError
from microdiffusion.export import Exported, Scope, export_run
from microdiffusion.export.object_store import write_to_store
from microdiffusion.export.ome_zarr import blosc, chunk_of, shard_of
from microdiffusion.export.zarr_objects import objects_of
from microdiffusion.runfile.schema import Status

zarr = pytest.importorskip("zarr")
s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")
# The sessions of readers, which zarr and dask open for us, are closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SHAPE = (20, 130, 70)
CHANNELS = ("GFP", "RFP")
SWEEPS = 4
LOST = (2, 1)


def truth(sweep: int, channel: int) -> np.ndarray:
    return volume(sweep, channel, 0, SHAPE)


def put(target: Recorder, sweeps: range) -> None:
    for sweep in sweeps:
        for channel in range(2):
            if (sweep, channel) == LOST:
                target.mark(sweep, channel, 0, Status.LOST, "no frame came")
            else:
                put_volume(target, sweep, channel, volume=truth(sweep, channel))
    wait(lambda: target.queue_bytes == 0)


def begun(path: Path) -> Recorder:
    return started(recorder(path, run=header(shape=SHAPE, channels=CHANNELS)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a closed run of four time points and two channels, one volume of which was lost."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    target = begun(path)
    put(target, range(SWEEPS))
    target.stop()
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def files(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return the server's file system, with a bucket of this test's own, `mine`."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.address}).items():
        monkeypatch.setenv(name, value)
    server.refuse = lambda method, path: None
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    if fs.exists("mine"):
        fs.rm("mine", recursive=True)
    fs.mkdir("mine")
    server.requests.clear()
    yield fs
    server.refuse = lambda method, path: None


URL = "s3://mine/sub/run.ome.zarr"


def opened() -> Any:
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    return zarr.open_group(
        zarr.storage.FsspecStore(asynchronous(fs, asynchronous=True), path=URL[5:]), mode="r"
    )


def check(image: Any, sweeps: int = SWEEPS) -> None:
    assert image["0"].shape == (sweeps, 2, *SHAPE)
    for sweep in range(sweeps):
        for channel in range(2):
            expected = np.zeros(SHAPE) if (sweep, channel) == LOST else truth(sweep, channel)
            assert np.array_equal(image["0"][sweep, channel], expected), (sweep, channel)


def puts(server: S3Server) -> list[str]:
    return [path for method, path in server.requests if method == "PUT"]


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_every_voxel_is_there_and_none_of_a_gap(run: Path, files: Any, server: S3Server, ngff: str) -> None:
    told: list[tuple[int, int]] = []
    exported = export_run(run, "ome-zarr", URL, ngff=ngff, progress=lambda *numbers: told.append(numbers))
    assert (exported.outputs, exported.volumes) == ([URL], 7)
    assert [(gap.time_point, gap.channel, gap.reason) for gap in exported.gaps] == [
        (2, "RFP", "no frame came")
    ]
    assert told[0] == (0, 7)
    assert told[-1] == (7, 7)
    image = opened()
    check(image)
    yaozarrs = pytest.importorskip("yaozarrs")
    ome = image.attrs["ome"] if ngff == "0.5" else dict(image.attrs)
    yaozarrs.validate_ome_object(ome, yaozarrs.v05.Image if ngff == "0.5" else yaozarrs.v04.Image)
    keys = files.find("mine/sub/run.ome.zarr/0")
    separator = "/0/c/2/" if ngff == "0.5" else "/0/2/"
    assert [key for key in keys if f"{separator}0/" in key]
    assert not [key for key in keys if f"{separator}1/" in key]
    if ngff == "0.5":
        assert len([key for key in keys if "/c/" in key]) == 7  # an object each, of several chunks
        assert image["0"].chunks == (1, 1, 16, 130, 70)
        assert image["0"].metadata.dimension_names == tuple("tczyx")


def test_of_a_shard_nothing_is_asked_before_it_is_written(run: Path, server: S3Server, files: Any) -> None:
    export_run(run, "ome-zarr", URL, ngff="0.5")
    of_shards = [(method, path) for method, path in server.requests if "/c/" in path]
    assert {method for method, _ in of_shards} == {"PUT"}
    listings = [path for method, path in server.requests if (method, path) == ("GET", "/mine")]
    assert len(listings) < len(of_shards)  # none for each
    check(opened())


def test_dask_opens_it_from_there(run: Path, files: Any) -> None:
    array = pytest.importorskip("dask.array")
    export_run(run, "ome-zarr", URL)
    options = {"skip_instance_cache": True}
    lazy = array.from_zarr(URL, component="0", storage_options=options)
    assert np.array_equal(lazy[3, 1].compute(scheduler="threads"), truth(3, 1))


def test_what_is_there_is_not_written_again(run: Path, files: Any, server: S3Server) -> None:
    export_run(run, "ome-zarr", URL)
    server.requests.clear()
    export_run(run, "ome-zarr", URL)
    assert puts(server) == []
    files.rm("mine/sub/run.ome.zarr/1/c/3/0/0/0/0")  # a level of one volume is enough to lack it
    files.rm("mine/sub/run.ome.zarr/0/c/1/0/0/0/0")
    export_run(run, "ome-zarr", URL)
    assert {"/".join(path.split("/")[-6:-3]) for path in puts(server)} == {"c/3/0", "c/1/0"}
    check(opened())


def test_a_run_that_has_grown_is_gone_on_with(tmp_path: Path, files: Any, server: S3Server) -> None:
    target = begun(tmp_path / "run.h5")
    put(target, range(2))
    export_run(tmp_path / "run.h5", "ome-zarr", URL)
    check(opened(), 2)
    assert opened().attrs["mdd"]["run_was_closed"] is False
    put(target, range(2, SWEEPS))
    target.stop()
    server.requests.clear()
    export_run(tmp_path / "run.h5", "ome-zarr", URL)
    check(opened())
    assert not [path for path in puts(server) if "/0/c/0/" in path or "/0/c/1/" in path]
    about = opened().attrs["mdd"]
    assert about["run_was_closed"] is True
    assert [gap["time_point"] for gap in about["gaps"]] == [2]


def test_an_export_follows_a_run_to_its_end(tmp_path: Path, files: Any) -> None:
    """Begun before there is a volume; each look at the run is answered by another time point."""
    path = tmp_path / "run.h5"
    target = begun(path)
    rounds = 0
    seen: list[int] = []

    def next_round() -> None:
        nonlocal rounds
        if rounds:
            seen.append(opened()["0"].shape[0])
        if rounds < SWEEPS:
            put(target, range(rounds, rounds + 1))
        else:
            target.stop()
        rounds += 1

    exported = write_to_store(
        path,
        URL,
        Scope(),
        compress=False,
        ngff="0.5",
        follow=True,
        progress=lambda done, total: None,
        pause=next_round,
    )
    assert seen == [1, 2, 3, 4]
    assert (exported.volumes, exported.notes) == (7, [])
    check(opened())


def test_a_run_that_nobody_writes_is_not_waited_for(tmp_path: Path, files: Any) -> None:
    target = begun(tmp_path / "run.h5")
    put(target, range(2))
    (tmp_path / "cut.h5").write_bytes((tmp_path / "run.h5").read_bytes())
    target.stop()
    exported = export_run(tmp_path / "cut.h5", "ome-zarr", URL, follow=True)
    assert exported.volumes == 4
    assert "was not closed" in exported.notes[0]


def test_a_part_of_a_run_and_several_positions(tmp_path: Path, files: Any) -> None:
    shape = (6, 16, 20)
    target = started(recorder(tmp_path / "run.h5", run=header(positions=("left", "right"))))
    for sweep in range(3):
        for position in range(2):
            put_volume(target, sweep, 0, position, volume=volume(sweep, 0, position, shape))
    target.stop()
    scope = Scope(first=1, last=2)
    export_run(tmp_path / "run.h5", "ome-zarr", URL, scope=scope)
    root = opened()
    assert root.attrs["ome"] == {"version": "0.5", "bioformats2raw.layout": 3}
    for position in range(2):
        assert root[f"{position}/0"].shape[0] == 2
        for t in range(2):
            assert np.array_equal(root[f"{position}/0"][t, 0], volume(t + 1, 0, position, shape))
    with pytest.raises(InputFileError, match="first_time_point 1, not 0"):
        export_run(tmp_path / "run.h5", "ome-zarr", URL)


def test_what_is_something_else_is_not_overwritten(run: Path, tmp_path: Path, files: Any) -> None:
    files.pipe_file("mine/sub/run.ome.zarr/notes.txt", b"mine")
    with pytest.raises(InputFileError, match="not overwritten"):
        export_run(run, "ome-zarr", URL)
    files.rm("mine/sub", recursive=True)
    export_run(run, "ome-zarr", URL)
    with pytest.raises(InputFileError, match="compress False, not True"):
        export_run(run, "ome-zarr", URL, compress=True)
    other = header(shape=SHAPE, channels=CHANNELS, run_id="f" * 32)
    target = started(recorder(tmp_path / "other.h5", run=other))
    put(target, range(1))
    target.stop()
    with pytest.raises(InputFileError, match="of another run"):
        export_run(tmp_path / "other.h5", "ome-zarr", URL)
    check(opened())


def test_zeros_that_were_written_are_no_gap(tmp_path: Path, files: Any, server: S3Server) -> None:
    target = begun(tmp_path / "run.h5")
    put_volume(target, 0, volume=np.zeros(SHAPE, np.float32))
    target.mark(0, 1, 0, Status.LOST, "no frame came")
    target.stop()
    export_run(tmp_path / "run.h5", "ome-zarr", URL)
    assert files.exists("mine/sub/run.ome.zarr/0/c/0/0/0/0/0")
    server.requests.clear()
    export_run(tmp_path / "run.h5", "ome-zarr", URL)
    assert puts(server) == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 512, 512), (64, 512, 512)),
        ((20, 130, 70), (32, 130, 70)),
        ((64, 2048, 2048), (16, 2048, 1024)),
        ((1, 100, 100), (1, 100, 100)),
    ],
)
def test_a_shard_is_whole_chunks_and_one_request(
    shape: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    shard = shard_of(shape, 2)
    assert np.prod(shard) * 2 <= 64 << 20
    assert all(edge % chunk == 0 for edge, chunk in zip(shard, chunk_of(shape), strict=True))
    if shape != (64, 2048, 2048):
        assert shard == expected


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
@pytest.mark.parametrize(
    ("shape", "chunk", "shard"),
    [
        ((8, 12, 10), (4, 6, 5), (8, 12, 10)),
        ((9, 13, 7), (4, 6, 5), (16, 18, 15)),  # the last chunks of a shard lie beyond the array
        ((9, 13, 7), (4, 6, 5), (8, 6, 10)),  # several shards, cut off at the edges
        ((1, 3, 2), (1, 3, 2), (1, 3, 2)),
    ],
)
@pytest.mark.parametrize("kind", ["<u2", "<f4"])
def test_objects_are_those_that_zarr_writes(ngff: str, shape: Any, chunk: Any, shard: Any, kind: str) -> None:
    """Byte by byte, but for the order of chunks in a shard; zarr reads them, and checks the index."""
    voxels = np.random.default_rng(1).normal(1000, 50, shape).astype(kind)
    common: dict[str, Any] = {
        "shape": (2, 2, *shape),
        "dtype": kind,
        "chunks": (1, 1, *chunk),
        "fill_value": 7,
    }
    if ngff == "0.4":
        keys = {"name": "v2", "separator": "/"}
        common |= {
            "zarr_format": 2,
            "compressors": blosc(compress=True),
            "chunk_key_encoding": keys,
        }
    else:
        codec = zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")
        common |= {"shards": (1, 1, *shard), "compressors": codec}
    theirs: dict[str, Any] = {}
    array = zarr.create_array(zarr.storage.MemoryStore(theirs), **common)
    described = set(theirs)
    array[1, 0] = voxels
    written = {key: content.to_bytes() for key, content in theirs.items() if key not in described}
    ours = {
        array.metadata.encode_chunk_key((1, 0, *place)): content
        for place, content in objects_of(array, voxels, compress=True)
    }
    assert {key: len(content) for key, content in ours.items()} == {
        key: len(content) for key, content in written.items()
    }
    if ngff == "0.4":
        assert ours == written
    theirs |= {key: type(theirs[key]).from_bytes(content) for key, content in ours.items()}
    assert np.array_equal(array[1, 0], voxels)


def test_a_folder_of_version_0_5_has_the_same_voxels(run: Path, tmp_path: Path) -> None:
    export_run(run, "ome-zarr", tmp_path / "out.ome.zarr", ngff="0.5")
    image = zarr.open_group(tmp_path / "out.ome.zarr", mode="r", zarr_format=3)
    check(image)
    yaozarrs = pytest.importorskip("yaozarrs")
    yaozarrs.validate_ome_object(image.attrs["ome"], yaozarrs.v05.Image)
    assert not (tmp_path / "out.ome.zarr/0/c/2/1").exists()


# Errors


def test_without_credentials(run: Path, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match=r"no credentials for s3://.*AWS_ACCESS_KEY_ID"):
        export_run(run, "ome-zarr", URL)


def test_without_a_bucket(run: Path, files: Any) -> None:
    with pytest.raises(MissingFileError, match=r"no bucket absent .*create it"):
        export_run(run, "ome-zarr", "s3://absent/run.ome.zarr")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (("403 Forbidden", "AccessDenied"), ConfigError, "may not be written"),
        (("507 Insufficient Storage", "XMinioStorageFull"), NoRoomError, "the store is full"),
        (("403 Forbidden", "QuotaExceeded"), NoRoomError, "the store is full"),
    ],
)
def test_a_refusal_in_the_middle_is_a_sentence_and_the_next_call_goes_on(
    run: Path, files: Any, server: S3Server, answer: tuple[str, str], error: type[Exception], text: str
) -> None:
    written = 0

    def refuse(method: str, path: str) -> tuple[str, str] | None:
        nonlocal written
        written += method == "PUT" and "/c/" in path
        return answer if method == "PUT" and "/c/" in path and written > 4 else None

    server.refuse = refuse
    with pytest.raises(error, match=text) as refused:
        export_run(run, "ome-zarr", URL)
    assert "\n" not in str(refused.value)
    server.refuse = lambda method, path: None
    there = [key for key in files.find("mine/sub/run.ome.zarr") if "/c/" in key]
    assert there
    export_run(run, "ome-zarr", URL)
    check(opened())


def test_a_server_that_goes_away_in_the_middle(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server = S3Server()
    server.start()
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.address}).items():
        monkeypatch.setenv(name, value)
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    fs.makedirs("mine", exist_ok=True)  # moto keeps one set of buckets for all servers of a process
    if fs.exists("mine/sub"):
        fs.rm("mine/sub", recursive=True)
    gone = threading.Event()

    def refuse(method: str, path: str) -> tuple[str, str] | None:
        if method == "PUT" and "/c/" in path and not gone.is_set():
            gone.set()
            threading.Thread(target=server.stop).start()
        return None

    server.refuse = refuse
    assert main(["export", str(run), "--to", "ome-zarr", "--output", URL, "--quiet"]) == 3
    said = capsys.readouterr().err.strip()
    assert gone.is_set()
    assert "does not answer" in said
    assert "goes on there" in said
    assert said.count("\n") == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--to", "nrrd", "--output", URL], "An object store takes ome-zarr"),
        (["--to", "ome-zarr", "--output", "ftp://host/run"], "goes to s3://, gs:// or az://"),
        (["--to", "ome-zarr", "--output", "s3://mine"], "names no object in a bucket"),
        (["--to", "ome-zarr", "--follow"], "Only an export to an object store follows"),
        (["--to", "nrrd", "--ngff", "0.5"], "is an option of ome-zarr"),
        (["--to", "bdv", "--link", "--output", URL], "cannot be in an object store"),
    ],
)
def test_what_does_not_go_together_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(["export", str(run), *words]) == 2
    assert text in capsys.readouterr().err


def test_the_command_writes_there_and_says_so(
    run: Path, files: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", "ome-zarr", "--output", URL, "--follow"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {URL}: 7 volumes")
    check(opened())


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
@pytest.mark.parametrize(
    "most", [2, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=["twice", "often"]
)
def test_killed_at_random_moments_it_holds_whole_volumes_and_goes_on(
    run: Path, files: Any, server: S3Server, most: int
) -> None:
    """Killed again and again; each time what is there is compared, and it is never written again."""
    command = [sys.executable, "-c", _EXPORT, str(run), URL]
    dice = np.random.default_rng(0)
    # Each call writes one object at least, so that ten kills do not need ten times as many objects.
    server.refuse = lambda method, path: time.sleep(0.15) if method == "PUT" else None  # type: ignore[func-returns-value]
    kept: dict[str, str] = {}
    kills = 0
    while kills < most:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        server.requests.clear()
        time.sleep(float(dice.uniform(0.05, 1.0)))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        whole = {
            key: about["ETag"]
            for key, about in files.find("mine/sub/run.ome.zarr", detail=True).items()
            if "/0/c/" in key
        }
        assert kept.items() <= whole.items()
        for key in whole.keys() - kept.keys():
            t, channel = (int(part) for part in key.split("/c/")[1].split("/")[:2])
            assert np.array_equal(opened()["0"][t, channel], truth(t, channel))
        kept = whole
        if len(whole) == 7:
            files.rm("mine/sub", recursive=True)
            kept = {}
    server.refuse = lambda method, path: None
    export_run(run, "ome-zarr", URL)
    check(opened())


_EXPORT = """
import sys
from pathlib import Path
import s3fs, zarr
from microdiffusion.export import export_run
begun = []
def told(done, total):
    if not begun:
        begun.append(print("begins", flush=True))
export_run(Path(sys.argv[1]), "ome-zarr", sys.argv[2], progress=told)
"""


def test_an_exported_address_is_plain_json(run: Path, files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "ome-zarr", "--output", URL, "--json"]) == 0
    assert f'"{URL}"' in capsys.readouterr().out
    assert isinstance(export_run(run, "ome-zarr", URL), Exported)
