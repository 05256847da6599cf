"""The mistakes that people make most: each gives one sentence that names the cure.

`REFUSED` are noticed at the door, through the real command; the others while the frames come in, or by asking
the instrument. docs/errors.md lists all of them, by the same names, and a test holds it to that.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import mm_test_adapters
import numpy as np
import pytest
from support.driver_support import Outbox
from support.mdd_process import Mdd, free_port
from support.run_file_writer import put_sweep, recorder, started
from support.sample_data import write_sample

from microdiffusion import errors, open_run
from microdiffusion.config.models import Config
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.runs.exposure import ExposureMonitor
from microdiffusion.drivers.micromanager import acquisition as micromanager
from microdiffusion.drivers.micromanager import preflight as mm_checks
from microdiffusion.drivers.micromanager import server as mm_server
from microdiffusion.drivers.micromanager.bridge import MicroscopeWatch
from microdiffusion.drivers.micromanager.core import DEMO_CONFIG
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.replay import replay
from microdiffusion.drivers.sending import DriverTask
from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.frames import Frame, FrameInfo, StagePosition
from microdiffusion.header import RunHeader

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
FREE, TAKEN = "FREE", "TAKEN"
LINEAR = ("--set", "engine.method=linear", "--set", "engine.threads=1")


def demo(*pairs: str) -> list[str]:
    """Return `mdd serve --demo` with settings."""
    return ["serve", "--demo", "--headless", *LINEAR, *(word for pair in pairs for word in ("--set", pair))]


RECONSTRUCT = ["reconstruct", "projections.h5", "--output", "r.h5"]

# Name of the mistake: the command, its exit code, what its sentence says is wrong, and the cure in it.
REFUSED: dict[str, tuple[list[str], int, str, str]] = {
    "micro-manager does not run": (
        demo("acquisition.backend=java", f"acquisition.port={FREE}"),
        3,
        "No pycro-manager server answers",
        "Tools > Options > Run pycro-manager server on port",
    ),
    "another program at the port": (
        demo("acquisition.backend=java", f"acquisition.port={TAKEN}"),
        3,
        "does not answer as a pycro-manager server",
        "see that no other program uses that port",
    ),
    "port in use": (demo(f"wire.data=tcp://127.0.0.1:{TAKEN}"), 2, "in use", "wire.data"),
    "wrong address": (
        ["replay", "projections.h5", "--address", f"tcp://127.0.0.1:{FREE}"],
        2,
        "Nobody answered",
        "mdd serve",
    ),
    "open to others without keys": (
        demo("wire.data=tcp://0.0.0.0:5750", "wire.keys=no-keys"),
        2,
        "There is no key",
        "mdd keys new",
    ),
    "no gpu": (
        [*RECONSTRUCT, "--method", "linear", "--device", "cuda:42"],
        2,
        "CUDA devices",
        "set it to auto or cpu",
    ),
    "tensorrt without a gpu": (
        [*RECONSTRUCT, "--set", "engine.runtime=tensorrt", "--device", "cpu"],
        2,
        "tensorrt",
        "engine.runtime to auto",
    ),
    "nanometres for micrometres": (demo("sweep.length_um=12000"), 2, "12000 nm are 12 µm", "shorten it"),
    "slab longer than the volume": (demo("volume.shape_z=4"), 2, "does not fit into a volume", "enlarge"),
    "step larger than the slab": (
        demo("sweep.step_um=30"),
        2,
        "would never be lit",
        "lower sweep.step_um",
    ),
    "voxel of a tenth of a millimetre": (
        demo("volume.voxel_z_um=100"),
        2,
        "longer than the slab",
        "volume.voxel_z_um is in µm",
    ),
    "pixel of the camera, not of the specimen": (
        demo("volume.pixel_um=6500"),
        2,
        "no microscope's",
        "divided by the magnification",
    ),
    "exposure too long for the interval": (
        demo("acquisition.exposure_ms=500"),
        2,
        "longer than acquisition.sweep_interval_s",
        "lower acquisition.exposure_ms",
    ),
    "unit within a number": (
        demo("acquisition.exposure_ms=10 ms"),
        2,
        "acquisition.exposure_ms",
        "without its unit",
    ),
    "misspelt key": (demo("sweep.stpe_um=3"), 2, "unknown key", "did you mean step_um"),
    "unwritable folder": (
        demo("recorder.output=projections.h5/runs"),
        3,
        "cannot be written",
        "name another folder",
    ),
    "full disk": (
        demo(
            "recorder.time_points=1000000",
            "recorder.file_gb=1000000",
            "camera.width=512",
            "camera.height=512",
        ),
        3,
        "needs",
        "time_points",
    ),
    "projection file is a run file": (
        ["reconstruct", "run_99.h5", "--output", "r.h5"],
        2,
        "layout 99",
        "mdd",
    ),
    "file of another version": (["info", "run_99.h5"], 2, "layout 99", "mdd"),
    "volume where projections are wanted": (
        ["reconstruct", "volume.h5", "--output", "r.h5"],
        2,
        "volume.h5",
        "mdd simulate",
    ),
    "no such micro-manager configuration": (
        demo("acquisition.mm_config=gone.cfg"),
        2,
        "gone.cfg",
        "does not exist",
    ),
    "no such channel preset": (
        demo("acquisition.channel_group=Channel", 'acquisition.channels=["red"]'),
        3,
        "no preset 'red'",
        "correct acquisition.channels",
    ),
    "stage limits": (demo("volume.z0_um=280"), 3, "does not go to", "correct volume.z0_um"),
    "camera smaller than the region": (
        demo("camera.width=4000"),
        3,
        "fewer than the 4000",
        "make these smaller",
    ),
    "colour camera": (
        demo("acquisition.mm_config=colour.cfg"),
        3,
        "delivers colour",
        "one monochrome camera",
    ),
    "32-bit pixels": (
        demo("acquisition.mm_config=deep.cfg"),
        3,
        "4 bytes per pixel",
        "PixelType to 8 or 16 bit",
    ),
}


def changed_demo(path: Path, *lines: str) -> Path:
    """Write the demo's configuration with more settings."""
    text = (Path(mm_test_adapters.device_adapter_path()) / DEMO_CONFIG).read_text(encoding="utf-8")
    path.write_text("\n".join([text, *lines, ""]), encoding="utf-8")
    return path


@pytest.fixture
def furnished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path / "projections.h5", sweeps=1)
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["volume"] = np.zeros((24, 16, 16), np.float32)
    target = started(recorder(tmp_path / "run_99.h5"))
    put_sweep(target, 0)
    target.stop()
    with h5py.File(tmp_path / "run_99.h5", "r+") as file:
        file.attrs["mdd_layout"] = 99
    changed_demo(tmp_path / "colour.cfg", "Property,Camera,PixelType,32bitRGB")
    changed_demo(tmp_path / "deep.cfg", "Property,Camera,PixelType,32bit")
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("arguments", "code", "wrong", "cure"),
    # What ends with 3 has started a daemon and a driver.
    [pytest.param(*case, marks=pytest.mark.slow if case[1] == 3 else ()) for case in REFUSED.values()],
    ids=REFUSED.keys(),
)
def test_a_mistake_gives_one_sentence_with_its_cure(
    furnished: Path,
    taken: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    wrong: str,
    cure: str,
) -> None:
    monkeypatch.setitem(replay.__kwdefaults__, "connect_timeout_s", 0.5)
    monkeypatch.setattr(mm_server, "TIMEOUT_S", 0.5)
    words = [word.replace(TAKEN, str(taken)).replace(FREE, str(free_port())) for word in arguments]
    if words[0] == "serve":
        for name in ("data", "status", "control"):
            if not any(f"wire.{name}" in word for word in words):
                words += ["--set", f"wire.{name}=tcp://127.0.0.1:{free_port()}"]
    assert cli.main(words) == code
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("mdd")]
    assert len(lines) == 1, said
    assert wrong in lines[0]
    assert cure in lines[0]


# What the frames show -----------------------------------------------------------------------------


def frames_of(image: Callable[[int], Any], sweeps: int = 2, count: int = 3) -> Iterator[Frame]:
    for seq in range(sweeps * count):
        info = FrameInfo(
            seq=seq, sweep=seq // count, index=seq % count, count=count, stage=StagePosition(0.0)
        )
        yield Frame(info, np.asarray(image(seq)))


def noisy(level: float, noise: float = 2.0, peak: float = 0.0) -> Callable[[int], Any]:
    def image(seq: int) -> Any:
        rng = np.random.default_rng(seq)
        pixels = rng.normal(level, noise, (64, 80))
        pixels[20:30, 20:30] += peak
        return pixels.clip(0, 4095).astype(np.uint16)

    return image


def header(offset: float = 100.0, read_noise: float = 2.0) -> RunHeader:
    return RunHeader.model_validate(
        {
            "run_id": "0" * 32, "shape": (24, 64, 80), "voxel_size_um": (2, 1, 1), "z0_um": 0,
            "profile_weights": (1,), "profile_spacing_um": 12,
            "camera": {"offset": offset, "gain": None, "read_noise": read_noise},
        }
    )  # fmt: skip


LIGHT: dict[str, tuple[RunHeader, Callable[[int], Any], list[str], str]] = {
    "saturated camera": (header(), noisy(200, peak=9000), ["saturated"], "lower the exposure or the light"),
    "shutter closed": (header(), noisy(100), ["dark"], "open the shutter"),
    "camera that sends nothing": (
        header(0, 0),
        lambda _: np.full((64, 80), 7, np.uint16),
        ["dark"],
        "shutter",
    ),
    "dark level too high": (
        header(offset=300),
        noisy(100, peak=60),
        ["offset", "dark"],
        "correct camera.offset",
    ),
    "nothing: a sparse specimen": (header(), noisy(100, peak=40), [], ""),
    "nothing: a bright specimen": (header(), noisy(2000, peak=900), [], ""),
    "nothing: an undeclared camera": (header(0, 0), noisy(100), [], ""),
    "nothing: one dark frame of a sweep": (
        header(),
        lambda seq: noisy(100, peak=0 if seq % 3 else 40)(seq),
        [],
        "",
    ),
}


@pytest.mark.parametrize(("run", "image", "kinds", "cure"), LIGHT.values(), ids=LIGHT.keys())
def test_what_is_wrong_with_the_light_is_said_once(
    run: RunHeader, image: Callable[[int], Any], kinds: list[str], cure: str
) -> None:
    told: list[tuple[str, str]] = []
    watch = ExposureMonitor(run, lambda kind, text: told.append((kind, text)))
    for frame in frames_of(image):
        watch.look(frame)
    assert [kind for kind, _ in told] == kinds
    assert any(cure in text for _, text in told) or not kinds
    assert all(len(text.encode()) <= 160 for _, text in told)  # the run file keeps no more


@pytest.mark.acquisition
@pytest.mark.timeout(300)
def test_a_saturated_camera_is_in_the_log_and_in_the_run_file(tmp_path: Path) -> None:
    cfg = changed_demo(
        tmp_path / "bright.cfg",
        "Property,Camera,BitDepth,12",
        "Property,Camera,SaturatePixels,1",
        "Property,Camera,FractionOfPixelsToDropOrSaturate,0.05",
    )
    pairs = [f"wire.{name}=tcp://127.0.0.1:{free_port()}" for name in ("data", "status", "control")]
    pairs += [f"acquisition.mm_config={cfg}", "volume.shape_z=24", "acquisition.sweep_interval_s=0.2"]
    words = [*demo(*pairs), "--no-specimen", "--output", "runs", "--volumes", "2"]
    with Mdd(*words, folder=tmp_path) as mdd:
        assert mdd.finish() == 0, mdd.err
    (path,) = (tmp_path / "runs").glob("*.h5")
    with open_run(path) as run:
        told = [event for event in run.events if event.kind == "saturated"]
    assert len(told) == 1
    assert "counts; lower the exposure" in told[0].text
    assert "the camera is saturated" in mdd.err


# What the instrument says -------------------------------------------------------------------------


class Drift:
    """Moves a stage on with every look at it."""

    def __init__(self) -> None:
        self._um = 0.0

    def __call__(self, z_um: float) -> float:
        self._um += 5.0
        return z_um + self._um


class Stage:
    """A core with a stage that does as it likes."""

    def __init__(self, moved: Callable[[float], float], exposure_ms: float = 10.0) -> None:
        self._moved, self._position, self._exposure_ms = moved, 0.0, exposure_ms

    def get_focus_device(self) -> str:
        return "Z"

    def set_position(self, stage: str, z_um: float) -> None:
        self._position = self._moved(z_um)

    def wait_for_device(self, stage: str) -> None:
        pass

    def get_position(self, stage: str) -> float:
        return self._position

    def get_exposure(self) -> float:
        return self._exposure_ms


def at_a_stop(z_um: float) -> float:
    return min(z_um, 20.0)


STAGES = {
    "stage axis reversed": (lambda z: -z, "moves backwards", "reverse its axis"),
    "stage that stops short": (at_a_stop, "was sent to 42 µm and reports 20 µm", "check its limits"),
    "stage in other units": (lambda z: z / 1000, "was sent to 6 µm and reports 0.006", "its unit"),
    "stage that somebody else moves": (Drift(), "while mdd was not moving it", "end the other acquisition"),
    "stage that stays": (lambda z: 0.0, "reports 0 µm", "joystick"),
}


@pytest.mark.parametrize(("moved", "wrong", "cure"), STAGES.values(), ids=STAGES.keys())
def test_a_stage_that_does_not_do_what_it_is_told_is_refused(
    moved: Callable[[float], float], wrong: str, cure: str
) -> None:
    plan = Plan(Config.model_validate({"volume": {"shape_z": 24, "z0_um": 1.0}}))
    with pytest.raises(AcquisitionError) as caught:
        mm_checks.check_travel(Stage(moved), plan, 2.0)
    assert wrong in str(caught.value)
    assert cure in str(caught.value)


def test_a_stage_within_its_accuracy_is_taken() -> None:
    mm_checks.check_travel(Stage(lambda z: z + 0.3), Plan(Config()), 2.0)


def test_an_exposure_that_the_camera_rounds_is_told() -> None:
    config = Config()
    assert mm_checks.exposure_remark(Stage(float, 10.2), config) == ""
    told = mm_checks.exposure_remark(Stage(float, 33.0), config)
    assert "exposes for 33 ms, not for 10" in told
    assert "set acquisition.exposure_ms" in told


def test_sweeps_that_do_not_keep_their_interval_are_told_once() -> None:
    told: list[str] = []
    config = Config.model_validate({"acquisition": {"sweep_interval_s": 0.001, "sweeps": 3}})
    hook = SimpleNamespace(
        outstanding=0,
        failures_in_a_row=0,
        progress=micromanager.threading.Event(),
        expect=lambda _: None,
    )
    task = DriverTask(config=config, address="", stop=micromanager.threading.Event(), note=told.append)
    feeder = micromanager._Feeder(task, hook, Outbox(), MicroscopeWatch(None, bool), float)  # type: ignore[arg-type]
    slow = SimpleNamespace(acquire=lambda _: task.stop.wait(0.05))
    feeder._queue(slow, Plan(config).sweeps())
    assert sum("longer than acquisition.sweep_interval_s" in text for text in told) == 1


def test_a_server_of_another_version_is_refused() -> None:
    mm_server.check_version("5.0.0", "5.1.0")
    with pytest.raises(
        AcquisitionError, match=r"has protocol version 4.2.0, .* has 5.1.0: update Micro-Manager"
    ):
        mm_server.check_version("4.2.0", "5.1.0")


# The page -------------------------------------------------------------------------------------------

ELSEWHERE = (
    "Live view on", "two mdd at one port", "camera set otherwise in mid-run",
    "Micro-Manager that ends or stands still",
    "exposure that the camera rounds", "sweeps that do not keep their interval", "server of another version",
    "torch for the cpu beside a gpu", "old driver",
)  # fmt: skip


def test_the_page_of_errors_names_every_mistake_and_every_kind() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"^\| ([^|`]+?) \|", text, re.MULTILINE)) - {"problem", "class", "---"}
    quiet = {name for name in LIGHT if name.startswith("nothing")}
    assert named == {*REFUSED, *LIGHT, *STAGES, *ELSEWHERE} - quiet
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MddError)
    }
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == kinds


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(("kind", "code"), [("-n", 2), ("-Sn", 0)], ids=["hard", "soft"])
def test_too_few_open_files_are_raised_or_refused_in_a_sentence(kind: str, code: int) -> None:
    program = (
        "from microdiffusion.daemon.cli.dispatch import main; raise SystemExit(main(['config', 'show']))"
    )
    words = ["/bin/sh", "-c", f'ulimit {kind} 40; exec "$0" "$@"', sys.executable, "-c", program]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code, ended.stderr
    if code:
        assert ended.stderr.startswith("mdd: Only 40 files may be open at a time, mdd needs 256")
