"""Half precision on a machine that has none: the same graph in fp32 with every half-precision result rounded.

ONNX Runtime's CPU provider has no kernels for bf16, and runs chains of fp16 operators in fp32 without rounding between
them, so that a value beyond 65504 passes unseen. A graph rewritten here rounds where its types say, and overflows where
a device would: what it shows is the error of the types, with products that accumulate in fp32. It says nothing about a
device whose kernels accumulate in less.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from ezaudio.runtime.errors import BundleError, MissingExtraError
from ezaudio.runtime.session import CPU, GraphSessions, keep_integers_exact

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MOVES = frozenset(
    ("Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)
"""Operators whose results are as rounded as what they are given."""


def emulated(model: ModelProto) -> ModelProto:
    """The graph with its half-precision tensors as fp32 tensors that hold half-precision numbers.

    Weights stay stored as they are, behind a Cast that is folded when the graph is loaded.
    """
    onnx = _onnx()
    float32, halves = onnx.TensorProto.FLOAT, (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes: list[NodeProto] = []

    def cast(name: str, output: str, to: int) -> None:
        nodes.append(onnx.helper.make_node("Cast", [name], [output], to=to))

    stored = {tensor.name for tensor in graph.initializer if tensor.data_type in halves}
    for name in stored:
        cast(name, f"{name}:wide", float32)
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [f"{name}:wide" if name in stored else name for name in node.input]
        rounded = [name for name in node.output if types.get(name) in halves]
        if not rounded or node.op_type in MOVES:
            nodes.append(copy)
            continue
        if node.op_type == "Cast":  # to half: only the way back is new
            copy.output[0] = f"{node.output[0]}:half"
            nodes.append(copy)
        else:
            copy.output[:] = [f"{name}:exact" if name in rounded else name for name in node.output]
            nodes.append(copy)
            for name in rounded:
                cast(f"{name}:exact", f"{name}:half", types[name])
        for name in rounded:
            cast(f"{name}:half", name, float32)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def load_graph(path: Path) -> ModelProto:
    """A graph without its weights. Raises BundleError when it is no graph, MissingExtraError without onnx."""
    onnx = _onnx()
    try:
        model: ModelProto = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise BundleError(f"'{path}' is no ONNX graph ({error}): copy or export the bundle again") from error
    return model


def open_session(model: ModelProto, folder: Path, threads: int | None) -> ort.InferenceSession:
    """A session of a graph that is in memory while its weights lie in `folder`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = threads or 0
    keep_integers_exact(options)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])


class EmulatedSessions(GraphSessions):
    """Sessions in which half precision is emulated."""

    def open(self, name: str) -> ort.InferenceSession:
        if name not in self._sessions:
            if name not in self.manifest.graphs:
                raise BundleError(f"the bundle at '{self.folder}' has no graph {name!r}: export it again")
            path = self.folder / self.manifest.graphs[name].file
            try:
                session = open_session(emulated(load_graph(path)), self.folder, self._threads)
            except (BundleError, MissingExtraError):
                raise
            except Exception as error:
                raise BundleError(f"ONNX Runtime cannot open '{path}': {error}") from error
            self._sessions[name] = self._checked(name, session)
        return self._sessions[name]


def _onnx():  # type: ignore[no-untyped-def]
    try:
        import onnx
        import onnx.helper
    except ModuleNotFoundError as error:
        raise MissingExtraError('verifying half precision needs onnx: pip install "ezaudio[verify]"') from error
    return onnx
