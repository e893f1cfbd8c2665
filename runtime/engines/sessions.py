"""Backend `tensorrt`: a bundle's graphs as engines on buffers of our own, the sampling loop as one CUDA graph.

This project's CI has no GPU: from deserialising on, nothing here has run there. docs/tensorrt.md says how to check it
on yours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ezaudio.runtime.denoising import OnStepDone, StepGraph, loop_shape
from ezaudio.runtime.engines import device, profiles
from ezaudio.runtime.engines.builder import Options
from ezaudio.runtime.engines.library import Library, open_library
from ezaudio.runtime.engines.loop import CapturedLoop
from ezaudio.runtime.engines.store import Engine, EngineStore, cached_engines
from ezaudio.runtime.errors import BackendError, BundleError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

logger = logging.getLogger(__name__)


class LoadedEngine:
    """An engine on the GPU, for as many shapes at a time as it is asked for.

    Raises BackendError when the library refuses it.
    """

    def __init__(self, library: Library, runtime: Any, log: Any, engine: Engine, graph: Path) -> None:
        self.profiles = engine.record.purpose.profiles
        self.name, self._log = engine.record.purpose.graph, log
        self._engine = runtime.deserialize_cuda_engine(engine.path.read_bytes())
        if self._engine is None:
            reason = self.last_error("it gives no reason")
            raise BackendError(f"{library.name} refuses '{engine.path}' ({reason}): delete the file to build it again")
        flags = engine.record.purpose.flags
        if flags["strip"]:
            self._refit(library, log, graph)
        if flags["weight_streaming"]:
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
        self._trt = library.trt

    def _refit(self, library: Library, log: Any, graph: Path) -> None:
        refitter = library.trt.Refitter(self._engine, log)
        parser = library.trt.OnnxParserRefitter(refitter, log)
        if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise BackendError(
                f"{library.name} cannot put the weights of '{graph}' into its engine: build it unstripped"
            )

    def execution(self, specs: tuple[TensorSpec, ...], sizes: dict[str, int], stream: int) -> Execution:
        """A context of its own, with these shapes. Raises BackendError when there is no room for it."""
        index = profiles.covering(self.profiles, sizes)
        assert index is not None, (self.name, sizes, self.profiles)
        context = self._create_context(self._trt)
        if context is None:
            reason = self.last_error("it gives no reason")
            raise BackendError(f"no room on the GPU for {self.name!r} ({reason}): close other programs")
        return Execution(self, context, index, specs, sizes, stream)

    def last_error(self, otherwise: str) -> str:
        """What the library said last."""
        return str(self._log.errors[-1]) if self._log.errors else otherwise

    def _create_context(self, trt: Any) -> Any:
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return self._engine.create_execution_context()
        # TensorRT-RTX: compile for the shape before the first run ends, so that a capture records the final kernels.
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return self._engine.create_execution_context(config)


class Execution:
    """An execution context of an engine with its profile and shapes, which it keeps."""

    def __init__(
        self,
        engine: LoadedEngine,
        context: Any,
        profile: int,
        specs: tuple[TensorSpec, ...],
        sizes: dict[str, int],
        stream: int,
    ) -> None:
        self._engine, self._context = engine, context
        if not context.set_optimization_profile_async(profile, stream):
            raise self._failed("choose its profile")
        for spec in specs:
            if not context.set_input_shape(spec.name, spec.sizes(sizes)):
                raise self._failed(f"take {spec.name} of shape {spec.sizes(sizes)}")

    def bind(self, addresses: dict[str, int]) -> None:
        """Tensor name → device address."""
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._failed(f"take an address for {name}")

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise self._failed("run")

    def _failed(self, what: str) -> BackendError:
        name, reason = self._engine.name, self._engine.last_error("no reason given")
        return BackendError(f"the engine of {name!r} cannot {what} ({reason}): report it with ezaudio-doctor --json")


class EngineSessions:
    """Graph name → engines, found, built and loaded on first use; see `denoising.Sessions`."""

    def __init__(self, folder: Path, manifest: Manifest, target: str) -> None:
        self._library = open_library(target)
        self.folder, self.manifest = folder, manifest
        self._store = EngineStore(folder, manifest, self._library)
        self._place = self._store.place(Options())
        self._log = self._library.logger()
        self._runtime = self._library.trt.Runtime(self._log)
        self._stream = device.Stream()
        self._memory = device.DeviceMemory()
        self._loaded: dict[str, LoadedEngine] = {}  # the engine that served a graph last
        self._executions: dict[str, tuple[dict[str, int], Execution]] = {}  # of `run`: the last sizes of a graph
        self._loop: CapturedLoop | None = None

    def specs(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a graph. Raises BundleError when the bundle has no such graph."""
        if name not in self.manifest.graphs:
            raise BundleError(f"the bundle at '{self.folder}' has no graph {name!r}: export it again")
        graph = self.manifest.graphs[name]
        return graph.inputs, graph.outputs

    def execution(self, name: str, sizes: dict[str, int]) -> Execution:
        """A new context of the graph's engine, for these sizes.

        Raises InputError when there are engines, but none for these sizes; a first engine is built here.
        """
        loaded = self._loaded.get(name)
        if loaded is None or profiles.covering(loaded.profiles, sizes) is None:
            engine = self._covering_engine(name, sizes)
            graph = self.folder / self.manifest.graphs[name].file
            loaded = self._loaded[name] = LoadedEngine(self._library, self._runtime, self._log, engine, graph)
        return loaded.execution(self.specs(name)[0], sizes, self._stream.handle)

    def _covering_engine(self, name: str, sizes: dict[str, int]) -> Engine:
        found, reasons = self._store.find(name, self._place)
        for engine in found:
            if profiles.covering(engine.record.purpose.profiles, sizes) is not None:
                return engine
        if found:
            built = [engine.record.purpose.profiles for engine in found]
            raise profiles.uncovered(name, built, sizes, self.manifest.config)
        why = "; ".join(reasons) or "there is none yet"
        logger.warning("building the engine of %s: %s (ezaudio-build does so ahead of time)", name, why)
        options = Options()
        purpose = self._store.purpose(name, options, self._place)
        return self._store.build(purpose, options, cached_engines(self.manifest))[0]

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """One evaluation on host arrays: outputs by name."""
        taken, given = self.specs(name)
        sizes = profiles.axis_sizes(taken, {key: value.shape for key, value in inputs.items()})
        if name not in self._executions or self._executions[name][0] != sizes:
            self._executions.pop(name, None)  # before another takes room
            self._executions[name] = sizes, self.execution(name, sizes)
        execution = self._executions[name][1]
        addresses = {}
        for spec in taken:
            array = np.ascontiguousarray(inputs[spec.name], spec.dtype)
            addresses[spec.name] = self._memory.address(f"{name}.{spec.name}", array.nbytes)
            self._stream.upload(addresses[spec.name], array)
        results = {spec.name: device.PinnedArray(spec.sizes(sizes), np.dtype(spec.dtype)) for spec in given}
        for key, result in results.items():
            addresses[key] = self._memory.address(f"{name}.{key}", result.num_bytes)
        execution.bind(addresses)
        execution.enqueue(self._stream.handle)
        for key, result in results.items():
            self._stream.download(result.address, addresses[key], result.num_bytes)
        self._stream.wait()
        outputs = {key: result.array.copy() for key, result in results.items()}
        for result in results.values():
            result.free()
        return outputs

    def denoise(
        self,
        denoiser: StepGraph,
        control: StepGraph | None,
        latents: Float32,
        noise: Callable[[int], Float32] | None,
        on_step_done: OnStepDone,
    ) -> Float32:
        """The sampling loop, see `denoising.Sessions`. Loops of one shape replay the graph that the first captured."""
        draws = [np.zeros_like(latents) if noise is None else noise(index) for index in range(denoiser.num_steps)]
        graphs = [replace(denoiser, rows=denoiser.rows | {"noise": np.stack(draws)})]
        if control is not None:
            graphs.insert(0, control)
        if self._loop is None or self._loop.shape != loop_shape(graphs, latents):
            self._free_loop()
            self._loop = CapturedLoop(self, self._stream, graphs, latents)
        return self._loop.run(graphs, latents, on_step_done)

    def _free_loop(self) -> None:
        if self._loop is not None:
            self._loop.free()
            self._loop = None

    def release(self, name: str | None = None) -> None:
        """Close one engine, or all, and give the device's memory back."""
        self._free_loop()
        if name is not None:
            self._executions.pop(name, None)
            self._loaded.pop(name, None)
            return
        self._executions.clear()
        self._loaded.clear()
        self._memory.free()
