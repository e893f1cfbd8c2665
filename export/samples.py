"""Inputs and expected outputs for every graph, computed with the PyTorch models themselves before those are freed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import T5EncoderModel

from ezaudio.config import EzAudioConfig
from ezaudio.controlnet import ControlNet
from ezaudio.dit import InnerBlocks, MaskDiT
from ezaudio.export.graphs import (
    ConditionerGraph,
    ControlNetGraph,
    DenoiserGraph,
    FrameBiasGraph,
    Graph,
    ModulationGraph,
)
from ezaudio.sampling import Condition, solver_step, velocity
from ezaudio.text import encode_text
from ezaudio.vae import AutoencoderOobleck

TIMESTEP = 601
LATER_TIMESTEP = 561  # of a step that reuses the inner blocks
GUIDANCE_MODES = ("guided", "negative", "unguided")
CONDITIONING_SCALE = 0.8
# No solver's row, but one in which every coefficient matters and the velocity most: its error is what is judged.
COEFFICIENTS = (0.03, 1.0, 0.02, 0.01, 0.01, -1.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a graph is fed with and what its PyTorch module answers, by tensor name; `case` where there are several."""

    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    case: str = ""

    @classmethod
    def of(cls, graph: Graph, inputs: dict[str, Tensor], expected: tuple[Tensor, ...], case: str = "") -> Sample:
        names = [spec.name for spec in graph.outputs]
        return cls(
            {spec.name: inputs[spec.name].numpy() for spec in graph.inputs},
            {name: value.numpy() for name, value in zip(names, expected, strict=True)},
            case,
        )


def _as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


class Sampler:
    """Draws one set of random conditions and answers for any graph with the models it was cut from.

    Two clips, one with a shorter prompt than the other; one has its middle frames to generate and keeps the rest.
    """

    def __init__(self, config: EzAudioConfig, seed: int = 0) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.batch, self.frames, self.tokens = 2, 38, 7
        dit = config.dit
        self.latents, self.given, self.previous_clean, self.noise = (
            self.normal(self.batch, dit.latent_channels, self.frames) for _ in range(4)
        )
        self.mask = torch.ones(self.batch, self.frames, dtype=torch.bool)
        self.mask[1, :9] = False
        self.energy = torch.rand(self.batch, 1, 2 * self.frames, generator=self.generator)
        self.context, self.negative = (self.normal(self.batch, self.tokens, dit.context_width) for _ in range(2))
        self.context_mask = torch.ones(self.batch, self.tokens, dtype=torch.bool)
        self.context_mask[0, 4:] = False
        self.scale, self.rescale = torch.tensor([3.0, 5.0]), torch.tensor([0.0, 0.75])

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def of_module(self, graph: Graph, inputs: dict[str, Tensor]) -> Sample:
        """Expected outputs from the graph's own forward, for graphs whose folding the denoiser's sample proves."""
        with torch.no_grad():
            return Sample.of(graph, inputs, _as_tuple(graph(*(inputs[spec.name] for spec in graph.inputs))))

    def text_encoder(self, graph: Graph, encoder: T5EncoderModel) -> Sample:
        ids = torch.randint(3, self.config.text.vocab_size, (self.batch, self.tokens), generator=self.generator)
        mask = self.context_mask.long()
        with torch.no_grad():
            states = encode_text(encoder, ids, mask)
        return Sample.of(graph, {"input_ids": ids, "attention_mask": mask}, (states,))

    def encoder(self, graph: Graph, vae: AutoencoderOobleck) -> Sample:
        audio = self.normal(self.batch, self.frames * self.config.vae.hop) * 0.1
        with torch.no_grad():
            return Sample.of(graph, {"audio": audio}, vae.encode_moments(audio[:, None]))

    def decoder(self, graph: Graph, vae: AutoencoderOobleck) -> Sample:
        with torch.no_grad():
            return Sample.of(graph, {"latents": self.latents}, (vae.decode(self.latents)[:, 0],))

    def modulation(self, graph: ModulationGraph) -> Sample:
        return self.of_module(graph, {"timesteps": torch.tensor([999, TIMESTEP, 0])})

    def conditioner(self, graph: ConditionerGraph) -> Sample:
        return self.of_module(graph, {"text_states": self.context})

    def frame_bias(self, graph: FrameBiasGraph) -> Sample:
        return self.of_module(graph, {"given": self.given, "mask": self.mask, "energy": self.energy})

    def _condition(self, mode: str) -> Condition:
        condition = Condition(self.context, self.context_mask, given=self.given, mask=self.mask, energy=self.energy)
        if mode == "guided":  # the empty prompt: one valid token
            return replace(
                condition,
                negative_context=self.negative[:, :1],
                negative_mask=torch.ones(self.batch, 1, dtype=torch.bool),
            )
        if mode == "negative":
            return replace(condition, negative_context=self.negative, negative_mask=self.context_mask.flip(0))
        return condition

    @torch.no_grad()
    def _hoisted(
        self,
        mode: str,
        conditioner: ConditionerGraph,
        modulation: ModulationGraph,
        frame_bias: FrameBiasGraph,
        timestep: int = TIMESTEP,
    ) -> dict[str, Tensor]:
        """What the graphs before the step graph hand to it."""
        condition = self._condition(mode)
        modulations = _as_tuple(modulation(torch.tensor([timestep])))
        names = ("block_modulation", "final_modulation")
        inputs = {name: value[0] for name, value in zip(names, modulations, strict=False)}
        context, mask = condition.context, condition.context_mask
        if mode == "negative":
            assert condition.negative_context is not None
            assert condition.negative_mask is not None
            context, mask = torch.cat([context, condition.negative_context]), torch.cat([mask, condition.negative_mask])
        keys, values, constant = conditioner(context)
        if mode == "guided":
            constant = conditioner(condition.negative_context)[2]
        bias = (
            frame_bias(self.given, self.mask)
            if frame_bias.condition is None
            else frame_bias(self.given, self.mask, self.energy)
        )
        return inputs | {
            "latents": self.latents,
            "frame_bias": bias,
            "cross_keys": keys,
            "cross_values": values,
            "context_mask": mask,
            "cross_constant": constant if mode == "guided" else constant[:, :0],
            "conditioning_scale": torch.tensor(CONDITIONING_SCALE),
        }

    @torch.no_grad()
    def controlnet(
        self,
        graph: ControlNetGraph,
        dit: MaskDiT,
        controlnet: ControlNet,
        conditioner: ConditionerGraph,
        modulation: ModulationGraph,
        frame_bias: FrameBiasGraph,
    ) -> list[Sample]:
        return [
            Sample.of(
                graph,
                self._hoisted(mode, conditioner, modulation, frame_bias),
                (self._residuals(mode, dit, controlnet),),
                mode,
            )
            for mode in GUIDANCE_MODES
        ]

    @torch.no_grad()
    def _residuals(self, mode: str, dit: MaskDiT, controlnet: ControlNet) -> Tensor:
        """(blocks, R, L, D) from the ControlNet itself, one guidance branch after the other."""
        condition = self._condition(mode)
        branches = [(condition.context, condition.context_mask)]
        if condition.negative_context is not None and condition.negative_mask is not None:
            branches.append((condition.negative_context, condition.negative_mask))
        inputs, timesteps = dit.assemble(self.latents, self.given, self.mask), torch.full((self.batch,), TIMESTEP)
        results = [
            torch.stack(controlnet(inputs, timesteps, context, mask, self.energy, CONDITIONING_SCALE))
            for context, mask in branches
        ]
        return torch.cat(results, dim=1)

    @torch.no_grad()
    def denoiser(
        self,
        graph: DenoiserGraph,
        dit: MaskDiT,
        conditioner: ConditionerGraph,
        modulation: ModulationGraph,
        frame_bias: FrameBiasGraph,
        controlnet: ControlNet | None = None,
    ) -> list[Sample]:
        """The whole step, expected from `MaskDiT` (and `ControlNet`) run branch by branch.

        The shallow graph's is a later step on other latents, after one on these that ran every block.
        """
        samples = []
        for mode in GUIDANCE_MODES:
            inner = (InnerBlocks(), InnerBlocks())
            condition = self._condition(mode)

            def predict(latents: Tensor, timestep: int) -> Tensor:
                return velocity(
                    dit,
                    condition,  # noqa: B023 - called within the iteration
                    latents,
                    timestep,
                    self.scale,
                    self.rescale,
                    controlnet,
                    CONDITIONING_SCALE,
                    inner,  # noqa: B023
                )

            timestep, latents = TIMESTEP, self.latents
            predicted = predict(latents, timestep)
            made = torch.cat([state.output for state in inner if state.output is not None])
            if graph.name == "denoiser_shallow":
                timestep, latents = LATER_TIMESTEP, self.latents * 0.9 + self.noise * 0.1
                for state in inner:
                    state.reused = True
                predicted = predict(latents, timestep)
            inputs = self._hoisted(mode, conditioner, modulation, frame_bias, timestep) | {
                "latents": latents,
                "previous_clean": self.previous_clean,
                "noise": self.noise,
                "coefficients": torch.tensor(COEFFICIENTS),
                "guidance_scale": self.scale,
                "guidance_rescale": self.rescale,
                "inner": made,
            }
            if controlnet is not None:
                inputs["residuals"] = self._residuals(mode, dit, controlnet)
            expected = solver_step(inputs["coefficients"], latents, predicted, self.previous_clean, self.noise)
            outputs = (*expected, made) if graph.name == "denoiser" else expected
            samples.append(Sample.of(graph, inputs, outputs, mode))
        return samples
