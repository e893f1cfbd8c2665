"""The baseline "plain ONNX Runtime": the whole PyTorch MaskDiT exported as it stands, run with our settings."""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ezaudio.dit import MaskDiT
from ezaudio.runtime.manifest import GraphEntry
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.tensor_spec import TensorSpec
from ezaudio.sampling import guide

if TYPE_CHECKING:
    from models import Bundle
    from numpy.typing import NDArray

    from ezaudio.checkpoints import ModelSource

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


class PlainStep:
    """timestep → guided velocity (1, C, L): latents, timestep, text states and mask of both branches in every step."""

    def __init__(
        self, source: ModelSource, bundle: Bundle, latents: Float32, text: Float32, mask: NDArray[np.bool_]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ezaudio-plain-")
        path = Path(self._folder.name, "plain.onnx")
        self._inputs = {"latents": np.concatenate([latents, latents]), "text": text, "mask": mask}
        inputs = {**self._inputs, "timesteps": np.array([0, 0])}
        names = ("latents", "timesteps", "text", "mask")
        logging.disable(logging.WARNING)  # the tracer's notes on packages that are not installed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Network(source.dit()).eval(),
                tuple(torch.from_numpy(inputs[name].copy()) for name in names),
                path,
                dynamo=True,
                external_data=True,
                input_names=list(names),
                output_names=["velocity"],
                opset_version=20,
                verbose=False,
            )
        logging.disable(logging.NOTSET)
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
