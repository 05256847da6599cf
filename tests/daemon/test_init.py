"""`mdd init`: a configuration from what the core reports, that mdd itself accepts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from microdiffusion.config.load import load_config
from microdiffusion.daemon import doctor
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.commands.suggestions import Value, suggestions, written
from microdiffusion.daemon.doctor.finding import warning
from microdiffusion.drivers import micromanager
from microdiffusion.drivers.micromanager.survey import Survey
from microdiffusion.errors import ConfigError

FOUND = Survey(
    core="MMCore version 12.5.1",
    camera="Prime",
    camera_description="sCMOS",
    stage="Piezo",
    width=2048,
    height=1024,
    bit_depth=12,
    bytes_per_pixel=2,
    components=1,
    pixel_um=0.65,
    exposure_ms=33.0,
    stage_um=-4.5,
    stage_limits_um=(-100.0, 100.0),
    groups={"Channel": ("FITC", "DAPI")},
)
JAVA = {"acquisition.backend": Value("java", "as you said"), "acquisition.port": Value(4827, "the default")}


SLOW = warning("the engine takes 9 s for a sweep, and they come every 1 s", "Set an interval of 11 s.")


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Have the core report `FOUND`; the acquisitions that were asked for are the value."""
    asked: list[Any] = []

    def survey(acquisition: Any) -> Survey:
        asked.append(acquisition)
        return FOUND

    monkeypatch.setattr(micromanager, "survey", survey)
    monkeypatch.setattr(doctor, "measured_pace", lambda config: SLOW)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.acquisition
def test_the_demo_devices_give_a_configuration_that_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "my.toml", "--yes", "--depth-um", "96"]) == 0
    said = capsys.readouterr().out
    assert "512 x 512 pixels, 16 bit" in said
    assert "s for a sweep" in said  # measured here
    assert "s holds" in said
    assert "mdd doctor --config my.toml" in said
    assert "mdd serve --config my.toml" in said
    assert cli.main(["config", "check", "my.toml"]) == 0
    config = load_config("my.toml")
    assert (config.camera.width, config.camera.height) == (512, 512)
    assert config.acquisition.exposure_ms == 10
    assert config.volume.shape_z * config.volume.voxel_z_um == 96
    assert config.volume.pixel_um is None  # Micro-Manager knows it
    before = Path("my.toml").read_bytes()
    assert cli.main(["init", "my.toml", "--yes"]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert Path("my.toml").read_bytes() == before


def test_an_engine_that_cannot_keep_up_is_said_at_once(
    surveyed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", "my.toml", "--yes"]) == 0
    said = capsys.readouterr().out
    assert (
        "  the engine takes 9 s for a sweep, and they come every 1 s\n  -> Set an interval of 11 s.\n" in said
    )


def test_every_value_says_what_it_is_and_where_it_is_from() -> None:
    text = written(suggestions(FOUND, {}), JAVA, FOUND)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith(("#  ", "# python", "# Micro", "# 8")) and "here:" not in line:
            assert lines[number - 1].startswith("#   here: "), line
            assert lines[number - 2].startswith("# "), line
    assert "current position of Piezo; it goes from -100 to 100 µm" in text
    assert "z0_um = -4.5" in text
    assert "exposure_ms = 33.0" in text
    assert "which now says 0.65 µm" in text
    assert "all columns of Prime as set now (12 bit)" in text
    assert "configuration groups there: Channel" in text


def test_what_the_user_says_wins_over_what_is_found(surveyed: list[Any]) -> None:
    arguments = "init a.toml --yes --backend java --port 4899 --length-um 30 --step-um 20 --depth-um 150"
    more = ["--voxel-z-um", "5", "--z0-um", "7", "--exposure-ms", "50", "--channels", "DAPI, FITC"]
    assert (
        cli.main([*arguments.split(), *more, "--pixel-um", "0.5", "--output", "data", "--name", "mouse"]) == 0
    )
    config = load_config("a.toml")
    assert surveyed[0].port == 4899
    assert (config.acquisition.backend, config.acquisition.port) == ("java", 4899)
    assert (config.sweep.length_um, config.sweep.step_um) == (30, 20)
    assert (config.volume.shape_z, config.volume.voxel_z_um, config.volume.z0_um) == (30, 5, 7)
    assert (config.acquisition.channel_group, config.acquisition.channels) == ("Channel", ("DAPI", "FITC"))
    assert config.volume.pixel_um == 0.5
    assert config.recorder.output == Path.cwd() / "data"
    assert config.name == "mouse"


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[str]]], list[str]]:
    """Have a terminal whose user answers: by words of a question what he says, in turn, else nothing."""

    def answer_with(answers: dict[str, list[str]]) -> list[str]:
        questions: list[str] = []

        def answer(question: str) -> str:
            questions.append(question)
            said = next((said for word, said in answers.items() if word in question and said), None)
            if said is None:
                return ""
            if said[0] == "Ctrl-D":
                raise EOFError
            return said.pop(0)

        monkeypatch.setattr("builtins.input", answer)
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        return questions

    return answer_with


def test_a_terminal_is_asked(
    surveyed: list[Any], answered: Callable[[dict[str, list[str]]], list[str]]
) -> None:
    questions = answered({"Length": ["24"]})
    assert cli.main(["init", "a.toml", "--exposure-ms", "5"]) == 0
    assert surveyed[0].backend == "java"
    assert len(questions) == 6  # not for the exposure, which was given
    config = load_config("a.toml")
    assert config.sweep.length_um == 24
    assert config.sweep.step_um == 24  # the answer's consequence
    assert config.volume.shape_z * config.volume.voxel_z_um == 96
    assert config.acquisition.exposure_ms == 5


def test_a_wrong_answer_is_asked_for_again(
    surveyed: list[Any],
    answered: Callable[[dict[str, list[str]]], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    answered(
        {
            "Is Micro": ["perhaps", "N"],
            "Length": ["twelve", "12 µm", "-3", "0", "nan", "inf", "1e400", "18"],
            "Stage": ["-7.5"],
        }
    )
    assert cli.main(["init", "a.toml"]) == 0
    said = capsys.readouterr().out
    assert surveyed[0].backend == "python"
    for refusal in (
        "expected y or n, not perhaps",
        "a number, not twelve",
        "greater than 0, not -3",
        "finite",
    ):
        assert refusal in said
    config = load_config("a.toml")
    assert (config.sweep.length_um, config.volume.z0_um) == (18, -7.5)


def test_ctrl_d_at_a_question_leaves_without_a_file(
    surveyed: list[Any],
    answered: Callable[[dict[str, list[str]]], list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    answered({"Distance": ["Ctrl-D"]})
    assert cli.main(["init", "a.toml"]) == 130
    assert capsys.readouterr().err == "mdd: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_port_is_that_of_a_running_micro_manager(surveyed: list[Any]) -> None:
    assert cli.main(["init", "a.toml", "--yes", "--port", "4899"]) == 0
    assert (surveyed[0].backend, surveyed[0].port) == ("java", 4899)


REFUSALS = {
    "no terminal": (["a.toml"], FOUND, "add --yes"),
    "no folder": (["gone/a.toml", "--yes"], FOUND, "does not exist: create it first"),
    "a preset that the bridge cannot name": (
        ["a.toml", "--yes", "--channels", "蓝"],
        replace(FOUND, groups={"Filter": ("?", "GFP")}),
        "Letters beyond Latin-1 arrive over the bridge as '?'",
    ),
    "a preset that is not there": (["a.toml", "--yes", "--channels", "Cy5"], FOUND, "no preset 'Cy5'"),
    "units": (["a.toml", "--yes", "--depth-um", "96000"], FOUND, "check the units"),
    "a slab longer than the volume": (["a.toml", "--yes", "--depth-um", "5"], FOUND, "does not fit"),
    "a step beyond the slabs": (
        ["a.toml", "--yes", "--step-um", "400"],
        FOUND,
        "mdd: A step of 400 µm is more than two slabs of 12 µm: half of the specimen would never be lit; "
        "lower --step-um to --length-um or less.",
    ),
    "a slab in nanometres": (
        ["a.toml", "--yes", "--length-um", "12000"],
        FOUND,
        "--length-um is in µm (12000 nm are 12 µm)",
    ),
    "a pixel of the camera": (["a.toml", "--yes", "--pixel-um", "6500"], FOUND, ": --pixel-um is in µm"),
    "a slash in the name": (["a.toml", "--yes", "--name", "a/b"], FOUND, "mdd: name should be "),
    "no such port": (["a.toml", "--yes", "--port", "99999"], FOUND, "mdd: --port should be"),
    "a port of nothing": (
        ["a.toml", "--yes", "--backend", "python", "--port", "4827"],
        FOUND,
        "--port is a running Micro-Manager's, not of --backend python",
    ),
    "a configuration that java has": (
        ["a.toml", "--yes", "--backend", "java", "--mm-config", "my.cfg"],
        FOUND,
        "--mm-config is for mdd's own core",
    ),
    "a group alone": (["a.toml", "--yes", "--channel-group", "Channel"], FOUND, "needs --channels"),
    "no such mm-config": (["a.toml", "--yes", "--mm-config", "gone.cfg"], FOUND, "--mm-config names"),
    "no such user": (["~nobody-here/a.toml", "--yes"], FOUND, "nobody-here does not exist: create it first"),
}


@pytest.mark.parametrize(("words", "found", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_writes_nothing(
    surveyed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    found: Survey,
    message: str,
) -> None:
    monkeypatch.setattr(micromanager, "survey", lambda _: found)
    assert cli.main(["init", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_camera_without_a_pixel_size_or_in_colour_is_refused() -> None:
    with pytest.raises(ConfigError, match="give --pixel-um"):
        suggestions(replace(FOUND, pixel_um=0.0), {})
    assert suggestions(replace(FOUND, pixel_um=0.0), {"volume.pixel_um": 0.3})["volume.pixel_um"].value == 0.3
    with pytest.raises(ConfigError, match="PixelType to 8 or 16 bit"):
        suggestions(replace(FOUND, components=4, bytes_per_pixel=4), {})


@pytest.mark.acquisition
def test_a_configuration_that_does_not_load_is_told_from_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.cfg").write_text("Device,Camera,NoSuchLibrary,DCam\n")
    assert cli.main(["init", "a.toml", "--yes", "--mm-config", "bad.cfg"]) == 3
    assert "does not load" in capsys.readouterr().err
    assert not Path("a.toml").exists()
