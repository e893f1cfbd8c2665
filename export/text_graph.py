"""The exported text encoder: FLAN-T5's encoder (T5 v1.1, Raffel et al. 2020), its products as `blocks.Product`.

Only the weights are transformers'; the export compares its states with theirs. T5 does not scale its scores and its
feed-forward values grow beyond what fp16 holds, so queries, keys, scores, gated values, their product and the residual
stream are computed in float32 whatever the weights are stored in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio.config import EzAudioConfig, TextConfig
from ezaudio.export.blocks import MASKED_SCORE, Product
from ezaudio.export.graphs import Axes, Graph
from ezaudio.kernels import reference as ops
from ezaudio.runtime.tensor_spec import TensorSpec

RMS_EPS = 1e-6
NUM_BUCKETS, MAX_DISTANCE = 32, 128


class WideProduct(Product):
    """A product in float32, also where its weight is stored in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ self.weight.float()


class RMSNorm(nn.Module):
    """x/√(mean(x²) + ε)·w in float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS))


class TextLayer(nn.Module):
    """Self-attention and a gated MLP, each on the norm of the stream that it is added to.

    weights: of `encoder.block.N.` without that prefix.
    """

    def __init__(self, weights: Mapping[str, Tensor], num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm = RMSNorm(weights["layer.0.layer_norm.weight"])
        self.q = WideProduct(weights["layer.0.SelfAttention.q.weight"])
        self.k = WideProduct(weights["layer.0.SelfAttention.k.weight"])
        self.v = Product(weights["layer.0.SelfAttention.v.weight"])
        self.o = Product(weights["layer.0.SelfAttention.o.weight"])
        self.mlp_norm = RMSNorm(weights["layer.1.layer_norm.weight"])
        self.wi_0 = Product(weights["layer.1.DenseReluDense.wi_0.weight"])
        self.wi_1 = Product(weights["layer.1.DenseReluDense.wi_1.weight"])
        self.wo = WideProduct(weights["layer.1.DenseReluDense.wo.weight"])

    def forward(self, x: Tensor, position_bias: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, D) float32; position_bias (1, H, S, S); mask (B, 1, 1, S) True where the token is valid."""
        h = self.attn_norm(x)
        q, k, v = (ops.split_heads(product(h), self.num_heads) for product in (self.q, self.k, self.v))
        scores = torch.where(mask, q @ k.transpose(-1, -2) + position_bias, MASKED_SCORE)
        x = x + self.o((scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))
        h = self.mlp_norm(x)
        return x + self.wo(F.gelu(self.wi_0(h).float(), approximate="tanh") * self.wi_1(h))


def relative_buckets(max_tokens: int) -> Tensor:
    """Bucket of every distance key − query from 1 − max_tokens to max_tokens − 1: (2·max_tokens − 1,) int64.

    Half of them are for keys after the query; of each half, the first half is one distance each and the others grow in
    a logarithm's steps. In float32, as T5 was trained: a distance of 16 lies on a step.
    """
    half, exact = NUM_BUCKETS // 2, NUM_BUCKETS // 4
    distance = torch.arange(1 - max_tokens, max_tokens, device="cpu")
    far = torch.log(distance.abs().float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    near = distance.abs() < exact
    bucket = torch.where(near, distance.abs(), (exact + far.clamp_min(0).long()).clamp_max(half - 1))
    return bucket + half * (distance > 0)


class TextEncoderGraph(Graph):
    """Token ids → text states.

    Args:
        weights: state dict of transformers' `T5EncoderModel`, or `no_weights` of the settings.
    """

    buckets: Tensor

    def __init__(self, weights: Mapping[str, Tensor], config: EzAudioConfig) -> None:
        axes, text = Axes.of(config), config.text
        ids = (axes.batch, axes.tokens)
        super().__init__(
            "text_encoder",
            [TensorSpec("input_ids", "int64", ids), TensorSpec("attention_mask", "int64", ids)],
            [TensorSpec("text_states", "float32", (*ids, text.width))],
        )
        self.embedding_table = nn.Parameter(weights["shared.weight"].detach(), requires_grad=False)
        bias = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        self.position_bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.max_tokens = text.max_tokens
        self.register_buffer("buckets", relative_buckets(text.max_tokens), persistent=False)
        self.layers = nn.ModuleList()
        for number in range(text.num_layers):
            prefix = f"encoder.block.{number}."
            own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            self.layers.append(TextLayer(own, text.num_heads))
        self.norm = RMSNorm(weights["encoder.final_layer_norm.weight"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        buckets = self.buckets[positions[None, :] - positions[:, None] + (self.max_tokens - 1)]
        position_bias = F.embedding(buckets, self.position_bias).permute(2, 0, 1)[None]
        mask = attention_mask.bool()[:, None, None]
        x = F.embedding(input_ids, self.embedding_table).float()
        for layer in self.layers:
            x = layer(x, position_bias, mask)
        return self.norm(x)


def no_weights(text: TextConfig) -> dict[str, Tensor]:
    """The tensors that `TextEncoderGraph` takes, by transformers' names, on the meta device."""
    inner = text.num_heads * text.head_width
    shapes: dict[str, tuple[int, ...]] = {
        "shared.weight": (text.vocab_size, text.width),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (NUM_BUCKETS, text.num_heads),
        "encoder.final_layer_norm.weight": (text.width,),
    }
    for number in range(text.num_layers):
        block = f"encoder.block.{number}.layer"
        for name in ("q", "k", "v"):
            shapes[f"{block}.0.SelfAttention.{name}.weight"] = (inner, text.width)
        shapes[f"{block}.0.SelfAttention.o.weight"] = (text.width, inner)
        for name in ("wi_0", "wi_1"):
            shapes[f"{block}.1.DenseReluDense.{name}.weight"] = (text.ff_width, text.width)
        shapes[f"{block}.1.DenseReluDense.wo.weight"] = (text.width, text.ff_width)
        for layer in (0, 1):
            shapes[f"{block}.{layer}.layer_norm.weight"] = (text.width,)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
