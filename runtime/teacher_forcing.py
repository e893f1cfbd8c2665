"""The velocity that a bundle predicts at given latents: what two bundles are compared by, step for step.

Whole sampling loops of two precisions drift apart however small their error is. Teacher-forced, both are given the same
latents at every step, and what is compared is the velocity after guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ezaudio.runtime.conditioning import Conditioning
from ezaudio.runtime.denoising import Graphs
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.settings import resolve
from ezaudio.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

VELOCITY_ROW = np.array([0, 1, 0, 0, 0, 1], np.float32)  # next latents and clean estimate are the velocity itself
MODES = ("guided", "negative", "unguided")
"""Of guidance: with the empty negative prompt, with another, without."""
CONTROL_SCALE = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Where a velocity is asked for.

    Attributes:
        latents: (1, C, L).
        mode: of guidance.
        graph: the denoiser that is asked. The shallow one is given what the whole one makes at the same place, and so
            is to answer the same.
    """

    latents: Float32
    timestep: int
    prompt: str
    mode: str = MODES[0]
    graph: str = "denoiser"


class TeacherForced:
    """A bundle's graphs, asked for velocities, samples and moments."""

    def __init__(self, sessions: Graphs, folder: Path, manifest: Manifest, prompts: tuple[str, ...]) -> None:
        """prompts: those that will be asked for; the first also serves as the negative prompt."""
        self.sessions, self.manifest, self._negative = sessions, manifest, prompts[0]
        self.config = config = manifest.config
        tokenizer = PromptTokenizer(folder / "spiece.model", config.text.max_tokens)
        self.conditioning = Conditioning(sessions, tokenizer, cached_prompts=len(prompts) + 1)
        self._usual = resolve(config, "any", seed=0)
        self._biases: dict[tuple[str, int], Array] = {}

    def velocity(self, point: Point) -> Float32:
        """(1, C, L), after guidance."""
        return self.sessions.run(point.graph, **self.inputs(point))["next_latents"]  # type: ignore[return-value]

    def inputs(self, point: Point) -> dict[str, Array]:
        """What the denoiser's graph is fed with."""
        inputs = self._body(point, "") | {
            "previous_clean": np.zeros_like(point.latents),
            "noise": np.zeros_like(point.latents),
            "coefficients": VELOCITY_ROW,
            "guidance_scale": np.array([self._guidance_scale], np.float32),
            "guidance_rescale": np.array([self._usual.guidance_rescale], np.float32),
        }
        if point.graph == "denoiser_controlled":
            inputs["residuals"] = self.sessions.run("controlnet", **self.control_inputs(point))["residuals"]
        elif point.graph == "denoiser_shallow":
            inputs["inner"] = self.sessions.run("denoiser", **inputs)["inner"]
        return inputs

    def control_inputs(self, point: Point) -> dict[str, Array]:
        """What the ControlNet's graph is fed with."""
        return self._body(point, "controlnet_") | {"conditioning_scale": np.array(CONTROL_SCALE, np.float32)}

    @property
    def _guidance_scale(self) -> float:
        """At least 2, so that an error of guidance shows."""
        return max(self._usual.guidance_scale, 2.0)

    def _body(self, point: Point, prefix: str) -> dict[str, Array]:
        negative = self._negative if point.mode == "negative" else ""
        settings = replace(self._usual, prompt=point.prompt, negative_prompt=negative)
        inputs = self.conditioning.cross_inputs(settings, point.mode != "unguided", prefix)
        modulation = self.sessions.run(f"{prefix}modulation", timesteps=np.array([point.timestep], np.int64))
        inputs |= {name: rows[0] for name, rows in modulation.items()}
        frames = point.latents.shape[2]
        return inputs | {"latents": point.latents, "frame_bias": self._frame_bias(prefix, frames)}

    def _frame_bias(self, prefix: str, frames: int) -> Array:
        if (prefix, frames) not in self._biases:
            given = np.zeros((1, self.config.vae.latent_channels, frames), np.float32)
            inputs: dict[str, Array] = {"given": given, "mask": np.ones((1, frames), np.bool_)}
            if prefix:
                wave = 0.5 + 0.5 * np.sin(np.arange(2 * frames) / 7.0)
                inputs["energy"] = wave.astype(np.float32)[None, None]
            self._biases[prefix, frames] = self.sessions.run(f"{prefix}frame_bias", **inputs)["frame_bias"]
        return self._biases[prefix, frames]
