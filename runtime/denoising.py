"""What a sampling loop needs, in the form that every backend takes: graphs, what stays, and one row for every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ezaudio.runtime.tensor_spec import TensorSpec

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

OnStepDone = Callable[[int], None]
"""Called with the number of a step that is done; whatever it raises ends the loop."""

HANDED_ON = ("residuals", "inner")
"""Tensors that one graph of a loop makes and the next that takes them reads: the ControlNet's residuals in the same
step, what the inner blocks made in any later one."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One way to run a step: a graph, and by name the inputs that are the same whenever it runs so."""

    graph: str
    constants: dict[str, Array]


@dataclass(frozen=True, slots=True)
class StepGraph:
    """What runs once a step: the denoiser, or the ControlNet before it.

    Attributes:
        evaluations: the ways in which steps are run: guided or not, all blocks or the outermost.
        steps: for every step the number of its evaluation.
        rows: inputs that change with the step, (num_steps, …) each.
    """

    evaluations: tuple[Evaluation, ...]
    steps: tuple[int, ...]
    rows: dict[str, Array]

    @property
    def num_steps(self) -> int:
        return len(self.steps)


def loop_shape(graphs: Sequence[StepGraph], latents: Float32) -> tuple[Any, ...]:
    """What two runs must share for the second to take the buffers, and the captured graphs, of the first."""
    inputs: list[tuple[Any, ...]] = []
    for graph in graphs:
        for evaluation in graph.evaluations:
            shapes = ((name, value.shape) for name, value in sorted(evaluation.constants.items()))
            inputs.append((evaluation.graph, *shapes))
        inputs.append((graph.steps, *((name, rows.shape) for name, rows in sorted(graph.rows.items()))))
    return (*inputs, latents.shape)


class Graphs(Protocol):
    """A backend that has opened a bundle. Not thread-safe."""

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """One evaluation of a graph on host arrays: outputs by name."""

    def specs(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a graph."""

    def release(self, name: str | None = None) -> None:
        """Close what is open for one graph, or all; it is opened again when used."""


class Sessions(Graphs, Protocol):
    """A backend that runs a clip graph by graph, and the sampling loop between them."""

    def denoise(
        self,
        denoiser: StepGraph,
        control: StepGraph | None,
        latents: Float32,
        noise: Callable[[int], Float32] | None,
        on_step_done: OnStepDone,
    ) -> Float32:
        """Run the whole loop.

        Args:
            denoiser: inputs other than `latents`, `previous_clean`, `noise` and those of `HANDED_ON`.
            control: a ControlNet's graph, which runs before the denoiser in every step; inputs other than `latents`.
            latents: (1, C, L) to start from.
            noise: draws what step n adds, (1, C, L); called in order, n from 0. None where steps add none.

        Returns:
            Latents (1, C, L) after the last step.
        """
