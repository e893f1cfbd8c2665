"""A `Graph` → an ONNX file whose weights lie in a shared weights file.

Graphs cut from one network share most of their weights (the three denoisers share all): the weights file stores equal
tensors once.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer
from torch.export import Dim

from ezaudio.export.graphs import Graph
from ezaudio.runtime.tensor_spec import Axis, TensorSpec

OPSET = 20
INLINE_BYTES = 1024  # smaller tensors stay inside the .onnx file
ALIGNMENT = 4096  # a page, so that a runtime can map every tensor

# Sizes that are pairwise different and not 1, so that torch.export neither merges nor specialises them.
EXAMPLE_SIZES = {
    "batch": 2,
    "frames": 6,
    "tokens": 5,
    "steps": 3,
    "prompt_rows": 7,
    "constant_rows": 4,
    "rows": 11,
}
TORCH_DTYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


class WeightFile:
    """Tensors one after another in a file, equal ones once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._places: dict[tuple[bytes, str], tuple[int, int]] = {}

    def add(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        """Append the tensor, or find it, and return the reference that stands for it in a graph."""
        data = _little_endian_bytes(tensor)
        key = (hashlib.sha256(data).digest(), str(tensor.dtype))
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            self._places[key] = (self._file.tell(), len(data))
            self._file.write(data)
        offset, length = self._places[key]
        return ir.ExternalTensor(
            self.path.name,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self.path.parent,
        )

    def close(self) -> None:
        self._file.close()


def _little_endian_bytes(tensor: ir.TensorProtocol) -> memoryview:
    array = np.ascontiguousarray(tensor.numpy())
    return memoryview(array.reshape(-1).view(np.uint8).data)


def example_input(spec: TensorSpec, sizes: dict[str, int], generator: torch.Generator) -> torch.Tensor:
    """Random values for an input: normals, small token ids, or True."""
    shape = spec.sizes(sizes)
    if spec.dtype == "int64":
        return torch.randint(0, 9, shape, generator=generator)
    if spec.dtype == "bool":
        return torch.ones(shape, dtype=torch.bool)
    return torch.randn(shape, generator=generator)


def to_onnx(graph: Graph) -> ir.Model:
    """Trace the graph with dynamic batch, frames and tokens. The weights of the result are views of the module's."""
    generator = torch.Generator().manual_seed(0)
    args = tuple(example_input(spec, EXAMPLE_SIZES, generator) for spec in graph.inputs)
    dims: dict[str, Dim] = {}

    def dim(axis: Axis) -> Any:
        base = dims.setdefault(axis.name, Dim(axis.name, min=min(axis.min, 1), max=axis.max))
        return base if axis.times == 1 else axis.times * base

    shapes = {spec.name: {index: dim(axis) for index, axis in spec.axes().items()} for spec in graph.inputs}
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            args,
            dynamo=True,
            dynamic_shapes=graph.arrange(shapes),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        model = program.model
        _optimize(model, set(graph.state_dict()))
    _declare(model, graph)
    return model


def _optimize(model: ir.Model, weights: set[str]) -> None:
    """What the tracer does by default, but every weight keeps its name.

    The optimiser merges equal tensors, and whoever reads the graph by its weights' names would miss the others. It
    leaves alone what a caller could replace, so the weights are declared as inputs meanwhile; what can be computed from
    them has been computed before. The weights file stores equal tensors once all the same.
    """
    optimizer.inline(model)
    optimizer.fold_constants(model)
    inputs = model.graph.inputs
    count = len(inputs)
    inputs.extend(value for name, value in model.graph.initializers.items() if name in weights)
    optimizer.optimize_ir(model)
    del inputs[count:]
    RemoveUnusedNodesPass()(model)


def _declare(model: ir.Model, graph: Graph) -> None:
    """Give inputs and outputs exactly the names, types and axes of the specs, and drop what tracing left behind."""
    for values, specs in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        assert len(values) == len(specs), (graph.name, [value.name for value in values])
        for value, spec in zip(values, specs, strict=True):
            value.name = spec.name
            value.dtype = ir.DataType[{"float32": "FLOAT", "int64": "INT64", "bool": "BOOL"}[spec.dtype]]
            value.shape = ir.Shape([str(d) if isinstance(d, Axis) else d for d in spec.shape])
    model.graph.name = graph.name
    model.producer_name, model.producer_version = "ezaudio", None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None


def write(model: ir.Model, path: Path, weights: WeightFile) -> None:
    """Save the graph with its larger weights in `weights`."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        assert value.name is not None
        if tensor.nbytes > INLINE_BYTES:
            value.const_value = weights.add(tensor, value.name)
    ir.save(model, path)


def initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """The initializer of that name, made of the array unless it is there."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value


def weights_file(model: ir.Model, name: str) -> str:
    """The file with the weights of a graph as it was loaded: graphs cut from one network share one."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            return str(value.const_value.location)
    return f"{name}.weights"


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer's notes on packages that are not installed say nothing to a user."""
    names = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
