"""Bad input: one sentence that says what to mend, exit code 2 or 3, no traceback, nothing half-written."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.mdd_process import free_port
from support.run_file_writer import put_sweep, recorder, started
from support.sample_data import write_sample

from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.drivers.replay import replay

LINEAR = ("--set", "engine.method=linear", "--set", "engine.threads=1")


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])


@pytest.fixture
def refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run `mdd` in an empty folder; return its exit code and the one line that it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        before = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
        capsys.readouterr()
        code = cli.main([str(word) for word in arguments])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mdd")
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err
        assert "unexpected error" not in captured.err
        after = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
        logs = {"driver.log", "mdd.log.jsonl"}  # are no results
        assert {path: size for path, size in after.items() if path.name not in logs} == before
        return code, captured.err

    return run


# Projection files: the same file is refused alike by whatever reads it ---------------------------


def nan_pixel(file: h5py.File) -> None:
    pixels = file["projections"][()].astype(np.float32)
    pixels[1, 2, 3, 4] = np.nan
    replace(file, pixels)


def replace(file: h5py.File, pixels: np.ndarray) -> None:
    attributes = dict(file["projections"].attrs)
    del file["projections"]
    file["projections"] = pixels
    file["projections"].attrs.update(attributes)


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for place in (file.attrs, file["projections"].attrs):
            place.pop(name, None)
        if name in file:
            del file[name]
        if value is not None:
            file.attrs[name] = value

    return change


@dataclass(frozen=True)
class Damage:
    change: Callable[[h5py.File], None]
    message: str


def half_written(file: h5py.File) -> None:
    """What a program leaves that stopped: room for frames that never came."""
    pixels, attributes = file["projections"][()], dict(file["projections"].attrs)
    del file["projections"]
    made = file.create_dataset("projections", pixels.shape, pixels.dtype, chunks=(1, 1, *pixels.shape[2:]))
    made[0] = pixels[0]
    made.attrs.update(attributes)


def zeroed(file: h5py.File) -> None:
    pixels = file["projections"][()] + 1
    pixels[1, 3:] = 0
    replace(file, pixels)


DAMAGES = {
    "frames never written": Damage(
        half_written, "/projections is not whole (parts of it were never written)"
    ),
    "frames of zeros": Damage(zeroed, "projections of sweep 1 are not whole (plane 4 of 5 holds nothing"),
    "three axes": Damage(lambda file: replace(file, file["projections"][0]), "should be (T, M, Y, X)"),
    "no sweeps": Damage(lambda file: replace(file, file["projections"][:0]), "without an empty axis"),
    "integers of another kind": Damage(
        lambda file: replace(file, file["projections"][()].astype(np.int64)), "int64"
    ),
    "NaN": Damage(nan_pixel, "projection 2 of sweep 1 holds values that are not finite"),
    "positions of another number": Damage(attribute("z_um", np.arange(3.0)), "z_um"),
    "a position that is not finite": Damage(attribute("z_um", np.array([6.0, 18, np.nan, 42, 20])), "z_um"),
    "a projection outside of the volume": Damage(
        attribute("z_um", np.array([6.0, 18.0, 30.0, 400.0, 20.0])), "lies outside of the volume"
    ),
    "a negative length": Damage(attribute("length_um", -12.0), "positive length in µm, not -12"),
    "no length": Damage(attribute("length_um", None), "length_um"),
    "one depth for all": Damage(attribute("z_um", np.full(5, 27.0)), "all 5 slabs of sweep 0 say 27 µm"),
    "no positions": Damage(attribute("z_um", None), "the attribute z_um is missing"),
    "no slices": Damage(attribute("shape_z", None), "the attribute shape_z is missing"),
    "a voxel of no size": Damage(attribute("voxel_size_um", np.array([2.0, 0.0, 1.0])), "voxel_size_um"),
    "two voxel sizes": Damage(attribute("voxel_size_um", np.array([2.0, 1.0])), "three numbers"),
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_sample(tmp_path_factory.mktemp("sample") / "projections.h5", sweeps=2).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("command", ["reconstruct", "replay", "replay --serve"])
def test_a_damaged_projection_file_is_refused(
    sample: bytes, tmp_path: Path, refusal: Callable[..., tuple[int, str]], damage: Damage, command: str
) -> None:
    path = tmp_path / "projections.h5"
    path.write_bytes(sample)
    with h5py.File(path, "r+") as file:
        damage.change(file)
    arguments = {
        "reconstruct": ["reconstruct", path, "--output", "run.h5", *LINEAR],
        "replay": ["replay", path, "--address", "tcp://127.0.0.1:9"],
        "replay --serve": ["replay", path, "--serve", "--output", "runs", *LINEAR],
    }[command]
    code, said = refusal(*arguments)
    assert code == 2
    assert str(path) in said
    assert damage.message in said


FOREIGN = {
    "empty file": b"",
    "text": b"z,y,x\n1,2,3\n",
    "half an HDF5 file": None,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("command", ["reconstruct", "replay", "simulate", "info"])
def test_a_foreign_file_is_refused(
    sample: bytes,
    tmp_path: Path,
    refusal: Callable[..., tuple[int, str]],
    content: bytes | None,
    command: str,
) -> None:
    path = tmp_path / "file.h5"
    path.write_bytes(sample[: len(sample) // 2] if content is None else content)
    more: dict[str, list[object]] = {
        "reconstruct": ["--output", "run.h5", *LINEAR],
        "simulate": ["--length-um", 6, "--step-um", 6, "--output", "p.h5"],
    }
    code, said = refusal(command, path, *more.get(command, []))
    assert code == 2
    assert str(path) in said


# Files, values, addresses --------------------------------------------------------------------------

REFUSALS: dict[str, tuple[list[object], int, str]] = {
    "reconstruct: no such file": (["reconstruct", "gone.h5", "--output", "r.h5"], 2, "gone.h5"),
    "reconstruct: no such folder": (
        ["reconstruct", "projections.h5", "--output", "gone/r.h5"],
        2,
        "The folder gone of the output does not exist",
    ),
    "reconstruct: output exists": (
        ["reconstruct", "projections.h5", "--output", "projections.h5"],
        2,
        "projections.h5 exists",
    ),
    "reconstruct: no such weights": (
        ["reconstruct", "projections.h5", "--output", "r.h5", "--set", "engine.weights=gone.safetensors"],
        2,
        "gone.safetensors, which does not exist",
    ),
    "reconstruct: other weights": (
        ["reconstruct", "projections.h5", "--output", "r.h5", "--set", "engine.weights=projections.h5"],
        2,
        "does not hold weights",
    ),
    "reconstruct: no such device": (
        ["reconstruct", "projections.h5", "--output", "r.h5", "--method", "linear", "--device", "cuda:42"],
        2,
        "engine.device is 'cuda:42'",
    ),
    "reconstruct: unknown method": (
        ["reconstruct", "projections.h5", "--output", "r.h5", "--method", "magic"],
        2,
        "invalid choice: 'magic'",
    ),
    "reconstruct: a run file": (
        ["reconstruct", "run_99.h5", "--output", "r.h5"],
        2,
        "layout 99",
    ),
    "reconstruct: a projection file without an output": (
        ["reconstruct", "projections.h5"],
        2,
        "name the run file to write with --output",
    ),
    "info: a run of another version": (["info", "run_99.h5"], 2, "layout 99"),
    "info: a projection file": (["info", "projections.h5"], 2, "projections.h5"),
    "replay: nobody there": (
        ["replay", "projections.h5", "--address", f"tcp://127.0.0.1:{free_port()}"],
        2,
        "Nobody answered at",
    ),
    "replay: no such weights": (
        ["replay", "projections.h5", "--serve", "--output", "runs", "--set", "engine.weights=gone.st"],
        2,
        "gone.st, which does not exist",
    ),
    "simulate: negative step": (
        ["simulate", "volume.h5", "--length-um", 6, "--step-um", -6, "--output", "p.h5"],
        2,
        "expected a number greater than 0, not -6",
    ),
    "simulate: slab longer than the volume": (
        ["simulate", "volume.h5", "--length-um", 6000, "--step-um", 6, "--output", "p.h5"],
        2,
        "does not fit into a volume",
    ),
    "simulate: NaN": (
        ["simulate", "nan.h5", "--length-um", 6, "--step-um", 6, "--output", "p.h5"],
        2,
        "nan.h5",
    ),
    "serve: negative step": (["serve", "--demo", "--set", "sweep.step_um=-3"], 2, "sweep.step_um"),
    "serve: unknown key": (["serve", "--config", "typo.toml"], 2, "typo.toml, line 3"),
    "serve: broken TOML": (["serve", "--config", "broken.toml"], 2, "broken.toml"),
    "serve: unknown driver": (
        ["serve", "--set", "acquisition.driver=zeiss"],
        2,
        "acquisition.driver should be one of micromanager, watch, none",
    ),
    "serve: wrong unit": (
        ["serve", "--demo", "--set", "acquisition.exposure_ms=10 ms"],
        2,
        "acquisition.exposure_ms",
    ),
    "serve: output is a file": (["serve", "--demo", "--output", "volume.h5"], 2, "volume.h5 is a file"),
    "serve: output below a file": (["serve", "--demo", "--output", "volume.h5/runs"], 3, "cannot be written"),
    "serve: open to others without keys": (
        [
            *("serve", "--config", "remote-engine", "--set", "wire.data=tcp://0.0.0.0:5750"),
            *("--set", "wire.keys=no-keys-here"),
        ],
        2,
        "mdd keys new",
    ),
    "serve: slab longer than the volume": (
        ["serve", "--demo", "--set", "volume.shape_z=4", *LINEAR],
        2,
        "does not fit into a volume",
    ),
    "serve: no such Micro-Manager configuration": (
        ["serve", "--demo", "--set", "acquisition.mm_config=gone.cfg", *LINEAR],
        2,
        "gone.cfg",
    ),
}


@pytest.fixture
def furnished(tmp_path: Path, sample: bytes) -> Path:
    """Put the files that the cases name into the folder."""
    (tmp_path / "projections.h5").write_bytes(sample)
    for name, value in (("volume.h5", 1.0), ("nan.h5", np.nan)):
        with h5py.File(tmp_path / name, "w") as file:
            file["volume"] = np.full((24, 16, 16), value, np.float32)
    (tmp_path / "typo.toml").write_text('name = "x"\n[sweep]\nstpe_um = 3.0\n')
    (tmp_path / "broken.toml").write_text("[sweep\n")
    run = tmp_path / "run_99.h5"
    target = started(recorder(run))
    put_sweep(target, 0)
    target.stop()
    with h5py.File(run, "r+") as file:
        file.attrs["mdd_layout"] = np.bytes_("99.0")
    return tmp_path


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_one_sentence_says_what_to_mend(
    furnished: Path,
    refusal: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    code: int,
    message: str,
) -> None:
    monkeypatch.setitem(replay.__kwdefaults__, "connect_timeout_s", 0.5)
    ports: list[object] = []
    if arguments[0] == "serve" and not any("wire.data" in str(word) for word in arguments):
        ports = ["--set", f"wire.data=tcp://127.0.0.1:{free_port()}"]
    if arguments[0] == "serve":
        for name in ("status", "control"):
            ports += ["--set", f"wire.{name}=tcp://127.0.0.1:{free_port()}"]
        ports += ["--headless"]
    found, said = refusal(*arguments, *ports)
    assert message in said
    assert found == code


@pytest.mark.parametrize("which", ["data", "status", "control"])
def test_a_port_in_use_is_named(refusal: Callable[..., tuple[int, str]], which: str) -> None:
    with taken_port() as port:
        addresses = {name: free_port() for name in ("data", "status", "control")} | {which: port}
        pairs = (f"wire.{name}=tcp://127.0.0.1:{number}" for name, number in addresses.items())
        code, said = refusal(
            "serve", "--demo", *LINEAR, *(word for pair in pairs for word in ("--set", pair))
        )
    assert code == 2
    assert "in use" in said
    assert str(port) in said
    assert f"wire.{which}" in said


def test_no_pycromanager_server_is_said_with_port_and_menu(refusal: Callable[..., tuple[int, str]]) -> None:
    port = free_port()
    pairs = (
        "acquisition.backend=java",
        f"acquisition.port={port}",
        f"wire.data=tcp://127.0.0.1:{free_port()}",
        f"wire.status=tcp://127.0.0.1:{free_port()}",
        f"wire.control=tcp://127.0.0.1:{free_port()}",
    )
    code, said = refusal("serve", "--demo", *LINEAR, *(word for pair in pairs for word in ("--set", pair)))
    assert code == 3
    assert str(port) in said
    assert "Run pycro-manager server" in said
