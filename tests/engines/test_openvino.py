"""The denoiser on OpenVINO computes what torch computes, at sizes that it was not opened with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.onnx_support import relative_error, small_denoiser, some_inputs

from microdiffusion.engines.diffusion.denoiser import Denoiser, SlabUNet, middle_slices
from microdiffusion.engines.runtimes.openvino_runtime import OpenVINORuntime, find_openvino
from microdiffusion.errors import EngineError

CPU = torch.device("cpu")
OPENVINO = find_openvino()

needs_openvino = pytest.mark.skipif(OPENVINO is None, reason="openvino is not installed here")


def deeper() -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = SlabUNet(widths=(8, 16, 24), blocks=2, embedding=16)
        for value in model.parameters():
            torch.nn.init.normal_(value, std=0.1)
    return model.eval()


@needs_openvino
@pytest.mark.parametrize("model", [small_denoiser(), deeper()], ids=["one block", "three levels, two blocks"])
@pytest.mark.parametrize(
    ("precision", "limit"),
    [pytest.param("f32", 1e-5, id="float32"), pytest.param("bf16", 3e-2, id="bfloat16")],
)
def test_correction_is_that_of_torch(model: Denoiser, precision: str, limit: float) -> None:
    runtime = OpenVINORuntime(model, CPU, OPENVINO, precision)
    for batch, rows, columns in ((1, 4, 4), (3, 32, 20), (7, 8, 40), (3, 32, 20), (1, 4, 4), (3, 32, 20)):
        inputs = some_inputs(batch, rows, columns)
        with torch.inference_mode():
            wanted = model.correction(*inputs)
        got = runtime(*inputs)
        assert got.dtype == torch.float32
        assert relative_error(got - middle_slices(inputs[1]), wanted) < limit


@needs_openvino
def test_any_order_of_memory_is_read_in_the_right_one() -> None:
    runtime = OpenVINORuntime(small_denoiser(), CPU, OPENVINO, "f32")
    inputs = some_inputs(2, 16, 34)
    fed = [tensor.to(memory_format=torch.channels_last) for tensor in inputs[:-1]]
    with torch.inference_mode():
        wanted = small_denoiser()(*inputs)
    assert relative_error(runtime(*fed, inputs[-1]), wanted) < 1e-6


@needs_openvino
def test_many_sizes_are_run_and_few_are_kept() -> None:
    runtime = OpenVINORuntime(small_denoiser(), CPU, OPENVINO, "f32")
    for rows in [*range(2, 42, 2)] * 2:
        inputs = some_inputs(1, rows, 4)
        with torch.inference_mode():
            assert relative_error(runtime(*inputs), small_denoiser()(*inputs)) < 1e-5
    assert len(runtime._sizes) == 8


@needs_openvino
def test_answers_stay_when_the_next_ones_come() -> None:
    runtime = OpenVINORuntime(small_denoiser(), CPU, OPENVINO)
    inputs = some_inputs(2, 8, 8)
    first, second = runtime(*inputs), runtime(*inputs)
    kept = first.clone(), second.clone()
    for _ in range(3):
        runtime(*(tensor + 1 for tensor in inputs))
    assert torch.equal(first, kept[0])
    assert torch.equal(second, kept[1])


@needs_openvino
def test_the_weights_may_change_afterwards() -> None:
    model = deeper()
    runtime = OpenVINORuntime(model, CPU, OPENVINO, "f32")
    inputs = some_inputs(1, 8, 8)
    before = runtime(*inputs)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert torch.equal(runtime(*inputs), before)


@needs_openvino
def test_a_graph_that_is_refused_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("unsupported")

    monkeypatch.setattr(OPENVINO.Core, "compile_model", refuse)  # type: ignore[union-attr]
    with pytest.raises(EngineError, match=r"openvino .* cannot run the denoiser: unsupported"):
        OpenVINORuntime(small_denoiser(), CPU, OPENVINO)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("", id="a folder of that name"),
        pytest.param("raise OSError('a library is missing')", id="a broken installation"),
    ],
)
def test_openvino_that_does_not_work_is_none(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text(source, encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_openvino() is None
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        del sys.modules[name]
