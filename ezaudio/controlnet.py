"""Energy ControlNet: a trainable copy of the DiT's in blocks whose outputs are added to the long skips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio import blocks
from ezaudio.config import ControlNetConfig, DiTConfig
from ezaudio.kernels import reference as ops

ENERGY_WINDOW, ENERGY_HOP = 1920, 240
ENERGY_FLOOR_DB = -60.0


def audio_energy(audio: Tensor) -> Tensor:
    """Loudness contour at 100 Hz, the condition of the energy ControlNet.

    Mean square over windows of 80 ms every 10 ms (reflected edges), in dB above a floor of −60 dB, scaled by each
    clip's maximum.

    Args:
        audio: (B, T) samples at 24 kHz, T a multiple of 240 and more than 840.

    Returns:
        (B, 1, T/240) in 0…1.
    """
    pad = (ENERGY_WINDOW - ENERGY_HOP) // 2
    power = F.pad(audio.square()[:, None], (pad, pad), mode="reflect")
    means = F.avg_pool1d(power, ENERGY_WINDOW, ENERGY_HOP)
    decibels = 10 * torch.log10(means.clamp_min(10 ** (ENERGY_FLOOR_DB / 10)))
    top = decibels.amax(dim=-1, keepdim=True)
    return (decibels - ENERGY_FLOOR_DB) / (top - ENERGY_FLOOR_DB + 1e-8)


class ConditionEmbed(nn.Module):
    """Condition (B, 1, 2L) → tokens (B, L, D). The mask channel is 0 at inference."""

    def __init__(self, config: ControlNetConfig, width: int) -> None:
        super().__init__()
        first, second = config.hidden_channels
        self.mask_embed = nn.Parameter(torch.zeros(first))
        self.conv_in = nn.Conv1d(config.condition_channels, first, 1)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv1d(first + 1, first + 1, 3, padding=1),
                    nn.SiLU(),
                    nn.Conv1d(first + 1, second, 3, stride=2, padding=1),
                    nn.SiLU(),
                )
            ]
        )
        self.conv_out = nn.Conv1d(second, width, 1)

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """condition (B, 1, 2L); mask (B, 2L) True where the condition is hidden (training)."""
        x = self.conv_in(condition)
        hidden = torch.zeros_like(x[:, :1])
        if mask is not None:
            hidden = mask[:, None].to(x.dtype)
            x = torch.where(mask[:, None], self.mask_embed[None, :, None].to(x.dtype), x)
        x = torch.cat([x, hidden], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(x).transpose(1, 2)


class ControlNet(nn.Module):
    """Residuals for the DiT's skips from the DiT's own assembled input and a condition."""

    def __init__(self, dit: DiTConfig, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = dit
        self.fused = False
        width = dit.width
        self.patch_embed = blocks.PatchEmbed(dit.input_channels, width)
        self.time_embed = blocks.TimestepEmbed(width)
        self.time_ada = nn.Linear(width, 6 * width)
        self.context_embed = blocks.context_embed(dit.context_width, width)
        self.in_blocks = nn.ModuleList(blocks.DiTBlock(dit, skip=False) for _ in range(dit.num_in_blocks))
        self.controlnet_pre = ConditionEmbed(config, width)
        self.controlnet_zero_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(dit.num_in_blocks))
        for parameter in self.controlnet_zero_blocks.parameters():
            nn.init.zeros_(parameter)

    def fuse(self) -> ControlNet:
        """As `MaskDiT.fuse`."""
        blocks.require_triton()
        self.fused = True
        return self

    def forward(
        self,
        inputs: Tensor,
        timesteps: Tensor,
        context: Tensor,
        context_mask: Tensor | None,
        condition: Tensor,
        conditioning_scale: float | Tensor = 1.0,
        condition_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """inputs: the DiT's assembled (B, 2C + 1, L); condition (B, 1, 2L) → one residual (B, L, D) an in block."""
        x = self.patch_embed(inputs) + self.controlnet_pre(condition, condition_mask)
        rope = ops.rope_tables(x.shape[1], self.config.head_width, x.device)
        time_state = blocks.time_state(self.time_embed, timesteps)
        shared = self.time_ada(time_state)
        context = self.context_embed(context)
        if self.fused:
            from ezaudio import fused

            states = fused.run_in_blocks(self, x, time_state, shared, context, context_mask, rope)
        else:
            states = []
            for block in self.in_blocks:
                x = block(x, time_state, shared, context, context_mask, rope)
                states.append(x)
        zero_blocks = zip(self.controlnet_zero_blocks, states, strict=True)
        return [zero(state) * conditioning_scale for zero, state in zero_blocks]
