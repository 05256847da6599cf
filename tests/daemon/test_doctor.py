"""`mdd doctor`: every outcome of every check, the page, the report, and the command itself."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.mdd_process import free_port

from microdiffusion.config.models import AcquisitionConfig, Config, EngineConfig, WireConfig
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.commands import doctor
from microdiffusion.daemon.doctor import computer, disk, gpu, microscope, network, packages
from microdiffusion.daemon.doctor.computer import Terminal
from microdiffusion.daemon.doctor.disk import Folder
from microdiffusion.daemon.doctor.finding import Finding, failure, ok, warning
from microdiffusion.daemon.doctor.gpu import Driver
from microdiffusion.daemon.doctor.page import page, report, summary
from microdiffusion.daemon.doctor.requirements import Need, need_of
from microdiffusion.daemon.doctor.run import Check, Line, examine
from microdiffusion.daemon.doctor.subprocess_probe import Child, SilentError
from microdiffusion.drivers.micromanager.server import ask_server
from microdiffusion.engines.pipeline.engine import shipped_weights
from microdiffusion.errors import AcquisitionError, ConfigError, MissingFileError

HERE = Path("runs")
NEED = Need(file_bytes=10**9, frames_per_s=50e6, volumes_per_s=50e6, engine_bytes=10**9)
GUESSED = Need(10**9, 50e6, 50e6, 10**9, "for 2048 x 2048 pixels")
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


def raising(error: Exception) -> Callable[..., Any]:
    def ask(*_: Any) -> Any:
        raise error

    return ask


def os_error(number: int) -> OSError:
    return OSError(number, "because")


def versions(**known: str) -> Callable[[str], str | None]:
    return lambda name: known.get(name.replace("-", "_"))


# What each check says to which facts: the finding's level, and words of its text and its cure.
OUTCOMES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "python": (lambda: packages.python((3, 12, 1), True), "ok", "3.12.1, 64 bit"),
    "python, old": (lambda: packages.python((3, 10, 1), True), "failure", "Python 3.11 or newer"),
    "python, 32 bit": (lambda: packages.python((3, 12, 1), False), "failure", "64-bit Python"),
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
        lambda: packages.packages(["lpips>=9; extra == 'lpips'"], versions()),
        "ok",
        "0 as mdd needs them",
    ),
    "hdf5": (lambda: packages.hdf5("3.16.0", "2.0.0"), "ok", "2.0.0"),
    "hdf5, old": (lambda: packages.hdf5("2.8", "1.8.20"), "failure", "--upgrade h5py"),
    "zeromq": (lambda: packages.zeromq("4.3.5", True), "ok", "with CURVE"),
    "zeromq without curve": (lambda: packages.zeromq("4.3.5", False), "warning", "without CURVE"),
    "driver": (lambda: gpu.driver(CARD, AUTO), "ok", "RTX 4090, driver 591.44"),
    "no card": (lambda: gpu.driver(Driver(), AUTO), "ok", "the processor reconstructs"),
    "no card, cuda asked for": (lambda: gpu.driver(Driver(), CUDA), "failure", 'engine.device to "auto"'),
    "card without driver": (lambda: gpu.driver(NO_DRIVER, AUTO), "failure", "Install NVIDIA's driver"),
    "old driver": (lambda: gpu.driver(OLD, AUTO), "warning", "r580 or newer"),
    "torch on cuda": (lambda: gpu.torch_build(torch_of("13.0", RTX), CARD, AUTO), "ok", "sees RTX 4090"),
    "torch on a cpu": (
        lambda: gpu.torch_build(torch_of(), Driver(), AUTO),
        "ok",
        "for the CPU alone, 4 threads",
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
    "openvino": (lambda: gpu.openvino({"version": "2026.4"}, torch_of(), AUTO), "ok", "2026.4"),
    "openvino absent": (lambda: gpu.openvino({}, torch_of(), AUTO), "warning", "pip install openvino"),
    "openvino absent, asked for": (
        lambda: gpu.openvino({}, torch_of(), EngineConfig(runtime="openvino")),
        "failure",
        "pip install openvino",
    ),
    "openvino absent, with a gpu": (
        lambda: gpu.openvino({}, torch_of("13.0", RTX), AUTO),
        "ok",
        "not needed",
    ),
    "weights": (
        lambda: gpu.weights({"path": "a/s.st", "sha256": "ab", "parameters": 2_500_000}, {"s.st": "ab"}),
        "ok",
        "2.5 million parameters, checksum as shipped",
    ),
    "weights of the user": (
        lambda: gpu.weights({"path": "mine.st", "sha256": "ab", "parameters": 1}, {}),
        "ok",
        "not one that ships",
    ),
    "weights, changed": (
        lambda: gpu.weights({"path": "s.st", "sha256": "cd", "parameters": 1}, {"s.st": "ab"}),
        "warning",
        "Install mdd anew",
    ),
    "weights that do not load": (
        lambda: gpu.weights({"path": "s.st", "sha256": "", "refused": "no weights"}, {}),
        "failure",
        "Correct engine.weights",
    ),
    "processor": (
        lambda: gpu.processor("EPYC", 2, frozenset({"avx512f", "amx_bf16"}), ""),
        "ok",
        "EPYC, 2 cores, AMX bf16",
    ),
    "processor, by its flags": (lambda: gpu.processor("X", 2, frozenset({"avx2"}), ""), "ok", "AVX2"),
    "processor, by torch": (lambda: gpu.processor("M2", 8, frozenset(), "NEON"), "ok", "NEON"),
    "core": (
        lambda: microscope.core(
            AcquisitionConfig(), versions(pymmcore="12.5.1.75.0", mm_test_adapters="75.1")
        ),
        "ok",
        "the demo devices",
    ),
    "no core": (lambda: microscope.core(AcquisitionConfig(), versions()), "failure", "pip install pymmcore"),
    "no adapters": (
        lambda: microscope.core(AcquisitionConfig(), versions(pymmcore="12.5.1.75.0")),
        "failure",
        "'mm-test-adapters==75.*'",
    ),
    "adapters of another interface": (
        lambda: microscope.core(
            AcquisitionConfig(), versions(pymmcore="12.5.1.75.0", mm_test_adapters="74.1")
        ),
        "failure",
        "another device interface",
    ),
    "a folder without adapters": (
        lambda: microscope.core(
            AcquisitionConfig(mm_app_path=Path(__file__).parent), versions(pymmcore="12.5.1.75.0")
        ),
        "failure",
        "holds no device adapters",
    ),
    "bridge": (
        lambda: microscope.bridge(versions(pycromanager="1.0.2", mmpycorex="0.3", pyjavaz="1.2")),
        "ok",
        "pyjavaz 1.2",
    ),
    "no bridge": (lambda: microscope.bridge(versions(pycromanager="1")), "failure", "mmpycorex, pyjavaz"),
    "server": (
        lambda: microscope.server(4827, lambda _: "5.1.0", "5.1.0"),
        "ok",
        "port 4827, protocol 5.1.0",
    ),
    "server, a little older": (
        lambda: microscope.server(4827, lambda _: "5.0.0", "5.1.0"),
        "warning",
        "about the same age",
    ),
    "server of another generation": (
        lambda: microscope.server(4827, lambda _: "4.2.0", "5.1.0"),
        "failure",
        "Update Micro-Manager",
    ),
    "newer server": (
        lambda: microscope.server(4827, lambda _: "6.0.0", "5.1.0"),
        "failure",
        "Update pycromanager",
    ),
    "no server": (
        lambda: microscope.server(4827, raising(AcquisitionError("None answers: tick the box.")), ""),
        "failure",
        "Tick the box.",
    ),
    "watched folder": (
        lambda: microscope.watched(AcquisitionConfig(driver="watch", watch=Path(__file__).parent)),
        "ok",
        "tests",
    ),
    "watched folder, not there yet": (
        lambda: microscope.watched(AcquisitionConfig(driver="watch", watch=Path("gone"))),
        "warning",
        "directory root",
    ),
    "watched folder, a file": (
        lambda: microscope.watched(AcquisitionConfig(driver="watch", watch=Path(__file__))),
        "failure",
        "is a file",
    ),
    "port": (lambda: network.port("wire.data", "tcp://127.0.0.1:5750", lambda _: None, str), "ok", "is free"),
    "port, any": (lambda: network.port("wire.data", "tcp://127.0.0.1:*", lambda _: None, str), "ok", "free"),
    "port in use": (
        lambda: network.port(
            "wire.data",
            "tcp://127.0.0.1:5750",
            lambda _: os_error(errno.EADDRINUSE),
            lambda: "java (process 7)",
        ),
        "failure",
        "in use by java (process 7)",
    ),
    "port that is reserved": (
        lambda: network.port("wire.data", "tcp://127.0.0.1:80", lambda _: os_error(errno.EACCES), str),
        "failure",
        "a port above 1023",
    ),
    "address of somebody else": (
        lambda: network.port("wire.data", "tcp://10.9.9.9:1", lambda _: os_error(errno.EADDRNOTAVAIL), str),
        "failure",
        "its host is an address of this computer",
    ),
    "keys, not needed": (lambda: network.keys(WireConfig(), lambda _: ()), "ok", "not needed"),
    "keys": (
        lambda: network.keys(WireConfig(data="tcp://0.0.0.0:1"), lambda _: ("scope",)),
        "ok",
        "scope",
    ),
    "keys, nobody trusted": (
        lambda: network.keys(WireConfig(data="tcp://0.0.0.0:1"), lambda _: ()),
        "warning",
        "mdd keys trust",
    ),
    "no keys": (
        lambda: network.keys(
            WireConfig(data="tcp://0.0.0.0:1"),
            raising(MissingFileError("There is no key: run `mdd keys new`.")),
        ),
        "failure",
        "mdd keys new",
    ),
    "room": (lambda: disk.room(Folder(HERE, free=10**12), NEED), "ok", "a run file takes 1.0 GB"),
    "room for whatever comes": (lambda: disk.room(Folder(HERE, free=10**12), None), "ok", "frames that come"),
    "no permission": (
        lambda: disk.room(Folder(HERE, "Permission denied"), NEED),
        "failure",
        "--output or recorder.output",
    ),
    "room that nobody knows": (lambda: disk.room(Folder(HERE), NEED), "warning", "free space"),
    "full disk": (lambda: disk.room(Folder(HERE, free=10**8), NEED), "failure", "lower recorder.time_points"),
    "full disk, for a camera that is guessed": (
        lambda: disk.room(Folder(HERE, free=10**8), GUESSED),
        "warning",
        "2048 x 2048",
    ),
    "speed": (lambda: disk.speed((400e6, 300e6), NEED), "ok", "400 MB/s and 300 MB/s in 2 passes"),
    "speed, nothing to hold it against": (lambda: disk.speed((4e8,), None), "ok", "400 MB/s"),
    "speed, too slow for the volumes": (lambda: disk.speed((80e6, 300e6), NEED), "warning", "100 MB/s"),
    "speed, too slow for the frames": (lambda: disk.speed((30e6, 300e6), NEED), "failure", "local SSD"),
    "speed, too slow for a guess": (lambda: disk.speed((30e6, 300e6), GUESSED), "warning", "local SSD"),
    "speed, not measured": (lambda: disk.speed((), NEED), "warning", "recorder.output"),
    "local file system": (lambda: disk.file_system(HERE, "ext4"), "ok", "ext4"),
    "file system that nobody knows": (lambda: disk.file_system(HERE, ""), "ok", "not told"),
    "network file system": (lambda: disk.file_system(HERE, "nfs4"), "warning", "local disk"),
    "journal": (lambda: disk.journal(Folder(HERE, free=10**12), 10**9), "ok", "up to 1.0 GB"),
    "journal, off": (lambda: disk.journal(Folder(HERE), 0), "warning", "wire.journal_gb"),
    "journal, not writable": (lambda: disk.journal(Folder(HERE, "no"), 1), "failure", "wire.journal"),
    "journal, little room": (lambda: disk.journal(Folder(HERE, free=9), 10**9), "warning", "Free some space"),
    "nothing left over": (lambda: disk.left_over_frames(0, 0, 0), "ok", "none"),
    "a sender runs": (lambda: disk.left_over_frames(0, 0, 1), "ok", "1 in use"),
    "left-over frames": (lambda: disk.left_over_frames(2, 10**9, 0), "warning", "run mdd deliver"),
    "no cache yet": (lambda: disk.cache(Path("gone"), lambda _: ""), "ok", "made when it is needed"),
    "cache": (lambda: disk.cache(Path(__file__).parent, lambda _: ""), "ok", "private"),
    "cache that others can write": (
        lambda: disk.cache(Path(__file__).parent, lambda _: "can be written by others"),
        "warning",
        "Delete the",
    ),
    "memory": (lambda: computer.memory(10**10, "free", NEED), "ok", "the engine takes up to 1.0 GB"),
    "memory that nobody knows": (lambda: computer.memory(None, "", NEED), "ok", "does not say"),
    "memory for whatever comes": (lambda: computer.memory(10**10, "free", None), "ok", "10.0 GB free"),
    "too little memory": (lambda: computer.memory(10**8, "in all", NEED), "failure", "smaller camera region"),
    "too little memory for a guess": (
        lambda: computer.memory(10**8, "free", GUESSED),
        "warning",
        "2048 x 2048",
    ),
    "clock": (lambda: computer.clock(datetime(2026, 5, 4, 3, 2, tzinfo=UTC), 0), "ok", "03:02 UTC"),
    "clock of another age": (
        lambda: computer.clock(datetime(1980, 1, 1, tzinfo=UTC), 0),
        "warning",
        "Set the date",
    ),
    "clock that goes back": (
        lambda: computer.clock(datetime(2026, 5, 4, tzinfo=UTC), 3),
        "failure",
        "goes back",
    ),
    "no terminal": (
        lambda: computer.terminal(Terminal(False, 80, 24, "utf-8", "", False)),
        "ok",
        "logs lines",
    ),
    "terminal": (
        lambda: computer.terminal(Terminal(True, 120, 40, "utf-8", "truecolor", False)),
        "ok",
        "truecolor",
    ),
    "terminal without colour": (
        lambda: computer.terminal(Terminal(True, 120, 40, "utf-8", "256", True)),
        "ok",
        "NO_COLOR",
    ),
    "small terminal": (
        lambda: computer.terminal(Terminal(True, 60, 40, "utf-8", "256", False)),
        "warning",
        "80 x 24",
    ),
    "terminal of few characters": (
        lambda: computer.terminal(Terminal(True, 120, 40, "cp437", "256", False)),
        "warning",
        "PYTHONUTF8=1",
    ),
}


@pytest.mark.parametrize(("look", "level", "words"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_what_a_check_says(look: Callable[[], Any], level: str, words: str) -> None:
    found = look()
    findings = [found] if isinstance(found, Finding) else list(found)
    worst = max(findings, key=lambda one: ["ok", "warning", "failure"].index(one.level))
    assert worst.level == level
    said = " | ".join(f"{one.text} | {one.cure}" for one in findings)
    assert words in said
    for one in findings:
        # Whatever is not well says what to do, in a sentence.
        assert bool(one.cure) == (one.level != "ok")
        assert not one.cure or one.cure[0].isupper() or one.cure.startswith("python -m pip install")
        assert not one.cure or one.cure.endswith((".", '".'))


# The probes ---------------------------------------------------------------------------------------


SMI = {
    "a card": (0, "NVIDIA GeForce RTX 4090, 591.44\n", Driver(("NVIDIA GeForce RTX 4090",), "591.44")),
    "two cards": (0, "A, 1.2\nB, 1.2\n", Driver(("A", "B"), "1.2")),
    "no driver": (9, "NVIDIA-SMI has failed\n", Driver(("card",), problem="NVIDIA-SMI has failed")),
    "nothing": (1, "", Driver(("card",), problem="nvidia-smi ended with 1")),
}


@pytest.mark.parametrize(("code", "text", "expected"), SMI.values(), ids=SMI.keys())
def test_what_nvidia_smi_answers(code: int, text: str, expected: Driver) -> None:
    assert gpu.read_smi(code, text, ("card",)) == expected


def test_the_shipped_weights_are_those_of_the_checksums() -> None:
    checksums = gpu.shipped_checksums()
    for network_name in ("small", "large"):
        path = shipped_weights(network_name)
        assert checksums[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_port_in_use_is_seen_and_a_free_one_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = network.try_to_bind(f"tcp://127.0.0.1:{other.getsockname()[1]}")
    assert taken is not None
    assert taken.errno == errno.EADDRINUSE
    assert network.try_to_bind(f"tcp://127.0.0.1:{free_port()}") is None


def test_keys_are_asked_for_where_others_can_come_in(tmp_path: Path) -> None:
    assert network.need_keys(WireConfig(keys=tmp_path)) == ()
    with pytest.raises(MissingFileError, match="mdd keys new"):
        network.need_keys(WireConfig(keys=tmp_path, data="tcp://0.0.0.0:5750"))


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


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of posix")
def test_a_folder_that_others_can_write_is_not_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert disk.private_problem(tmp_path) == ""
    tmp_path.chmod(0o777)
    assert disk.private_problem(tmp_path) == "can be written by others"


@pytest.mark.skipif(sys.platform == "win32", reason="paths of posix")
def test_the_file_system_is_that_of_the_closest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    lines = ("/dev/a / ext4 rw", f"server:/x {tmp_path.as_posix()} nfs4 rw", "tmpfs /elsewhere tmpfs rw")
    mounts.write_text("\n".join(lines))
    assert disk.kind_of(tmp_path / "runs", mounts) == "nfs4"
    assert disk.kind_of(tmp_path.parent, mounts) == "ext4"
    assert disk.kind_of(tmp_path, tmp_path / "gone") == ""


def test_memory_is_told() -> None:
    found, of_which = computer.memory_bytes()
    assert found is not None
    assert found > 1 << 20
    assert of_which in ("free", "in all")


def test_the_need_of_a_run_grows_with_what_is_asked() -> None:
    config = Config.model_validate(
        {"camera": {"width": 64, "height": 32}, "acquisition": {"exposure_ms": 10, "sweep_interval_s": 2}}
    )
    need = need_of(config)
    assert need is not None
    assert need.assumed == ""
    assert need.frames_per_s == 2 * 64 * 32 * 9 / 2  # eight slabs and the held-out one, every two seconds
    unknown = need_of(Config())
    assert unknown is not None
    assert "2048" in unknown.assumed
    assert need_of(Config.model_validate({"acquisition": {"driver": "none"}})) is None


class Server:
    """Answers as Micro-Manager's server does, or otherwise."""

    def __init__(self, answer: bytes) -> None:
        self.port = free_port()
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
            replies.bind(f"tcp://127.0.0.1:{self.port}")
            self._ready.set()
            while not self._stop.is_set():
                if replies.poll(20):
                    assert json.loads(replies.recv()) == {"command": "connect", "debug": False}
                    replies.send(self._answer)


def test_the_servers_version_is_what_it_answers() -> None:
    with Server(b'{"type": "none", "version": "5.1.0"}') as server:
        assert ask_server(server.port, 10) == "5.1.0"
    with Server(b'{"type": "none"}') as server:
        assert ask_server(server.port, 10) == "2.0.0"
    with (
        Server(b"hello") as server,
        pytest.raises(AcquisitionError, match="does not answer as a pycro-manager"),
    ):
        ask_server(server.port, 10)


def test_a_listener_that_says_nothing_holds_nobody_up() -> None:
    silent = pytest.raises(AcquisitionError, match="does not answer as a pycro-manager server")
    with socket.create_server(("127.0.0.1", 0)) as other, silent:
        ask_server(other.getsockname()[1], 0.1)
    with pytest.raises(AcquisitionError, match="Run pycro-manager server on port"):
        ask_server(free_port(), 0.5)


# Running them ---------------------------------------------------------------------------------------


def test_a_check_that_breaks_or_hangs_is_a_line() -> None:
    release = threading.Event()

    def hang() -> Finding:
        release.wait(30)
        return ok("late", "")

    began = time.monotonic()
    lines = examine(
        [
            Check("A", "breaks", raising(ZeroDivisionError("by zero"))),
            Check("A", "hangs", hang),
            Check("B", "well", lambda: [ok("one", "1"), warning("two", "2", "Mend it.")]),
        ],
        limit_s=0.3,
    )
    release.set()
    assert time.monotonic() - began < 10
    assert [(line.theme, line.finding.name, str(line.finding.level)) for line in lines] == [
        ("A", "breaks", "warning"), ("A", "hangs", "warning"), ("B", "one", "ok"), ("B", "two", "warning"),
    ]  # fmt: skip
    assert "ZeroDivisionError: by zero" in lines[0].finding.text
    assert "no answer within" in lines[1].finding.text


SPEAKS = """
import json, sys
print("a library's chatter")
print(json.dumps({"about": "torch", "facts": {"version": "1"}}))
print(json.dumps({"about": "weights", "problem": "OSError: gone"}))
sys.exit(7)
"""


def test_a_child_that_dies_has_said_what_it_knew() -> None:
    child = Child(AUTO, [sys.executable, "-c", SPEAKS])
    try:
        assert child.ask("torch") == {"version": "1"}
        with pytest.raises(RuntimeError, match="OSError: gone"):
            child.ask("weights")
        with pytest.raises(SilentError, match="looks at tensorrt ended"):
            child.ask("tensorrt")
    finally:
        child.close()


def test_a_child_that_hangs_can_be_closed() -> None:
    child = Child(AUTO, [sys.executable, "-c", "import time; time.sleep(600)"])
    child.close()
    with pytest.raises(SilentError):
        child.ask("torch")


def test_the_page_fits_into_80_columns_and_the_report_hides_the_home_folder() -> None:
    home = str(Path.home())
    lines = [
        Line("Disk", ok("recorder.output", "word " * 40)),
        Line("Disk", warning("journal", f"{home}/journal is small", "Free some space. " * 9)),
        Line("Engine", failure("torch", "none", "Install it.")),
    ]
    text = page(lines).plain
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("Disk\n") < text.index("Engine\n")
    assert text.count("-> ") == 2
    assert summary(lines).startswith("1 failure and 1 warning")
    assert summary(lines[:2]).startswith("No failure, 1 warning")
    assert summary(lines[:1]) == "All is well."
    found = report(lines, f"{home}/my.toml")
    assert found["result"] == "failure"
    assert found["packages"]["numpy"]
    assert [check["level"] for check in found["checks"]] == ["ok", "warning", "failure"]
    if len(home) > 1:
        assert home not in json.dumps(found)


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return options of free ports, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    pairs = [f"wire.{name}=tcp://127.0.0.1:{free_port()}" for name in ("data", "status", "control")]
    yield [word for pair in pairs for word in ("--set", pair)]
    assert list(tmp_path.iterdir()) == []


def test_the_command_looks_at_this_machine(
    in_folder: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    code = cli.main(["doctor", "--demo", "--json", *in_folder])
    found = json.loads(capsys.readouterr().out)
    by_name = {check["name"]: check for check in found["checks"]}
    assert code == (3 if found["result"] == "failure" else 0)
    assert found["configuration"] == "demo"
    for name in ("Python", "MMCore", "device adapters", "pycromanager", "recorder.output", "clock", "HDF5"):
        assert by_name[name]["level"] == "ok", by_name[name]
    assert "secret" not in json.dumps(found)
    assert {check["theme"] for check in found["checks"]} >= {
        "Python and packages", "Engine", "Microscope", "Ports and keys", "Disk", "Computer",
    }  # fmt: skip


def test_a_failure_ends_with_three(
    in_folder: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(config: Config) -> list[Line]:
        assert config.sweep.step_um == 3
        return [Line("Disk", failure("recorder.output", "µm", "Mend it."))]

    monkeypatch.setattr(doctor, "look", look)
    assert cli.main(["doctor", "--set", "sweep.step_um=3", *in_folder]) == 3
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "-> Mend it." in said


def test_a_configuration_that_cannot_be_is_the_users_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--set", "sweep.stpe_um=3"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert issubclass(ConfigError, ValueError)


def test_an_old_windows_console_gets_no_sequences_and_a_terminal_its_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import rich.console

    from microdiffusion.daemon.commands import doctor
    from microdiffusion.daemon.doctor.finding import ok
    from microdiffusion.daemon.doctor.run import Line

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = []
    for legacy in (False, True):
        monkeypatch.setattr(rich.console, "detect_legacy_windows", lambda legacy=legacy: legacy)
        doctor._print([Line("Disk", ok("journal", "D:/journal"))])
        said.append(capsys.readouterr().out)
    assert ["\x1b" in each for each in said] == [True, False]
    assert "D:/journal" in said[1]


def test_two_looks_at_a_folder_that_is_not_there_do_not_take_it_from_each_other(tmp_path: Path) -> None:
    place, over, found = tmp_path / "a" / "runs", threading.Event(), []

    def look() -> None:
        while not over.is_set():
            found.append(disk.look_at(place).refusal)

    other = threading.Thread(target=look)
    other.start()
    rates = [disk.write_test(place, passes=20, pass_bytes=1, limit_s=5.0) for _ in range(3)]
    over.set()
    other.join(20.0)
    assert [len(each) for each in rates] == [20, 20, 20]
    assert set(found) == {""}
    assert not list(tmp_path.iterdir())
