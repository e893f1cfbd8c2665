"""The blocks on Triton kernels: what `MaskDiT.fuse()` and `ControlNet.fuse()` switch to, for training and inference.

The same modules and parameters as the plain path. A block's gated residual is joined with the norm that follows it,
which may be the next block's, so between blocks the tokens are held as x, update and gate: x + (1 − gate)·update.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ezaudio.blocks import Attention, DiTBlock, FeedForward
from ezaudio.kernels import reference as ops
from ezaudio.kernels.adaln import residual_norm
from ezaudio.kernels.attention import qk_norm_attention
from ezaudio.kernels.geglu import geglu
from ezaudio.kernels.modulation import modulation
from ezaudio.kernels.skip_norm import skip_norm

if TYPE_CHECKING:
    from ezaudio.controlnet import ControlNet
    from ezaudio.dit import UDiT


class Tokens(NamedTuple):
    """x + (1 − gate)·update, not added yet: x, update (B, L, D), gate (B, D) float32; or x alone."""

    x: Tensor
    update: Tensor | None = None
    gate: Tensor | None = None


def block_modulations(blocks: Sequence[DiTBlock], time_state: Tensor, shared: Tensor) -> list[Tensor]:
    """(B, 6, D) float32 of each block, computed together. time_state (B, D), shared (B, 6D)."""
    adaln = [block.adaln for block in blocks]
    return list(
        modulation(
            time_state,
            shared,
            [part.lora_a.weight for part in adaln],
            [part.lora_b.weight for part in adaln],
            [part.scale_shift_table for part in adaln],
            adaln[0].scaling,
        ).unbind(0)
    )


def attend(
    attention: Attention, x: Tensor, context: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None
) -> Tensor:
    """`Attention.forward` on the fused operator."""
    q, k, v = (
        ops.split_heads(project(source), attention.num_heads)
        for project, source in ((attention.to_q, x), (attention.to_k, context), (attention.to_v, context))
    )
    norm_q, norm_k = attention.norm_q, attention.norm_k
    attended = qk_norm_attention(q, k, v, (norm_q.weight, norm_q.bias), (norm_k.weight, norm_k.bias), rope, mask)
    return attention.proj(attended)


def mlp(block: FeedForward, x: Tensor) -> Tensor:
    """`FeedForward.forward` on the fused operator."""
    return block.net[2](geglu(block.net[0].proj(x)))  # type: ignore[operator]


def norm(
    tokens: Tokens, layer: nn.LayerNorm, shift: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens added up and their (modulated) norm, (B, L, D) each."""
    return residual_norm(tokens.x, layer.weight, layer.bias, tokens.update, tokens.gate, shift, scale)


def run_block(
    block: DiTBlock,
    tokens: Tokens,
    modulations: Tensor,
    context: Tensor | None,
    context_mask: Tensor | None,
    rope: tuple[Tensor, Tensor],
    skip: Tensor | None = None,
) -> tuple[Tensor, Tokens]:
    """One block: the tokens that entered it, added up (B, L, D), and those that leave it.

    Args:
        modulations: (B, 6, D) float32.
        context: (B, S, D), or None for no cross-attention; context_mask (B, S).
        skip: (B, L, D) for out blocks, whose tokens enter through the projection of [x, skip].
    """
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulations.unbind(1)
    if skip is not None:
        layer = block.skip_norm
        h = skip_norm(tokens.x, skip, layer.weight, layer.bias, tokens.update, tokens.gate)
        tokens = Tokens(block.skip_linear(h))
    entered, h = norm(tokens, block.norm1, shift_attn, scale_attn)
    tokens = Tokens(entered, attend(block.attn, h, h, rope, None), gate_attn)
    if context is not None:
        x, h = norm(tokens, block.norm2)
        _, keys = norm(Tokens(context), block.norm_context)
        tokens = Tokens(x, attend(block.cross_attn, h, keys, None, context_mask))
    x, h = norm(tokens, block.norm3, shift_mlp, scale_mlp)
    return entered, Tokens(x, mlp(block.mlp, h), gate_mlp)


def run_unet(
    unet: UDiT,
    x: Tensor,
    time_state: Tensor,
    shared: Tensor,
    context: Tensor | None,
    context_mask: Tensor | None,
    rope: tuple[Tensor, Tensor],
    residuals: Sequence[Tensor] | None,
) -> Tensor:
    """What `UDiT.forward` does after its embeddings: tokens x (B, L, D) → velocity (B, C, L)."""
    blocks = unet.all_blocks()
    num_in = len(unet.in_blocks)
    modulations = block_modulations(blocks, time_state, shared)
    run = partial(checkpoint, run_block, use_reentrant=False) if unet.checkpointed else run_block
    tokens, entered = Tokens(x), []
    for block, vectors in zip(blocks[: num_in + 1], modulations, strict=False):
        before, tokens = run(block, tokens, vectors, context, context_mask, rope)
        entered.append(before)
    skips = entered[1:]  # what entered the next block is what left this one
    if residuals is not None:
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=True)]
    for block, vectors in zip(blocks[num_in + 1 :], modulations[num_in + 1 :], strict=True):
        _, tokens = run(block, tokens, vectors, context, context_mask, rope, skips.pop())
    shift, scale = unet.time_ada_final(time_state).float().chunk(2, dim=-1)
    _, h = norm(tokens, unet.final_block.norm, shift, scale)
    return unet.final_block.final_layer(unet.final_block.linear(h).transpose(1, 2))


def run_in_blocks(
    controlnet: ControlNet,
    x: Tensor,
    time_state: Tensor,
    shared: Tensor,
    context: Tensor,
    context_mask: Tensor | None,
    rope: tuple[Tensor, Tensor],
) -> list[Tensor]:
    """Tokens (B, L, D) that leave each in block. No norm follows the last: plain PyTorch adds its update."""
    blocks = [block for block in controlnet.in_blocks if isinstance(block, DiTBlock)]
    tokens, entered = Tokens(x), []
    for block, vectors in zip(blocks, block_modulations(blocks, time_state, shared), strict=True):
        before, tokens = run_block(block, tokens, vectors, context, context_mask, rope)
        entered.append(before)
    assert tokens.update is not None
    assert tokens.gate is not None
    return [*entered[1:], ops.gated_residual(tokens.x, tokens.update, tokens.gate).to(tokens.x.dtype)]
