"""Sessions that also tell how large the tensors inside a graph become."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir

from ezaudio.runtime.emulation import EmulatedSessions, emulated, load_graph, open_session
from ezaudio.runtime.manifest import Manifest

if TYPE_CHECKING:
    from ezaudio.runtime.teacher_forcing import Array

_ENDING = ":largest"
OUTPUTS_AT_ONCE = 8
MAX_PROBED_BYTES = 2 << 30  # of watched tensors in one run
RERUNS = 2


class ProbedSessions(EmulatedSessions):
    """Sessions of fp32 graphs; `largest` collects max |value| of the watched tensors over all runs.

    The maximum is taken inside the graph, but ONNX Runtime keeps a watched tensor for long. Where all of a graph's
    would take more than MAX_PROBED_BYTES, a run goes without, and `watch_pending` runs a few of those inputs again,
    watching a part of the tensors at a time.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, threads: int | None, watched: Mapping[str, tuple[str, ...]]
    ) -> None:
        """watched: graph → names of tensors."""
        super().__init__(folder, manifest, threads, "onnxruntime")
        self._watched = watched
        self._shapes: dict[str, dict[str, ir.Shape]] = {}
        self._opened: dict[str, tuple[str, ...]] = {}  # graph → what its open session watches
        self._pending: dict[str, list[dict[str, Array]]] = {}
        self.largest: dict[str, dict[str, float]] = {name: dict.fromkeys(rows, 0.0) for name, rows in watched.items()}

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        if self._parts(name, inputs) > 1:
            self._pending.setdefault(name, []).append(inputs)
            return self._run(name, inputs, ())
        return self._run(name, inputs, self._watched.get(name, ()))

    def watch_pending(self) -> None:
        """Watch the tensors of what was run without: at the first and the last of each graph's inputs of one length.

        Prompts of other lengths are no others here: a loop meets dozens of them, and each would be run in all parts.
        """
        for name, cases in self._pending.items():
            alike: dict[tuple[tuple[str, int], ...], list[dict[str, Array]]] = {}
            for inputs in cases:
                sizes = self._sizes(name, inputs)
                alike.setdefault(tuple((k, v) for k, v in sizes.items() if k != "tokens"), []).append(inputs)
            chosen = [
                group[i]
                for group in alike.values()
                for i in np.unique(np.linspace(0, len(group) - 1, RERUNS).round().astype(int))
            ]
            parts = max(self._parts(name, inputs) for inputs in chosen)
            for part in range(parts):
                for inputs in chosen:
                    self._run(name, inputs, self._watched[name][part::parts])
            self.release(name)
        self._pending.clear()

    def _run(self, name: str, inputs: dict[str, Array], tensors: tuple[str, ...]) -> dict[str, Array]:
        if name not in self._sessions or self._opened[name] != tensors:
            self.release(name)
            model = emulated(load_graph(self.folder / self.manifest.graphs[name].file))
            for tensor in tensors:
                _add_probe(model, tensor)
            self._sessions[name], self._opened[name] = open_session(model, self.folder, self._threads), tensors
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(names, inputs), strict=True))
        for tensor in tensors:
            found = float(results.pop(tensor + _ENDING))
            known = self.largest[name][tensor]
            self.largest[name][tensor] = max(known, found if np.isfinite(found) else float("inf"))
        return results

    def _parts(self, name: str, inputs: dict[str, Array]) -> int:
        """In how many parts the watched tensors of a graph fit into the limit, for inputs of these sizes."""
        if not self._watched.get(name):
            return 1
        if name not in self._shapes:
            graph = ir.load(self.folder / self.manifest.graphs[name].file).graph
            values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
            self._shapes[name] = {str(value.name): value.shape for value in values if value.shape is not None}
        sizes = self._sizes(name, inputs)
        shapes = (self._shapes[name].get(tensor) for tensor in self._watched[name])
        known = [shape.evaluate(sizes) for shape in shapes if shape is not None]
        wanted = -(-sum(_bytes(shape) for shape in known) // MAX_PROBED_BYTES)
        return max(1, min(wanted, len(self._watched[name])))

    def _sizes(self, name: str, inputs: dict[str, Array]) -> dict[str, int]:
        """Of the axes of a graph's inputs."""
        return {
            axis.name: inputs[spec.name].shape[index] // axis.times
            for spec in self.manifest.graphs[name].inputs
            for index, axis in spec.axes().items()
        }


def _bytes(shape: ir.Shape) -> int:
    """Of float32; a size that the tracer left unknown counts as one."""
    return 4 * math.prod(dim for dim in shape if isinstance(dim, int))


def _add_probe(model: onnx.ModelProto, tensor: str) -> None:
    absolute, largest = f"{tensor}:absolute", tensor + _ENDING
    model.graph.node.append(onnx.helper.make_node("Abs", [tensor], [absolute]))
    model.graph.node.append(onnx.helper.make_node("ReduceMax", [absolute], [largest], keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info(largest, onnx.TensorProto.FLOAT, ()))


def inner_tensors(
    folder: Path, file: str, inputs: dict[str, Array], names: list[str], threads: int | None
) -> Iterator[tuple[str, Array]]:
    """The values of tensors inside a graph (half precision emulated), a few a run, so that memory stays bounded."""
    plain = emulated(load_graph(folder / file))
    for start in range(0, len(names), OUTPUTS_AT_ONCE):
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        part = names[start : start + OUTPUTS_AT_ONCE]
        outputs = {output.name for output in model.graph.output}
        for name in part:
            if name not in outputs:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        yield from zip(part, open_session(model, folder, threads).run(part, inputs), strict=True)


def first_beyond(
    reference: tuple[Path, str],
    typed: tuple[Path, str],
    inputs: dict[str, Array],
    names: list[str],
    error: Callable[[Any, Any], float],
    tolerance: float,
    threads: int | None,
) -> tuple[str, float]:
    """The first of the tensors `names`, in the order of the graph, whose error is beyond the tolerance; else the worst.

    reference, typed: folder and file of a graph.
    """
    pairs = zip(
        inner_tensors(*reference, inputs, names, threads), inner_tensors(*typed, inputs, names, threads), strict=True
    )
    worst = ("", 0.0)
    for (name, expected), (_, got) in pairs:
        found = error(got, expected)
        if not found <= tolerance:
            return name, found
        worst = max(worst, (name, found), key=lambda row: row[1])
    return worst
