"""A step's parts in plain PyTorch: the exported modules as they are. `fused.py` has the same functions on Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ezaudio.export.graphs import ConditionerGraph, ControlNetGraph, DenoiserGraph, ModulationGraph
from ezaudio.export.vae_graphs import DecoderGraph
from ezaudio.runtime.torch_backend.request import Draws, Given
from ezaudio.sampling import guide, solver_step

DRAWS_ON_DEVICE = False


def condition(graph: ConditionerGraph, text_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every block's cross-attention keys, values, and output for a one-token prompt."""
    return graph(text_states)


def modulations(graph: ModulationGraph, timesteps: Tensor) -> tuple[Tensor, ...]:
    """Block modulation (N, blocks, 6, D) and, of the denoiser, final modulation (N, 2, D)."""
    found = graph(timesteps)
    return found if isinstance(found, tuple) else (found,)


def velocity(graph: DenoiserGraph, given: Given) -> tuple[Tensor, Tensor]:
    """(R, C, L) of every branch, prompts first; and (R, L, D), what enters the last outer blocks."""
    return graph.velocity(given)


def residuals(graph: ControlNetGraph, given: Given) -> Tensor:
    """(blocks, R, L, D)."""
    return graph(*(given[spec.name] for spec in graph.inputs))


def decode(graph: DecoderGraph, latents: Tensor) -> Tensor:
    """Latents (1, C, L) → samples (1, L·hop)."""
    return graph(latents)


def start(draws: Draws, shape: tuple[int, int, int]) -> Tensor:
    """Noise (B, C, L) that the first step starts from."""
    assert draws.start is not None
    return draws.start


def sampler_step(
    latents: Tensor,
    conditional: Tensor,
    negative: Tensor | None,
    clean: Tensor | None,
    row: Tensor,
    scale: Tensor,
    rescale: Tensor,
    draws: Draws,
    step: int,
    given: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Guidance, rescale and one row of the solver: (next latents, clean estimate), (B, C, L) each.

    Args:
        given: latent and mask (B, L) whose frames are put back where it is False, in the last step.
    """
    velocity = conditional if negative is None else guide(conditional, negative, scale, rescale)
    zeros = torch.zeros_like(latents)
    noise = zeros if draws.steps is None else draws.steps[step]
    following, clean = solver_step(row, latents, velocity, zeros if clean is None else clean, noise)
    if given is not None:
        following = torch.where(given[1][:, None], following, given[0])
    return following, clean
