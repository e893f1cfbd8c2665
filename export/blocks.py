"""The transformer's blocks as exported: constants hoisted, q, k, v one product, weights as products read them.

Rows are guidance branches stacked along the batch: R = B without guidance, R = 2B (prompts first, then the negative
side) with it; the first P of them attend to a prompt.

With weights in half precision, which the backend `torch` runs these modules in, a product computes in the type of its
weight; norms, RoPE, softmax and the residual stream stay in float32. In float32 every cast is nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio import blocks
from ezaudio.kernels import reference as ops

MASKED_SCORE = -1e9  # finite, so that adding or scaling it never gives NaN; exp underflows to exactly 0


class Product(nn.Module):
    """x @ weight + bias with the weight stored (in, out): an ONNX MatMul with a constant right side.

    Computed, and given, in the type of the weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().T, requires_grad=False)  # a view: no second copy in memory
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Product:
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.weight.dtype) @ self.weight
        return y if self.bias is None else y + self.bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the last dimension, in float32."""
    return F.layer_norm(x.float(), weight.shape, weight, bias, ops.NORM_EPS)


class Norm(nn.Module):
    """LayerNorm over the last dimension, its affine multiplied by a constant (the softmax scale, for queries)."""

    def __init__(self, norm: nn.LayerNorm, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach() * factor, requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach() * factor, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ)·v for queries already scaled: (R, H, L, E), (R, H, S, E) ×2, mask (R, S) → (R, L, H·E).

    Both products are in the type of v, the softmax in float32.
    """
    scores = (q.to(v.dtype) @ k.to(v.dtype).transpose(-1, -2)).float()
    if key_mask is not None:
        scores = torch.where(key_mask[:, None, None, :], scores, MASKED_SCORE)
    return (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, attention: blocks.Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.head_width = attention.to_q.weight.shape[0] // attention.num_heads
        self.qkv = Product(torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]))
        self.norm_q = Norm(attention.norm_q, self.head_width**-0.5)
        self.norm_k = Norm(attention.norm_k)
        self.proj = Product.of(attention.proj)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_width)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = ops.apply_rope(self.norm_q(q), *rope), ops.apply_rope(self.norm_k(k), *rope)
        return self.proj(attend(q, k, v))


class CrossAttention(nn.Module):
    """Queries against keys and values that the conditioner prepared."""

    def __init__(self, attention: blocks.Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.q = Product.of(attention.to_q)
        self.norm_q = Norm(attention.norm_q, (attention.to_q.weight.shape[0] // attention.num_heads) ** -0.5)
        self.proj = Product.of(attention.proj)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor) -> Tensor:
        q = self.norm_q(ops.split_heads(self.q(x), self.num_heads))
        return self.proj(attend(q, keys, values, key_mask))


class MLP(nn.Module):
    def __init__(self, mlp: blocks.FeedForward) -> None:
        super().__init__()
        self.up = Product.of(mlp.net[0].proj)  # type: ignore[arg-type]
        self.down = Product.of(mlp.net[2])  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.geglu(self.up(x)))


class Block(nn.Module):
    """A DiT block whose modulation arrives folded: norm weight, norm bias and gate, for attention and for the MLP."""

    def __init__(self, block: blocks.DiTBlock) -> None:
        super().__init__()
        self.attn = SelfAttention(block.attn)
        self.norm2 = Norm(block.norm2)
        self.cross_attn = CrossAttention(block.cross_attn)
        self.mlp = MLP(block.mlp)
        self.skip = hasattr(block, "skip_norm")
        if self.skip:
            self.skip_norm = Norm(block.skip_norm)
            self.skip_linear = Product.of(block.skip_linear)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        key_mask: Tensor,
        constant: Tensor,
        skip: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x: (R, L, D).
            modulation: (6, D) from the modulation graph.
            rope: cos, sin (L, E/2).
            keys, values, key_mask: (P, H, S, E) twice and (P, S), for the first P rows of x.
            constant: (R − P, D) cross-attention output of the other rows, whose prompt is one token; P may be R.
            skip: (R, L, D) for out blocks.
        """
        weight_attn, bias_attn, gate_attn, weight_mlp, bias_mlp, gate_mlp = modulation.unbind(0)
        if skip is not None:
            x = self.skip_linear(self.skip_norm(torch.cat([x, skip], dim=-1)))
        x = x + self.attn(layer_norm(x, weight_attn, bias_attn), rope) * gate_attn
        # narrow, not a slice: its size is a plain symbol, where slices of slices make torch.export's shapes grow with
        # every block
        prompted = self.cross_attn(self.norm2(x.narrow(0, 0, keys.shape[0])), keys, values, key_mask)
        x = x + torch.cat([prompted, constant[:, None].expand(-1, x.shape[1], -1)])
        return x + self.mlp(layer_norm(x, weight_mlp, bias_mlp)) * gate_mlp
