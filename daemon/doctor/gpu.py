"""Graphics card, driver, torch, TensorRT, OpenVINO, weights: what will reconstruct, and what fits together.

The versions that belong together are at the top; `docs/runtimes.md` has the reasons.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.doctor.finding import Finding, failure, ok, warning
from microdiffusion.daemon.doctor.packages import installed
from microdiffusion.daemon.doctor.run import Check
from microdiffusion.daemon.doctor.subprocess_probe import Child
from microdiffusion.daemon.system import processor_name
from microdiffusion.text import count_noun

THEME = "Engine"
SMI_S = 5.0
TENSORRT_DRIVER = 580
"""Oldest driver of TensorRT 11.4 and of CUDA 13."""
CUDA_DRIVERS = {"11": 450, "12": 525, "13": 580}
"""Oldest driver of each CUDA that a torch may be built with."""
_INSTALL_TORCH = "https://pytorch.org/get-started/locally"
_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # class of a PCI device


@dataclass(frozen=True, slots=True)
class Driver:
    """What the system says of NVIDIA's cards.

    Attributes
    ----------
    cards : tuple of str
    version : str
        The driver's, empty where none answers.
    problem : str
        What its own tool complains of.
    """

    cards: tuple[str, ...] = ()
    version: str = ""
    problem: str = ""

    @property
    def major(self) -> int:
        """First number of the driver's version, 0 where it is not known."""
        first = self.version.partition(".")[0]
        return int(first) if first.isdigit() else 0


def checks(config: Config, child: Child) -> list[Check]:
    """Return the checks of this theme."""
    engine = config.engine
    found = _Once(find_driver)

    def ask_torch() -> Finding:
        return torch_build(child.ask("torch"), found(), engine)

    def ask_tensorrt() -> Finding:
        trt = child.ask("tensorrt")
        return tensorrt(trt, child.ask("torch"), found(), engine, exporter=_exporter())

    return [
        Check(THEME, "NVIDIA driver", lambda: driver(found(), engine)),
        Check(THEME, "torch", ask_torch),
        Check(THEME, "TensorRT", ask_tensorrt),
        Check(THEME, "OpenVINO", lambda: openvino(child.ask("openvino"), child.ask("torch"), engine)),
        Check(THEME, "weights", lambda: weights(child.ask("weights"), shipped_checksums())),
        Check(THEME, "processor", partial(_processor, child)),
    ]


class _Once:
    """A question that several checks ask and that is answered once."""

    def __init__(self, ask: Callable[[], Driver]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: Driver | None = None

    def __call__(self) -> Driver:
        with self._lock:
            if self._answer is None:
                self._answer = self._ask()
            return self._answer


def driver(found: Driver, engine: EngineConfig) -> Finding:
    """Judge card and driver."""
    name = "NVIDIA driver"
    cards = ", ".join(found.cards)
    if not found.cards:
        if engine.device.startswith("cuda"):
            return failure(
                name,
                f"no NVIDIA card is seen, but engine.device is {engine.device}",
                'Set engine.device to "auto", or install the card and its driver.',
            )
        return ok(name, "no NVIDIA card: the processor reconstructs")
    if not found.version:
        return failure(
            name,
            f"{cards}, but no driver answers ({found.problem or 'nvidia-smi is not there'})",
            "Install NVIDIA's driver, r580 or newer, and restart the computer.",
        )
    text = f"{cards}, driver {found.version}"
    if found.major < TENSORRT_DRIVER:
        return warning(
            name, text, "Update NVIDIA's driver to r580 or newer: TensorRT 11.4 and CUDA 13 need it."
        )
    return ok(name, text)


def torch_build(facts: dict[str, Any], found: Driver, engine: EngineConfig) -> Finding:
    """Judge torch's build against card, driver and engine.device."""
    cuda, gpus = facts["cuda"], facts["gpus"]
    text = f"{facts['version']}, " + (f"for CUDA {cuda}" if cuda else "for the CPU alone")
    if gpus:
        return ok("torch", f"{text}, sees {', '.join(gpu['name'] for gpu in gpus)}")
    wants_cuda = engine.device.startswith("cuda")
    # What a run is refused for is a failure; what makes it slow, a warning.
    report = failure if wants_cuda else warning
    if found.cards and not cuda:
        return report(
            "torch",
            f"{text}, but there is an NVIDIA card ({found.cards[0]})",
            f"Install the torch build with CUDA, version 2.13 or older: {_INSTALL_TORCH}.",
        )
    if found.cards:
        oldest = CUDA_DRIVERS.get(str(cuda).partition(".")[0], TENSORRT_DRIVER)
        if 0 < found.major < oldest:
            return report(
                "torch",
                f"{text}, does not see {found.cards[0]}: driver {found.version} is too old",
                f"Update NVIDIA's driver to r{oldest} or newer.",
            )
        return report(
            "torch",
            f"{text}, does not see {found.cards[0]}",
            "Restart the computer; look at CUDA_VISIBLE_DEVICES, and run nvidia-smi.",
        )
    if wants_cuda:
        return failure(
            "torch",
            f"{text}, sees no CUDA device, but engine.device is {engine.device}",
            'Set engine.device to "auto" or "cpu".',
        )
    return ok("torch", f"{text}, {count_noun(facts['threads'], 'thread')}")


def tensorrt(
    facts: dict[str, Any],
    torch_facts: dict[str, Any],
    found: Driver,
    engine: EngineConfig,
    *,
    exporter: bool,
) -> Finding:
    """Judge TensorRT against card, driver and what exports the network's graph."""
    name = "TensorRT"
    asked = engine.runtime == "tensorrt"
    gpus = torch_facts["gpus"]
    if not gpus:
        if asked:
            return failure(
                name, "engine.runtime is tensorrt, but torch sees no GPU", 'Set engine.runtime to "auto".'
            )
        return ok(name, _described(facts) + ", not needed without a GPU")
    capability = tuple(gpus[0]["capability"])
    wanted = "tensorrt-rtx" if runs_rtx(capability) else "tensorrt"
    install = f'python -m pip install "microdiffusion-daemon[{wanted}]"'
    report = failure if asked else warning
    if not facts:
        return report(name, "not installed: torch runs the network, slower", f"{install}.")
    text = _described(facts)
    shown = ".".join(map(str, capability))
    if facts["module"].startswith("tensorrt_rtx") and not runs_rtx(capability):
        return report(
            name,
            f"{text} does not run on {gpus[0]['name']} (compute capability {shown}; 7.5 to 8.9 or 12)",
            f"{install}.",
        )
    if 0 < found.major < TENSORRT_DRIVER:
        return report(name, f"{text}, but driver {found.version}", "Update NVIDIA's driver to r580 or newer.")
    if not exporter:
        return report(name, f"{text}, but onnx or onnxscript is not installed", f"{install}.")
    return ok(name, f"{text}, compute capability {shown}")


def runs_rtx(capability: tuple[int, ...]) -> bool:
    """Return whether TensorRT for RTX runs on a GPU of this compute capability."""
    return (7, 5) <= capability <= (8, 9) or capability[0] == 12


def openvino(facts: dict[str, Any], torch_facts: dict[str, Any], engine: EngineConfig) -> Finding:
    """Judge OpenVINO, which runs the network on a CPU."""
    if facts:
        return ok("OpenVINO", facts["version"])
    if engine.runtime == "openvino":
        return failure(
            "OpenVINO",
            "not installed, but engine.runtime is openvino",
            'python -m pip install openvino (or set engine.runtime to "auto").',
        )
    if torch_facts["gpus"]:
        return ok("OpenVINO", "not installed, not needed with a GPU")
    return warning(
        "OpenVINO", "not installed: torch runs the network, slower", "python -m pip install openvino."
    )


def weights(facts: dict[str, Any], checksums: dict[str, str]) -> Finding:
    """Judge the network's weights: there, as shipped, and loadable."""
    path = Path(facts["path"])
    cure = "Correct engine.weights, or leave it out for the weights that ship with mdd."
    if "refused" in facts:
        return failure("weights", facts["refused"], cure)
    text = f"{path.name}, {facts['parameters'] / 1e6:.1f} million parameters"
    wanted = checksums.get(path.name)
    if wanted is None:
        return ok("weights", f"{text}, sha256 {facts['sha256'][:12]}, not one that ships with mdd")
    if wanted != facts["sha256"]:
        return warning(
            "weights",
            f"{text}: not the bytes that were shipped under this name",
            "Install mdd anew: python -m pip install --force-reinstall --no-deps microdiffusion-daemon.",
        )
    return ok("weights", f"{text}, checksum as shipped")


def shipped_checksums() -> dict[str, str]:
    """Return the SHA-256 of the weights that ship with mdd, by file name."""
    text = files("microdiffusion.engines.weights").joinpath("SHA256SUMS").read_text("utf-8")
    rows = (line.split() for line in text.splitlines() if line.strip())
    return {name: digest for digest, name in rows}


def processor(name: str, cores: int, flags: frozenset[str], instructions: str) -> Finding:
    """Judge the processor: what makes the network fast on it."""
    fast = [
        label for flag, label in (("amx_bf16", "AMX bf16"), ("avx512_bf16", "AVX-512 bf16")) if flag in flags
    ]
    if not fast:
        known_by_name = (("avx512f", "AVX-512"), ("avx2", "AVX2"))
        fast = [label for flag, label in known_by_name if flag in flags][:1]
    known = f", {' and '.join(fast)}" if fast else f", {instructions}" if instructions else ""
    return ok("processor", f"{name}, {count_noun(cores, 'core')}{known}")


def find_driver() -> Driver:
    """Ask nvidia-smi, which comes with the driver; where it is absent, the list of PCI devices (Linux)."""
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
        return Driver(cards or ("a card",), problem=f"nvidia-smi says nothing for {SMI_S:g} s")
    except OSError as error:
        return Driver(cards, problem=str(error))
    return read_smi(answer.returncode, answer.stdout, cards)


def read_smi(code: int, text: str, cards: tuple[str, ...] = ()) -> Driver:
    """Return what nvidia-smi's answer says; `cards`: what is known without it."""
    rows = [line.rpartition(",") for line in text.splitlines() if "," in line]
    if code != 0 or not rows:
        return Driver(cards, problem=text.strip().partition("\n")[0] or f"nvidia-smi ended with {code}")
    return Driver(tuple(row[0].strip() for row in rows), rows[0][2].strip())


def _cards_without_driver(devices: Path = Path("/sys/bus/pci/devices")) -> Iterator[str]:
    for folder in sorted(devices.glob("*")) if sys.platform == "linux" else ():
        try:
            vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            yield f"an NVIDIA card ({folder.name})"


def _described(facts: dict[str, Any]) -> str:
    return f"{facts['module']} {facts['version']}" if facts else "not installed"


def _exporter() -> bool:
    return installed("onnx") is not None and installed("onnxscript") is not None


def _processor(child: Child) -> Finding:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    instructions = "" if flags else str(child.ask("torch")["instructions"])
    return processor(processor_name(), os.cpu_count() or 1, frozenset(flags), instructions)
