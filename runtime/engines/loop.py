"""The sampling loop as one CUDA graph: every step's inputs lie on the device before it starts.

    per run:  constants and rows → device; start latents; launch; latents → pinned memory
    per step: [controlnet: latents → residuals]; denoiser: latents, previous clean → next latents, clean; number → host

Two buffers of latents and two of clean estimates take turns, so a step's addresses depend on its number alone and the
whole loop is captured with the addresses in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ezaudio.runtime.denoising import OnStepDone, StepGraph
from ezaudio.runtime.engines import device
from ezaudio.runtime.engines.profiles import axis_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ezaudio.runtime.engines.sessions import Execution
    from ezaudio.runtime.tensor_spec import TensorSpec

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

POLL_S = 0.0005


class Engines(Protocol):
    """What the loop needs of `EngineSessions`."""

    def specs(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]: ...

    def execution(self, name: str, sizes: dict[str, int]) -> Execution: ...


class Rows:
    """One input of every step, on the device: (num_steps, …), each row at an aligned address."""

    def __init__(self, memory: device.DeviceMemory, name: str, rows: Array) -> None:
        self._stride = device.aligned(rows[0].nbytes)
        self._address = memory.address(name, self._stride * len(rows))

    def upload(self, stream: device.Stream, rows: Array) -> None:
        stream.upload(self._address, pad_rows(rows, self._stride))

    def address(self, step: int) -> int:
        return self._address + step * self._stride


def pad_rows(rows: Array, stride: int) -> Array:
    """(num_steps, …) → bytes (num_steps, stride), zeros after each row."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    return np.pad(flat, [(0, 0), (0, stride - flat.shape[1])])


@dataclass(frozen=True, slots=True)
class Placed:
    """A graph's engine, and where its inputs lie on the device."""

    execution: Execution
    constants: dict[str, int]
    rows: dict[str, Rows]

    def upload(self, stream: device.Stream, graph: StepGraph) -> None:
        for name, address in self.constants.items():
            stream.upload(address, np.ascontiguousarray(graph.constants[name]))
        for name, table in self.rows.items():
            table.upload(stream, graph.rows[name])

    def enqueue(self, stream: device.Stream, step: int, others: dict[str, int]) -> None:
        """others: addresses of the tensors that the loop itself keeps."""
        self.execution.bind({**self.constants, **{name: r.address(step) for name, r in self.rows.items()}, **others})
        self.execution.enqueue(stream.handle)


class CapturedLoop:
    """A loop for one shape and one number of steps. `free` gives its memory back.

    Args:
        graphs: the denoiser, and before it the ControlNet where there is one; `noise` is an input like any other.
        latents: (1, C, L) to start from.
    """

    def __init__(self, engines: Engines, stream: device.Stream, graphs: Sequence[StepGraph], latents: Float32) -> None:
        self.shape = loop_shape(graphs, latents)
        self._stream, self._num_steps = stream, graphs[-1].num_steps
        self._memory = device.DeviceMemory()
        self._latents = [self._memory.address(f"latents {turn}", latents.nbytes) for turn in range(2)]
        self._clean = [self._memory.address(f"clean {turn}", latents.nbytes) for turn in range(2)]
        self._residuals: dict[str, int] = {}
        self._numbers = Rows(self._memory, "numbers", _numbers(self._num_steps))
        self._reached = device.PinnedArray((1,), np.dtype(np.int32))
        self._result = device.PinnedArray(latents.shape, np.dtype(np.float32))
        try:
            self._placed = [self._place(engines, graph, latents) for graph in graphs]
            self._upload(graphs, latents)
            self._step(0)  # outside the capture: engines do what a new shape needs in their first run
            stream.wait()
            self._graph = stream.capture(self._all_steps)
        except BaseException:
            self._free_memory()
            raise

    def _place(self, engines: Engines, graph: StepGraph, latents: Float32) -> Placed:
        inputs, outputs = engines.specs(graph.name)
        shapes = {"latents": latents.shape, **{name: value.shape for name, value in graph.constants.items()}}
        sizes = axis_sizes([spec for spec in inputs if spec.name in shapes], shapes)
        execution = engines.execution(graph.name, sizes)
        execution.prepare(inputs, sizes, self._stream.handle)
        for spec in (*inputs, *outputs):
            if spec.name == "residuals":
                num_bytes = int(np.prod(spec.sizes(sizes))) * np.dtype(spec.dtype).itemsize
                self._residuals["residuals"] = self._memory.address("residuals", num_bytes)
        return Placed(
            execution,
            {name: self._memory.address(f"{graph.name}.{name}", v.nbytes) for name, v in graph.constants.items()},
            {name: Rows(self._memory, f"{graph.name}.{name}", rows) for name, rows in graph.rows.items()},
        )

    def _upload(self, graphs: Sequence[StepGraph], latents: Float32) -> None:
        for placed, graph in zip(self._placed, graphs, strict=True):
            placed.upload(self._stream, graph)
        self._numbers.upload(self._stream, _numbers(self._num_steps))
        self._stream.upload(self._latents[0], np.ascontiguousarray(latents))
        self._stream.clear(self._clean[0], latents.nbytes)
        self._stream.wait()

    def _step(self, step: int) -> None:
        """Put one step on the stream."""
        now, following = step % 2, (step + 1) % 2
        given = {"latents": self._latents[now], **self._residuals}
        *control, denoiser = self._placed
        for placed in control:
            placed.enqueue(self._stream, step, given)
        made = {"next_latents": self._latents[following], "clean": self._clean[following]}
        denoiser.enqueue(self._stream, step, {**given, "previous_clean": self._clean[now], **made})
        self._stream.download(self._reached.address, self._numbers.address(step), self._reached.num_bytes)

    def _all_steps(self) -> None:
        for step in range(self._num_steps):
            self._step(step)
        self._stream.download(self._result.address, self._latents[self._num_steps % 2], self._result.num_bytes)

    def run(self, graphs: Sequence[StepGraph], latents: Float32, on_step_done: OnStepDone) -> Float32:
        """Latents after the last step. Cancelling waits for the device: a launched graph runs to its end."""
        self._upload(graphs, latents)
        self._reached.array[0] = -1
        self._graph.launch()
        told = 0
        try:
            while told < self._num_steps:
                busy = self._stream.busy()
                done = int(self._reached.array[0]) + 1 if busy else self._num_steps
                for step in range(told, done):
                    on_step_done(step)
                told = max(told, done)
                if busy:
                    time.sleep(POLL_S)
        finally:
            self._stream.wait()
        return self._result.array.astype(np.float32)

    def free(self) -> None:
        self._graph.free()
        self._free_memory()

    def _free_memory(self) -> None:
        self._memory.free()
        self._reached.free()
        self._result.free()


def _numbers(num_steps: int) -> Array:
    return np.arange(num_steps, dtype=np.int32)[:, None]


def loop_shape(graphs: Sequence[StepGraph], latents: Float32) -> tuple[Any, ...]:
    """What two runs must share to replay one captured graph."""
    inputs = []
    for graph in graphs:
        for kind in (graph.constants, graph.rows):
            inputs.append((graph.name, *((name, value.shape) for name, value in sorted(kind.items()))))
    return (*inputs, latents.shape)
