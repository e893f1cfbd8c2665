"""Parts of the diffusion transformer. Attribute names follow the official checkpoint's keys."""

from __future__ import annotations

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio.config import DiTConfig
from ezaudio.kernels import reference as ops


class TimestepEmbed(nn.Module):
    """Sinusoids of 256 values ([cos, sin], period 10000), Linear, SiLU, Linear."""

    NUM_FREQUENCIES = 128

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * self.NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """timesteps (B,) in 0…999 → (B, D)."""
        indices = torch.arange(self.NUM_FREQUENCIES, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000.0) / self.NUM_FREQUENCIES * indices)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(sinusoids.to(next(self.mlp.parameters()).dtype))


class Rotary(nn.Module):
    """Holds the frequencies that the official checkpoint stores; the tables are recomputed in float64."""

    inv_freq: Tensor

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, head_width, 2).float() / head_width))


class Attention(nn.Module):
    """Multi-head attention with LayerNorm on the queries and keys of each head; `rotary` for self-attention."""

    def __init__(self, width: int, num_heads: int, rotary: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.norm_q = nn.LayerNorm(width // num_heads, eps=ops.NORM_EPS)
        self.norm_k = nn.LayerNorm(width // num_heads, eps=ops.NORM_EPS)
        self.proj = nn.Linear(width, width)
        if rotary:
            self.rotary = Rotary(width // num_heads)

    def forward(
        self, x: Tensor, context: Tensor, rope: tuple[Tensor, Tensor] | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """x (B, L, D) attends to context (B, S, D); key_mask (B, S) True where valid."""
        attended = ops.qk_norm_attention(
            ops.split_heads(self.to_q(x), self.num_heads),
            ops.split_heads(self.to_k(context), self.num_heads),
            ops.split_heads(self.to_v(context), self.num_heads),
            (self.norm_q.weight, self.norm_q.bias),
            (self.norm_k.weight, self.norm_k.bias),
            rope,
            key_mask,
        )
        return self.proj(attended)


class GEGLUProjection(nn.Module):
    """Linear to twice the hidden width, then value·GELU(gate)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        return ops.geglu(self.proj(x))


class FeedForward(nn.Module):
    """GEGLU MLP. The Identity stands where the release has a dropout of zero, which keeps the key numbers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLUProjection(width, hidden), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class AdaLNSOLA(nn.Module):
    """A block's own part of the modulation: low-rank projection of the time state plus a table."""

    def __init__(self, width: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scaling = alpha / rank
        self.lora_a = nn.Linear(width, 6 * rank, bias=False)
        self.lora_b = nn.Linear(6 * rank, 6 * width, bias=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def forward(self, time_state: Tensor, shared: Tensor) -> Tensor:
        """time_state (B, D), shared (B, 6D) → (B, 6, D)."""
        return ops.adaln_sola(shared, self.lora_a(time_state), self.lora_b.weight, self.scale_shift_table, self.scaling)


class DiTBlock(nn.Module):
    """Self-attention and MLP under gated AdaLN-SOLA, plain cross-attention between them; out blocks take a skip."""

    def __init__(self, config: DiTConfig, skip: bool) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=ops.NORM_EPS)
        self.attn = Attention(width, config.num_heads, rotary=True)
        self.cross_attn = Attention(width, config.num_heads, rotary=False)
        self.norm2 = nn.LayerNorm(width, eps=ops.NORM_EPS)
        self.norm_context = nn.LayerNorm(width, eps=ops.NORM_EPS)
        self.norm3 = nn.LayerNorm(width, eps=ops.NORM_EPS)
        self.mlp = FeedForward(width, int(width * config.mlp_ratio))
        self.adaln = AdaLNSOLA(width, config.adaln_rank, config.adaln_alpha)
        if skip:
            self.skip_norm = nn.LayerNorm(2 * width, eps=ops.NORM_EPS)
            self.skip_linear = nn.Linear(2 * width, width)

    def forward(
        self,
        x: Tensor,
        time_state: Tensor,
        shared: Tensor,
        context: Tensor | None,
        context_mask: Tensor | None,
        rope: tuple[Tensor, Tensor],
        skip: Tensor | None = None,
    ) -> Tensor:
        """x (B, L, D), time_state (B, D), shared (B, 6D), context (B, S, D) or None, its mask (B, S), skip like x."""
        if skip is not None:
            x = self.skip_linear(ops.skip_norm(x, skip, self.skip_norm.weight, self.skip_norm.bias))
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaln(time_state, shared).unbind(1)
        h = ops.modulated_norm(x, self.norm1.weight, self.norm1.bias, shift_attn, scale_attn)
        x = ops.gated_residual(x, self.attn(h, h, rope), gate_attn)
        if context is not None:
            x = x + self.cross_attn(self.norm2(x), self.norm_context(context), key_mask=context_mask)
        h = ops.modulated_norm(x, self.norm3.weight, self.norm3.bias, shift_mlp, scale_mlp)
        return ops.gated_residual(x, self.mlp(h), gate_mlp)


class PatchEmbed(nn.Module):
    """1×1 convolution over channels: (B, 2C + 1, L) → (B, L, D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv1d(channels, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).transpose(1, 2)


class FinalBlock(nn.Module):
    """LN·(1 + scale) + shift, Linear to the latent channels, Conv1d of 3 frames: (B, L, D) → (B, C, L)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=ops.NORM_EPS)
        self.linear = nn.Linear(width, channels)
        self.final_layer = nn.Conv1d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """modulation (B, 2D): shift, scale."""
        shift, scale = modulation.chunk(2, dim=-1)
        x = self.linear(ops.modulated_norm(x, self.norm.weight, self.norm.bias, shift, scale))
        return self.final_layer(x.transpose(1, 2))


def time_state(embed: TimestepEmbed, timesteps: Tensor) -> Tensor:
    """SiLU of the timestep embedding, the input of every modulation: (B,) → (B, D)."""
    return F.silu(embed(timesteps))


def context_embed(context_width: int, width: int) -> nn.Sequential:
    """Text states → model width, once for all blocks."""
    return nn.Sequential(nn.Linear(context_width, width), nn.SiLU(), nn.Linear(width, width))


def require_triton() -> None:
    """Raises RuntimeError when Triton, which only the fused path needs, is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("fuse() needs Triton: pip install 'ezaudio[gpu]' (Linux, NVIDIA)")
