"""Reading the configuration: precedence, refusals with their place, presets, and the way back to text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.load import load_config, presets
from microdiffusion.config.models import (
    AcquisitionConfig,
    Config,
    EngineConfig,
    RecorderConfig,
    SweepConfig,
    TrainingConfig,
    VolumeConfig,
)
from microdiffusion.config.reference import dump_toml, keys, reference_page
from microdiffusion.errors import ConfigError, MissingFileError, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "my.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def load(source=None, *, overrides=None, environ=None) -> Config:
    return load_config(source, overrides=overrides, environ=environ or {})


def test_nothing_given_is_the_defaults():
    assert load() == Config()


@pytest.mark.parametrize(
    ("file", "environ", "overrides", "expected"),
    [
        pytest.param(False, {}, {}, 1, id="default"),
        pytest.param(True, {}, {}, 3, id="file over default"),
        pytest.param(True, {"MDD_ENGINE__STEPS": "4"}, {}, 4, id="environment over file"),
        pytest.param(True, {"MDD_ENGINE__STEPS": "4"}, {"engine.steps": "5"}, 5, id="command line over all"),
    ],
)
def test_the_closer_source_wins(write, file, environ, overrides, expected):
    source = write("[engine]\nsteps = 3\n") if file else None
    assert load(source, environ=environ, overrides=overrides).engine.steps == expected


@pytest.mark.parametrize(
    ("environ", "overrides", "name", "expected"),
    [
        pytest.param({"MDD_ENGINE__INR__WARM_STEPS": "7"}, {}, "engine.inr.warm_steps", 7, id="nested"),
        pytest.param({"MDD_NAME": "007"}, {}, "name", "007", id="text that looks like a number"),
        pytest.param({"mdd_sweep__step_um": "5"}, {}, "sweep.step_um", 5.0, id="lower case, as on Windows"),
        pytest.param({"MDD_ACQUISITION__SPECIMEN": "true"}, {}, "acquisition.specimen", True, id="boolean"),
        pytest.param({}, {"acquisition.specimen": True}, "acquisition.specimen", True, id="already a value"),
        pytest.param({}, {"recorder.output": Path("a b")}, "recorder.output", Path("a b"), id="path"),
        pytest.param({}, {"volume.pixel_um": "none"}, "volume.pixel_um", None, id="none empties a key"),
        pytest.param(
            {},
            {"acquisition.positions_um": "[[0, 1], [2.5, 3]]"},
            "acquisition.positions_um",
            ((0, 1), (2.5, 3)),
            id="list",
        ),
        pytest.param({"MDD_HOME": "x", "PATH": "y"}, {}, "name", "demo", id="other people's variables"),
    ],
)
def test_environment_and_command_line_are_read_as_the_key_wants(environ, overrides, name, expected):
    value = load("demo", environ=environ, overrides=overrides)
    for part in name.split("."):
        value = getattr(value, part)
    assert value == expected


def test_the_overlap_given_closer_to_the_user_replaces_the_file_s_step():
    sweep = load("demo", overrides={"sweep.overlap": "0.5"}).sweep
    assert (sweep.step_um, sweep.resolved_step_um) == (None, 6.0)


def test_relative_paths_in_a_file_are_relative_to_that_file(write, tmp_path, monkeypatch):
    (tmp_path / "beam.txt").touch()
    monkeypatch.chdir(ROOT)
    config = load(write('[sweep]\naxial_profile = "beam.txt"\n[recorder]\noutput = "out"\n'))
    assert config.sweep.axial_profile == tmp_path / "beam.txt"
    assert config.recorder.output == tmp_path / "out"


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(write):
    assert load(write(b'\xef\xbb\xbfname = "x"\r\n[engine]\r\nsteps = 3\r\n')).engine.steps == 3


REFUSALS = {
    "unit in the name": (
        "[sweep]\nstep_mm = 12",
        "line 2: unknown key sweep.step_mm (did you mean step_um, in µm?)",
    ),
    "no unit in the name": ("[sweep]\n\nstep = 12", "line 3: unknown key sweep.step (did you mean step_um"),
    "unit in the value": (
        '[sweep]\nstep_um = "12 nm"',
        '0, in µm (distance between neighbouring slabs), not "12 nm" (without quotes, and without its unit)',
    ),
    "negative step": ("[sweep]\nstep_um = -3", "line 2: sweep.step_um should be a number greater than 0"),
    "not a number": ("[sweep]\nlength_um = nan", "line 2: sweep.length_um should be a number"),
    "infinite": ("[sweep]\nlength_um = inf", "line 2: sweep.length_um should be a number"),
    "a date": ("[sweep]\nlength_um = 1979-05-27", "line 2: sweep.length_um should be a number"),
    "true is not 1": (
        "[volume]\nshape_z = true",
        "line 2: volume.shape_z should be a whole number from 2 to 4096",
    ),
    "1 is not true": ("[recorder]\ndurable = 1", "line 2: recorder.durable should be true or false"),
    "unknown driver": ('[acquisition]\ndriver = "micromanger"', '"micromanger" (did you mean micromanager?)'),
    "unknown device": ('[engine]\ndevice = "gpu"', "line 2: engine.device should be"),
    "tile": ("[engine]\ntile = 100", "a multiple of 16"),
    "unknown table": ("[engin]\nsteps = 1", "line 1: there is no table [engin] (did you mean engine?)"),
    "a table's name as a key": ("sweep = 3", "line 1: sweep is a table"),
    "key outside of its table": ("step_um = 3", "line 1: unknown key step_um (did you mean sweep.step_um?)"),
    "key of another table": ("[sweep]\nexposure_ms = 3", "(did you mean acquisition.exposure_ms?)"),
    "two ways at once": (
        "[sweep]\nstep_um = 1\noverlap = 0.5",
        "line 3: sweep: give step_um or overlap, not both",
    ),
    "channels without group": (
        '[acquisition]\nsweeps = 2\nchannels = ["a"]',
        "line 3: acquisition.channels needs",
    ),
    "lines of a list": (
        "[acquisition]\npositions_um = [\n[1, 2],\n[3]\n]",
        "line 2: acquisition.positions_um should be a list of pairs",
    ),
    "dotted key, bad address": ('wire.data = "udp://x:1"', "line 1: wire.data: expected an address like"),
    "inline table": ('engine = { inr = { rank = "a" } }', "line 1: engine.inr.rank should be a whole number"),
    "slab longer than the volume": (
        "[volume]\nshape_z = 4",
        "line 2: A slab of 12 µm (offset 0 µm) does not fit",
    ),
    "step in metres": ("[sweep]\nstep_um = 12e-6", "line 2: A step of 1.2e-05 µm over 96 µm makes more than"),
    "syntax": ("[sweep]\nstep_um =", "line 2: not valid TOML"),
    "key twice": ("[sweep]\nstep_um = 1\nstep_um = 2", "not valid TOML"),
    "backslashes": ('[engine]\nweights = "C:\\models\\my.st"', "write paths with /"),
    "encoding": (b"name = '\xff'", "not a text file in UTF-8"),
    "a cut key": (
        f'[wire]\nserver_key = "{"0" * 63}"',
        "line 2: wire.server_key: expected the 64 digits that `mdd keys show` prints there",
    ),
    "what is no key": (
        f'[wire]\nserver_key = "{"," * 40}"',
        "line 2: wire.server_key: expected the 64 digits",
    ),
    "file that is not there": ('[engine]\nweights = "gone.safetensors"', "line 2: engine.weights names"),
}


@pytest.mark.parametrize(("text", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_says_where_what_was_expected_and_what_came(write, text, message):
    path = write(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_every_problem_of_a_file_is_named_at_once(write):
    with pytest.raises(ConfigError) as caught:
        load(write("[engine]\nsteps = 99\ntile = 1\n"))
    assert [line.split(": ")[0][-6:] for line in str(caught.value).splitlines()] == ["line 2", "line 3"]


@pytest.mark.parametrize(
    ("environ", "overrides", "message"),
    [
        ({"MDD_SWEEP__STEP": "3"}, {}, "MDD_SWEEP__STEP names no key (did you mean MDD_SWEEP__STEP_UM?)"),
        ({"MDD_SWEEP_STEP_UM": "3"}, {}, "did you mean MDD_SWEEP__STEP_UM?"),
        ({"MDD_ENGINE__STEPS": "many"}, {}, "environment variable MDD_ENGINE__STEPS: engine.steps should be"),
        ({"MDD_ENGINE__STEPS": "1\nx = 2"}, {}, "engine.steps should be a whole number"),
        ({"MDD_ENGINE__NETWORK": "large"}, {}, "unknown key engine.network (one network ships now; "),
        ({}, {"engine.network": "large"}, "unknown key engine.network (one network ships now; "),
        ({}, {"engine.stesp": "1"}, "command line: unknown key engine.stesp (did you mean steps?)"),
        ({}, {"engine.steps": "none"}, "command line: engine.steps should be a whole number"),
    ],
    ids=[
        "unknown",
        "one underscore",
        "wrong type",
        "two lines",
        "removed",
        "removed option",
        "unknown option",
        "none where not allowed",
    ],
)
def test_environment_and_command_line_are_refused_by_name(environ, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(environ=environ, overrides=overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("dem", ConfigError, "no preset called dem (did you mean demo?)"),
        ("gone.toml", MissingFileError, "There is no configuration file gone.toml"),
        (Path("gone"), MissingFileError, "There is no configuration file gone"),
    ],
    ids=["preset", "file", "path"],
)
def test_a_source_that_is_not_there_is_named(source, kind, message):
    with pytest.raises(kind) as caught:
        load(source)
    assert message in str(caught.value)


def test_a_text_of_several_lines_that_looks_like_toml_does_not_mislead(write):
    decoy = "'''\n[engine]\nsteps = 5\n'''"
    with pytest.raises(ConfigError, match=r"line 7: engine.steps should be"):
        load(write(f"[acquisition]\nchannel_group = {decoy}\n[engine]\nsteps = 77\n"))


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_leaves_the_output_folder_to_the_user(name):
    assert load(name).recorder.output == Config().recorder.output


def test_the_presets_are_the_documented_ones():
    assert tuple(presets()) == ("bessel-2p-neurons", "demo", "passive", "remote-engine")


def test_relative_paths_of_a_list_are_relative_to_the_file(write):
    path = write('[training]\nvolumes = ["mine", "more/stack.tif"]\n')
    assert load(path).training.volumes == (path.parent / "mine", path.parent / "more/stack.tif")


def test_the_demo_needs_no_microscope_and_its_volume_is_the_documented_one():
    demo = load("demo")
    assert (demo.acquisition.driver, demo.acquisition.backend, demo.acquisition.specimen) == (
        "micromanager",
        "python",
        True,
    )
    assert (demo.volume.shape_z, demo.camera.height, demo.camera.width) == (48, 128, 128)
    assert demo.sweep.length_um / demo.volume.voxel_z_um == 6


configs = st.builds(
    Config,
    name=st.from_regex(r"\A[A-Za-z0-9_.-]{1,64}\Z"),
    acquisition=st.builds(
        AcquisitionConfig,
        channel_group=st.one_of(st.none(), st.text(max_size=20)),
        positions_um=st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), max_size=3),
        sweeps=st.one_of(st.none(), st.integers(1, 10**9)),
        specimen=st.booleans(),
    ),
    sweep=st.builds(SweepConfig, length_um=st.floats(2.0, 24.0), overlap=st.floats(0.0, 0.99)),
    volume=st.builds(
        VolumeConfig, z0_um=st.floats(-1e6, 1e6), pixel_um=st.one_of(st.none(), st.floats(1e-9, 100.0))
    ),
    engine=st.builds(
        EngineConfig,
        method=st.sampled_from(["mdd", "inr", "tikhonov", "linear"]),
        inr=st.builds(InrConfig, rank=st.integers(4, 256)),
    ),
    recorder=st.builds(RecorderConfig, output=st.just(Path("runs").absolute())),
    training=st.builds(
        TrainingConfig,
        volumes=st.sampled_from([(), (Path("a").absolute(), Path("b").absolute())]),
        widths=st.lists(st.integers(4, 1024), min_size=1, max_size=6).map(tuple),
        output=st.just(Path("w.safetensors").absolute()),
    ),
)


@settings(max_examples=40)
@given(config=configs)
def test_a_configuration_written_as_toml_is_read_back_the_same(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("roundtrip") / "my.toml"
    path.write_text(dump_toml(config), encoding="utf-8")
    assert load(path) == config


def test_every_key_has_a_description_and_a_place_in_the_toml():
    text = dump_toml(Config())
    for key in keys().values():
        assert key.description, key.name
        assert f"{key.path[-1]} =" in text


def test_the_reference_page_is_up_to_date():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_page(), "write it anew: mdd config reference > docs/configuration.md"
