"""Every reader, writer and printed command takes every legal name, or refuses it in a sentence."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from nasty_names import NAMES, cases, folder_of, mdd
from support.odd_stacks import PIXELS, hdf5, ndtiff, npy, tiff
from support.run_file_writer import header, put_sweep, put_volume, recorder, started

from microdiffusion import open_run
from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.server.serve import opening_line
from microdiffusion.errors import UserError
from microdiffusion.export import FORMATS, export_run
from microdiffusion.export.source import Scope
from microdiffusion.files import open_projections, open_volume
from microdiffusion.runfile import verify_run
from microdiffusion.text import command_line

COMMANDS = (
    "info RUN",
    "info RUN --json",
    "verify RUN",
    "verify RUN --json",
    "report RUN",
    "snapshot RUN DIR/copy.h5",
    "repack RUN DIR/packed.h5",
    "export RUN --to ome-zarr --output DIR/out.zarr",
    "export RUN --to ome-tiff",
    "export RUN --to nrrd",
    "export RUN --to bdv",
    "export RUN --to bdv --link --output DIR/link.h5",
    "repair RUN",
)

CASES = cases("percent-b", "micro", "surrogate", "both-quotes", "newline", "dash")


def record(path: Path, **changes: object) -> Path:
    target = started(recorder(path, run=header(**changes)))
    put_sweep(target, 0)
    target.stop()
    return path


@pytest.mark.parametrize("name", CASES)
def test_every_command_takes_a_run_of_any_name(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, name)
    run = record(folder / f"{name[:60]}.h5")
    for command in COMMANDS:
        words = [
            word.replace("DIR", str(folder)) if word != "RUN" else str(run) for word in command.split(" ")
        ]
        code, said = mdd(*words)
        if code == 2 and "UTF-8" in said and "--output" in said:  # a sentence with what to do
            assert "\udcff" in name
            assert command.startswith("export")
            continue
        assert code == 0, (command, said)
    assert verify_run(folder / "copy.h5").sound
    with open_run(run) as opened, h5py.File((folder / "link.h5"), "r") as link:
        cells = link["t00000/s00/0/cells"][()]
        np.testing.assert_array_equal(cells, opened.volume[0])


@pytest.mark.parametrize("name", CASES)
def test_every_format_takes_a_channel_and_a_position_of_any_name(tmp_path: Path, name: str) -> None:
    run = header(channels=(name, "other"), positions=(name, "else"), name=name[:60])
    target = started(recorder(tmp_path / "run.h5", run=run))
    for place in range(4):
        put_volume(target, 0, place % 2, place // 2)
    target.stop()
    for kind in FORMATS:
        assert export_run(tmp_path / "run.h5", kind, tmp_path / f"out_{kind}").volumes == 4
    with open_run(tmp_path / "run.h5") as opened:
        assert opened.header.channels[0] == run.channels[0]
    chosen = Scope(channels=(run.channels[0],), positions=(run.positions[0],))
    assert export_run(tmp_path / "run.h5", "nrrd", tmp_path / "chosen", scope=chosen).volumes == 1
    index = json.loads((tmp_path / "out_nrrd" / "index.json").read_text("utf-8"))
    assert "files" in index["images"][0]


def test_positions_that_become_alike_when_made_printable_are_all_exported(tmp_path: Path) -> None:
    run = header(positions=("a\x01", "a\x02", "b"))
    assert run.positions == ("a_", "a_", "b")
    target = recorder(tmp_path / "run.h5", run=run)
    target.start()
    for place in range(3):
        put_volume(target, 0, 0, place)
    target.stop()
    scope = Scope(positions=("a_",))
    assert export_run(tmp_path / "run.h5", "nrrd", tmp_path / "out", scope=scope).volumes == 2


@pytest.mark.skipif(sys.platform == "win32", reason="runs the line in a POSIX shell")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_line_that_is_printed_opens_the_run(tmp_path: Path, name: str) -> None:
    run = tmp_path / name / "run.h5"
    line = opening_line(run).replace("print(m.open_run(", "print(ascii(").replace(").volume[0].shape", ")")
    words = shlex.split(line.removeprefix("open: "))
    done = subprocess.run(
        [sys.executable, "-c", words[2].replace("import microdiffusion as m; ", "")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ascii(str(run))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_configured_folder_has_no_control_characters(name: str) -> None:
    if any(character < " " for character in name):
        with pytest.raises(ValueError, match="single quotes"):
            RecorderConfig(output=Path(name))
    else:
        RecorderConfig(output=Path(name))


def test_a_line_break_from_a_toml_string_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from microdiffusion.config.load import load_config

    path = tmp_path / "mdd.toml"
    path.write_text('[recorder]\noutput = "D:\\new\\test"\n', encoding="utf-8")
    with pytest.raises(UserError, match="single quotes"):
        load_config(path)


STACKS = {
    "tiff": tiff("v.tif"),
    "ome-tiff": tiff("v.ome.tif", metadata={"axes": "ZYX"}),
    "hdf5": hdf5(),
    "npy": npy(PIXELS),
    "ndtiff": ndtiff(),
}


@pytest.mark.parametrize("name", CASES)
def test_every_stack_of_any_name_is_read(tmp_path: Path, name: str) -> None:
    """As `calibrate`, `train` and `evaluate` read it, and `simulate`, whose file `replay` reads."""
    for kind, make in STACKS.items():
        folder = folder_of(tmp_path, f"{name[:80]}{kind}")
        made = make(folder)
        suffix = ".ome.tif" if kind == "ome-tiff" else made.suffix
        path = made.rename(made.with_name(f"{name[:80]}{suffix}"))
        with open_volume(path) as volume:
            np.testing.assert_array_equal(volume.volume(0), PIXELS, err_msg=f"{kind} {name!r}")
    output = tmp_path / f"{name[:60]}_projections.h5"
    path = tmp_path / f"{name[:80]}hdf5" / f"{name[:80]}.h5"
    words = ["simulate", "--length-um=2", "--step-um=2", f"--output={output}", "--voxel-size-um", *"111"]
    code, said = mdd(*words, "--", path)
    assert code == 0, said
    with open_projections(output) as projections:
        assert projections.header.shape == PIXELS.shape


@pytest.mark.skipif(sys.platform == "win32", reason="splits the line as a POSIX shell does")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_command_to_paste_names_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder_of(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    run = Path(name) / "run.h5"
    words = shlex.split(command_line("mdd", "info", run))
    code, said = mdd(*words[1:])
    assert code == 2
    assert "There is no" in said, said
    run.write_bytes(b"no run")
    code, said = mdd(*words[1:])
    assert "cannot be read" in said or "not an HDF5" in said or "no run file" in said, said
