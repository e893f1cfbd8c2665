"""ONNX Runtime sessions for the graphs of a bundle, opened when first used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

logger = logging.getLogger(__name__)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def choose_device(device: str) -> str:
    """`auto` takes CUDA when this build of ONNX Runtime has it. A named device never falls back.

    Raises InputError for an unknown device or one that this build lacks.
    """
    available = ort.get_available_providers()
    if device == "auto":
        device = "cuda" if PROVIDERS["cuda"] in available else "cpu"
        logger.info("device %s chosen of ONNX Runtime's providers %s", device, ", ".join(available))
    if device not in PROVIDERS:
        raise InputError(f"unknown device {device!r}: expected auto, {', '.join(PROVIDERS)}")
    if PROVIDERS[device] not in available:
        raise InputError(
            f"device {device!r} is not in this ONNX Runtime: install onnxruntime-gpu in place of onnxruntime"
        )
    return device


class GraphSessions:
    """Graph name → session. A session is created on first use and kept until released."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None, device: str) -> None:
        self.folder, self.manifest, self.device = folder, manifest, device
        self._threads = threads
        self._sessions: dict[str, ort.InferenceSession] = {}

    def open(self, name: str) -> ort.InferenceSession:
        """Raises BundleError when the bundle has no such graph or ONNX Runtime refuses it."""
        if name not in self._sessions:
            if name not in self.manifest.graphs:
                raise BundleError(f"the bundle at '{self.folder}' has no graph {name!r}: export it again")
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = self._threads or 0
            path = self.folder / self.manifest.graphs[name].file
            providers = list(dict.fromkeys([PROVIDERS[self.device], PROVIDERS["cpu"]]))
            try:
                session = ort.InferenceSession(str(path), options, providers=providers)
            except Exception as error:
                if self.manifest.target != "cpu" and self.manifest.precision == "bf16" and self.device == "cpu":
                    raise BundleError(
                        f"the bundle at '{self.folder}' is for {self.manifest.target}, and ONNX Runtime computes no "
                        "bf16 on a CPU: export one with --target cpu"
                    ) from error
                raise BundleError(f"ONNX Runtime cannot open '{path}': {error}") from error
            self._sessions[name] = self._checked(name, session)
        return self._sessions[name]

    def _checked(self, name: str, session: ort.InferenceSession) -> ort.InferenceSession:
        graph = self.manifest.graphs[name]
        for specs, nodes in ((graph.inputs, session.get_inputs()), (graph.outputs, session.get_outputs())):
            if [spec.name for spec in specs] != [node.name for node in nodes]:
                names = ", ".join(node.name for node in nodes)
                raise BundleError(f"graph {name!r} has {names}, the manifest says otherwise: export the bundle again")
        return session

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """One evaluation on host arrays: outputs by name."""
        session = self.open(name)
        names = [spec.name for spec in self.manifest.graphs[name].outputs]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def specs(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        graph = self.manifest.graphs[name]
        return graph.inputs, graph.outputs

    def release(self, name: str | None = None) -> None:
        """Close one session, or all."""
        if name is None:
            self._sessions.clear()
        else:
            self._sessions.pop(name, None)


class BoundGraph:
    """A graph bound to buffers that stay where they are: a run copies in what changed and allocates nothing."""

    def __init__(self, sessions: GraphSessions, name: str, inputs: dict[str, Array], elsewhere: frozenset[str]) -> None:
        """inputs: first values by name. elsewhere: names of the inputs that `bind_input` gives."""
        self._session, self._device = sessions.open(name), sessions.device
        self._binding = self._session.io_binding()
        names = {spec.name for spec in sessions.specs(name)[0]}
        assert names == inputs.keys() | elsewhere, names ^ (inputs.keys() | elsewhere)
        self._inputs = {key: buffer(value, self._device) for key, value in inputs.items()}
        for key, value in self._inputs.items():
            self._binding.bind_ortvalue_input(key, value)

    def bind_input(self, name: str, value: ort.OrtValue) -> None:
        self._binding.bind_ortvalue_input(name, value)

    def bind_output(self, name: str, value: ort.OrtValue) -> None:
        self._binding.bind_ortvalue_output(name, value)

    def run(self, changed: dict[str, Array]) -> None:
        for key, value in changed.items():
            self._inputs[key].update_inplace(np.ascontiguousarray(value))
        self._session.run_with_iobinding(self._binding)


def buffer(array: Array, device: str) -> ort.OrtValue:
    # A copy: on a CPU the OrtValue keeps using the array's own memory.
    return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), device, 0)


class DenoiserLoop:
    """The denoiser graph and, before it in every step, a ControlNet; a step swaps two pairs of buffers.

    Args:
        name, constants: of the denoiser, with its inputs other than the latents.
        control_name, control_constants: the same of the ControlNet's graph; no name, no ControlNet.
        residuals: zeros of the shape that the ControlNet gives.
    """

    def __init__(
        self,
        sessions: GraphSessions,
        name: str,
        latents: Array,
        constants: dict[str, Array],
        control_name: str = "",
        control_constants: dict[str, Array] | None = None,
        residuals: Array | None = None,
    ) -> None:
        device = sessions.device
        zeros = np.zeros_like(latents)
        self._latents = [buffer(latents, device), buffer(zeros, device)]
        self._clean = [buffer(zeros, device), buffer(zeros, device)]
        fed = {"latents", "previous_clean"} | ({"residuals"} if control_name else set())
        self._denoiser = BoundGraph(sessions, name, constants, frozenset(fed))
        self._control = None
        if control_name:
            assert control_constants is not None
            assert residuals is not None
            self._control = BoundGraph(sessions, control_name, control_constants, frozenset({"latents"}))
            shared = buffer(residuals, device)
            self._control.bind_output("residuals", shared)
            self._denoiser.bind_input("residuals", shared)

    def step(self, changed: dict[str, Array], control_changed: dict[str, Array]) -> None:
        """Advance the latents by one step with these inputs changed."""
        if self._control is not None:
            self._control.bind_input("latents", self._latents[0])
            self._control.run(control_changed)
        self._denoiser.bind_input("latents", self._latents[0])
        self._denoiser.bind_input("previous_clean", self._clean[0])
        self._denoiser.bind_output("next_latents", self._latents[1])
        self._denoiser.bind_output("clean", self._clean[1])
        self._denoiser.run(changed)
        self._latents.reverse()
        self._clean.reverse()

    def latents(self) -> Array:
        """A copy of the latents after the steps so far."""
        return np.array(self._latents[0].numpy())
