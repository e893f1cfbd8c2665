"""ONNX Runtime sessions for the graphs of a bundle, opened when first used."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from ezaudio.runtime.denoising import HANDED_ON, Evaluation, OnStepDone, StepGraph, loop_shape
from ezaudio.runtime.errors import BackendError, BundleError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

logger = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {"onnxruntime": [CPU], "onnxruntime-cuda": [CUDA, CPU], "onnxruntime-tensorrt": [TENSORRT, CUDA, CPU]}
"""Backend → execution providers, the first that can run a node gets it."""

ARENA = {"initial_chunk_size_bytes": 1 << 28, "max_dead_bytes_per_chunk": 1 << 20}
"""One region holds a step or a part of a decode of L, untouched pages of it cost nothing; and a tensor takes no more of
a free piece than it needs, where ONNX Runtime's own setting lets it waste up to 128 MB."""

ONCE_A_CLIP = ("text_encoder", "conditioner", "modulation", "frame_bias")

# y (1, 1) = MatMulInteger of uint8 a (1, 4) and int8 b (4, 1), opset 20.
INTEGER_PRODUCT = bytes.fromhex(
    "08083a5c0a180a01610a0162120179220d4d61744d756c496e74656765721201675a130a0161120e0a0c080212080a0208010a020804"
    "5a130a0162120e0a0c080312080a0208040a02080162130a0179120e0a0c080612080a0208010a02080142040a001014"
)

GRAPH_OPTIONS = {CUDA: {"enable_cuda_graph": "1"}, TENSORRT: {"trt_cuda_graph_enable": "1"}}


class GraphSessions:
    """Graph name → session. A session is created on first use and kept until released.

    On a GPU the graphs of the sampling loop are captured as CUDA graphs where their nodes allow it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, threads: int | None, backend: str, low_memory: bool = False
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self.device = "cpu" if backend == "onnxruntime" else "cuda"
        self._providers = PROVIDERS[backend]
        self._threads, self._low_memory = threads, low_memory
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._captured: dict[str, ort.InferenceSession] = {}
        self._loop: DenoiserLoop | None = None
        self._keeps_loop = self.device != "cpu"  # there, captured graphs are what is kept; here, only memory would be

    def open(self, name: str) -> ort.InferenceSession:
        """Raises BundleError when the bundle has no such graph or ONNX Runtime refuses it."""
        if name not in self._sessions:
            self._sessions[name] = self._create(name, [(provider, {}) for provider in self._providers])
        return self._sessions[name]

    def open_captured(self, name: str) -> ort.InferenceSession:
        """For runs on fixed buffers: on a GPU a CUDA graph, where the nodes allow it."""
        if self.device == "cpu":
            return self.open(name)
        if name not in self._captured:
            try:
                with_graph = [(provider, GRAPH_OPTIONS.get(provider, {})) for provider in self._providers]
                self._captured[name] = self._create(name, with_graph)
            except BundleError as error:
                if "graph capture" not in str(error).lower():
                    raise
                logger.warning("%r runs without a CUDA graph: %s", name, error)
                self._captured[name] = self.open(name)
        return self._captured[name]

    def _create(self, name: str, providers: list[tuple[str, dict[str, str]]]) -> ort.InferenceSession:
        if name not in self.manifest.graphs:
            raise BundleError(f"the bundle at '{self.folder}' has no graph {name!r}: export it again")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads or 0
        keep_integers_exact(options)
        if self.device == "cpu":
            # Threads of a session that has run would go on waiting busily, and keep the next one's from the cores.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            _save_memory(options, name, self._low_memory)
        path = self.folder / self.manifest.graphs[name].file
        try:
            with _room(name, str(path)):
                session = ort.InferenceSession(str(path), options, providers=providers)
        except BackendError:
            raise
        except Exception as error:
            raise BundleError(f"ONNX Runtime cannot open '{path}': {error}") from error
        return self._checked(name, session)

    def _checked(self, name: str, session: ort.InferenceSession) -> ort.InferenceSession:
        graph = self.manifest.graphs[name]
        for specs, nodes in ((graph.inputs, session.get_inputs()), (graph.outputs, session.get_outputs())):
            if [spec.name for spec in specs] != [node.name for node in nodes]:
                names = ", ".join(node.name for node in nodes)
                raise BundleError(f"graph {name!r} has {names}, the manifest says otherwise: export the bundle again")
        missing = self._providers[0]
        if missing not in session.get_providers():  # ONNX Runtime falls back in silence when a library does not load
            raise BundleError(
                f"ONNX Runtime could not start {missing}: check its CUDA libraries with ezaudio-doctor, or choose "
                "another backend"
            )
        return session

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """One evaluation on host arrays: outputs by name."""
        session = self.open(name)
        names = [spec.name for spec in self.manifest.graphs[name].outputs]
        with _room(name):
            return dict(zip(names, session.run(names, inputs), strict=True))

    def denoise(
        self,
        denoiser: StepGraph,
        control: StepGraph | None,
        latents: Float32,
        noise: Callable[[int], Float32] | None,
        on_step_done: OnStepDone,
    ) -> Float32:
        """The sampling loop, see `denoising.Sessions`. On a GPU loops of one shape replay what the first captured."""
        graphs = [denoiser] if control is None else [control, denoiser]
        if self._loop is None or self._loop.shape != loop_shape(graphs, latents):
            self._loop = None
            self._captured.clear()  # with the graphs of other shapes, which a session keeps for ever
            self._loop = DenoiserLoop(self, graphs, latents)
        else:
            self._loop.load(graphs, latents)
        loop = self._loop
        if not self._keeps_loop:
            self._loop = None
        for index in range(denoiser.num_steps):
            changed: dict[str, Array] = {} if noise is None else {"noise": noise(index)}
            loop.step(index, changed)
            on_step_done(index)
        return loop.latents()

    def specs(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        graph = self.manifest.graphs[name]
        return graph.inputs, graph.outputs

    def release(self, name: str | None = None) -> None:
        """Close one session, or all."""
        self._loop = None
        for sessions in (self._sessions, self._captured):
            if name is None:
                sessions.clear()
            else:
                sessions.pop(name, None)


@contextmanager
def _room(name: str, path: str = "") -> Iterator[None]:
    """What a graph cannot allocate is the user's to mend; any other error of a run is a defect.

    path: of the graph's file, which an error of opening it names and which may have any name.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).replace(path, "it") if path else str(error)
        if "alloc" not in reason.lower():
            raise
        raise BackendError(
            f"there is no memory to run graph {name!r} ({reason.splitlines()[0][:200]}): make a shorter clip, "
            "close other programs, or add --low-memory"
        ) from error


def _save_memory(options: ort.SessionOptions, name: str, low_memory: bool) -> None:
    """Let activations of all sessions lie in one arena of this process, or in none, which gives them back at once.

    A plan of a session's memory, which ONNX Runtime makes in its first run, would lie beside what that run took: 186
    instead of 352 MiB for a step of L in int8, in the same time. Weights stay outside, so that they go with a session;
    those of graphs that run once a clip stay in the bundle's files, mapped, where products would copy them into an
    order of their own: the text encoder of L opens in 0.04 s instead of 1.1, and takes 0.07 s a prompt instead of 0.04.
    """
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = not low_memory
    if name.removeprefix("controlnet_") in ONCE_A_CLIP:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not low_memory:
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")


def keep_integers_exact(options: ort.SessionOptions) -> None:
    """Where an x86-64 processor lacks VNNI, ONNX Runtime's products of uint8 and int8 are not: the sum of two products
    is cut off at 16 bits. There, and only there, take its others, which are slower: twice as slow where VNNI is."""
    if _integers_overflow():
        options.add_session_config_entry("session.x64quantprecision", "1")


@functools.cache
def _integers_overflow() -> bool:
    """Asked of ONNX Runtime itself, in 3 ms: which product it takes for a processor is its own affair."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(INTEGER_PRODUCT, options, providers=[CPU])
    (found,) = session.run(None, {"a": np.full((1, 4), 255, np.uint8), "b": np.full((4, 1), 127, np.int8)})
    return int(found[0, 0]) != 4 * 255 * 127


@functools.cache
def _register_arena() -> None:
    """Registering again, as another library of this process may, changes nothing."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(ARENA))


class BoundGraph:
    """A graph bound to buffers that stay where they are: a run copies in what changed and allocates nothing.

    `made` are the buffers of those outputs that are handed on.
    """

    _numbers = itertools.count(1)

    def __init__(
        self, sessions: GraphSessions, evaluation: Evaluation, first: dict[str, Array], sizes: dict[str, int]
    ) -> None:
        """first: values of the inputs that `run` changes, for their shapes. sizes: of the loop's axes."""
        self._name, self._session = evaluation.graph, sessions.open_captured(evaluation.graph)
        self._binding = self._session.io_binding()
        taken, given = sessions.specs(evaluation.graph)
        fed = {spec.name for spec in taken}
        self._inputs = {
            name: buffer(value, sessions.device)
            for name, value in (evaluation.constants | first).items()
            if name in fed
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        sizes = sizes | {"rows": evaluation.constants["cross_keys"].shape[1]}
        sizes["rows"] += evaluation.constants["cross_constant"].shape[1]
        self.taken = [name for name in HANDED_ON if name in fed]
        self.made = {
            spec.name: buffer(np.zeros(spec.sizes(sizes), np.float32), sessions.device)
            for spec in given
            if spec.name in HANDED_ON
        }
        for name, value in self.made.items():
            self.bind_output(name, value)
        # A captured graph is replayed by its number whatever is bound now, so every set of buffers needs its own.
        self._options: dict[Hashable, Any] = {}

    def load(self, constants: dict[str, Array]) -> None:
        """Take the values of another clip."""
        for name, value in constants.items():
            if name in self._inputs and value.size:
                self._inputs[name].update_inplace(np.ascontiguousarray(value))

    def bind_input(self, name: str, value: ort.OrtValue) -> None:
        self._binding.bind_ortvalue_input(name, value)

    def bind_output(self, name: str, value: ort.OrtValue) -> None:
        self._binding.bind_ortvalue_output(name, value)

    def run(self, changed: dict[str, Array], buffers: Hashable) -> None:
        """buffers: what tells the buffers bound now from those of other runs."""
        for name, value in changed.items():
            if name in self._inputs:
                self._inputs[name].update_inplace(np.ascontiguousarray(value))
        if buffers not in self._options:
            options = self._options[buffers] = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        with _room(self._name):
            self._session.run_with_iobinding(self._binding, self._options[buffers])


def buffer(array: Array, device: str) -> ort.OrtValue:
    # A copy: on a CPU the OrtValue keeps using the array's own memory.
    return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), device, 0)


class DenoiserLoop:
    """The denoiser and, before it in every step, a ControlNet; a step swaps two pairs of buffers.

    The first clip of a shape makes the buffers, `load` fills them for the next.
    """

    def __init__(self, sessions: GraphSessions, graphs: list[StepGraph], latents: Float32) -> None:
        device = sessions.device
        zeros = np.zeros_like(latents)
        self.shape = loop_shape(graphs, latents)
        self._latents = [buffer(latents, device), buffer(zeros, device)]
        self._clean = [buffer(zeros, device), buffer(zeros, device)]
        self._parity = 0
        sizes = {"batch": latents.shape[0], "frames": latents.shape[2]}
        self._graphs = graphs
        self._bound = []
        for graph in self._graphs:
            first = {"noise": zeros} | {name: rows[0] for name, rows in graph.rows.items()}
            self._bound.append([BoundGraph(sessions, one, first, sizes) for one in graph.evaluations])
        self._handed: dict[str, ort.OrtValue] = {}

    def load(self, graphs: list[StepGraph], latents: Float32) -> None:
        """What a clip of this shape begins with."""
        self._graphs, self._handed = graphs, {}
        for graph, bound in zip(graphs, self._bound, strict=True):
            for one, evaluation in zip(bound, graph.evaluations, strict=True):
                one.load(evaluation.constants)
        self._latents[0].update_inplace(np.ascontiguousarray(latents))
        self._clean[0].update_inplace(np.zeros_like(latents))

    def step(self, index: int, changed: dict[str, Array]) -> None:
        """Run step `index`; `changed` are inputs besides the rows."""
        for graph, bound in zip(self._graphs, self._bound, strict=True):
            one = bound[graph.steps[index]]
            one.bind_input("latents", self._latents[0])
            for name in one.taken:
                one.bind_input(name, self._handed[name])
            if graph is self._graphs[-1]:
                one.bind_input("previous_clean", self._clean[0])
                one.bind_output("next_latents", self._latents[1])
                one.bind_output("clean", self._clean[1])
            handed = tuple(id(self._handed[name]) for name in one.taken)
            one.run(changed | {name: rows[index] for name, rows in graph.rows.items()}, (self._parity, handed))
            self._handed |= one.made
        self._latents.reverse()
        self._clean.reverse()
        self._parity ^= 1

    def latents(self) -> Float32:
        """A copy of the latents after the steps so far."""
        return np.array(self._latents[0].numpy())
