"""The reference sampling loop in plain PyTorch: what every backend must reproduce.

Reads as the system does: text states → start noise → one solver row per step → latents → audio.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ezaudio.controlnet import ControlNet
from ezaudio.dit import InnerBlocks, MaskDiT
from ezaudio.runtime.noise import NoiseSource
from ezaudio.runtime.solvers import SolverPlan, guided_steps


def standard_deviation(x: Tensor) -> Tensor:
    """Unbiased over channels and frames, in float32 and never zero: (B, C, L) → (B, 1, 1)."""
    x = x.float()
    centred = x - x.mean(dim=(1, 2), keepdim=True)
    variance = centred.square().sum(dim=(1, 2), keepdim=True) / (x.shape[1] * x.shape[2] - 1)
    return variance.clamp_min(1e-24).sqrt()


def guide(conditional: Tensor, negative: Tensor, scale: Tensor, rescale: Tensor) -> Tensor:
    """Guidance u + w·(c − u), its deviation pulled towards the conditional one (Lin et al. 2023, eq. 15–16).

    Args:
        conditional, negative: (B, C, L) velocities c and u.
        scale: (B,) guidance weight w.
        rescale: (B,) share φ of the rescaled result, 0 to 1.

    Returns:
        (B, C, L).
    """
    guided = negative + scale[:, None, None] * (conditional - negative)
    ratio = standard_deviation(conditional) / standard_deviation(guided)
    return guided * (1 + rescale[:, None, None] * (ratio - 1))


def solver_step(
    coefficients: Tensor, latents: Tensor, velocity: Tensor, previous_clean: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """One row of a `SolverPlan`: (next latents, clean estimate), all (B, C, L); coefficients (6,)."""
    from_latents, from_velocity, from_clean, from_noise, clean_latents, clean_velocity = coefficients.unbind(0)
    clean = clean_latents * latents + clean_velocity * velocity
    following = from_latents * latents + from_velocity * velocity + from_clean * previous_clean + from_noise * noise
    return following, clean


@dataclass(frozen=True, slots=True)
class Condition:
    """What steers the denoiser, constant over the steps.

    Attributes:
        context: (B, S, D_text) text states of the prompts.
        context_mask: (B, S) True where valid.
        negative_context, negative_mask: the same for the negative prompts; None without guidance.
        given: (B, C, L) clean latent to keep where `mask` (B, L) is False; None generates everything.
        energy: (B, 1, 2L) condition of the ControlNet.
    """

    context: Tensor
    context_mask: Tensor
    negative_context: Tensor | None = None
    negative_mask: Tensor | None = None
    given: Tensor | None = None
    mask: Tensor | None = None
    energy: Tensor | None = None


def velocity(
    dit: MaskDiT,
    condition: Condition,
    latents: Tensor,
    timestep: int,
    guidance_scale: Tensor,
    guidance_rescale: Tensor,
    controlnet: ControlNet | None = None,
    conditioning_scale: float = 1.0,
    inner: tuple[InnerBlocks, InnerBlocks] | None = None,
) -> Tensor:
    """Guided velocity of one step: (B, C, L) → (B, C, L). Each guidance branch runs by itself, as it is defined.

    inner: what steps share of the inner blocks, of the prompts and of the negative side.
    """
    timesteps = torch.full((latents.shape[0],), timestep, device=latents.device)
    of_prompts, of_negative = inner or (None, None)

    def branch(context: Tensor, mask: Tensor, inner: InnerBlocks | None) -> Tensor:
        residuals = None
        if controlnet is not None:
            assert condition.energy is not None
            inputs = dit.assemble(latents, condition.given, condition.mask)
            residuals = controlnet(inputs, timesteps, context, mask, condition.energy, conditioning_scale)
        return dit(latents, timesteps, context, mask, condition.given, condition.mask, residuals, inner)

    conditional = branch(condition.context, condition.context_mask, of_prompts)
    if condition.negative_context is None or condition.negative_mask is None:
        return conditional
    negative = branch(condition.negative_context, condition.negative_mask, of_negative)
    return guide(conditional, negative, guidance_scale, guidance_rescale)


@torch.no_grad()
def sample(
    dit: MaskDiT,
    plan: SolverPlan,
    condition: Condition,
    noise: list[NoiseSource],
    num_frames: int,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    controlnet: ControlNet | None = None,
    conditioning_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    reuse: tuple[int, ...] = (),
) -> Tensor:
    """Walk the solver's table from noise to clean latents.

    Args:
        noise: one source per item; an item's result does not depend on its batch.
        num_frames: L.
        guidance_scale: used when `condition` has a negative context.
        guidance_interval: lowest and highest noise level that is guided, see `runtime.solvers.guided_steps`.
        reuse: steps that take what the inner blocks made last in place of running them.

    Returns:
        (B, C, L) latents, the given frames restored when editing.
    """
    batch, device = len(noise), condition.context.device
    shape = (1, dit.config.latent_channels, num_frames)

    def draw(step: int) -> Tensor:
        return torch.cat([torch.from_numpy(source.draw(step, shape)) for source in noise]).to(device)

    scale, rescale = (torch.full((batch,), value, device=device) for value in (guidance_scale, guidance_rescale))
    latents = draw(0)
    clean, drawn = torch.zeros_like(latents), torch.zeros_like(latents)
    guided = guided_steps(plan, guidance_interval)
    unguided_condition = replace(condition, negative_context=None, negative_mask=None)
    inner = (InnerBlocks(), InnerBlocks())
    for index, (timestep, row) in enumerate(zip(plan.timesteps, plan.rows, strict=True)):
        for state in inner:
            state.reused = index in reuse
        predicted = velocity(
            dit,
            condition if guided[index] else unguided_condition,
            latents,
            int(timestep),
            scale,
            rescale,
            controlnet,
            conditioning_scale,
            inner if reuse else None,
        )
        if plan.draws_noise:
            drawn = draw(index + 1)
        latents, clean = solver_step(torch.tensor(row, device=device), latents, predicted, clean, drawn)
    if condition.given is not None and condition.mask is not None:
        latents = torch.where(condition.mask[:, None], latents, condition.given)
    return latents
