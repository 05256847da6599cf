"""The denoiser as an ONNX graph, for inference engines other than torch.

Exported is `Denoiser.correction`: the prior is added back outside, in float32, so that a half-precision
engine rounds the correction alone. The number of windows, rows and columns stays symbolic, and that is
checked, since an export that freezes the batch works with the first batch it sees. No device is needed. The
bytes are the same for the same weights and versions: names of source files are taken out, so that an engine's
cache can go by their hash.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from microdiffusion.engines.diffusion import CONDITIONS, WINDOW, Correction, Denoiser
from microdiffusion.errors import DependencyError, EngineError

_STACKS = ("state", "prior", "deviation", "image")
INPUTS = (*_STACKS, "conditions")
OUTPUT = "correction"
# Bfloat16 convolutions and grouped normalisation are single operators from this version on.
OPSET = 22


def input_shapes(batch: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of `INPUTS`, in their order."""
    return {**dict.fromkeys(_STACKS, (batch, WINDOW, rows, columns)), "conditions": (batch, CONDITIONS)}


def export_onnx(model: Denoiser, dtype: torch.dtype = torch.float32) -> bytes:
    """Return the graph of `model.correction`; the model itself is left as it is.

    Inputs `state`, `prior`, `deviation`, `image` (batch, WINDOW, rows, columns) and `conditions`
    (batch, CONDITIONS), output `correction` (batch, SLICES, rows, columns), all of type `dtype`, as are the
    weights.

    Raises
    ------
    DependencyError
        onnx or onnxscript is not installed.
    EngineError
        The graph is invalid or its batch is frozen.
    """
    require_onnx()
    twin = Correction(copy.deepcopy(model)).to(device="cpu", dtype=dtype).eval()
    multiple = model.multiple
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    rows, columns = (torch.export.Dim(name, min=1, max=1 << 13) for name in ("rows", "columns"))
    window = {0: batch, 2: multiple * rows, 3: multiple * columns}
    # Sizes that differ from each other and from one, so that the exporter cannot take one for another.
    shapes = input_shapes(2, 2 * multiple, 3 * multiple)
    arguments = tuple(torch.zeros(shape, dtype=dtype) for shape in shapes.values())
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        # The exporter comments on its own internals and on axes that it names by another's name.
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            twin,
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=tuple(window if name in _STACKS else {0: batch} for name in INPUTS),
        )
    proto = program.model_proto
    _strip(proto)
    graph: bytes = proto.SerializeToString(deterministic=True)
    check_onnx(graph)
    return graph


def check_onnx(graph: bytes) -> None:
    """Check that `graph` is valid and takes any number of windows, of any size.

    Raises
    ------
    EngineError
        It is invalid, or one of its sizes is frozen.
    """
    onnx = require_onnx()
    try:
        proto = onnx.load_model_from_string(graph)
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # onnx's errors and protobuf's have no common root
        raise EngineError(f"Expected a valid ONNX graph, got one that onnx refuses: {error}") from error
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    if set(shapes) != {*INPUTS, OUTPUT}:
        raise EngineError(f"Expected the tensors {', '.join((*INPUTS, OUTPUT))}, got {', '.join(shapes)}.")
    for name, shape in shapes.items():
        free = [shape[0], *shape[2:]]
        if shape[0] != shapes[OUTPUT][0] or not all(isinstance(axis, str) for axis in free):
            raise EngineError(
                f"Expected an ONNX graph whose batch, rows and columns are symbolic, got {name} {shape}: "
                "the exporter froze a size; export with another release of torch."
            )


def require_onnx() -> Any:
    """Return the module onnx, where onnxscript is installed as well.

    Raises
    ------
    DependencyError
        One of them is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter imports it late and with a long traceback
    except ImportError as error:
        raise DependencyError(
            f"Exporting the denoiser needs onnx and onnxscript ({error}): pip install onnx onnxscript"
        ) from error
    return onnx


def _strip(proto: Any) -> None:
    """Remove notes: they hold paths of source files, and no engine reads them."""
    graph = proto.graph
    tensors = (*graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for value in (proto, graph, *graph.node, *tensors):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger to errors: torch reports every optional package that it did not find."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
