"""The transformers that the paper compares EzAudio's with (arXiv 2409.10819, figure 2), for training side by side.

All have the EzAudio model's interface, width, depth, heads and MLP. They differ in how a block learns of the timestep,
in how attention learns of positions, and in the long skips:

| variant | modulation | positions | queries, keys | long skips |
|---|---|---|---|---|
| `cross-dit` | AdaLN (Peebles & Xie 2023): a projection a block | added sinusoids | plain | no |
| `pixart-dit` | AdaLN-single (Chen et al. 2024): a projection for all | added sinusoids | plain | no |
| `stable-audio-dit` | AdaLN | RoPE | normed | no |
| `ezaudio-dit` | AdaLN-SOLA | RoPE | normed | yes |
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio import blocks
from ezaudio.config import DiTConfig
from ezaudio.dit import MaskDiT, UDiT
from ezaudio.kernels import reference as ops
from ezaudio.runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class Variant:
    """shared_modulation: AdaLN-single, else AdaLN. rotary: RoPE and normed queries and keys, else added sinusoids."""

    shared_modulation: bool
    rotary: bool


VARIANTS: dict[str, Variant | None] = {
    "cross-dit": Variant(shared_modulation=False, rotary=False),
    "pixart-dit": Variant(shared_modulation=True, rotary=False),
    "stable-audio-dit": Variant(shared_modulation=False, rotary=True),
    "ezaudio-dit": None,  # the model itself
}


def build_variant(name: str, config: DiTConfig) -> MaskDiT:
    """A transformer to train. Raises InputError for an unknown name."""
    if name not in VARIANTS:
        raise InputError(f"unknown architecture {name!r}: expected one of {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    return MaskDiT(config) if variant is None else VariantDiT(config, variant)


class PlainAttention(nn.Module):
    """Multi-head attention and nothing else."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor, rope: tuple[Tensor, Tensor] | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """As `blocks.Attention`; positions are not its business."""
        pairs = ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        q, k, v = (ops.split_heads(project(source), self.num_heads) for project, source in pairs)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class VariantBlock(nn.Module):
    """Self-attention and MLP under gated AdaLN, cross-attention between them. A gate multiplies, and starts at zero."""

    def __init__(self, config: DiTConfig, variant: Variant) -> None:
        super().__init__()
        width = config.width

        def attention(rotary: bool) -> nn.Module:
            if variant.rotary:
                return blocks.Attention(width, config.num_heads, rotary)
            return PlainAttention(width, config.num_heads)

        self.norm1, self.norm3 = (nn.LayerNorm(width, eps=ops.NORM_EPS, elementwise_affine=False) for _ in range(2))
        self.norm2, self.norm_context = (nn.LayerNorm(width, eps=ops.NORM_EPS) for _ in range(2))
        self.attn, self.cross_attn = attention(rotary=True), attention(rotary=False)
        self.mlp = blocks.FeedForward(width, int(width * config.mlp_ratio))
        self.modulation = None if variant.shared_modulation else nn.Linear(width, 6 * width)
        self.table = nn.Parameter(torch.zeros(6, width)) if variant.shared_modulation else None

    def forward(
        self,
        x: Tensor,
        time_state: Tensor,
        shared: Tensor | None,
        context: Tensor | None,
        context_mask: Tensor | None,
        rope: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """As `blocks.DiTBlock`."""
        if self.modulation is not None:
            vectors = self.modulation(time_state).unflatten(-1, (6, -1))
        else:
            assert shared is not None
            vectors = shared.unflatten(-1, (6, -1)) + self.table
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = vectors[:, :, None].unbind(1)
        h = self.norm1(x) * (1 + scale_attn) + shift_attn
        x = x + gate_attn * self.attn(h, h, rope)
        if context is not None:
            x = x + self.cross_attn(self.norm2(x), self.norm_context(context), key_mask=context_mask)
        h = self.norm3(x) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.mlp(h)


class VariantTransformer(UDiT):
    """Blocks in a row, without long skips."""

    def __init__(self, config: DiTConfig, variant: Variant) -> None:
        # The parts around the blocks are the model's own; it is built with the fewest blocks, which are replaced.
        super().__init__(replace(config, depth=2))
        self.config = config
        del self.in_blocks, self.mid_block, self.out_blocks
        self.variant = variant
        self.rows = nn.ModuleList(VariantBlock(config, variant) for _ in range(config.num_blocks))
        if not variant.shared_modulation:
            del self.time_ada

    def all_blocks(self) -> list[blocks.DiTBlock]:
        return list(self.rows)  # type: ignore[arg-type]

    def forward(  # type: ignore[override]
        self,
        inputs: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        context_mask: Tensor | None = None,
        residuals: None = None,
        inner: None = None,
    ) -> Tensor:
        """As `UDiT`. Raises ValueError for what long skips are needed for."""
        if residuals is not None or inner is not None:
            raise ValueError("residuals and shared inner blocks need long skips, which this architecture lacks")
        x = self.patch_embed(inputs)
        rope = None
        if self.variant.rotary:
            rope = ops.rope_tables(x.shape[1], self.config.head_width, x.device)
        else:
            x = x + sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype)
        time_state = blocks.time_state(self.time_embed, timesteps)
        shared = self.time_ada(time_state) if self.variant.shared_modulation else None
        context = None if context is None else self.context_embed(context)
        for block in self.rows:
            x = block(x, time_state, shared, context, context_mask, rope)
        return self.final_block(x, self.time_ada_final(time_state))


class VariantDiT(MaskDiT):
    """`MaskDiT` around another transformer."""

    def __init__(self, config: DiTConfig, variant: Variant) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.model = VariantTransformer(config, variant)
        self.mask_embed = nn.Parameter(torch.zeros(config.latent_channels))
        self.initialize()

    def initialize(self) -> None:
        """As the model's own: every block starts as an identity, the velocity at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_embed, std=0.02)
        for name, parameter in self.model.time_embed.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
        zeroed = [self.model.time_ada_final, self.model.final_block.linear]
        zeroed += [self.model.time_ada] if hasattr(self.model, "time_ada") else []
        for block in self.model.all_blocks():
            assert isinstance(block, VariantBlock)
            zeroed.append(block.cross_attn.get_submodule("proj"))
            zeroed += [] if block.modulation is None else [block.modulation]
        for layer in zeroed:
            nn.init.zeros_(layer.weight)

    def fuse(self) -> MaskDiT:
        """Raises RuntimeError: the kernels are of EzAudio's own blocks."""
        raise RuntimeError("only ezaudio-dit has fused kernels")


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Absolute positions (L, D): sines, then cosines, of periods from 2π to 20000π (Vaswani et al. 2017)."""
    cos, sin = ops.rope_tables(length, width, device)
    return torch.cat([sin, cos], dim=-1)
