"""Backend `torch`: graphs run one by one, and whole generations, recorded as CUDA graphs where there is a GPU.

    sessions = TorchSessions(graphs, config, "cuda", torch.float16)
    made = sessions.generate(request)       # made.samples (B, L·hop), made.latents (B, C, L)

Requests of one `Shape` replay one graph. This project's CI has no GPU: what runs there is all but the recording.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from ezaudio.config import EzAudioConfig
from ezaudio.export.graphs import Graph
from ezaudio.runtime.errors import BackendError, BundleError
from ezaudio.runtime.tensor_spec import TensorSpec
from ezaudio.runtime.torch_backend import generation, modules, plain
from ezaudio.runtime.torch_backend.exact import exact
from ezaudio.runtime.torch_backend.recording import Direct, Function, OnStepDone, Recording, Tensors
from ezaudio.runtime.torch_backend.request import Float32, Request, Shape, bucket, host_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

logger = logging.getLogger(__name__)

MAX_RECORDINGS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """latents (B, C, L), samples (B, L·hop) float32, not clipped; samples are None where they were not wanted."""

    latents: Float32
    samples: Float32 | None


class TorchSessions:
    """Not thread-safe.

    Args:
        graphs: by name, of `modules.graphs_of` or `bundle.load_graphs`; their weights move to the device.
        device: a CUDA device, or `cpu`.
        dtype: float32, float16 or bfloat16, what products compute in and their weights are held in.
        fused: run steps on the Triton operators. None: on a CUDA device where Triton is installed.
        recorded: run generations and the text encoder as CUDA graphs. None: on a CUDA device.
    """

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        config: EzAudioConfig,
        device: str | torch.device,
        dtype: torch.dtype,
        fused: bool | None = None,
        recorded: bool | None = None,
    ) -> None:
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        on_gpu = self.device.type == "cuda"
        if on_gpu and self.device.index is None:  # the present one, also when a program turns to another later
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.fused = on_gpu and find_spec("triton") is not None if fused is None else fused
        self.recorded = on_gpu if recorded is None else recorded
        if on_gpu and not self.fused:
            logger.warning("steps run on PyTorch's own operators, without the fused ones of Triton")
        with _room("the model's weights"):
            modules.place(graphs, self.device, dtype)
        self._graphs = graphs
        self._network = generation.Network(graphs, _parts(self.fused), config.vae)
        self._functions: OrderedDict[object, Direct | Recording] = OrderedDict()
        self._stream = torch.cuda.Stream(self.device) if self.recorded else None

    def specs(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a graph. Raises BundleError when there is no such graph."""
        graph = self._graph(name)
        return tuple(graph.inputs), tuple(graph.outputs)

    def _graph(self, name: str) -> Graph:
        if name not in self._graphs:
            raise BundleError(f"the bundle has no graph {name!r}: export it again")
        return self._graphs[name]

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """One evaluation of a graph on host arrays, in plain PyTorch: outputs by name."""
        graph = self._graph(name)
        if name == "text_encoder":
            return self._encode(graph, inputs["input_ids"], inputs["attention_mask"])
        with exact(), self._on_device(), _room(f"graph {name!r}"):
            outputs = graph(*(torch.from_numpy(np.array(inputs[spec.name])).to(self.device) for spec in graph.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {spec.name: output.float().cpu().numpy() for spec, output in zip(graph.outputs, outputs, strict=True)}

    def _encode(self, graph: Graph, ids: Array, mask: Array) -> dict[str, Array]:
        """Text states, at a padded length, so that few recordings serve all prompts."""
        batch, count = ids.shape
        tokens = bucket(count, self.config.text.max_tokens)
        inputs = {
            name: torch.from_numpy(np.pad(value.astype(np.int64), [(0, 0), (0, tokens - count)]))
            for name, value in (("input_ids", ids), ("attention_mask", mask))
        }

        def encode(x: Tensors, after_step: OnStepDone) -> dict[str, torch.Tensor]:
            return {"text_states": graph(x["input_ids"], x["attention_mask"])}

        states = self._call(("text_encoder", batch, tokens), encode, inputs, 0)["text_states"]
        return {"text_states": states[:, :count].float().cpu().numpy()}

    def generate(self, request: Request, on_step_done: OnStepDone | None = None) -> Made:
        """The clips of a request. `on_step_done` is called after every step; whatever it raises ends the call."""
        shape = Shape.of(request, self.config.text.max_tokens, self._network.parts.DRAWS_ON_DEVICE)
        inputs = host_inputs(request, shape, self.config.dit.latent_channels)

        def function(x: Tensors, after_step: OnStepDone) -> dict[str, torch.Tensor]:
            return generation.generate(self._network, shape, x, after_step)

        made = self._call(shape, function, inputs, len(shape.steps), on_step_done)
        samples = made["samples"].cpu().numpy() if shape.decoded else None
        return Made(made["latents"].cpu().numpy(), samples)

    def _call(
        self,
        key: object,
        function: Function,
        inputs: Tensors,
        num_steps: int,
        on_step_done: OnStepDone | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run the function, recorded at the first call with this key; the least used recordings make way."""
        with exact(), self._on_device(), _room("this length and batch"):
            if key in self._functions:
                self._functions.move_to_end(key)
            elif self._stream is None:
                self._functions[key] = Direct(function, self.device)
            else:
                self._functions[key] = self._recorded(function, inputs, num_steps, self._stream)
            while len(self._functions) > MAX_RECORDINGS:
                self._functions.popitem(last=False)
            return self._functions[key](inputs, on_step_done)

    def _recorded(self, function: Function, inputs: Tensors, num_steps: int, stream: torch.cuda.Stream) -> Recording:
        """A new recording; where there is no room for it beside the others, they make way."""
        others = [one.pool for one in self._functions.values() if isinstance(one, Recording)]
        pool = others[0] if others else torch.cuda.graph_pool_handle()
        try:
            return Recording(function, inputs, num_steps, stream, pool)
        except torch.OutOfMemoryError:
            if not others:
                raise
        self.release()  # here, and not where the error still holds what there was room for
        return Recording(function, inputs, num_steps, stream, torch.cuda.graph_pool_handle())

    def _on_device(self) -> AbstractContextManager[None]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def release(self, name: str | None = None) -> None:
        """Give the memory of all recordings back; weights stay."""
        self._functions.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _room(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        fix = "close other programs, or use --precision fp16"
        raise BackendError(f"no room on the GPU for {what} ({reason}): {fix}") from error


def _parts(fused: bool) -> ModuleType:
    if not fused:
        return plain
    from ezaudio.runtime.torch_backend import fused as on_triton

    return on_triton
