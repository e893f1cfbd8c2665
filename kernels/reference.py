"""The model's operators in plain PyTorch: the specification that every faster path is tested against.

Shape letters: B batch, L latent frames, S text tokens, D width, H heads, E head width, r AdaLN rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5


def rope_tables(length: int, head_width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of position · 10000^(−2i/E), computed in float64 because half-precision angles ruin long clips.

    Returns:
        cos, sin: (length, E/2) float32.
    """
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64, device=device) / head_width)
    angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first half of each head against the second, in float32 (RoFormer eq. 34, rotate-half form).

    Args:
        x: (B, H, L, E).
        cos, sin: (L, E/2).

    Returns:
        (B, H, L, E) in the dtype of x.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, H·E) → (B, H, L, E)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def qk_norm_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    norm_q: tuple[Tensor, Tensor],
    norm_k: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor] | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """softmax(rope(LN(q)) · rope(LN(k))ᵀ / √E) · v.

    Args:
        q: (B, H, L, E).
        k, v: (B, H, S, E).
        norm_q, norm_k: weight and bias (E,) of the LayerNorm over the head width.
        rope: cos and sin (L, E/2); self-attention only.
        key_mask: (B, S) True where the key is valid. A row without a valid key is undefined.

    Returns:
        (B, L, H·E).
    """
    width = (q.shape[-1],)
    q = F.layer_norm(q, width, *norm_q, eps=NORM_EPS)
    k = F.layer_norm(k, width, *norm_k, eps=NORM_EPS)
    if rope is not None:
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def adaln_sola(shared: Tensor, low_rank: Tensor, lora_b: Tensor, table: Tensor, scaling: float) -> Tensor:
    """Six modulation vectors of one block: shared + lora_b(low_rank)·scaling + table (paper section 3.2, AdaLN-SOLA).

    Args:
        shared: (B, 6D) output of the time projection that all blocks share.
        low_rank: (B, 6r) output of the block's lora_a.
        lora_b: (6D, 6r).
        table: (6, D) learned offset of the block.
        scaling: alpha / r.

    Returns:
        (B, 6, D): shift, scale, gate of the attention, then of the MLP.
    """
    return (shared + F.linear(low_rank, lora_b) * scaling).unflatten(-1, table.shape) + table


def modulated_norm(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x)·(1 + scale) + shift.

    Args:
        x: (B, L, D).
        weight, bias: (D,) affine of the LayerNorm.
        shift, scale: (B, D).
    """
    return F.layer_norm(x, (x.shape[-1],), weight, bias, NORM_EPS) * (1 + scale[:, None]) + shift[:, None]


def gated_residual(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + (1 − gate)·update, with gate (B, D): the release starts from an open gate, not from a closed one."""
    return x + (1 - gate[:, None]) * update


def skip_norm(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LN([x, skip]) over the width 2D, the entry of an out block: (B, L, D) twice → (B, L, 2D); weight, bias (2D,)."""
    return F.layer_norm(torch.cat([x, skip], dim=-1), weight.shape, weight, bias, NORM_EPS)


def geglu(x: Tensor) -> Tensor:
    """value·GELU(gate), exact erf form: (…, 2F) → (…, F)."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)
