"""Weights of a bundle → modules: initializers by the names of the parameters that they were traced from.

A file of weights is mapped, not read: what several graphs share is one piece of memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ezaudio.export.graphs import Graph
from ezaudio.runtime.errors import BundleError, MissingExtraError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.torch_backend.modules import empty_graphs
from ezaudio.runtime.torch_backend.sessions import TorchSessions

if TYPE_CHECKING:
    from onnx import TensorProto

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STORED = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16}  # TensorProto.DataType
TRAINING_ONLY = ("condition.mask_embed",)  # of the ControlNet: no graph reads it, so no bundle holds it
ENDINGS = ("", ".fp32", ".fp16", ".bf16")  # what a precision adds to a name


def open_bundle(folder: Path, manifest: Manifest, device: str | None) -> TorchSessions:
    """A bundle on a device, in its own precision; None takes a GPU where there is one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchSessions(load_graphs(folder, manifest), manifest.config, device, DTYPES[manifest.precision])


def load_graphs(folder: Path, manifest: Manifest) -> dict[str, Graph]:
    """Every graph of a bundle on the CPU, its weights as they are stored.

    Raises BundleError where a file does not hold what the manifest's settings describe.
    """
    try:
        graphs = empty_graphs(manifest.config, manifest.graphs)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise BundleError(f"'{folder}': its settings make no model ({error}): export the bundle again") from error
    files = _Files(folder, manifest)
    for name, graph in graphs.items():
        path = folder / manifest.graphs[name].file
        stored = files.initializers(path)
        found: dict[str, Tensor] = {}
        for key, parameter in graph.state_dict().items():
            if key in TRAINING_ONLY:
                found[key] = torch.zeros(parameter.shape, dtype=torch.float32)
                continue
            tensor = next((stored[key + ending] for ending in ENDINGS if key + ending in stored), None)
            if tensor is None or tensor.shape != parameter.shape:
                got = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise BundleError(f"'{path}': {key} {got}, expected {tuple(parameter.shape)}: export the bundle again")
            found[key] = tensor
        graph.load_state_dict(found, assign=True)
        graph.requires_grad_(False)
    return graphs


class _Files:
    """Initializers of graphs, those that lie in a weights file as views of it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._mapped: dict[str, Tensor] = {}

    def initializers(self, path: Path) -> dict[str, Tensor]:
        """Floating-point ones by name."""
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise MissingExtraError(f'{error.name} is not installed: pip install "ezaudio[torch]"') from error
        try:
            model = onnx.load(str(path), load_external_data=False)
            found = {
                tensor.name: self._tensor(tensor) for tensor in model.graph.initializer if tensor.data_type in STORED
            }
            for node in model.graph.node:
                if node.op_type == "Conv" and len(node.input) == 2:  # an export leaves a bias of zeros out
                    name = node.input[1].removesuffix(".wide")
                    bias = next(name.removesuffix(f"weight{end}") for end in ENDINGS if name.endswith(f"weight{end}"))
                    weight = next(found[f"{bias}weight{end}"] for end in ENDINGS if f"{bias}weight{end}" in found)
                    found[f"{bias}bias"] = torch.zeros(len(weight), dtype=weight.dtype)
            return found
        except BundleError:
            raise
        except Exception as error:  # protobuf's own, which share no class
            raise BundleError(f"'{path}' cannot be read ({error}): copy or export the bundle again") from error

    def _tensor(self, tensor: TensorProto) -> Tensor:
        from onnx import numpy_helper

        dtype, shape = STORED[tensor.data_type], tuple(tensor.dims)
        if not tensor.external_data:
            return torch.from_numpy(numpy_helper.to_array(tensor).astype("float32")).to(dtype)
        place: dict[str, Any] = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(place["offset"]), int(place["length"])
        whole = self._map(str(place["location"]))
        if offset < 0 or length != torch.Size(shape).numel() * dtype.itemsize or offset + length > whole.numel():
            raise BundleError(f"{tensor.name!r} lies outside of {place['location']!r}: export the bundle again")
        return whole[offset : offset + length].view(dtype).view(shape)

    def _map(self, name: str) -> Tensor:
        if name not in self._manifest.files:
            raise BundleError(f"the bundle at '{self._folder}' lists no file {name!r}: export it again")
        if name not in self._mapped:
            path = self._folder / name
            size = path.stat().st_size
            self._mapped[name] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        return self._mapped[name]
