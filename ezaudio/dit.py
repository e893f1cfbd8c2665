"""EzAudio's diffusion transformer (arXiv 2409.10819, section 3.2): in, middle and out blocks with long skips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ezaudio import blocks
from ezaudio.config import DiTConfig
from ezaudio.kernels import reference as ops


@dataclass(slots=True)
class InnerBlocks:
    """What the inner blocks made of a step, for steps after it that do not run them (DeepCache, Ma et al. 2024).

    Attributes:
        output: (B, L, D) that enters the last `num_outer_blocks`; None before the first step.
        reused: the next evaluation takes `output` in place of running the inner blocks; else it replaces it.
    """

    output: Tensor | None = None
    reused: bool = False


class UDiT(nn.Module):
    """The transformer over the assembled input (B, 2C + 1, L). `MaskDiT` is what callers use."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.fused = False
        self.checkpointed = False
        width = config.width
        self.patch_embed = blocks.PatchEmbed(config.input_channels, width)
        self.time_embed = blocks.TimestepEmbed(width)
        self.time_ada_final = nn.Linear(width, 2 * width)
        self.time_ada = nn.Linear(width, 6 * width)
        self.context_embed = blocks.context_embed(config.context_width, width)
        self.in_blocks = nn.ModuleList(blocks.DiTBlock(config, skip=False) for _ in range(config.num_in_blocks))
        self.mid_block = blocks.DiTBlock(config, skip=False)
        self.out_blocks = nn.ModuleList(blocks.DiTBlock(config, skip=True) for _ in range(config.num_in_blocks))
        self.final_block = blocks.FinalBlock(width, config.latent_channels)

    def all_blocks(self) -> list[blocks.DiTBlock]:
        """Blocks in the order of computation."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def forward(
        self,
        inputs: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        context_mask: Tensor | None = None,
        residuals: Sequence[Tensor] | None = None,
        inner: InnerBlocks | None = None,
    ) -> Tensor:
        """inputs (B, 2C + 1, L) → velocity (B, C, L); residuals: one (B, L, D) an in block, added to its skip.

        context: None leaves cross-attention out, as the first stage of training does.
        """
        x = self.patch_embed(inputs)
        rope = ops.rope_tables(x.shape[1], self.config.head_width, x.device)
        time_state = blocks.time_state(self.time_embed, timesteps)
        shared = self.time_ada(time_state)
        context = None if context is None else self.context_embed(context)
        if self.fused:
            from ezaudio import fused

            if inner is not None:
                raise ValueError("a fused model runs every block in every step: reuse the inner blocks of a plain one")
            return fused.run_unet(self, x, time_state, shared, context, context_mask, rope, residuals)
        skips: list[Tensor] = []
        turn = self.config.num_blocks - self.config.num_outer_blocks
        for number, block in enumerate(self.all_blocks()):
            if inner is not None and number == turn:
                if inner.reused:
                    assert inner.output is not None
                    x = inner.output
                inner.output = x
            if inner is not None and inner.reused and self.config.num_outer_blocks <= number < turn:
                continue
            skip = skips.pop() if number > len(self.in_blocks) else None
            arguments = (x, time_state, shared, context, context_mask, rope, skip)
            x = checkpoint(block, *arguments, use_reentrant=False) if self.checkpointed else block(*arguments)
            if number < len(self.in_blocks):
                skips.append(x if residuals is None else x + residuals[number])
        return self.final_block(x, self.time_ada_final(time_state))


class MaskDiT(nn.Module):
    """EzAudio's denoiser: velocity from a noisy latent, text states and, for editing, a given latent with its mask."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = UDiT(config)
        self.mask_embed = nn.Parameter(torch.zeros(config.latent_channels))
        self.initialize()

    def initialize(self) -> None:
        """Xavier for linears; every block starts as an identity (zeroed last projections), the velocity at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.model.time_embed.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
        nn.init.normal_(self.mask_embed, std=0.02)
        nn.init.zeros_(self.model.time_ada.weight)
        nn.init.zeros_(self.model.time_ada_final.weight)
        for block in self.model.all_blocks():
            nn.init.zeros_(block.adaln.lora_b.weight)
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.cross_attn.proj.weight)
            nn.init.zeros_(block.mlp.net.get_parameter("2.weight"))
        nn.init.zeros_(self.model.final_block.linear.weight)

    def fuse(self) -> MaskDiT:
        """Switch AdaLN, attention, GEGLU and skip norm to the Triton kernels, for training and inference. Export takes
        the model before.

        Raises:
            RuntimeError: Triton is not installed.
        """
        blocks.require_triton()
        self.model.fused = True
        return self

    def checkpoint_blocks(self) -> MaskDiT:
        """From here on a backward pass recomputes what is inside a block instead of keeping it."""
        self.model.checkpointed = True
        return self

    def text_parameters(self) -> list[nn.Parameter]:
        """Those that only take part with a context: cross-attention, its norms, the embedding of text states."""
        parts: list[nn.Module] = [self.model.context_embed]
        for block in self.model.all_blocks():
            parts += [block.norm2, block.norm_context, block.cross_attn]
        return [parameter for part in parts for parameter in part.parameters()]

    def assemble(self, x: Tensor, given: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Concatenate noisy latent, given latent and mask along channels.

        Args:
            x: (B, C, L) noisy latent.
            given: (B, C, L) clean latent to keep where the mask is False; None generates everything.
            mask: (B, L) True where a frame is to be generated. Required with `given`.

        Returns:
            (B, 2C + 1, L).
        """
        embed = self.mask_embed[None, :, None].to(x.dtype)
        if given is None:
            return torch.cat([x, embed.expand_as(x), torch.ones_like(x[:, :1])], dim=1)
        if mask is None or mask.shape != (x.shape[0], x.shape[2]):
            raise ValueError(f"a given latent needs a mask of shape {(x.shape[0], x.shape[2])}, got {mask}")
        frames = mask[:, None]
        return torch.cat([x, torch.where(frames, embed, given), frames.to(x.dtype)], dim=1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        context_mask: Tensor | None = None,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        residuals: Sequence[Tensor] | None = None,
        inner: InnerBlocks | None = None,
    ) -> Tensor:
        """Velocity v = √ᾱ·ε − √(1 − ᾱ)·x₀ of the noisy latent.

        Args:
            x: (B, C, L) noisy latent.
            timesteps: (B,) integers in 0…999.
            context: (B, S, D_text) text states; None leaves cross-attention out.
            context_mask: (B, S) True where a token is valid; at least one a row.
            given, mask: see `assemble`.
            residuals: ControlNet residuals, one (B, L, D) an in block.
            inner: keeps what the inner blocks made, or has it used again.

        Returns:
            (B, C, L).
        """
        return self.model(self.assemble(x, given, mask), timesteps, context, context_mask, residuals, inner)
