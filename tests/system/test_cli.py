"""The `mdd` command: help, exit codes, one sentence per error, and what it hands to the rest."""

import contextlib
import importlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from support import run_file_writer

from microdiffusion import export, open_run
from microdiffusion.config.load import load_config, presets
from microdiffusion.config.models import Config
from microdiffusion.config.reference import dump_toml
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.offline.summary import sparkline
from microdiffusion.daemon.status import StatusBoard, StatusPublisher
from microdiffusion.errors import DiskError, EngineError, InputFileError
from microdiffusion.runfile.schema import Status

COMMANDS = cli.commands()


@pytest.fixture
def volume_file(tmp_path):
    path = tmp_path / "volume.h5"
    with h5py.File(path, "w") as file:
        file["volume"] = np.random.default_rng(0).random((24, 16, 16), np.float32)
    return path


@pytest.fixture
def served(monkeypatch):
    """Replace the daemon; what it was called with is the value."""
    calls = []

    def serve(config, **options):
        calls.append((config, options))
        return 0

    monkeypatch.setitem(sys.modules, "microdiffusion.daemon.server", SimpleNamespace(serve=serve))
    return calls


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_help_fits_a_screen_and_names_every_command(capsys, arguments):
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= 80
    columns = [part for line in lines[1:-1] for part in (line[:40], line[40:])]
    for group in cli.GROUPS.values():
        for name, text in group.items():
            assert f"  {name:<11} {text}" in [column.rstrip() for column in columns]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_on_a_terminal_of_80_columns(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: mdd {name}")
    wide = [line for line in lines if len(line) > 80]
    commands = ("mdd ", "torchrun ")  # are left whole, to be copied
    assert not [line for line in wide if not line.lstrip().startswith(commands)]


def test_help_imports_nothing_heavy():
    code = (
        "import sys, json; from microdiffusion.daemon import cli; cli.main(['--help']); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "pycromanager", "numpy", "pydantic", "rich", "zmq", "h5py"}


def test_no_command_s_help_imports_torch():
    names = [name for name in COMMANDS if name != "train"]
    code = (
        f"import sys; from microdiffusion.daemon import cli\n"
        f"for name in {names!r}:\n"
        "    cli.main([name, '--help'])\n"
        "    assert not {'torch', 'pycromanager'} & set(sys.modules), name"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=100)


def test_an_error_that_ctrl_c_was_made_into_is_an_interruption(capsys, monkeypatch):
    def run(args):
        # A callback of compiled code swallows the exception, and its caller says that it failed.
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise SystemError("returned a result with an exception set")

    monkeypatch.setattr("microdiffusion.daemon.commands.verify.run", run)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["verify", "run.h5"]) == 130
    assert capsys.readouterr().err == "mdd: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"mdd \d+\.\d+\.\d+\n", capsys.readouterr().out)


REFUSALS = {
    "unknown command": (["serv"], "there is no command serv (did you mean serve?)"),
    "unknown option": (["serve", "--dmeo"], "unrecognized arguments: --dmeo"),
    "option of another kind": (["serve", "--volumes", "many"], "expected a whole number, not many"),
    "no volumes": (["serve", "--volumes", "0"], "expected a whole number of at least 1, not 0"),
    "endless duration": (["serve", "--duration", "inf"], "expected a finite number, not inf"),
    "two configurations": (["serve", "--demo", "--config", "x"], "not allowed with argument --demo"),
    "missing configuration": (["serve", "--config", "gone.toml"], "There is no configuration file gone.toml"),
    "unknown key": (["serve", "--demo", "--set", "sweep.stp=1"], "unknown key sweep.stp"),
    "set without a value": (["serve", "--demo", "--set", "sweep"], "Expected --set section.key=value"),
    "unknown driver": (["serve", "--set", "acquisition.driver=zeiss"], "one of micromanager, watch, none"),
    "resume": (["serve", "--resume", "run.h5"], "There is no file at run.h5"),
    "negative step": (
        ["simulate", "v.h5", "--length-um", "1", "--step-um", "-1", "--output", "p.h5"],
        "expected a number greater than 0, not -1",
    ),
    "missing volume": (
        ["simulate", "gone.h5", "--length-um", "1", "--step-um", "1", "--output", "p.h5"],
        "There is no volume at gone.h5",
    ),
    "missing run": (["info", "gone.h5"], "gone.h5"),
    "impossible faults": (
        ["replay", "f.h5", "--drop", "0.8", "--corrupt", "0.8"],
        "must add up to at most 1",
    ),
    "too large a share": (["replay", "f.h5", "--drop", "2"], "expected a share from 0 to 1, not 2"),
    "daemon here and there": (["replay", "f.h5", "--serve", "--address", "tcp://a:1"], "not both"),
    "missing replay": (["replay", "gone.h5"], "gone.h5"),
    "unknown preset": (["config", "check", "dem"], "(did you mean demo?)"),
    "too many steps": (["reconstruct", "p.h5", "--output", "r.h5", "--steps", "99"], "from 1 to 8"),
    "nobody there": (["top", "--once", "--timeout", "0.1", "--address", "tcp://127.0.0.1:9"], "No daemon"),
    "malformed address": (["top", "--address", "localhost"], "expected an address like"),
    "a file that begins with a dash": (["info", "-run.h5"], "to name -run.h5, write it last, after --, or"),
    "a key that begins with a dash": (
        ["keys", "trust", "a", "-$&>#(!%^)"],
        "to name -$&>#(!%^), write it",
    ),
    "an option's value that begins with a dash": (
        ["replay", "f.h5", "--address", "-x:1"],
        "--address: expected one argument; to name -x:1, write it last, after --, or in --OPTION=-x:1",
    ),
    "no training data": (["train", "gone", "--output", "w.safetensors"], "There is no volume or folder gone"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir()), "nothing half-written"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputFileError("The file is odd: mend it."), 2, "mdd: The file is odd: mend it.\n"),
        (EngineError("The engine broke."), 3, "mdd: The engine broke.\n"),
        (DiskError("The disk is full."), 3, "mdd: The disk is full.\n"),
        (KeyboardInterrupt(), 130, "mdd: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_decides_the_exit_code(capsys, monkeypatch, error, code, message):
    def serve(*args, **options):
        raise error

    monkeypatch.setitem(sys.modules, "microdiffusion.daemon.server", SimpleNamespace(serve=serve))
    assert cli.main(["serve", "--demo", "--headless"]) == code
    assert one_line(capsys) == message


def test_what_should_not_happen_is_one_sentence_that_names_the_traceback(capsys, monkeypatch, tmp_path):
    def serve(*args, **options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cli.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "microdiffusion.daemon.server", SimpleNamespace(serve=serve))
    assert cli.main(["serve", "--demo", "--headless"]) == 3
    assert "(ZeroDivisionError: by zero)" in one_line(capsys)
    (log,) = tmp_path.iterdir()
    assert "in serve\n    raise ZeroDivisionError" in log.read_text(encoding="utf-8")
    assert "mdd serve --demo" in log.read_text(encoding="utf-8")


def test_serve_hands_on_what_the_command_line_says(served, tmp_path):
    arguments = ["serve", "--demo", "--output", str(tmp_path), "--volumes", "3", "--duration", "9.5"]
    assert cli.main([*arguments, "--no-specimen", "--set", "sweep.step_um=10"]) == 0
    ((config, options),) = served
    assert config.recorder.output == tmp_path
    assert config.acquisition.specimen is False
    assert config.sweep.step_um == 10
    assert not options.pop("stopping").is_set()
    assert options == {"volumes": 3, "duration_s": 9.5, "dashboard": False, "resume": None}


def test_a_run_goes_on_as_it_was_configured_but_for_what_is_set(served, tmp_path):
    path = tmp_path / "run.h5"
    configuration = load_config("demo", overrides={"engine.steps": 3, "wire.runs": 5}, environ={})
    recorded = configuration.model_dump(mode="json")
    recorded["engine"]["of_another_version"] = 1
    recorder = run_file_writer.recorder(path, configuration=json.dumps(recorded))
    recorder.start()
    recorder.stop()
    given = ["--set", "wire.runs=2", "--set", "sweep.overlap=0.5"]
    assert cli.main(["serve", "--resume", str(path), *given]) == 0
    ((config, options),) = served
    assert options["resume"] == path
    assert config.engine.steps == 3
    assert config.wire.runs == 2
    assert (config.sweep.step_um, config.sweep.overlap) == (None, 0.5)
    assert config.recorder.output == tmp_path


def test_what_is_set_counts_in_a_replay_with_a_daemon_of_its_own(served, volume_file, tmp_path):
    arguments = ["replay", str(volume_file), "--serve", "--rate", "50", "--output", str(tmp_path / "out")]
    given = ["--set", "engine.policy=live", "--set", "wire.status=tcp://127.0.0.1:6001"]
    assert cli.main([*arguments, *given]) == 0
    ((config, _),) = served
    assert config.engine.policy == "live"
    assert (config.wire.data, config.wire.status) == ("tcp://127.0.0.1:*", "tcp://127.0.0.1:6001")


def test_serve_without_options_is_the_defaults(served):
    assert cli.main(["serve"]) == 0
    assert served[0][0] == Config()


def test_the_environment_is_heard(served, monkeypatch):
    monkeypatch.setenv("MDD_SWEEP__STEP_UM", "7.5")
    assert cli.main(["serve", "--demo"]) == 0
    assert served[0][0].sweep.step_um == 7.5


def test_an_output_that_is_a_file_is_refused(served, volume_file, capsys):
    assert cli.main(["serve", "--demo", "--output", str(volume_file)]) == 2
    assert "expected a folder" in one_line(capsys)


@pytest.mark.parametrize(("rate", "policy"), [([], "wait"), (["--rate", "50"], "archive")])
def test_replay_with_its_own_daemon_feeds_it_and_is_in_nobody_s_way(
    served, volume_file, tmp_path, rate, policy
):
    assert cli.main(["replay", str(volume_file), "--serve", "--output", str(tmp_path / "out"), *rate]) == 0
    ((config, options),) = served
    assert config.acquisition.driver == "none"
    assert config.engine.policy == policy
    wire = config.wire
    assert (wire.data, wire.status, wire.control) == ("tcp://127.0.0.1:*",) * 3
    assert config.recorder.output == tmp_path / "out"
    assert callable(options["feed"])


def test_simulate_writes_a_projection_file(capsys, volume_file, tmp_path):
    output = tmp_path / "p.h5"
    arguments = ["simulate", str(volume_file), "--length-um", "6", "--step-um", "6", "--output", str(output)]
    assert cli.main([*arguments, "--photons", "50", "--gain", "0.5", "--hold-out"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {output}: 1 sweep of 5 projections, voxel 1 x 1 x 1 µm")
    with h5py.File(output) as file:
        assert file["projections"].shape[-2:] == (16, 16)
        assert file["projections"].dtype == np.uint16


def test_info_says_what_a_run_holds_while_it_goes_on_and_after(capsys, tmp_path):
    path = tmp_path / "run.h5"
    recorder = run_file_writer.recorder(path)
    recorder.start()
    for sweep in range(3):
        run_file_writer.put_sweep(recorder, sweep, served="mdd" if sweep else "linear")
    run_file_writer.wait(lambda: recorder.counts[Status.WRITTEN] == 3)
    assert cli.main(["info", str(path)]) == 0
    assert f"{path}: still running, or interrupted\n" in capsys.readouterr().out
    recorder.stop()
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{path}: closed\n" in shown
    assert "3 written, 0 lost, 0 skipped, 0 failed" in shown
    assert "6 x 16 x 20 (t, z, y, x) uint16, voxel 2 x 0.5 x 0.25 µm" in shown
    assert "held-out     median 2.50 × noise (1 to 3 is usual)" in shown
    assert "served       mdd 2, linear 1" in shown
    assert "started      20" in shown
    assert "kB in 1 file" in shown
    assert "length       2.2 s by the camera's clock" in shown
    with open_run(path) as run:
        lines = str(run).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["volume", "time", "frames", "served"]
    assert set(lines) <= set(shown.splitlines())
    assert cli.main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["closed"], facts["shape"], facts["bytes"]) == (True, [3, 6, 16, 20], path.stat().st_size)
    assert facts["positions"][0]["held_out_error"] == [2.5, 2.5, 2.5]


def test_info_says_why_the_network_was_not_served_and_gives_no_number_without_noise(capsys, tmp_path):
    path = tmp_path / "run.h5"
    recorder = run_file_writer.recorder(path)
    recorder.start()
    why = "the network misses the projections by 2.1% of their range, 1.5% is usual"
    for sweep in range(3):
        run_file_writer.put_sweep(recorder, sweep, served="inr", why=why, held_out_error=3620.0)
    recorder.stop()
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "served       inr 3" in shown
    assert f"\n               sweep 0: inr, as {why}\n" in shown
    assert "events       1, the last" in shown
    assert "held-out     > 5 × noise: frames without noise" in shown
    assert "3620" not in shown.replace("3.62e+03", "3620")


def test_simulate_says_what_it_made_and_which_voxel_it_assumed(capsys, tmp_path, volume_file):
    made = tmp_path / "made.h5"
    options = ["--length-um", "6", "--step-um", "6", "--output", str(made)]
    assert cli.main(["simulate", str(volume_file), *options]) == 0
    said = capsys.readouterr()
    assert "1 sweep of 4 projections, voxel 1 x 1 x 1 µm (z, y, x), without noise (--noise 0.01" in said.out
    assert cli.main(["simulate", str(volume_file), *options, "--noise", "0.01", "--hold-out"]) == 0
    assert capsys.readouterr().out.endswith("1 sweep of 5 projections, voxel 1 x 1 x 1 µm (z, y, x)\n")


def test_config_lists_presets_and_explains_keys_and_tables(capsys):
    def said(*arguments, code=0):
        assert cli.main(["config", *arguments]) == code
        return "".join(capsys.readouterr())

    assert [line.split()[0] for line in said("list").splitlines()] == list(presets())
    assert "demo               The demo: " in said("list")
    assert all(about.endswith(".") and len(about) <= 100 for about in presets().values())
    key = said("explain", "sweep.step_um")
    assert "expected  a number greater than 0, in µm" in key
    assert "--set sweep.step_um=" in key
    assert all(f"sweep.{name} " in said("explain", "sweep") for name in ("step_um", "length_um", "offsets"))
    assert "did you mean step_um" in said("explain", "sweep.step_mm", code=2)


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        ("export RUN --to nrrd", "nrrd", "export"),
        ("export RUN --to ome-tiff", "tifffile", "export"),
        ("export RUN --to ome-zarr", "zarr", "export"),
        ("evaluate VOLUME --methods linear --pictures OUT", "matplotlib", "analysis"),
    ],
)
def test_a_package_that_is_missing_is_the_line_to_type(
    words, module, extra, capsys, monkeypatch, tmp_path, volume_file
):
    recorder = run_file_writer.started(run_file_writer.recorder(tmp_path / "run.h5"))
    run_file_writer.put_sweep(recorder, 0)
    recorder.stop()
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    places = {"RUN": tmp_path / "run.h5", "VOLUME": volume_file, "OUT": tmp_path / "out"}
    assert cli.main([str(places.get(word, word)) for word in words.split()]) == 2
    said = capsys.readouterr().err
    assert f'python -m pip install "microdiffusion-daemon[{extra}]"' in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("module", ["numpy.gone", "microdiffusion.gone"])
def test_a_module_that_no_extra_has_is_reported_with_its_traceback(module, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", lambda arguments: importlib.import_module(module))
    assert cli.main(["info", "run.h5"]) == 3
    said = capsys.readouterr().err
    assert "pip install" not in said
    report = Path(re.search(r"report it with the file (\S+)\.\n", said)[1])
    assert f"No module named '{module}'" in report.read_text("utf-8")
    report.unlink()


GALLERY = sorted((Path(__file__).parents[2] / "docs" / "gallery").glob("*.py"))


@pytest.mark.parametrize("script", GALLERY, ids=lambda path: path.stem)
def test_a_script_of_the_gallery_names_what_it_lacks(script, tmp_path):
    lacking = (
        "import runpy, sys; sys.modules.update(matplotlib=None, napari=None); runpy.run_path(sys.argv[1])"
    )
    ran = subprocess.run([sys.executable, "-c", lacking, script], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        f"It needs {'napari' if script.stem == 'napari_3d' else 'matplotlib'}: "
        'python -m pip install "microdiffusion-daemon[analysis]"'
    ]


def test_the_extra_analysis_has_what_gallery_and_exports_import():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    included = [each for each in extras["analysis"] if each.startswith("microdiffusion-daemon[")]
    parts = included[0].partition("[")[2].rstrip("]").split(",")
    wanted = [
        *extras["analysis"],
        *project["dependencies"],
        *(each for part in parts for each in extras[part]),
    ]
    names = {re.split(r"[\[<>=~!; ]", each)[0] for each in wanted}
    imported = {"skimage": "scikit-image", "nrrd": "pynrrd", "qtpy": "napari", "numcodecs": "zarr"}
    code = "".join(path.read_text("utf-8") for path in [*GALLERY, *Path(export.__file__).parent.glob("*.py")])
    modules = set(re.findall(r"^ *(?:import|from) (\w+)", code, re.MULTILINE)) - {"microdiffusion"}
    assert {imported.get(each, each) for each in modules - sys.stdlib_module_names} <= names


def test_info_groups_the_gaps_by_their_reasons(capsys, tmp_path):
    path = tmp_path / "run.h5"
    recorder = run_file_writer.recorder(path)
    recorder.start()
    run_file_writer.put_sweep(recorder, 0)
    for sweep in (1, 2):
        recorder.mark(sweep, 0, 0, Status.SKIPPED, "the engine was busy")
    recorder.mark(3, 0, 0, Status.LOST, "no frame came")
    recorder.stop()
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "gaps         2 skipped: the engine was busy; 1 lost: no frame came" in shown


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([1, float("nan"), 2], "▁ █"),
        ([3, 3, float("nan")], "▁▁"),
        ([float("nan")], ""),
        ([0] * 48 + [1] * 48, "▁" * 12 + "█" * 12),
    ],
    ids=["rise", "gap", "flat", "nothing", "many"],
)
def test_sparkline_goes_from_the_lowest_to_the_highest(values, bars):
    assert sparkline(values) == bars


@pytest.mark.parametrize("name", ["demo", "bessel-2p-neurons", "remote-engine"])
def test_config_check_accepts_every_preset(capsys, name):
    assert cli.main(["config", "check", name]) == 0
    assert capsys.readouterr().out == f"{name}: valid\n"


def test_config_check_names_every_problem(capsys, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text("[engine]\nsteps = 99\n\n[camera]\nwidth = 3\n", encoding="utf-8")
    assert cli.main(["config", "check", str(path)]) == 2
    problems = capsys.readouterr().err
    assert "line 2: engine.steps" in problems
    assert "line 5: camera.width" in problems


def test_config_show_prints_what_would_be_used(capsys):
    assert cli.main(["config", "show", "demo", "--set", "engine.steps=4"]) == 0
    assert capsys.readouterr().out == dump_toml(
        load_config("demo", overrides={"engine.steps": 4}, environ={})
    )


def test_top_once_prints_a_page_of_the_daemon_at_the_address(capsys):
    board = StatusBoard()
    board.put(state="running")
    stop = threading.Event()
    with StatusPublisher("tcp://127.0.0.1:*") as publisher:
        address = publisher.address

        def publish():
            while not stop.wait(0.02):
                publisher.publish(board.snapshot())

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            assert cli.main(["top", "--once", "--address", address]) == 0
            once = capsys.readouterr().out
            assert cli.main(["top", "--address", address]) == 0  # no terminal to draw in
        finally:
            stop.set()
            thread.join(10)
    assert "state              running" in once
    again = capsys.readouterr().out
    assert "state              running" in again
    assert "\x1b" not in again


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close differently")
def test_whoever_stops_reading_ends_the_command_quietly():
    command = [sys.executable, "-m", "microdiffusion.daemon.cli", "config", "reference"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_help_is_quick():
    command = [sys.executable, "-m", "microdiffusion.daemon.cli", "--help"]
    seconds = []
    for _ in range(3):  # the machine may be busy: the best of three
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_one_is_one_in_sentences() -> None:
    from microdiffusion.text import count_noun, in_noise

    assert [in_noise(error) for error in (1.0, 3620.0, float("nan"))] == [
        "1.00 × noise",
        "> 5 × noise",
        "nan × noise",
    ]
    assert [count_noun(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
    assert count_noun(1, "sweep waits", "sweeps wait") == "1 sweep waits"
    assert count_noun(3, "sweep waits", "sweeps wait") == "3 sweeps wait"


def test_an_unexpected_error_is_told_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    def broken(arguments: list[str]) -> int:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(cli.tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(cli, "_dispatch", broken)
    assert cli.main(["info", "a.h5"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("mdd: unexpected error (ZeroDivisionError: by design)")
    assert "in broken" in said


def test_a_text_of_a_file_cannot_play_the_terminal(tmp_path, capsys):
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b2J"
    channels = ("GFP", "mCherry")
    target = run_file_writer.recorder(
        tmp_path / "run.h5", run=run_file_writer.header(channels=channels, source=f"scope {hostile}")
    )
    target.start()
    target.put_event("mark", f"a mark {hostile}")
    target.stop()
    assert cli.main(["info", str(tmp_path / "run.h5")]) == 0
    said = capsys.readouterr().out
    assert "a mark" in said
    assert "(t, channel, z, y, x)" in said
    assert "GFP, mCherry" in said
    assert not set("\x1b\x07\x9b") & set(said)
    assert cli.main(["info", f"{hostile}.h5"]) == 2
    assert not set("\x1b\x07\x9b") & set(capsys.readouterr().err)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("command", ["info", "verify", "report", "repair", "reconstruct"])
@pytest.mark.parametrize("name", ["loop.h5", "nowhere.h5", "folder.h5", "file/run.h5", ""])
def test_what_is_no_file_is_told_in_a_sentence(
    command: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop.h5").symlink_to("loop.h5")
    Path("nowhere.h5").symlink_to("absent.h5")
    Path("folder.h5").mkdir()
    Path("file").touch()
    assert cli.main([command, name]) == 2
    said = capsys.readouterr().err
    assert "report" not in said.removeprefix("mdd report")
    assert said.count("\n") == 1
    assert cli.main(["keys", "new", "--set", "wire.keys=file"]) == 2
    assert "a file is in its place" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says that there is no such file")
@pytest.mark.parametrize(
    "words",
    [
        ["info", "NAME.h5"],
        ["export", "NAME.h5", "--to", "nrrd"],
        ["replay", "NAME.h5"],
        ["simulate", "NAME.tif", "--length-um", "2", "--step-um", "2", "--output", "o.h5"],
        ["evaluate", "NAME.npy", "--methods", "linear"],
        ["config", "check", "NAME.toml"],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_is_too_long_is_told_in_a_sentence(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([word.replace("NAME", 300 * "n") for word in words]) == 2
    said = capsys.readouterr().err
    assert "too long" in said
    assert said.count("\n") == 1
