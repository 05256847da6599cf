"""The exported denoiser: valid, free in batch and size, and equal to torch."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from support.onnx_support import relative_error, small_denoiser, small_graph, some_inputs

from microdiffusion.engines.diffusion.denoiser import CONDITIONS, SLICES, WINDOW, SlabUNet
from microdiffusion.engines.runtimes.onnx_export import INPUTS, OUTPUT, check_onnx, export_onnx
from microdiffusion.errors import DependencyError, EngineError

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxscript onnxruntime")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")

PRECISIONS = [pytest.param(torch.float32, id="float32"), pytest.param(torch.float16, id="float16")]
# None of them is the size that was exported with.
SIZES = [
    pytest.param((1, 2, 2), id="one window, smallest tile"),
    pytest.param((3, 32, 20), id="three windows"),
    pytest.param((7, 8, 40), id="seven windows"),
]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_graph_is_valid_and_free_in_batch_and_size(dtype: torch.dtype) -> None:
    proto = onnx.load_model_from_string(small_graph(dtype))
    onnx.checker.check_model(proto, full_check=True)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    batch, _, rows, columns = shapes["state"]
    assert len({batch, rows, columns}) == 3
    assert all(isinstance(name, str) for name in (batch, rows, columns))
    for name in ("state", "prior", "deviation", "image"):
        assert shapes[name] == [batch, WINDOW, rows, columns]
    assert shapes["conditions"] == [batch, CONDITIONS]
    assert shapes[OUTPUT] == [batch, SLICES, rows, columns]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_all_weights_and_tensors_have_the_asked_precision(dtype: torch.dtype) -> None:
    wanted = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}[dtype]
    graph = onnx.load_model_from_string(small_graph(dtype)).graph
    kernels = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert len(kernels) == 12
    assert {tensor.data_type for tensor in kernels} == {wanted}
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {wanted}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [pytest.param(torch.float32, 1e-5, id="float32"), pytest.param(torch.float16, 5e-3, id="float16")],
)
def test_onnx_runtime_computes_what_torch_computes(
    dtype: torch.dtype, limit: float, size: tuple[int, int, int]
) -> None:
    runtime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime"
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(small_graph(dtype), options, providers=["CPUExecutionProvider"])
    inputs = some_inputs(*size)
    with torch.inference_mode():
        wanted = small_denoiser().correction(*inputs)
    fed = {name: value.to(dtype).numpy() for name, value in zip(INPUTS, inputs, strict=True)}
    (got,) = session.run([OUTPUT], fed)
    assert relative_error(torch.from_numpy(got), wanted) < limit


def test_same_weights_give_the_same_bytes_and_the_model_is_left_as_it_is() -> None:
    model = copy.deepcopy(small_denoiser()).train()
    graph = export_onnx(model, torch.float16)
    assert graph == small_graph(torch.float16)
    assert b".py" not in graph  # paths of sources would make the bytes depend on the place
    assert model.training
    for name, value in small_denoiser().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def _freeze(graph: bytes, axis: int) -> bytes:
    proto = onnx.load_model_from_string(graph)
    proto.graph.value_info.clear()
    for value in (*proto.graph.input, *proto.graph.output):
        if axis < len(value.type.tensor_type.shape.dim):
            value.type.tensor_type.shape.dim[axis].dim_value = 8
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("axis", [pytest.param(0, id="batch"), pytest.param(2, id="rows")])
def test_frozen_size_is_refused(axis: int) -> None:
    with pytest.raises(EngineError, match=r"symbolic, got state \[.*8.*\]"):
        check_onnx(_freeze(small_graph(torch.float32), axis))


def test_foreign_graphs_are_refused() -> None:
    with pytest.raises(EngineError, match="valid ONNX graph"):
        check_onnx(b"nothing of the kind")
    proto = onnx.load_model_from_string(small_graph(torch.float32))
    for value in proto.graph.input:
        value.name = "x" + value.name
    for node in proto.graph.node:
        node.input[:] = ["x" + name if name in INPUTS else name for name in node.input]
    with pytest.raises(EngineError, match="Expected the tensors state"):
        check_onnx(proto.SerializeToString())


@pytest.mark.parametrize("absent", ["onnx", "onnxscript"])
def test_missing_exporter_is_named_with_its_install_line(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(DependencyError, match="pip install onnx onnxscript"):
        export_onnx(SlabUNet())
