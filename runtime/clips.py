"""Settings → latents → samples of one clip: graph by graph, or as a backend does it that makes a clip as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ezaudio.config import EzAudioConfig
from ezaudio.runtime.conditioning import Conditioning
from ezaudio.runtime.decoding import decode_parts
from ezaudio.runtime.denoising import Evaluation, OnStepDone, Sessions, StepGraph
from ezaudio.runtime.noise import NoiseSource, PhiloxNoise, TorchNoise
from ezaudio.runtime.settings import Settings, plan_of
from ezaudio.runtime.solvers import SolverPlan, guided_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Given:
    """What a clip starts from besides its text.

    Attributes:
        latents, mask: (1, C, L) to keep where `mask` (1, L) is False.
        energy: (1, 1, 2L) for the ControlNet; None without one.
    """

    latents: Float32
    mask: NDArray[np.bool_]
    energy: Float32 | None = None


class Clips(Protocol):
    """Makes clips from a bundle that a backend has opened. Not thread-safe."""

    def latents(self, settings: Settings, given: Given, on_step_done: OnStepDone) -> Float32:
        """(1, C, L), the given frames among them."""

    def samples(self, settings: Settings, given: Given, on_step_done: OnStepDone) -> Float32:
        """(T,), not clipped."""

    def decode(self, latents: Float32) -> Float32:
        """Latents (1, C, L) → samples (1, L·hop), not clipped."""

    def close(self) -> None:
        """What keeps a clip's memory is no longer needed; called after a clip that was decoded in chunks."""


class _Ahead:
    """Draws of a source in order, up to two of them made before they are asked for: while the model runs."""

    def __init__(self, drawing: Executor, source: NoiseSource, shape: tuple[int, ...], count: int) -> None:
        self._waiting: deque[Future[Float32]] = deque()
        self._begin = lambda draw: self._waiting.append(drawing.submit(source.draw, draw, shape))
        self._left = iter(range(count))
        for draw in islice(self._left, 2):
            self._begin(draw)

    def next(self) -> Float32:
        drawn = self._waiting.popleft().result()
        for draw in islice(self._left, 1):
            self._begin(draw)
        return drawn


class GraphByGraph:
    """Conditions, denoises and decodes in turn: for any backend that runs graphs and the loop.

    low_memory: close the graphs of a stage before those of the next open.
    """

    def __init__(
        self, sessions: Sessions, conditioning: Conditioning, config: EzAudioConfig, low_memory: bool = False
    ) -> None:
        self._sessions, self._conditioning, self._config = sessions, conditioning, config
        self._low_memory = low_memory

    def close(self) -> None:
        """Between two stages."""
        if self._low_memory:
            self._sessions.release()

    def samples(self, settings: Settings, given: Given, on_step_done: OnStepDone) -> Float32:
        latents = self.latents(settings, given, on_step_done)
        num_samples = round(settings.duration_s * self._config.vae.sample_rate)
        samples = decode_parts(self.decode, latents, num_samples, self._config.vae)
        self.close()
        return samples

    def decode(self, latents: Float32) -> Float32:
        return self._sessions.run("decoder", latents=latents)["audio"]  # type: ignore[return-value]

    def latents(self, settings: Settings, given: Given, on_step_done: OnStepDone) -> Float32:
        plan = plan_of(settings, self._config)
        source: NoiseSource = (TorchNoise if settings.noise == "torch" else PhiloxNoise)(settings.seed)
        with ThreadPoolExecutor(1) as drawing:
            count = 1 + plan.num_steps if plan.draws_noise else 1
            return self._latents(
                settings, plan, given, _Ahead(drawing, source, given.latents.shape, count), on_step_done
            )

    def _latents(
        self, settings: Settings, plan: SolverPlan, given: Given, ahead: _Ahead, on_step_done: OnStepDone
    ) -> Float32:
        controlled = given.energy is not None
        kept = self._sessions.run("frame_bias", given=given.latents, mask=given.mask)
        kept["guidance_scale"] = np.array([settings.guidance_scale], np.float32)
        kept["guidance_rescale"] = np.array([settings.guidance_rescale], np.float32)
        rows: dict[str, Array] = {**self._conditioning.modulation(plan), "coefficients": plan.rows}
        name = "denoiser_controlled" if controlled else "denoiser"
        denoiser = self._step_graph(name, settings, plan, kept, rows)
        control = self._control(settings, given, plan) if controlled else None
        start = ahead.next()
        self.close()
        noise: Callable[[int], Float32] | None = (lambda step: ahead.next()) if plan.draws_noise else None
        latents = self._sessions.denoise(denoiser, control, start, noise, on_step_done)
        self.close()
        return np.where(given.mask[:, None], latents, given.latents)

    def _control(self, settings: Settings, given: Given, plan: SolverPlan) -> StepGraph:
        """The ControlNet's graph with its inputs."""
        assert given.energy is not None
        kept = self._sessions.run("controlnet_frame_bias", given=given.latents, mask=given.mask, energy=given.energy)
        kept["conditioning_scale"] = np.array(settings.control_scale, np.float32)
        rows: dict[str, Array] = {**self._conditioning.modulation(plan, "controlnet_")}
        return self._step_graph("controlnet", settings, plan, kept, rows)

    def _step_graph(
        self, name: str, settings: Settings, plan: SolverPlan, kept: dict[str, Array], rows: dict[str, Array]
    ) -> StepGraph:
        """A graph's evaluations: with guidance or without, with all blocks or, where they are reused, the outermost.

        Args:
            kept: inputs that no step changes, besides those of cross-attention.
        """
        prefix = "controlnet_" if name == "controlnet" else ""
        guided = guided_steps(plan, settings.guidance_interval)
        ways = [
            (f"{name}_shallow" if step in settings.reuse else name, guided[step] and settings.guidance_scale != 1)
            for step in range(plan.num_steps)
        ]
        different = list(dict.fromkeys(ways))
        evaluations = tuple(
            Evaluation(graph, kept | self._conditioning.cross_inputs(settings, with_guidance, prefix))
            for graph, with_guidance in different
        )
        return StepGraph(evaluations, tuple(different.index(way) for way in ways), rows)
