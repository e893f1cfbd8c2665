"""A step's parts on the Triton operators: what `ezaudio/fused.py` is to the models, for the exported modules.

The same modules and parameters as `plain.py`. A block's gated residual is joined with the norm that follows it, which
may be the next block's, so between blocks the tokens are held as x, update and gate: x + (1 − gate)·update.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio import blocks
from ezaudio.export.blocks import MLP, Block, CrossAttention, Norm, Product, SelfAttention
from ezaudio.export.graphs import ConditionerGraph, ControlNetGraph, DenoiserGraph, ModulationGraph
from ezaudio.export.vae_graphs import DecoderGraph, FoldedResidual, FoldedSnake
from ezaudio.kernels import folded, geglu_product
from ezaudio.kernels import reference as ops
from ezaudio.kernels.geglu import geglu
from ezaudio.kernels.modulation import modulation
from ezaudio.kernels.sampler_step import philox_normal
from ezaudio.kernels.sampler_step import sampler_step as fused_sampler_step
from ezaudio.kernels.snake import snake
from ezaudio.runtime.torch_backend.request import Draws, Given

DRAWS_ON_DEVICE = True


class Tokens(NamedTuple):
    """x + (1 − gate)·update, not added yet: x, update (R, L, D), gate (D,) float32; or x alone."""

    x: Tensor
    update: Tensor | None = None
    gate: Tensor | None = None

    def added(self) -> Tensor:
        x = self.x.float()
        if self.update is None:
            return x
        return x + self.update if self.gate is None else ops.gated_residual(x, self.update, self.gate[None])


def linear(product: Product, x: Tensor) -> Tensor:
    """`Product.forward` with the bias in the product."""
    return F.linear(x, product.weight.T, product.bias)


def norm(tokens: Tokens, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tokens added up, and their norm for a product in dtype, (R, L, D) each."""
    return folded.norm(tokens.x, weight, bias, dtype, tokens.update, tokens.gate)


def condition(graph: ConditionerGraph, text_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.condition`; keys in the layout of the attention kernel, (blocks, P, H, S, …)."""
    embedded = graph.embed(text_states)
    packed, values, constants = [], [], []
    parts: Any = zip(graph.norms, graph.keys, graph.key_norms, graph.values, graph.projections, strict=True)
    for layer, to_k, norm_k, to_v, proj in parts:
        _, context = norm(Tokens(embedded), layer.weight, layer.bias, to_k.weight.dtype)
        value = linear(to_v, context)
        packed.append(folded.pack_keys(ops.split_heads(linear(to_k, context), graph.num_heads), _affine(norm_k)))
        values.append(ops.split_heads(value, graph.num_heads))
        constants.append(linear(proj, value[:, 0]))
    return torch.stack(packed), torch.stack(values), torch.stack(constants)


def _affine(layer: Norm) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias


def modulations(graph: ModulationGraph, timesteps: Tensor) -> tuple[Tensor, ...]:
    """As `plain.modulations`, of all blocks at once, but for the gates: they are not subtracted from 1."""
    state = blocks.time_state(graph.time_embed, timesteps)  # type: ignore[arg-type]
    parts: list[Any] = list(graph.adaln)
    layers: list[Any] = list(graph.norms)
    rows = modulation(
        state,
        graph.time_ada(state),  # type: ignore[operator]
        [part.lora_a.weight for part in parts],
        [part.lora_b.weight for part in parts],
        [part.scale_shift_table for part in parts],
        parts[0].scaling,
    ).transpose(0, 1)  # (N, blocks, 6, D)
    weights = torch.stack([layer.weight for layer in layers]).unflatten(0, (-1, 2))  # (blocks, 2, D)
    biases = torch.stack([layer.bias for layer in layers]).unflatten(0, (-1, 2))
    shift, scale, gate = rows.unflatten(2, (2, 3)).unbind(3)  # (N, blocks, 2, D): attention, MLP
    block_modulation = torch.stack([weights * (1 + scale), biases * (1 + scale) + shift, gate], dim=3).flatten(2, 3)
    if graph.final_ada is None:
        return (block_modulation,)
    shift, scale = graph.final_ada(state).chunk(2, dim=-1)  # type: ignore[operator]
    return block_modulation, torch.stack(graph.fold(graph.final_norm, shift, scale), dim=1)  # type: ignore[arg-type]


def attend_self(attention: SelfAttention, h: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """`SelfAttention.forward`."""
    qkv = linear(attention.qkv, h).unflatten(-1, (3, attention.num_heads, attention.head_width))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    packed = folded.pack_keys(k, _affine(attention.norm_k), rope)
    return linear(attention.proj, folded.attend(q, packed, v, _affine(attention.norm_q), rope))


def attend_cross(attention: CrossAttention, h: Tensor, packed: Tensor, values: Tensor, key_mask: Tensor) -> Tensor:
    """`CrossAttention.forward`."""
    q = ops.split_heads(linear(attention.q, h), attention.num_heads)
    return linear(attention.proj, folded.attend(q, packed, values, _affine(attention.norm_q), key_mask=key_mask))


def mlp(part: MLP, h: Tensor) -> Tensor:
    """`MLP.forward`."""
    if part.up.bias is not None and geglu_product.fits(h, part.up.weight):
        return linear(part.down, geglu_product.geglu_product(h, part.up.weight, part.up.bias))
    return linear(part.down, geglu(linear(part.up, h)))


def run_block(
    block: Block, number: int, tokens: Tokens, given: Given, rope: tuple[Tensor, Tensor], skip: Tensor | None = None
) -> tuple[Tensor, Tokens]:
    """One block: the tokens that entered it, added up (R, L, D), and those that leave it."""
    weight_attn, bias_attn, gate_attn, weight_mlp, bias_mlp, gate_mlp = given["block_modulation"][number].unbind(0)
    dtype = block.attn.qkv.weight.dtype
    if skip is not None:
        h = folded.skip_norm(tokens.x, skip, *_affine(block.skip_norm), dtype, tokens.update, tokens.gate)
        tokens = Tokens(linear(block.skip_linear, h))
    entered, h = norm(tokens, weight_attn, bias_attn, dtype)
    attended = attend_self(block.attn, h, rope)
    keys, values = given["cross_keys"][number], given["cross_values"][number]
    rows = len(values)  # that there are keys for: the others get a constant
    h = folded.norm_alone(entered[:rows], *_affine(block.norm2), dtype, attended[:rows], gate_attn)
    crossed = attend_cross(block.cross_attn, h, keys, values, given["context_mask"])
    constant = given["cross_constant"][number] if rows < len(entered) else None
    x, h = folded.norm(entered, weight_mlp, bias_mlp, dtype, attended, gate_attn, crossed, constant)
    return entered, Tokens(x, mlp(block.mlp, h), gate_mlp)


def velocity(graph: DenoiserGraph, given: Given) -> tuple[Tensor, Tensor | None]:
    """As `plain.velocity`; the second only where `given` has `keep_inner`, since it costs a sum."""
    x, rope = graph.embedding(given)
    rows, turn = x.shape[0], graph.num_blocks - graph.num_outer
    tokens, inner = Tokens(x), None
    left: dict[int, Tensor] = {}  # in block → the tokens that left it, which are those that entered the next
    for number in map(int, graph.blocks):
        if number == turn:
            if graph.name == "denoiser_shallow":
                left[graph.num_outer - 1] = tokens.added()
                tokens = Tokens(given["inner"][:rows].contiguous())
            elif "keep_inner" in given:
                inner = tokens.added()
        skip = None
        if number > graph.num_in:
            skip = left[2 * graph.num_in - number]
            if graph.name == "denoiser_controlled":
                skip = skip + given["residuals"][2 * graph.num_in - number, :rows]
        before, tokens = run_block(graph.blocks[str(number)], number, tokens, given, rope, skip)  # type: ignore[arg-type]
        left[number - 1] = before
    weight, bias = given["final_modulation"].unbind(0)
    _, h = norm(tokens, weight, bias, graph.final_linear.weight.dtype)
    # A convolution keeps the order of dimensions that its input has in memory, and the sampler step reads rows.
    return graph.final_layer(linear(graph.final_linear, h).transpose(1, 2).contiguous()).contiguous(), inner


def residuals(graph: ControlNetGraph, given: Given) -> Tensor:
    """As `plain.residuals`."""
    x, rope = graph.embedding(given)
    tokens, left = Tokens(x), []
    for number, block in enumerate(graph.blocks.values()):
        before, tokens = run_block(block, number, tokens, given, rope)  # type: ignore[arg-type]
        left.append(before)
    left = [*left[1:], tokens.added()]
    made = [linear(zero, x.to(zero.weight.dtype)) for zero, x in zip(graph.zeros, left, strict=True)]  # type: ignore[arg-type]
    return torch.stack(made) * given["conditioning_scale"]


def decode(graph: DecoderGraph, latents: Tensor) -> Tensor:
    """As `plain.decode`."""
    return run_layers(graph.layers, latents)[:, 0]  # type: ignore[arg-type]


def run_layers(layers: nn.Sequential, x: Tensor) -> Tensor:
    """A part of the VAE, its snakes on the fused operator."""
    modules: list[Any] = list(layers)
    for layer, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(layer, FoldedSnake):  # always before a convolution
            x = snake(x, layer.frequency.flatten(), layer.magnitude.flatten(), following.weight.dtype)
        elif isinstance(layer, FoldedResidual):
            x = x.float() + run_layers(layer.layers, x)
        else:
            x = run_layers(layer, x) if isinstance(layer, nn.Sequential) else layer(x)
    return x


def start(draws: Draws, shape: tuple[int, int, int]) -> Tensor:
    """As `plain.start`; Philox noise is drawn here."""
    if draws.start is not None:
        return draws.start
    assert draws.seeds is not None
    return philox_normal(draws.seeds, torch.zeros_like(draws.seeds), 0, shape)


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
    """As `plain.sampler_step`; Philox noise is drawn where it is added."""
    guided = negative is not None
    on_device = draws.every_step and draws.seeds is not None
    return fused_sampler_step(
        latents,
        conditional,
        row,
        negative,
        clean,
        scale if guided else None,
        rescale if guided else None,
        noise=None if draws.steps is None else draws.steps[step],
        seeds=draws.seeds if on_device else None,
        items=torch.zeros_like(draws.seeds) if on_device else None,  # type: ignore[arg-type]
        step=step + 1,
        given=None if given is None else given[0],
        mask=None if given is None else given[1],
    )
