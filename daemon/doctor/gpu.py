"""Graphics card, driver, torch, TensorRT, OpenVINO, weights: the parts of the engine that must fit together.

The versions that belong together are at the top; `docs/runtimes.md` has the reasons.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning
from microdiffusion.daemon.doctor.packages import installed
from microdiffusion.daemon.doctor.subprocess_probe import Facts
from microdiffusion.daemon.system import processor
from microdiffusion.text import count_noun

THEME = "Engine"
SMI_S = 5.0
TENSORRT_DRIVER = 580
"""Oldest driver of TensorRT 11.4 and of CUDA 13."""
CUDA_DRIVERS = {"11": 450, "12": 525, "13": 580}
"""Oldest driver of each CUDA that a torch may be built with."""
_INSTALL_TORCH = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's cards, their driver's version (empty where none answers), and nvidia-smi's complaint."""

    cards: tuple[str, ...] = ()
    version: str = ""
    problem: str = ""

    def older_than(self, oldest: int) -> bool:
        """Return whether the driver's version is known, and too old."""
        first = self.version.partition(".")[0]
        return first.isdigit() and int(first) < oldest


def checks(engine: EngineConfig, ask: Callable[[str], Facts]) -> list[Check]:
    """Return the checks of this theme; `ask` gives the facts of a subject from the probe's process."""
    found = cache(find_driver)
    exporter = installed("onnx") is not None and installed("onnxscript") is not None
    return [
        Check(THEME, "NVIDIA driver", lambda: driver(found(), engine)),
        Check(THEME, "torch", lambda: torch_build(ask("torch"), found(), engine)),
        Check(
            THEME,
            "TensorRT",
            lambda: tensorrt(ask("tensorrt"), ask("torch"), found(), engine, exporter=exporter),
        ),
        Check(THEME, "OpenVINO", lambda: openvino(ask("openvino"), engine)),
        Check(THEME, "weights", lambda: weights(ask("weights"), shipped_checksums())),
        Check(THEME, "processor", lambda: ok(f"{processor()}, {ask('torch')['instructions']}")),
    ]


def driver(found: Driver, engine: EngineConfig) -> Finding:
    """Judge card and driver."""
    if not found.cards:
        if engine.device.startswith("cuda"):
            return failure(
                f"no NVIDIA card found, but engine.device is {engine.device}",
                'Set engine.device to "auto", or install the card and its driver.',
            )
        return ok("no NVIDIA card: the engine runs on the processor")
    cards = ", ".join(found.cards)
    if not found.version:
        return failure(
            f"{cards}, but no driver answers ({found.problem or 'nvidia-smi is not installed'})",
            "Install NVIDIA's driver, r580 or newer, and restart the computer.",
        )
    text = f"{cards}, driver {found.version}"
    if found.older_than(TENSORRT_DRIVER):
        return warning(text, "Update NVIDIA's driver to r580 or newer: TensorRT 11.4 and CUDA 13 need it.")
    return ok(text)


def torch_build(facts: Facts, found: Driver, engine: EngineConfig) -> Finding:
    """Judge torch's build by card, driver and engine.device."""
    cuda = facts["cuda"]
    text = f"{facts['version']} for {f'CUDA {cuda}' if cuda else 'CPU only'}"
    if facts["gpus"]:
        return ok(f"{text}, sees {', '.join(gpu['name'] for gpu in facts['gpus'])}")
    wants_cuda = engine.device.startswith("cuda")
    # What a run refuses is a failure; what makes it slow, a warning.
    level = failure if wants_cuda else warning
    if not found.cards:
        if wants_cuda:
            text = f"{text}, sees no CUDA device, but engine.device is {engine.device}"
            return failure(text, 'Set engine.device to "auto" or "cpu".')
        return ok(f"{text}, {count_noun(facts['threads'], 'thread')}")
    if not cuda:
        return level(
            f"{text}, but there is an NVIDIA card ({found.cards[0]})",
            f"Install the torch build with CUDA, version 2.13 or older: {_INSTALL_TORCH}.",
        )
    oldest = CUDA_DRIVERS.get(str(cuda).partition(".")[0], TENSORRT_DRIVER)
    if found.older_than(oldest):
        return level(
            f"{text}, does not see {found.cards[0]}: driver {found.version} is too old",
            f"Update NVIDIA's driver to r{oldest} or newer.",
        )
    return level(
        f"{text}, does not see {found.cards[0]}",
        "Restart the computer, check CUDA_VISIBLE_DEVICES, and run nvidia-smi.",
    )


def tensorrt(
    facts: Facts, torch_facts: Facts, found: Driver, engine: EngineConfig, *, exporter: bool
) -> Finding:
    """Judge TensorRT by card, driver, and whether the packages that export the network are installed."""
    asked = engine.runtime == "tensorrt"
    version = f"{facts['module']} {facts['version']}" if facts else "not installed"
    gpus = torch_facts["gpus"]
    if not gpus:
        if asked:
            text = "engine.runtime is tensorrt, but torch sees no GPU"
            return failure(text, 'Set engine.runtime to "auto".')
        return ok(f"{version}, not needed without a GPU")
    capability = tuple(gpus[0]["capability"])
    shown = ".".join(map(str, capability))
    extra = "tensorrt-rtx" if runs_rtx(capability) else "tensorrt"
    install = f'python -m pip install "microdiffusion-daemon[{extra}]".'
    level = failure if asked else warning
    if not facts:
        return level("not installed: torch runs the network, more slowly", install)
    if facts["module"].startswith("tensorrt_rtx") and not runs_rtx(capability):
        text = f"{version} does not run on {gpus[0]['name']} (compute capability {shown}; 7.5 to 8.9 or 12)"
        return level(text, install)
    if found.older_than(TENSORRT_DRIVER):
        return level(f"{version}, but driver {found.version}", "Update NVIDIA's driver to r580 or newer.")
    if not exporter:
        return level(f"{version}, but onnx or onnxscript is not installed", install)
    return ok(f"{version}, compute capability {shown}")


def runs_rtx(capability: tuple[int, ...]) -> bool:
    """Return whether TensorRT for RTX runs on a GPU of this compute capability."""
    return (7, 5) <= capability <= (8, 9) or capability[0] == 12


def openvino(facts: Facts, engine: EngineConfig) -> Finding:
    """Judge OpenVINO, which runs the network on a CPU; `packages` warns where it is absent."""
    if facts:
        return ok(facts["version"])
    if engine.runtime == "openvino":
        return failure(
            "not installed, but engine.runtime is openvino",
            'python -m pip install openvino (or set engine.runtime to "auto").',
        )
    return ok("not installed: torch runs the network")


def weights(facts: Facts, checksums: dict[str, str]) -> Finding:
    """Judge the network's weights: present, loadable, and as shipped."""
    if "refused" in facts:
        fix = "Correct engine.weights, or leave it out for the weights that come with mdd."
        return failure(facts["refused"], fix)
    name = Path(facts["path"]).name
    text = f"{name}, {facts['parameters'] / 1e6:.1f} million parameters"
    wanted = checksums.get(name)
    if wanted is None:
        return ok(f"{text}, sha256 {facts['sha256'][:12]}, your own")
    if wanted == facts["sha256"]:
        return ok(f"{text}, checksum as shipped")
    return warning(
        f"{text}: not the file that was shipped under this name",
        "Reinstall mdd: python -m pip install --force-reinstall --no-deps microdiffusion-daemon.",
    )


def shipped_checksums() -> dict[str, str]:
    """Return the SHA-256 of the weights that come with mdd, by file name."""
    text = files("microdiffusion.engines.weights").joinpath("SHA256SUMS").read_text("utf-8")
    rows = (line.split() for line in text.splitlines() if line.strip())
    return {name: digest for digest, name in rows}


def find_driver() -> Driver:
    """Ask nvidia-smi, which comes with the driver; without it, the list of PCI devices (Linux)."""
    tool = shutil.which("nvidia-smi")
    cards = tuple(_cards_without_driver())
    if tool is None:
        return Driver(cards)
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(  # noqa: S603  # NVIDIA's own tool, fixed arguments
            query, capture_output=True, text=True, timeout=SMI_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Driver(cards or ("a card",), problem=f"nvidia-smi did not answer within {SMI_S:g} s")
    except OSError as error:
        return Driver(cards, problem=str(error))
    return read_smi(answer.returncode, answer.stdout, cards)


def read_smi(code: int, text: str, cards: tuple[str, ...] = ()) -> Driver:
    """Return what nvidia-smi answered; `cards`: what is known without it."""
    rows = [line.rpartition(",") for line in text.splitlines() if "," in line]
    if code != 0 or not rows:
        return Driver(cards, problem=text.strip().partition("\n")[0] or f"nvidia-smi exited with {code}")
    return Driver(tuple(row[0].strip() for row in rows), rows[0][2].strip())


def _cards_without_driver(devices: Path = Path("/sys/bus/pci/devices")) -> Iterator[str]:
    for folder in sorted(devices.glob("*")) if sys.platform == "linux" else ():
        try:
            vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):  # NVIDIA, a display device
            yield f"an NVIDIA card ({folder.name})"
