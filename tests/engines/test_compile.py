"""Building ahead of time: where an engine comes from, what heals, what `mdd compile` says, the progress.

A stand-in that computes with torch stands for TensorRT on a GPU; the cache and all around it are real.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.onnx_support import small_denoiser
from support.sample_data import write_sample

from microdiffusion.config.models import Config, EngineConfig
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.offline.reconstruct import reconstruct_file
from microdiffusion.engines import pipeline
from microdiffusion.engines.diffusion import middle_slices, save_denoiser
from microdiffusion.engines.runtimes import select, tensorrt_runtime
from microdiffusion.engines.runtimes.engine_cache import EngineCache
from microdiffusion.engines.runtimes.tensorrt_build import Phases, Profile, find_tensorrt
from microdiffusion.engines.runtimes.tensorrt_runtime import NotBuiltError, open_tensorrt
from microdiffusion.errors import EngineError

CPU = torch.device("cpu")
SMALL = Profile.of(32, 2)
TRT = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1")


class Machine:
    """A GPU and its TensorRT: what it accepts, how it computes, and what was done on it."""

    def __init__(self) -> None:
        self.driver, self.gain, self.accepts = "580.1", 1.0, True
        self.built = self.exported = 0

    def export(self, *_: object) -> bytes:
        self.exported += 1
        return b"graph"

    def build(self, *_: object, progress: Callable[[float], None] | None = None) -> bytes:
        self.built += 1
        for share in (0.25, 1.0):
            if progress is not None:
                progress(share)
        return b"engine of driver " + self.driver.encode()

    def open(self, device: torch.device, multiple: int, *rest: Any) -> Any:
        if not self.accepts or rest[-1] != b"engine of driver " + self.driver.encode():
            raise EngineError("refused")
        return _Runtime(self)


class _Runtime:
    device, name, multiple, capturable = CPU, "stand-in", 2, True

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        correction = self._machine.gain * small_denoiser().correction(*inputs)
        return correction + middle_slices(inputs[1])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    state = Machine()
    monkeypatch.setattr(tensorrt_runtime, "export_onnx", state.export)
    monkeypatch.setattr(tensorrt_runtime, "_exporter", lambda: "none")
    monkeypatch.setattr(tensorrt_runtime, "build_engine", state.build)
    monkeypatch.setattr(tensorrt_runtime, "TensorRTRuntime", state.open)
    monkeypatch.setattr(tensorrt_runtime, "driver_version", lambda: state.driver)
    monkeypatch.setattr(tensorrt_runtime, "gpu_name", lambda _: "GeForce, compute capability 8.6")
    monkeypatch.setattr(select, "find_tensorrt", lambda: TRT)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    return state


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache" / "engines")


def opened(cache: EngineCache, **more: Any) -> Any:
    return open_tensorrt(copy.deepcopy(small_denoiser()), CPU, SMALL, TRT, cache, **more)


def engines(cache: EngineCache) -> list[Path]:
    return [path for path in cache.folder.glob("*.engine") if b"engine of driver" in path.read_bytes()]


# ---- where an engine comes from


def test_an_engine_is_built_once_and_neither_exported_nor_built_again(
    machine: Machine, cache: EngineCache
) -> None:
    shares: list[float] = []
    assert opened(cache, progress=shares.append).state == "built"
    assert shares == [0.0, 0.0, 0.25, 1.0]
    again = opened(cache, progress=shares.append)
    assert shares[4:] == [1.0]
    assert again.state == "found"
    assert engines(cache) == [again.path]
    assert (machine.built, machine.exported) == (1, 1)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _give_away(path: Path) -> None:
    if sys.platform == "win32" or os.getuid() != 0:
        pytest.skip("needs another owner, which only root can give")
    os.chown(path, 12345, 12345)


def _open_to_all(path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("modes are posix")
    path.chmod(0o666)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_cut, id="cut short"),
        pytest.param(_flip, id="a bit flipped"),
        pytest.param(_give_away, id="foreign"),
        pytest.param(_open_to_all, id="others can write"),
    ],
)
def test_a_broken_or_foreign_engine_heals(
    damage: Callable[[Path], None], machine: Machine, cache: EngineCache
) -> None:
    path = opened(cache).path
    damage(path)
    assert opened(cache).state == "healed"
    assert machine.built == 2
    assert opened(cache).state == "found"
    assert engines(cache) == [path]


def test_a_kept_engine_that_now_computes_wrongly_is_not_used(machine: Machine, cache: EngineCache) -> None:
    opened(cache)
    machine.gain = 1.5
    with pytest.raises(EngineError, match="differs from torch"):
        opened(cache)
    assert machine.built == 2  # it was given a second chance
    with pytest.raises(NotBuiltError):
        opened(cache, build=False)


def test_without_building_there_is_no_engine_and_no_export(machine: Machine, cache: EngineCache) -> None:
    with pytest.raises(NotBuiltError, match=r"tensorrt_rtx 1\.7\.1"):
        opened(cache, build=False)
    assert (machine.built, machine.exported) == (0, 0)
    opened(cache)
    assert opened(cache, build=False).state == "found"


def test_other_weights_are_another_engine(machine: Machine, cache: EngineCache) -> None:
    opened(cache)
    other = copy.deepcopy(small_denoiser())
    with torch.no_grad():
        other.head.bias[0] += 1e-3
    machine.export = lambda *_: b"another graph"  # type: ignore[method-assign]
    tensorrt_runtime.export_onnx = machine.export  # undone with the fixture's patch
    assert open_tensorrt(other, CPU, SMALL, TRT, cache).state == "built"
    assert len(engines(cache)) == 2


# ---- the command


@pytest.fixture
def small_weights(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_denoiser(small_denoiser(), path, {})
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the user's cache lies for this test."""
    folder = tmp_path / "user" / "engines"
    monkeypatch.setattr("microdiffusion.engines.runtimes.engine_cache.engines_folder", lambda: folder)
    return folder


@pytest.fixture
def gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make the command believe in a GPU."""
    found = SimpleNamespace(type="cuda")
    monkeypatch.setattr("microdiffusion.engines.pipeline.pick_device", lambda _: (found, "found"))
    return machine


def test_compile_says_what_it_did_in_a_line_each(
    gpu: Machine, small_weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compile", "--weights", str(small_weights)]
    assert main(command) == 0
    (path,) = engines(EngineCache(folder))
    assert main(command) == 0
    _flip(path)
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines] == ["mine: built", "mine: already built", "mine: rebuilt"]
    assert all(str(path) in line and "agrees with torch" in line and " s, " in line for line in lines)


def test_an_engine_that_differs_from_torch_is_an_error_of_compile(
    gpu: Machine, small_weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.gain = 1.1
    assert main(["compile", "--weights", str(small_weights)]) == 3
    assert "stand-in differs from torch by 1.0e-01" in capsys.readouterr().err
    assert engines(EngineCache(folder)) == []


def test_a_cache_that_keeps_nothing_is_an_error_of_compile(
    gpu: Machine, small_weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.parent.write_text("in the way", encoding="utf-8")
    assert main(["compile", "--weights", str(small_weights)]) == 3
    assert "was built but cannot be kept in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "installed", "said"),
    [
        pytest.param([], None, 'pip install "microdiffusion-daemon[tensorrt-rtx]"', id="no TensorRT"),
        pytest.param([], TRT, "compile on the machine that will serve", id="no GPU"),
        pytest.param(
            ["--weights", "gone.safetensors"], TRT, "gone.safetensors, which does not exist", id="weights"
        ),
    ],
)
def test_what_cannot_be_compiled_is_one_sentence(
    arguments: list[str],
    installed: Any,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(select, "find_tensorrt", lambda: installed)
    assert main(["compile", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_machine_without_gpu_is_told_what_serves_it(
    small_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["compile", "--weights", str(small_weights), "--set", "engine.runtime=torch"]) == 0
    said = capsys.readouterr().out
    assert "nothing to build ahead on a CPU; torch cpu" in said
    assert "no CUDA device found" in said


@pytest.mark.gpu
def test_on_a_gpu_an_engine_is_built_and_then_found(
    small_weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not torch.cuda.is_available() or find_tensorrt() is None:
        pytest.skip("no CUDA device, or no TensorRT")
    command = ["compile", "--weights", str(small_weights), "--device", "cuda", "--set", "engine.tile=64"]
    assert main(command) == 0
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines] == ["mine: built", "mine: already built"]


# ---- progress


def test_reconstruct_waits_for_the_build_and_shows_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, shares = pipeline.open_engine, []

    def build_first(config: EngineConfig, *, progress: Any = None) -> pipeline.Engine:
        assert config.compile
        progress(0.5)
        return opening(config)

    monkeypatch.setattr(pipeline, "open_engine", build_first)
    reconstruct_file(
        write_sample(tmp_path / "sample.h5", sweeps=1),
        tmp_path / "run.h5",
        config=Config(engine=EngineConfig(device="cpu", weights=weights, threads=1)),
        building=shares.append,
    )
    assert shares == [0.5]


def test_the_share_of_a_build_rises_to_one_whatever_its_phases_do() -> None:
    phases, shares = Phases(), []

    def run(
        name: str, parent: str | None, steps: int, within: Callable[[int], None] = lambda _: None
    ) -> None:
        phases.start(name, parent, steps)
        for step in range(steps):
            within(step)
            shares.append(phases.step(name, step))
        phases.finish(name)

    run("build", None, 3, lambda step: run("tactics", "build", 10, lambda _: run("one", "tactics", 4)))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert len(set(shares)) > 30
    assert 0 < shares[0] < 0.01
    assert phases.step("never begun", 0) == shares[-1]
