"""The baseline "plain ONNX Runtime": the whole PyTorch MaskDiT exported as it stands, run with our settings."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measure import in_child

from ezaudio.dit import MaskDiT
from ezaudio.runtime.manifest import GraphEntry, read_manifest
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.tensor_spec import TensorSpec
from ezaudio.sampling import guide

if TYPE_CHECKING:
    from models import Bundle
    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]


class _Network(torch.nn.Module):
    """What is exported: nothing computed ahead, nothing fused by hand."""

    def __init__(self, dit: MaskDiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return self.dit(latents, timesteps, text, mask)


def export_plain(bundle: str, path: str, latents: list[int], text: list[int]) -> dict[str, Any]:
    """The denoiser of a bundle's weights, for inputs of these shapes, batch of two.

    For a process of its own: the modules, the exporter's copy and sessions of XL do not fit in memory together.
    """
    from models import source_of

    source = source_of(read_manifest(Path(bundle), verify=False))
    inputs = {
        "latents": torch.zeros(latents),
        "timesteps": torch.zeros(2, dtype=torch.int64),
        "text": torch.zeros(text),
        "mask": torch.ones(text[:2], dtype=torch.bool),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Network(source.dit()).eval(),
            tuple(inputs.values()),
            path,
            dynamo=True,
            external_data=True,
            input_names=list(inputs),
            output_names=["velocity"],
            opset_version=20,
            verbose=False,
        )
    return {}


class PlainStep:
    """timestep → guided velocity (1, C, L): latents, timestep, text states and mask of both branches in every step."""

    def __init__(self, bundle: Bundle, latents: Float32, text: Float32, mask: NDArray[np.bool_]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ezaudio-plain-")
        path = Path(self._folder.name, "plain.onnx")
        self._inputs = {"latents": np.concatenate([latents, latents]), "text": text, "mask": mask}
        shapes = {name: list(self._inputs[name].shape) for name in ("latents", "text")}
        in_child("plain", "export_plain", bundle=str(bundle.folder.resolve()), path=str(path), **shapes)
        inputs = {**self._inputs, "timesteps": np.array([0, 0])}
        names = ("latents", "timesteps", "text", "mask")
        entry = GraphEntry(
            path.name,
            tuple(TensorSpec(name, str(inputs[name].dtype), inputs[name].shape) for name in names),
            (TensorSpec("velocity", "float32", self._inputs["latents"].shape),),
        )
        self.sessions = GraphSessions(
            Path(self._folder.name), replace(bundle.manifest, graphs={"plain": entry}), None, "onnxruntime"
        )
        self._guidance = tuple(torch.tensor([value]) for value in bundle.guidance(latents))

    def __call__(self, timestep: int) -> Float32:
        both = self.sessions.run("plain", timesteps=np.array([timestep] * 2), **self._inputs)["velocity"]
        conditional, unconditional = torch.from_numpy(both).chunk(2)
        return guide(conditional, unconditional, *self._guidance).numpy()
