"""`mdd doctor`: every outcome of every check, the page, the report, and the command."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from rich.console import Console

from microdiffusion.config.load import load_config
from microdiffusion.config.models import Config, EngineConfig, WireConfig
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.doctor import computer, disk, gpu, microscope, pace, packages, ports
from microdiffusion.daemon.doctor.disk import Folder
from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning
from microdiffusion.daemon.doctor.gpu import Driver
from microdiffusion.daemon.doctor.page import page, report, summary
from microdiffusion.daemon.doctor.run import run_checks
from microdiffusion.daemon.doctor.subprocess_probe import probe
from microdiffusion.daemon.engine import Requirements, requirements_of
from microdiffusion.drivers.micromanager.server import ask_server
from microdiffusion.engines.diffusion.weights import shipped_weights
from microdiffusion.errors import AcquisitionError, ConfigError, MissingFileError

HERE = Path("runs")
NEED = Requirements(file_bytes=10**9, frames_per_s=50e6, volumes_per_s=50e6, engine_bytes=10**9)
GUESSED = Requirements(10**9, 50e6, 50e6, 10**9, "(assuming 2048 x 2048 pixels)")
AUTO = EngineConfig()
CUDA = EngineConfig(device="cuda")
TENSORRT = EngineConfig(runtime="tensorrt")
CARD = Driver(("RTX 4090",), "591.44")
OLD = Driver(("RTX 4090",), "551.10")
ANCIENT = Driver(("RTX 4090",), "440.33")
NO_DRIVER = Driver(("an NVIDIA card (0000:01:00.0)",))
RTX = {"name": "RTX 4090", "capability": [8, 9]}
HOPPER = {"name": "H100", "capability": [9, 0]}
TRT = {"module": "tensorrt", "version": "11.4.0"}
TRT_RTX = {"module": "tensorrt_rtx_bindings", "version": "1.7.1"}


def torch_of(cuda: str | None = None, *gpus: dict[str, Any]) -> dict[str, Any]:
    return {"version": "2.13.0", "cuda": cuda, "gpus": list(gpus), "threads": 4, "instructions": "AVX2"}


def measured(seconds: float, *, whole: bool = True) -> dict[str, Any]:
    return {"seconds": seconds, "measured": [96, 128], "whole": whole}


def asked(sweep_s: float, sessions: int) -> Requirements:
    return replace(NEED, sweep_s=sweep_s, sessions=sessions)


def raising(error: Exception) -> Callable[..., Any]:
    def ask(*_: Any) -> Any:
        raise error

    return ask


def os_error(number: int) -> OSError:
    return OSError(number, "because")


def port(number: int | None, at: str = "5750", name: str = "wire.data") -> Finding:
    error = None if number is None else os_error(number)
    return ports.port(name, f"tcp://127.0.0.1:{at}", lambda _: error, lambda _: True)


def camera(*, is_live: bool = False) -> Any:
    return SimpleNamespace(camera="Prime", is_live=is_live)


def versions(**known: str) -> Callable[[str], str | None]:
    return lambda name: known.get(name.replace("-", "_"))


# What a check finds in which facts: the worst level, and words of its text and its fix.
OUTCOMES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "packages": (lambda: packages.packages(["numpy>=1.26"], versions(numpy="2.4.0")), "ok", "numpy 2.4.0"),
    "packages, absent": (
        lambda: packages.packages(["zmq>=1"], versions()),
        "failure",
        "pip install 'zmq>=1'",
    ),
    "packages, openvino absent": (
        lambda: packages.packages(["openvino>=2025.3"], versions()),
        "warning",
        "pip install 'openvino",
    ),
    "packages, old": (
        lambda: packages.packages(["pydantic<3,>=2.7"], versions(pydantic="1.10")),
        "failure",
        "mdd needs",
    ),
    "packages, of an extra": (
        lambda: packages.packages(["dask>=9; extra == 'dask'"], versions()),
        "ok",
        "0 as required",
    ),
    "pace that holds": (
        lambda: pace.pace(measured(0.5), asked(2.0, 3)),
        "ok",
        "0.5 s for a sweep: an interval of 1.8 s holds, 2 s is asked for",
    ),
    "pace too slow": (
        lambda: pace.pace(measured(1.0, whole=False), asked(0.5, 2)),
        "warning",
        "1 s for a sweep of each of 2 sessions, and they come every 0.5 s: 75% of them have to wait; an "
        "interval of 2.3 s holds, measured on 128 x 96 pixels",
    ),
    "pace of frames that come": (lambda: pace.pace({}, None), "ok", "depends on the frames"),
    "pace of an unknown region": (lambda: pace.pace({}, GUESSED), "ok", "camera.width, camera.height"),
    "driver": (lambda: gpu.driver(CARD, AUTO), "ok", "RTX 4090, driver 591.44"),
    "no card": (lambda: gpu.driver(Driver(), AUTO), "ok", "the engine runs on the processor"),
    "no card, cuda asked for": (lambda: gpu.driver(Driver(), CUDA), "failure", 'engine.device to "auto"'),
    "card without driver": (lambda: gpu.driver(NO_DRIVER, AUTO), "failure", "Install NVIDIA's driver"),
    "old driver": (lambda: gpu.driver(OLD, AUTO), "warning", "r580 or newer"),
    "torch on cuda": (lambda: gpu.torch_build(torch_of("13.0", RTX), CARD, AUTO), "ok", "sees RTX 4090"),
    "torch on a cpu": (
        lambda: gpu.torch_build(torch_of(), Driver(), AUTO),
        "ok",
        "for CPU only, 4 threads",
    ),
    "torch for the cpu beside a card": (
        lambda: gpu.torch_build(torch_of(), CARD, AUTO),
        "warning",
        "Install the torch build with CUDA",
    ),
    "the same, cuda asked for": (
        lambda: gpu.torch_build(torch_of(), CARD, CUDA),
        "failure",
        "Install the torch build with CUDA",
    ),
    "torch with too old a driver": (
        lambda: gpu.torch_build(torch_of("12.8"), ANCIENT, AUTO),
        "warning",
        "r525 or newer",
    ),
    "torch that does not see the card": (
        lambda: gpu.torch_build(torch_of("12.8"), CARD, AUTO),
        "warning",
        "CUDA_VISIBLE_DEVICES",
    ),
    "cuda asked for, no card": (
        lambda: gpu.torch_build(torch_of("12.8"), Driver(), CUDA),
        "failure",
        'engine.device to "auto"',
    ),
    "tensorrt, no gpu": (
        lambda: gpu.tensorrt({}, torch_of(), Driver(), AUTO, exporter=False),
        "ok",
        "not needed",
    ),
    "tensorrt asked for, no gpu": (
        lambda: gpu.tensorrt(TRT, torch_of(), Driver(), TENSORRT, exporter=True),
        "failure",
        'to "auto"',
    ),
    "tensorrt": (
        lambda: gpu.tensorrt(TRT, torch_of("13.0", HOPPER), CARD, AUTO, exporter=True),
        "ok",
        "tensorrt 11.4.0",
    ),
    "tensorrt for rtx": (
        lambda: gpu.tensorrt(TRT_RTX, torch_of("13.0", RTX), CARD, AUTO, exporter=True),
        "ok",
        "8.9",
    ),
    "tensorrt absent on a GeForce": (
        lambda: gpu.tensorrt({}, torch_of("13.0", RTX), CARD, AUTO, exporter=True),
        "warning",
        "[tensorrt-rtx]",
    ),
    "tensorrt absent in a data centre": (
        lambda: gpu.tensorrt({}, torch_of("13.0", HOPPER), CARD, TENSORRT, exporter=True),
        "failure",
        "[tensorrt]",
    ),
    "tensorrt for rtx in a data centre": (
        lambda: gpu.tensorrt(TRT_RTX, torch_of("13.0", HOPPER), CARD, AUTO, exporter=True),
        "warning",
        "does not run on H100 (compute capability 9.0",
    ),
    "tensorrt with an old driver": (
        lambda: gpu.tensorrt(TRT, torch_of("12.8", RTX), OLD, AUTO, exporter=True),
        "warning",
        "driver 551.10",
    ),
    "tensorrt without onnx": (
        lambda: gpu.tensorrt(TRT, torch_of("13.0", RTX), CARD, AUTO, exporter=False),
        "warning",
        "onnx",
    ),
    "openvino": (lambda: gpu.openvino({"version": "2026.4"}, AUTO), "ok", "2026.4"),
    "openvino absent": (lambda: gpu.openvino({}, AUTO), "ok", "torch runs the network"),
    "openvino absent, asked for": (
        lambda: gpu.openvino({}, EngineConfig(runtime="openvino")),
        "failure",
        "pip install openvino",
    ),
    "weights": (
        lambda: gpu.weights({"path": "a/s.st", "sha256": "ab", "parameters": 2_500_000}, {"s.st": "ab"}),
        "ok",
        "2.5 million parameters, checksum as shipped",
    ),
    "weights of the user": (
        lambda: gpu.weights({"path": "mine.st", "sha256": "ab", "parameters": 1}, {}),
        "ok",
        "your own",
    ),
    "weights, changed": (
        lambda: gpu.weights({"path": "s.st", "sha256": "cd", "parameters": 1}, {"s.st": "ab"}),
        "warning",
        "Reinstall mdd",
    ),
    "weights that do not load": (
        lambda: gpu.weights({"path": "s.st", "sha256": "", "refused": "no weights"}, {}),
        "failure",
        "Correct engine.weights",
    ),
    "adapters": (
        lambda: microscope.adapters(None, "12.5.1.75.0"),
        "ok",
        "the demo devices, device interface 75",
    ),
    "a folder without adapters": (
        lambda: microscope.adapters(Path(__file__).parent, "12.5.1.75.0"),
        "failure",
        "holds no device adapters",
    ),
    "server": (
        lambda: microscope.server(4827, lambda _: "5.1.0", "5.1.0", camera),
        "ok",
        "port 4827, protocol 5.1.0",
    ),
    "Live view is on": (
        lambda: microscope.server(4827, lambda _: "5.1.0", "5.1.0", lambda: camera(is_live=True)),
        "failure",
        "Switch Live view off",
    ),
    "server of a silent core": (
        lambda: microscope.server(
            4827, lambda _: "5.1.0", "5.1.0", raising(AcquisitionError("It has not answered."))
        ),
        "warning",
        "not whether its camera is free",
    ),
    "server, a little older": (
        lambda: microscope.server(4827, lambda _: "5.0.0", "5.1.0", camera),
        "warning",
        "about the same age",
    ),
    "server of another generation": (
        lambda: microscope.server(4827, lambda _: "4.2.0", "5.1.0", camera),
        "failure",
        "Update Micro-Manager",
    ),
    "newer server": (
        lambda: microscope.server(4827, lambda _: "6.0.0", "5.1.0", camera),
        "failure",
        "Update pycromanager",
    ),
    "no server": (
        lambda: microscope.server(4827, raising(AcquisitionError("None answers: tick the box.")), "", camera),
        "failure",
        "Tick the box.",
    ),
    "watched folder": (
        lambda: microscope.watched(Path(__file__).parent),
        "ok",
        "tests",
    ),
    "watched folder, not there yet": (
        lambda: microscope.watched(Path("gone")),
        "warning",
        "directory root",
    ),
    "watched folder, a file": (
        lambda: microscope.watched(Path(__file__)),
        "failure",
        "is a file",
    ),
    "port": (lambda: port(None), "ok", "is free"),
    "port, any": (lambda: port(None, "*"), "ok", "any free port"),
    "port in use": (lambda: port(errno.EADDRINUSE), "failure", "in use by another program"),
    "port of a daemon": (
        lambda: port(errno.EADDRINUSE, name="wire.status"),
        "failure",
        "in use by a running mdd daemon",
    ),
    "port that is reserved": (lambda: port(errno.EACCES, "80"), "failure", "a port above 1023"),
    "address of another computer": (
        lambda: port(errno.EADDRNOTAVAIL),
        "failure",
        "must be an address of this computer",
    ),
    "keys, not needed": (lambda: ports.keys(WireConfig(), lambda _: ()), "ok", "not needed"),
    "keys": (
        lambda: ports.keys(WireConfig(data="tcp://0.0.0.0:1"), lambda _: ("scope",)),
        "ok",
        "scope",
    ),
    "keys, nobody trusted": (
        lambda: ports.keys(WireConfig(data="tcp://0.0.0.0:1"), lambda _: ()),
        "warning",
        "mdd keys trust",
    ),
    "no keys": (
        lambda: ports.keys(
            WireConfig(data="tcp://0.0.0.0:1"),
            raising(MissingFileError("There is no key: run `mdd keys new`.")),
        ),
        "failure",
        "mdd keys new",
    ),
    "space": (lambda: disk.space(Folder(HERE, free=10**12), NEED), "ok", "a run file takes 1.0 GB"),
    "space for whatever comes": (
        lambda: disk.space(Folder(HERE, free=10**12), None),
        "ok",
        "depends on the frames",
    ),
    "no permission": (
        lambda: disk.space(Folder(HERE, "Permission denied"), NEED),
        "failure",
        "--output or recorder.output",
    ),
    "space, unknown": (lambda: disk.space(Folder(HERE), NEED), "warning", "space is free"),
    "full disk": (
        lambda: disk.space(Folder(HERE, free=10**8), NEED),
        "failure",
        "lower recorder.time_points",
    ),
    "full disk, for a camera that is guessed": (
        lambda: disk.space(Folder(HERE, free=10**8), GUESSED),
        "warning",
        "2048 x 2048",
    ),
    "speed": (lambda: disk.speed((400e6, 300e6), NEED), "ok", "400 MB/s and 300 MB/s; frames need"),
    "speed, nothing to hold it against": (lambda: disk.speed((4e8,), None), "ok", "400 MB/s"),
    "speed, too slow for the volumes": (lambda: disk.speed((80e6, 300e6), NEED), "warning", "100 MB/s"),
    "speed, too slow for the frames": (lambda: disk.speed((30e6, 300e6), NEED), "failure", "local SSD"),
    "speed, too slow for a guess": (lambda: disk.speed((30e6, 300e6), GUESSED), "warning", "local SSD"),
    "speed, not measured": (lambda: disk.speed((), NEED), "warning", "recorder.output"),
    "local file system": (lambda: disk.file_system(HERE, "ext4"), "ok", "ext4"),
    "file system, unknown": (lambda: disk.file_system(HERE, ""), "ok", "unknown"),
    "network file system": (lambda: disk.file_system(HERE, "nfs4"), "warning", "local disk"),
    "journal": (lambda: disk.journal(Folder(HERE, free=10**12), 10**9), "ok", "up to 1.0 GB"),
    "journal, off": (lambda: disk.journal(Folder(HERE), 0), "warning", "wire.journal_gb"),
    "journal, not writable": (lambda: disk.journal(Folder(HERE, "no"), 1), "failure", "wire.journal"),
    "journal, little space": (
        lambda: disk.journal(Folder(HERE, free=9), 10**9),
        "warning",
        "Free some space",
    ),
    "nothing left over": (lambda: disk.left_over(0, 0, 0), "ok", "none"),
    "a sender runs": (lambda: disk.left_over(0, 0, 1), "ok", "1 in use"),
    "left-over frames": (lambda: disk.left_over(2, 10**9, 0), "warning", "run mdd deliver"),
    "memory": (lambda: computer.memory(10**10, NEED), "ok", "the engine needs up to 1.0 GB"),
    "memory, unknown": (lambda: computer.memory(None, NEED), "ok", "does not say"),
    "memory for whatever comes": (lambda: computer.memory(10**10, None), "ok", "10.0 GB"),
    "too little memory": (lambda: computer.memory(10**8, NEED), "failure", "smaller camera region"),
    "too little memory for a guess": (lambda: computer.memory(10**8, GUESSED), "warning", "2048 x 2048"),
    "no terminal": (lambda: computer.terminal("utf-8", None), "ok", "logs lines"),
    "terminal": (lambda: computer.terminal("utf-8", (120, 40)), "ok", "120 x 40"),
    "small terminal": (lambda: computer.terminal("utf-8", (60, 40)), "warning", "80 x 24"),
    "terminal of few characters": (lambda: computer.terminal("cp437", (120, 40)), "warning", "PYTHONUTF8=1"),
}


@pytest.mark.parametrize(("look", "level", "words"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_a_check_finds(look: Callable[[], Any], level: str, words: str) -> None:
    found = look()
    findings = [found] if isinstance(found, Finding) else list(found)
    worst = max(findings, key=lambda one: ["ok", "warning", "failure"].index(one.level))
    assert worst.level == level
    assert words in " | ".join(f"{one.text} | {one.fix}" for one in findings)
    for one in findings:
        # Whatever is not fine says what to do, in a sentence.
        assert bool(one.fix) == (one.level != "ok")
        assert not one.fix or one.fix[0].isupper() or one.fix.startswith("python -m pip install")
        assert not one.fix or one.fix.endswith((".", '".'))


# The probes ---------------------------------------------------------------------------------------


SMI = {
    "a card": (0, "NVIDIA GeForce RTX 4090, 591.44\n", Driver(("NVIDIA GeForce RTX 4090",), "591.44")),
    "two cards": (0, "A, 1.2\nB, 1.2\n", Driver(("A", "B"), "1.2")),
    "no driver": (9, "NVIDIA-SMI has failed\n", Driver(("card",), problem="NVIDIA-SMI has failed")),
    "nothing": (1, "", Driver(("card",), problem="nvidia-smi exited with 1")),
}


@pytest.mark.parametrize(("code", "text", "expected"), SMI.values(), ids=SMI.keys())
def test_what_nvidia_smi_answers(code: int, text: str, expected: Driver) -> None:
    assert gpu.read_smi(code, text, ("card",)) == expected


def test_the_shipped_weights_are_those_of_the_checksums() -> None:
    path = shipped_weights()
    assert gpu.shipped_checksums() == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_port_in_use_is_seen_and_a_free_one_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = ports.try_to_bind(f"tcp://127.0.0.1:{other.getsockname()[1]}")
    assert taken is not None
    assert taken.errno == errno.EADDRINUSE
    assert ports.try_to_bind("tcp://127.0.0.1:0") is None


def test_keys_are_asked_for_where_others_can_come_in(tmp_path: Path) -> None:
    assert ports.required_keys(WireConfig(keys=tmp_path)) == ()
    with pytest.raises(MissingFileError, match="mdd keys new"):
        ports.required_keys(WireConfig(keys=tmp_path, data="tcp://0.0.0.0:5750"))


def test_a_look_at_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    found = disk.look_at(tmp_path / "a" / "b")
    assert found.refusal == ""
    assert found.free
    assert disk.write_test(tmp_path / "a" / "b", pass_bytes=1 << 20)[1] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert disk.look_at(tmp_path / "file" / "runs").refusal
    assert disk.write_test(tmp_path / "file" / "runs") == ()


@pytest.mark.skipif(sys.platform == "win32", reason="paths of posix")
def test_the_kind_of_file_system_is_that_of_the_closest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"/": "overlay", str(tmp_path.parent): "ext4", str(tmp_path): "nfs4"}
    mounts = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in kinds.items()]
    monkeypatch.setattr(disk.psutil, "disk_partitions", lambda all: mounts)
    assert disk.kind_of(tmp_path / "runs") == "nfs4"
    assert disk.kind_of(tmp_path.parent) == "ext4"


def test_the_memory_is_known() -> None:
    found = computer.memory_bytes()
    assert found is not None
    assert found > 1 << 20


def test_the_requirements_of_a_run_grow_with_what_is_configured() -> None:
    config = Config.model_validate(
        {"camera": {"width": 64, "height": 32}, "acquisition": {"exposure_ms": 10, "sweep_interval_s": 2}}
    )
    need = requirements_of(config)
    assert need is not None
    assert need.assumed == ""
    assert need.frames_per_s == 2 * 64 * 32 * 9 / 2  # eight slabs and the held-out one, every two seconds
    unknown = requirements_of(Config())
    assert unknown is not None
    assert "2048" in unknown.assumed
    assert requirements_of(Config.model_validate({"acquisition": {"driver": "none"}})) is None


class Server:
    """Answers as Micro-Manager's server does, or otherwise."""

    def __init__(self, answer: bytes) -> None:
        self.port = 0
        self._answer = answer
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as replies:
            replies.setsockopt(zmq.LINGER, 0)
            self.port = replies.bind_to_random_port("tcp://127.0.0.1")
            self._ready.set()
            while not self._stop.is_set():
                if replies.poll(20):
                    assert json.loads(replies.recv()) == {"command": "connect", "debug": False}
                    replies.send(self._answer)


def test_the_servers_version_is_what_it_answers() -> None:
    with Server(b'{"type": "none", "version": "5.1.0"}') as server:
        assert ask_server(server.port) == "5.1.0"
    with Server(b'{"type": "none"}') as server:
        assert ask_server(server.port) == "2.0.0"
    with (
        Server(b"hello") as server,
        pytest.raises(AcquisitionError, match="does not answer as a pycro-manager"),
    ):
        ask_server(server.port)


def test_a_listener_that_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microdiffusion.drivers.micromanager.server.TIMEOUT_S", 0.3)
    silent = pytest.raises(AcquisitionError, match="does not answer as a pycro-manager server")
    with socket.create_server(("127.0.0.1", 0)) as other, silent:
        ask_server(other.getsockname()[1])
    with pytest.raises(AcquisitionError, match="Run pycro-manager server on port"):
        ask_server(1)


def test_the_pace_is_measured_on_the_geometry_or_on_a_part_of_it(weights: Path) -> None:
    from microdiffusion.daemon.engine.trial_sweeps import measure_sweep

    engine = {"weights": weights, "threads": 1}
    config = load_config("demo", overrides={f"engine.{key}": value for key, value in engine.items()})
    small = measure_sweep(config, (48, 48), budget_s=0.1)
    large = measure_sweep(config, (480, 960), budget_s=0.1)
    assert small.measured == (48, 48)
    assert large.measured == (181, 181)
    assert 0.0 < small.seconds < large.seconds


def test_the_probe_measures_the_pace_in_its_own_process(weights: Path) -> None:
    overrides = {"engine.weights": weights, "camera.width": 48, "camera.height": 48, "volume.shape_z": 12}
    config = load_config("demo", overrides=overrides)
    facts = probe(config, timeout_s=120.0, subjects=("pace",))
    assert list(facts) == ["pace"]
    assert facts["pace"]["whole"]
    assert facts["pace"]["seconds"] > 0.0
    assert (
        "torch"
        not in subprocess.run(
            [sys.executable, "-c", "import sys, microdiffusion.daemon.doctor; print(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )


# Running them ---------------------------------------------------------------------------------------


def test_a_check_that_fails_or_hangs_is_a_warning() -> None:
    release = threading.Event()

    def hang() -> Finding:
        release.wait(30)
        return ok("late")

    found = run_checks(
        [
            Check("A", "fails", raising(ZeroDivisionError("by zero"))),
            Check("A", "hangs", hang),
            Check("B", "works", lambda: [ok("1"), warning("2", "Fix it.")]),
        ],
        limit_s=0.3,
    )
    release.set()
    assert [(check.theme, check.name, str(finding.level)) for check, finding in found] == [
        ("A", "fails", "warning"), ("A", "hangs", "warning"), ("B", "works", "ok"), ("B", "works", "warning"),
    ]  # fmt: skip
    assert "ZeroDivisionError: by zero" in found[0][1].text
    assert "no answer in time" in found[1][1].text


SPEAKS = """
import json, sys, time
print("a library's chatter")
print(json.dumps(["torch", {"version": "1"}]))
print(json.dumps(["weights", "OSError: gone"]), flush=True)
"""


@pytest.mark.parametrize(("end", "timeout_s"), [("sys.exit(7)", 60.0), ("time.sleep(600)", 1.0)])
def test_a_child_that_dies_or_hangs_has_said_what_it_knew(end: str, timeout_s: float) -> None:
    known = probe(Config(), timeout_s=timeout_s, command=[sys.executable, "-c", SPEAKS + end])
    assert known["torch"] == {"version": "1"}
    assert known["weights"] == "OSError: gone"
    assert "crashed" in known["tensorrt"]


def test_the_page_fits_into_80_columns_and_the_report_hides_the_home_folder() -> None:
    home = str(Path.home())
    found = [
        (Check("Disk", "recorder.output", list), ok("word " * 40)),
        (Check("Disk", "journal", list), warning(f"{home}/journal is small", "Free some space. " * 9)),
        (Check("Engine", "torch", list), failure("none", "Install it.")),
    ]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(page(found))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("Disk\n") < text.index("Engine\n")
    assert text.count("-> ") == 2
    assert summary(found).startswith("1 failure, 1 warning")
    assert summary(found[:2]).startswith("No failures, 1 warning")
    assert summary(found[:1]) == "Everything is fine."
    told = report(found, f"{home}/my.toml")
    assert told["result"] == "failure"
    assert told["packages"]["numpy"]
    assert [check["level"] for check in told["checks"]] == ["ok", "warning", "failure"]
    if len(home) > 1:
        assert home not in json.dumps(told)


# The command --------------------------------------------------------------------------------------


ANY_PORT = [
    word for name in ("data", "status", "control") for word in ("--set", f"wire.{name}=tcp://127.0.0.1:*")
]


def test_the_command_checks_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = cli.main(["doctor", "--demo", "--json", *ANY_PORT])
    found = json.loads(capsys.readouterr().out)
    by_name = {check["name"]: check for check in found["checks"]}
    assert code == (3 if found["result"] == "failure" else 0)
    assert found["configuration"] == "demo"
    for name in ("Python", "packages", "device adapters", "recorder.output", "weights"):
        assert by_name[name]["level"] == "ok", by_name[name]
    assert "secret" not in json.dumps(found)
    assert {check["theme"] for check in found["checks"]} >= {
        "Python and packages", "Engine", "Microscope", "Ports and keys", "Disk", "Computer",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_failure_exits_with_three(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(config: Config) -> object:
        assert config.sweep.step_um == 3
        return [(Check("Disk", "recorder.output", list), failure("µm", "Fix it."))]

    monkeypatch.setattr("microdiffusion.daemon.doctor.examine", examine)
    assert cli.main(["doctor", "--set", "sweep.step_um=3", *ANY_PORT]) == 3
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "-> Fix it." in said


def test_a_configuration_that_cannot_be_is_the_users_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--set", "sweep.stpe_um=3"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert issubclass(ConfigError, ValueError)
