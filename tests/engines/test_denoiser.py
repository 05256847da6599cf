"""A denoiser of another architecture: registered, it is saved, loaded and served by every runtime."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.onnx_support import relative_error, some_inputs
from support.sample_data import header, specimen, sweep_of
from torch import Tensor, nn

from microdiffusion.config import EngineConfig
from microdiffusion.engines import Denoiser, Reconstructor, open_engine, register_denoiser, save_denoiser
from microdiffusion.engines.diffusion import (
    CONDITIONS,
    SLICES,
    WINDOW,
    NetworkInputs,
    SamplerSettings,
    VolumeDenoiser,
    denoiser,
    load_denoiser,
    worth_evaluating,
)
from microdiffusion.engines.diffusion.conditioning import SliceConditions
from microdiffusion.engines.diffusion.weights import shipped_weights
from microdiffusion.engines.pipeline.geometry import Geometries
from microdiffusion.engines.runtimes.onnx_export import INPUTS, OUTPUT, export_onnx
from microdiffusion.engines.runtimes.openvino_runtime import find_openvino
from microdiffusion.engines.runtimes.parity import parity_error
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.errors import InputFileError
from microdiffusion.frames import StagePositions

NAME = "two convolutions"


class TwoConvolutions(Denoiser):
    """About the least that uses all of its inputs."""

    multiple = 1

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.settings = {"width": width}
        self.first = nn.Conv2d(3 * WINDOW, width, 3, padding=1)
        self.scale = nn.Linear(CONDITIONS, width)
        self.second = nn.Conv2d(width, SLICES, 3, padding=1)

    def correction(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        hidden = self.first(torch.cat([state, prior, image], dim=1))
        hidden = hidden * torch.tanh(self.scale(conditions))[:, :, None, None]
        result: Tensor = 0.1 * self.second(nn.functional.gelu(hidden))
        return result


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "_ARCHITECTURES", dict(denoiser._ARCHITECTURES))
    register_denoiser(NAME)(TwoConvolutions)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_denoiser(TwoConvolutions(width=6), tmp_path / "two.safetensors", {"trained": "not at all"})
    return tmp_path / "two.safetensors"


def test_weights_name_their_architecture_and_come_back(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["architecture"], metadata["settings"]) == (NAME, '{"width": 6}')
    assert metadata["trained"] == "not at all"
    model = load_denoiser(path)
    assert isinstance(model, TwoConvolutions)
    assert (model.settings, model.training) == ({"width": 6}, False)
    assert model.description == "two convolutions, width 6"


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_it_serves(runtime: str, path: Path) -> None:
    if runtime == "openvino" and find_openvino() is None:
        pytest.skip("openvino is not installed here")
    engine = open_engine(EngineConfig(weights=path, device="cpu", threads=1, runtime=runtime))
    assert engine.runtime is not None
    assert (engine.name.split()[0], engine.fallback) == (runtime, "")
    assert parity_error(engine.runtime, load_denoiser(path), 3, 40).slices < 1e-2
    result = Reconstructor(header(), EngineConfig(weights=path), engine).reconstruct(sweep_of(specimen()))
    assert result.runtime == engine.name
    assert result.volume.shape == header().shape


def test_it_is_exported_to_onnx(path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = load_denoiser(path)
    session = onnxruntime.InferenceSession(export_onnx(model), providers=["CPUExecutionProvider"])
    inputs = some_inputs(3, 20, 32)
    fed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
    (correction,) = session.run([OUTPUT], fed)
    with torch.inference_mode():
        assert relative_error(torch.from_numpy(correction), model.correction(*inputs)) < 1e-5


def test_a_process_that_has_not_registered_it_finds_it_by_its_entry_point(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry_points(*, group: str, name: str) -> Iterator[object]:
        assert (group, name) == ("microdiffusion.denoisers", NAME)

        class Entry:
            def load(self) -> None:
                register_denoiser(NAME)(TwoConvolutions)

        yield Entry()

    del denoiser._ARCHITECTURES[NAME]
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert isinstance(load_denoiser(path), TwoConvolutions)


def test_an_architecture_that_nobody_knows_is_named(path: Path) -> None:
    del denoiser._ARCHITECTURES[NAME]
    with pytest.raises(
        InputFileError, match=r"no denoiser is called 'two convolutions', there are slab-unet"
    ):
        load_denoiser(path)


def test_weights_that_name_no_architecture_are_of_the_slab_unet(tmp_path: Path) -> None:
    with safe_open(shipped_weights(), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "old.safetensors", {"shape": metadata["shape"]})
    model = load_denoiser(tmp_path / "old.safetensors")
    assert model.architecture == "slab-unet"
    assert model.settings == load_denoiser(shipped_weights()).settings


def test_only_windows_that_count_are_evaluated(path: Path) -> None:
    """Elsewhere the volume is the prior; a power of two, and no voxel by itself is worth an evaluation."""
    share = torch.zeros(5 * SLICES - 3, 40, 40)
    assert worth_evaluating(share).tolist() == []
    share[3, 5, 7] = 1.0
    assert worth_evaluating(share).tolist() == []
    share[SLICES : SLICES + 4, 16:32, 16:32] = 0.5
    assert worth_evaluating(share).tolist() == [1]
    share[-3:, :16, :16] = 1.0
    assert worth_evaluating(share).tolist() == [1, 4]
    share[:3, :16, :16] = 1.0
    assert 0 in worth_evaluating(share).tolist()
    assert len(worth_evaluating(share)) == 4

    head = header(shape=tuple(share.shape))
    geometry = Geometries(head, torch.device("cpu")).of(StagePositions.along_z([4.0, 12.0, 20.0, 28.0]))
    runtime = TorchRuntime(load_denoiser(path), torch.device("cpu"))
    denoise = VolumeDenoiser(runtime, geometry.conditions, SamplerSettings(steps=1, tile=32))
    prior, images = torch.rand(share.shape), torch.rand(4, *share.shape[1:])
    shown = NetworkInputs(prior, images, torch.tensor(0.01))
    whole = denoise(prior, shown, 1.0)
    part = denoise(prior, shown, 1.0, torch.tensor([1, 4]))
    assert torch.equal(part[:SLICES], prior[:SLICES])
    assert torch.equal(part[2 * SLICES : 4 * SLICES], prior[2 * SLICES : 4 * SLICES])
    torch.testing.assert_close(part[SLICES : 2 * SLICES], whole[SLICES : 2 * SLICES])
    torch.testing.assert_close(part[4 * SLICES :], whole[4 * SLICES :])
    assert denoise(prior, shown, 1.0, torch.empty(0, dtype=torch.int64)) is prior


def test_two_slabs_at_one_depth_are_no_step() -> None:
    operator = np.full((4, 8), 0.125)
    pairs = SliceConditions.of(operator, np.array([2.0, 2.0, 6.0, 6.0]), 8.0)
    assert pairs.step == 4.0
    alike = SliceConditions.of(operator, np.full(4, 3.0), 8.0)
    assert alike.step == 8.0
    assert np.isfinite(alike.per_slice.numpy()).all()
