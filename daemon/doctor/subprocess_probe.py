"""Probes in a child process, because torch, weights, OpenVINO and TensorRT may hang, crash or be slow.

As `python -m microdiffusion.daemon.doctor.subprocess_probe CONFIG_JSON SUBJECT ...` it prints one JSON list a
line as it learns things: a subject, and its facts or, as text, why there are none. `probe` is the parent's
side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from microdiffusion.config import Config

Facts = dict[str, Any]
"""Facts known of a subject; empty where it is not installed."""


def probe(
    config: Config, *, timeout_s: float, subjects: Sequence[str] = (), command: list[str] | None = None
) -> dict[str, Facts | str]:
    """Return the facts about the subjects (all), or why there are none; `command` is the child in tests."""
    subjects = subjects or tuple(PROBES)
    try:
        output = subprocess.run(  # noqa: S603  # our own interpreter and module
            command or [sys.executable, "-m", __name__, config.model_dump_json(), *subjects],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
    lines = output.decode("utf-8", "replace").splitlines()
    answers = dict(json.loads(line) for line in lines if line.startswith('["'))
    return {subject: answers.get(subject, "the probe crashed, or was too slow") for subject in subjects}


# In the child process -----------------------------------------------------------------------------


def _torch(config: Config) -> Facts:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [{"name": gpu.name, "capability": [gpu.major, gpu.minor]} for gpu in gpus],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _weights(config: Config) -> Facts:
    import hashlib

    from microdiffusion.engines.diffusion import load_denoiser, weights_path

    path = weights_path(config.engine)
    try:
        parameters = sum(value.numel() for value in load_denoiser(path).parameters())
    except Exception as error:
        return {"refused": str(error)}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"path": str(path), "sha256": digest, "parameters": parameters}


def _openvino(config: Config) -> Facts:
    from microdiffusion.engines.runtimes import find_openvino

    openvino = find_openvino()
    return {} if openvino is None else {"version": openvino.__version__.partition("-")[0]}


def _tensorrt(config: Config) -> Facts:
    from microdiffusion.engines.runtimes import find_tensorrt

    trt = find_tensorrt()
    return {} if trt is None else {"module": trt.__name__, "version": trt.__version__}


def _pace(config: Config) -> Facts:
    from microdiffusion.daemon.engine import requirements_of, sweep_time

    need = requirements_of(config)
    if need is None or need.assumed:
        return {}
    taken = sweep_time(config)
    return {
        "seconds": taken.seconds,
        "cpu_s": taken.cpu_s,
        "measured": taken.measured,
        "whole": taken.measured == (config.camera.height, config.camera.width),
    }


PROBES = {
    "torch": _torch,
    "weights": _weights,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "pace": _pace,
}


def main(configuration: str, *subjects: str) -> None:
    """Run the probes and print what they find."""
    config = Config.model_validate_json(configuration)
    for subject in subjects:
        try:
            answer: Facts | str = PROBES[subject](config)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps([subject, answer]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
