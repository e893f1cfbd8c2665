"""Sessions that also tell how large the tensors inside a graph become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.helper

from ezaudio.runtime.emulation import EmulatedSessions, emulated, load_graph, open_session
from ezaudio.runtime.manifest import Manifest

if TYPE_CHECKING:
    import onnxruntime

    from ezaudio.runtime.teacher_forcing import Array

_ENDING = ":largest"
OUTPUTS_AT_ONCE = 8


class ProbedSessions(EmulatedSessions):
    """Sessions of fp32 graphs; `largest` collects max |value| of the watched tensors over all runs.

    The maximum is taken inside the graph, so that a probe costs one number and not a copy of the tensor.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, threads: int | None, watched: Mapping[str, tuple[str, ...]]
    ) -> None:
        """watched: graph → names of tensors."""
        super().__init__(folder, manifest, threads, "onnxruntime")
        self._watched = watched
        self.largest: dict[str, dict[str, float]] = {name: dict.fromkeys(rows, 0.0) for name, rows in watched.items()}

    def open(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            model = emulated(load_graph(self.folder / self.manifest.graphs[name].file))
            for tensor in self._watched.get(name, ()):
                _add_probe(model, tensor)
            self._sessions[name] = open_session(model, self.folder, self._threads)
        return self._sessions[name]

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        session = self.open(name)
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(names, inputs), strict=True))
        for tensor in self._watched.get(name, ()):
            found = float(results.pop(tensor + _ENDING))
            known = self.largest[name][tensor]
            self.largest[name][tensor] = max(known, found if np.isfinite(found) else float("inf"))
        return results


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
