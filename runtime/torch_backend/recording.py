"""A function of tensors as a CUDA graph: static inputs, a warm-up, the recording, replays.

    recorded = Recording(function, inputs, pool)
    outputs = recorded(other_inputs)

Nothing here runs without a GPU; `Direct` is the same without recording, and what runs everywhere else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors, Callable[[int], None]], dict[str, Tensor]]
"""(inputs, after_step) → outputs; calls after_step(n) when it has enqueued step n."""

OnStepDone = Callable[[int], None]

POLL_S = 0.0002

_recording = threading.Lock()  # PyTorch records one graph at a time in a process


class Direct:
    """The function itself, its inputs moved to the device."""

    def __init__(self, function: Function, device: torch.device) -> None:
        self._function, self._device = function, device

    def __call__(self, inputs: Tensors, on_step_done: OnStepDone | None) -> dict[str, Tensor]:
        def after_step(step: int) -> None:
            if on_step_done is None:
                return
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            on_step_done(step)

        return self._function({name: value.to(self._device) for name, value in inputs.items()}, after_step)


class Recording:
    """The function as one CUDA graph.

    Outputs lie in the graph's memory: copy them before the next replay of any graph of the pool.

    Args:
        inputs: on the host; their shapes stay.
        num_steps: how often the function calls `after_step`.
        stream: to warm up and record on, one for all: libraries keep a workspace for each.
        pool: of `torch.cuda.graph_pool_handle`, whose memory graphs share that never run at the same time.
    """

    def __init__(
        self, function: Function, inputs: Tensors, num_steps: int, stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self.pool, device = pool, stream.device
        self._inputs = {
            name: torch.empty(value.shape, dtype=value.dtype, device=device) for name, value in inputs.items()
        }
        self._num_steps = num_steps
        self._numbers = torch.arange(num_steps, dtype=torch.int32, device=device)
        self._reached = torch.full((1,), -1, dtype=torch.int32, device="cpu").pin_memory()
        self._load(inputs)
        with _recording:
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                function(self._inputs, self._mark)  # before it: kernels compile, libraries take their workspace
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = function(self._inputs, self._mark)

    def _load(self, inputs: Tensors) -> None:
        for name, value in inputs.items():
            self._inputs[name].copy_(value.pin_memory(), non_blocking=True)

    def _mark(self, step: int) -> None:
        """The number of the step that is done, written to the host's memory by the device."""
        self._reached.copy_(self._numbers[step : step + 1], non_blocking=True)

    def __call__(self, inputs: Tensors, on_step_done: OnStepDone | None) -> dict[str, Tensor]:
        """One replay. Cancelling waits for the device: a graph that was launched runs to its end."""
        self._load(inputs)
        self._reached.fill_(-1)
        self._graph.replay()
        done = torch.cuda.Event()
        done.record()
        told = 0 if on_step_done is not None else self._num_steps
        try:
            while told < self._num_steps:
                finished = done.query()
                reached = self._num_steps if finished else int(self._reached.item()) + 1
                for step in range(told, reached):
                    assert on_step_done is not None
                    on_step_done(step)
                told = max(told, reached)
                if not finished:
                    time.sleep(POLL_S)
        finally:
            done.synchronize()
        return self._outputs
