"""Backend `openvino`: a bundle's graphs on OpenVINO's CPU plugin, which computes bf16 where the processor can.

The decoder of a bundle in bf16 computes in bf16, everything else in fp32. Why, and what that gains, is in
docs/cpu-profile.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from ezaudio.runtime.denoising import HANDED_ON, OnStepDone, StepGraph
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

# Not the denoiser: nano's worst velocity has a cosine of 0.992 to fp32's so, and int8 on ONNX Runtime takes no longer.
IN_BF16 = "decoder"


def computes_bf16() -> bool:
    """Whether this processor multiplies in bf16."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoSessions:
    """Graph name → compiled graph, see `denoising.Sessions`. A graph is compiled on first use and kept until released.

    Args:
        threads: None takes all cores.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        self.folder, self.manifest = folder, manifest
        self._core = openvino.Core()
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._requests: dict[str, openvino.InferRequest] = {}

    def specs(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a graph. Raises BundleError when the bundle has no such graph."""
        if name not in self.manifest.graphs:
            raise BundleError(f"the bundle at '{self.folder}' has no graph {name!r}: export it again")
        graph = self.manifest.graphs[name]
        return graph.inputs, graph.outputs

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """One evaluation on host arrays: outputs by name.

        Raises: BundleError when the bundle has no such graph or OpenVINO refuses it.
        """
        taken, given = self.specs(name)
        if name not in self._requests:
            self._requests[name] = self._open(name)
        fed = {spec.name: np.asarray(inputs[spec.name], order="C") for spec in taken}
        results = self._requests[name].infer(fed, share_inputs=True)
        return {spec.name: results[spec.name] for spec in given}

    def _open(self, name: str) -> openvino.InferRequest:
        path = self.folder / self.manifest.graphs[name].file
        in_bf16 = self.manifest.precision == "bf16" and name == IN_BF16
        settings = self._settings | {"INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32"}
        try:
            return self._core.compile_model(str(path), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BundleError(f"OpenVINO cannot open '{path}': {reason}") from error

    def denoise(
        self,
        denoiser: StepGraph,
        control: StepGraph | None,
        latents: Float32,
        noise: Callable[[int], Float32] | None,
        on_step_done: OnStepDone,
    ) -> Float32:
        """The sampling loop, see `denoising.Sessions`."""
        state: dict[str, Array] = {"latents": latents, "previous_clean": np.zeros_like(latents)}
        for index in range(denoiser.num_steps):
            state["noise"] = np.zeros_like(latents) if noise is None else noise(index)
            for graph in (denoiser,) if control is None else (control, denoiser):
                one = graph.evaluations[graph.steps[index]]
                rows = {name: values[index] for name, values in graph.rows.items()}
                made = self.run(one.graph, **one.constants, **rows, **state)
                state |= {name: made[name] for name in HANDED_ON if name in made}
            state |= {"latents": made["next_latents"], "previous_clean": made["clean"]}
            on_step_done(index)
        return state["latents"]  # type: ignore[return-value]

    def release(self, name: str | None = None) -> None:
        """Drop one compiled graph, or all."""
        if name is None:
            self._requests.clear()
        else:
            self._requests.pop(name, None)
