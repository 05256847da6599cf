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
from support.onnx_support import relative_error, small_denoiser, some_inputs
from support.sample_data import header, specimen, sweep_of
from torch import Tensor, nn

from microdiffusion.config import EngineConfig
from microdiffusion.engines import Denoiser, Reconstructor, open_engine, register_denoiser, save_denoiser
from microdiffusion.engines.diffusion import (
    CONDITIONS,
    SLICES,
    WINDOW,
    denoiser,
    load_denoiser,
)
from microdiffusion.engines.diffusion.conditioning import SliceConditions
from microdiffusion.engines.runtimes.onnx_export import INPUTS, OUTPUT, export_onnx
from microdiffusion.engines.runtimes.openvino_runtime import find_openvino
from microdiffusion.engines.runtimes.parity import parity_error
from microdiffusion.errors import InputFileError

NAME = "two convolutions"


class TwoConvolutions(Denoiser):
    """About the least that uses all of its inputs."""

    multiple = 1

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.settings = {"width": width}
        self.first = nn.Conv2d(4 * WINDOW, width, 3, padding=1)
        self.scale = nn.Linear(CONDITIONS, width)
        self.second = nn.Conv2d(width, SLICES, 3, padding=1)

    def correction(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        hidden = self.first(torch.cat([state, prior, deviation, image], dim=1))
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
        InputFileError, match=r"no denoiser is called 'two convolutions', there are slab-unet-2"
    ):
        load_denoiser(path)


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"shape": '{"widths": [8, 12]}'}, id="no architecture named"),
        pytest.param({"architecture": "slab-unet", "settings": '{"widths": [8, 12]}'}, id="slab-unet"),
    ],
)
def test_weights_of_an_earlier_version_are_refused_in_a_sentence(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"head.bias": torch.zeros(8)}, path, metadata)
    with pytest.raises(InputFileError) as caught:
        load_denoiser(path)
    assert str(caught.value) == (
        f"{path} does not hold weights of this version's denoiser (an earlier mdd made them, whose networks "
        "did not see how surely the INR knows a voxel): train them with this version's `mdd train`, or leave "
        "engine.weights out."
    )


def test_how_surely_a_voxel_is_known_matters_to_the_network() -> None:
    state, prior, deviation, image, conditions = some_inputs(1, 16, 16)
    with torch.inference_mode():
        answers = [
            small_denoiser().correction(state, prior, scale * deviation, image, conditions)
            for scale in (1.0, 10.0)
        ]
        sure, surer = (
            small_denoiser().correction(state, prior, torch.full_like(prior, least), image, conditions)
            for least in (0.0, 1e-4)
        )
    assert relative_error(*answers) > 0.01
    assert torch.equal(sure, surer)  # what is surer than 1e-4 is as sure


def test_two_slabs_at_one_depth_are_no_step() -> None:
    operator = np.full((4, 8), 0.125)
    pairs = SliceConditions.of(operator, np.array([2.0, 2.0, 6.0, 6.0]), 8.0)
    assert pairs.step == 4.0
    alike = SliceConditions.of(operator, np.full(4, 3.0), 8.0)
    assert alike.step == 8.0
    assert np.isfinite(alike.per_slice.numpy()).all()


def test_a_phase_lies_between_the_two_slabs_of_a_slice_however_uneven_the_steps_are() -> None:
    def seen(centres: np.ndarray) -> SliceConditions:
        return SliceConditions.of(np.ones((len(centres), 24)) / 24, centres, 6.0)

    even, uneven = seen(np.arange(2.0, 24.0, 4.0)), seen(np.array([2.0, 4.0, 6.0, 14.0, 22.0]))
    assert even.spacing is None
    assert uneven.spacing is not None
    assert uneven.spacing[[3, 5, 8, 12, 18]].tolist() == [2.0, 2.0, 8.0, 8.0, 8.0]
    sine, cosine = uneven.per_slice[:, 0], uneven.per_slice[:, 1]
    assert cosine[[2, 4, 6, 14, 22]].tolist() == [1.0] * 5  # at a slab's centre
    np.testing.assert_allclose(cosine[[3, 5, 10, 18]], -1.0, atol=1e-6)  # half-way between two
    np.testing.assert_allclose(sine[[8, 12]], [1.0, -1.0], atol=1e-6)  # a quarter of a wide step
    windows = torch.arange(24)[None, :WINDOW]
    step = uneven.table(windows, time=1.0, kappa=0.1, image=True)[0, 3 * WINDOW + 1]
    assert float(step) == pytest.approx(float((uneven.spacing[:WINDOW] / 6).log().mean()))
    assert float(even.table(windows, time=1.0, kappa=0.1, image=True)[0, 3 * WINDOW + 1]) == pytest.approx(
        np.log(4 / 6)
    )
