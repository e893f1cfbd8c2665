"""The sampling loop as one CUDA graph: every step's inputs lie on the device before it starts.

    per run:  constants and rows → device; start latents; launch; latents → pinned memory
    per step: [controlnet: latents → residuals]; denoiser: latents, previous clean → next latents, clean; number → host

A step takes one of the ways that `StepGraph.evaluations` lists, each an engine with its own constants; what one hands
on to the next (`denoising.HANDED_ON`) stays on the device.

Two buffers of latents and two of clean estimates take turns, so a step's addresses depend on its number alone and the
whole loop is captured with the addresses in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ezaudio.runtime.denoising import HANDED_ON, Evaluation, OnStepDone, StepGraph, loop_shape
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
    """An evaluation's execution, which keeps its shapes, and where its tensors lie on the device.

    Attributes:
        taken: names of the inputs that another evaluation hands on.
        made: addresses of the outputs that are handed on.
    """

    execution: Execution
    constants: dict[str, int]
    rows: dict[str, Rows]
    taken: tuple[str, ...]
    made: dict[str, int]

    def upload(self, stream: device.Stream, evaluation: Evaluation) -> None:
        for name, address in self.constants.items():
            stream.upload(address, np.ascontiguousarray(evaluation.constants[name]))

    def enqueue(self, stream: device.Stream, step: int, others: dict[str, int]) -> None:
        """others: addresses of the tensors that the loop itself keeps."""
        rows = {name: table.address(step) for name, table in self.rows.items()}
        self.execution.bind({**self.constants, **rows, **self.made, **others})
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
        self._numbers = Rows(self._memory, "numbers", _numbers(self._num_steps))
        self._reached = device.PinnedArray((1,), np.dtype(np.int32))
        self._result = device.PinnedArray(latents.shape, np.dtype(np.float32))
        try:
            self._steps = [graph.steps for graph in graphs]
            self._rows = [
                {name: Rows(self._memory, f"{part} {name}", rows) for name, rows in graph.rows.items()}
                for part, graph in enumerate(graphs)
            ]
            self._placed = [
                [
                    self._place(engines, f"{part} {way}", one, self._rows[part], latents)
                    for way, one in enumerate(graph.evaluations)
                ]
                for part, graph in enumerate(graphs)
            ]
            self._upload(graphs, latents)
            self._warm_up()  # outside the capture: engines do what a new shape needs in their first run
            stream.wait()
            self._graph = stream.capture(self._all_steps)
        except BaseException:
            self._free_memory()
            raise

    def _place(
        self, engines: Engines, label: str, evaluation: Evaluation, rows: dict[str, Rows], latents: Float32
    ) -> Placed:
        inputs, outputs = engines.specs(evaluation.graph)
        shapes = {"latents": latents.shape, **{name: value.shape for name, value in evaluation.constants.items()}}
        sizes = axis_sizes([spec for spec in inputs if spec.name in shapes], shapes)
        execution = engines.execution(evaluation.graph, sizes)
        names = {spec.name for spec in inputs}
        return Placed(
            execution,
            {
                name: self._memory.address(f"{label} {name}", max(value.nbytes, 1))  # an empty tensor needs one, too
                for name, value in evaluation.constants.items()
                if name in names
            },
            {name: table for name, table in rows.items() if name in names},
            tuple(name for name in HANDED_ON if name in names),
            {
                spec.name: self._memory.address(
                    f"{label} {spec.name}", int(np.prod(spec.sizes(sizes))) * np.dtype(spec.dtype).itemsize
                )
                for spec in outputs
                if spec.name in HANDED_ON
            },
        )

    def _upload(self, graphs: Sequence[StepGraph], latents: Float32) -> None:
        for ways, tables, graph in zip(self._placed, self._rows, graphs, strict=True):
            for placed, evaluation in zip(ways, graph.evaluations, strict=True):
                placed.upload(self._stream, evaluation)
            for name, table in tables.items():
                table.upload(self._stream, graph.rows[name])
        self._numbers.upload(self._stream, _numbers(self._num_steps))
        self._stream.upload(self._latents[0], np.ascontiguousarray(latents))
        self._stream.clear(self._clean[0], latents.nbytes)
        self._stream.wait()

    def _step(self, step: int, handed: dict[str, int]) -> None:
        """Put one step on the stream. handed: addresses of what was handed on so far, updated."""
        now, following = step % 2, (step + 1) % 2
        chosen = [ways[steps[step]] for ways, steps in zip(self._placed, self._steps, strict=True)]
        for placed in chosen:
            others = {"latents": self._latents[now], **{name: handed[name] for name in placed.taken}}
            if placed is chosen[-1]:
                others["previous_clean"] = self._clean[now]
                others |= {"next_latents": self._latents[following], "clean": self._clean[following]}
            placed.enqueue(self._stream, step, others)
            handed |= placed.made
        self._stream.download(self._reached.address, self._numbers.address(step), self._reached.num_bytes)

    def _warm_up(self) -> None:
        """Run the first step of every kind, with those before it."""
        kinds = list(zip(*self._steps, strict=True))
        last = max(kinds.index(kind) for kind in set(kinds))
        handed: dict[str, int] = {}
        for step in range(last + 1):
            self._step(step, handed)

    def _all_steps(self) -> None:
        handed: dict[str, int] = {}
        for step in range(self._num_steps):
            self._step(step, handed)
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
