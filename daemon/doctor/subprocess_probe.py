"""What is asked in a process of its own: torch, weights, OpenVINO, TensorRT may hang, crash or be slow.

As `python -m microdiffusion.daemon.doctor.subprocess_probe DEVICE NETWORK [WEIGHTS]` it prints one JSON
object a line as it learns things, ``{"about": "torch", "facts": {...}}`` or ``{"about": ..., "problem":
"..."}``. `Child` is the other end: it starts the process, and hands out what came, to any thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microdiffusion.config import EngineConfig

SUBJECTS = ("torch", "weights", "openvino", "tensorrt")


class SilentError(Exception):
    """The process ended, or was ended, before it spoke of a subject."""


class Child:
    """The process, from its start on; `close` ends it.

    Parameters
    ----------
    config : EngineConfig
        Which weights are meant.
    command : sequence of str, optional
        What to run instead, for tests.
    """

    def __init__(self, config: EngineConfig, command: list[str] | None = None) -> None:
        own = [sys.executable, "-m", __name__, config.device, config.network]
        own += [str(config.weights)] if config.weights else []
        self._heard: dict[str, dict[str, Any]] = {}
        self._news = threading.Condition()
        self._over = False
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            command or own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        threading.Thread(target=self._listen, name="mdd-doctor-child", daemon=True).start()

    def ask(self, subject: str) -> dict[str, Any]:
        """Wait for a subject's facts, None among them where it is not installed.

        Raises
        ------
        SilentError
            There will be none: the process crashed or was closed.
        RuntimeError
            What went wrong in the process.
        """
        with self._news:
            self._news.wait_for(lambda: subject in self._heard or self._over)
            if subject not in self._heard:
                code = self._process.poll()
                raise SilentError(f"the process that looks at {subject} ended (exit code {code})")
            message = self._heard[subject]
        if "problem" in message:
            raise RuntimeError(message["problem"])
        facts: dict[str, Any] = message["facts"]
        return facts

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _listen(self) -> None:
        try:
            for line in self._process.stdout or ():
                if line.startswith('{"about"'):
                    message = json.loads(line)
                    with self._news:
                        self._heard[message["about"]] = message
                        self._news.notify_all()
        except ValueError:
            pass  # closed while it spoke
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()


# In the process -----------------------------------------------------------------------------------


def torch_facts(config: EngineConfig) -> dict[str, Any]:
    """Return version, CUDA of the build, GPUs, and the instructions of the processor."""
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            gpus.append(
                {"name": about.name, "capability": [about.major, about.minor], "memory": about.total_memory}
            )
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": gpus,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def weights_facts(config: EngineConfig) -> dict[str, Any]:
    """Return path, checksum and size of the weights that would be used, after loading them."""
    import hashlib

    import torch

    from microdiffusion.engines.diffusion import load_denoiser
    from microdiffusion.engines.pipeline import weights_path

    on_cuda = config.device != "cpu" and torch.cuda.is_available()
    path = weights_path(config, torch.device("cuda" if on_cuda else "cpu"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    facts: dict[str, Any] = {"path": str(path), "sha256": digest}
    try:
        model = load_denoiser(path)
        facts["parameters"] = sum(value.numel() for value in model.parameters())
    except Exception as error:
        facts["refused"] = str(error)
    return facts


def openvino_facts(config: EngineConfig) -> dict[str, Any]:
    """Return OpenVINO's version; empty where it is not installed."""
    from microdiffusion.engines.runtimes import find_openvino

    openvino = find_openvino()
    return {} if openvino is None else {"version": openvino.__version__.partition("-")[0]}


def tensorrt_facts(config: EngineConfig) -> dict[str, Any]:
    """Return TensorRT's module and version; empty where none can be imported."""
    from microdiffusion.engines.runtimes import find_tensorrt

    trt = find_tensorrt()
    return {} if trt is None else {"module": trt.__name__, "version": trt.__version__}


def main(arguments: list[str]) -> None:
    """Look at everything and print."""
    device, network, *weights = arguments
    config = EngineConfig.model_validate(
        {"device": device, "network": network, "weights": Path(weights[0]) if weights else None}
    )
    looks: tuple[Callable[[EngineConfig], dict[str, Any]], ...] = (
        torch_facts,
        weights_facts,
        openvino_facts,
        tensorrt_facts,
    )
    for subject, look in zip(SUBJECTS, looks, strict=True):
        message: dict[str, Any] = {"about": subject}
        try:
            message["facts"] = look(config)
        except BaseException as error:
            message["problem"] = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
