"""Commands that read configurations, projections, journals and data sets take every legal name."""

from __future__ import annotations

import shlex
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nasty_names import cases, folder_of, mdd
from support.driver_support import FOLLOWED, Daemon, DatasetWriter, image_of
from support.odd_stacks import PIXELS
from support.wire_support import make_frame, make_header

from microdiffusion import wire
from microdiffusion.config import load_config
from microdiffusion.daemon import doctor
from microdiffusion.daemon.doctor.finding import warning
from microdiffusion.files import write_projections
from microdiffusion.optics import AxialProfile
from microdiffusion.sender import Journal


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


@pytest.fixture(params=cases("percent-b", "both-quotes", "surrogate"))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder of a nasty name."""
    return folder_of(tmp_path, request.param)


def in_it(folder: Path, ending: str) -> Path:
    return folder / f"{folder.name[:60]}{ending}"


def test_projections_journals_and_stacks_of_any_name_are_used(folder: Path, daemon: Daemon) -> None:
    source, stack, dark, flat = (in_it(folder, ending) for ending in (".h5", ".npy", "d.npy", "f.npy"))
    write_projections(
        source,
        [np.full((3, 8, 8), 100 + sweep, np.uint16) for sweep in range(2)],
        z_um=[4.0, 8.0, 12.0],
        profile=AxialProfile.box(4.0),
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        shape_z=16,
    )
    np.save(stack, PIXELS)
    dice = np.random.default_rng(0)
    np.save(dark, dice.normal(100, 2, (20, 32, 32)).round().astype(np.uint16))
    light = dice.poisson(np.linspace(50, 900, 32) * np.ones((20, 32, 32)))
    np.save(flat, light.astype(np.uint16) + 100)
    run_id = uuid.uuid4().hex
    journal = Journal(folder / "journals", make_header(run_id=run_id), 0, limit_bytes=1 << 30)
    header, body, _ = wire.encode_frame(run_id, make_frame(0))
    journal.append(0, bytes(header), body, announced=1, dropped=0)
    journal.close()
    here = ("--address", daemon.address)
    few = ("--steps", "4", "--length", "4", "--crop", "12,16,20")
    tables = ("--json", in_it(folder, ".json"), "--markdown", in_it(folder, ".md"))
    before = len(daemon.frames)
    for words in (
        ("replay", source, *here),
        ("deliver", folder / "journals", "--list"),
        ("deliver", folder / "journals", *here),
        ("reconstruct", source, "--method", "linear", "--output", in_it(folder, "_run.h5")),
        ("evaluate", stack, "--methods", "linear", *few, *tables),
        ("calibrate", "camera", dark, flat, "--output", in_it(folder, "_camera.toml")),
    ):
        code, said = mdd(*words)
        assert code == 0, (words, said)
        assert "Traceback" not in said
    assert len(daemon.frames) == before + 6 + 1
    if "\udcff" not in folder.name:  # what no configuration can name
        (line,) = (
            line
            for line in in_it(folder, "_camera.toml").read_text("utf-8").splitlines()
            if " calibration =" in line
        )
        assert tomllib.loads(line.lstrip("# "))["calibration"] == in_it(folder, "_camera.toml").name


def test_a_configuration_of_any_name_is_read_or_refused_in_a_sentence(folder: Path, daemon: Daemon) -> None:
    writer = DatasetWriter(folder)
    for time_point in range(2):
        for z in range(4):
            writer.put(image_of(time_point, z))
    writer.finish()
    config = in_it(folder, ".toml")
    config.write_text(FOLLOWED, encoding="utf-8")
    before = len(daemon.frames)
    acquire = ("acquire", "--config", config, "--address", daemon.address, "--log", in_it(folder, ".log"))
    said = [mdd(*words) for words in (("config", "check", config), ("config", "show", config), acquire)]
    if any(character < " " or character == "\udcff" for character in folder.name):
        for code, text in said:
            assert code == 2
            assert "acquisition.watch" in text
            assert "control character" in text or "is not UTF-8, which no configuration can hold" in text
        return
    assert [code for code, _ in said] == [0, 0, 0], said
    assert len(daemon.frames) == before + 8


@pytest.mark.acquisition
@pytest.mark.skipif(sys.platform == "win32", reason="splits the lines as a POSIX shell does")
def test_the_commands_that_init_prints_name_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "measured_pace", lambda config: warning("not measured", ""))
    config = in_it(folder, ".toml")
    code, said = mdd("init", config, "--yes")
    if any(character < " " or character == "\udcff" for character in folder.name):
        assert code == 2
        assert "control character" in said or "no configuration can hold" in said
        assert not config.exists()
        return
    assert code == 0, said
    lines = [line.strip() for line in said.splitlines() if "--config" in line]
    assert [shlex.split(line, comments=False)[3] for line in lines] == [str(config)] * 2
    load_config(config)
