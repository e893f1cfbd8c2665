"""The graphs of a bundle: what each one takes and gives, and how it is cut from the PyTorch models.

A graph computes only what changes at its own rate: text_encoder and conditioner once a prompt, modulation once a run,
frame_bias once a clip, the denoiser once a step, the decoder once a clip.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel

from ezaudio import blocks
from ezaudio.config import EzAudioConfig
from ezaudio.controlnet import ControlNet
from ezaudio.dit import MaskDiT
from ezaudio.export.blocks import Block, Norm, Product
from ezaudio.kernels import reference as ops
from ezaudio.runtime.tensor_spec import Axis, TensorSpec
from ezaudio.sampling import guide, solver_step

MAX_BATCH = 8
GUIDANCE_MODES = ("guided", "negative", "unguided")


@dataclass(frozen=True, slots=True)
class Axes:
    """The sizes that vary at run time, with the ranges a model is good for."""

    batch: Axis
    frames: Axis
    tokens: Axis
    steps: Axis

    @classmethod
    def of(cls, config: EzAudioConfig) -> Axes:
        rate = config.vae.latent_rate
        return cls(
            batch=Axis("batch", 1, 1, MAX_BATCH),
            frames=Axis("frames", 1, round(config.defaults.duration_s * rate), round(config.max_duration_s * rate)),
            tokens=Axis("tokens", 1, 16, config.text.max_tokens),
            steps=Axis("steps", 1, 50, config.diffusion.num_train_steps),
        )


class Graph(nn.Module):
    """A module to export, with its name in the bundle and the tensors it takes and gives."""

    def __init__(self, name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
        super().__init__()
        self.name, self.inputs, self.outputs = name, inputs, outputs

    def arrange(self, by_name: dict[str, Any]) -> Any:
        """What is said of each input, in the structure of forward's signature (*args is a tuple of its own)."""
        values = tuple(by_name[spec.name] for spec in self.inputs)
        parameters = list(inspect.signature(self.forward).parameters.values())
        if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
            return values
        fixed = len(parameters) - 1
        return (*values[:fixed], values[fixed:])


class TextEncoderGraph(Graph):
    """Token ids → text states."""

    def __init__(self, encoder: T5EncoderModel, config: EzAudioConfig) -> None:
        axes = Axes.of(config)
        ids = (axes.batch, axes.tokens)
        super().__init__(
            "text_encoder",
            [TensorSpec("input_ids", "int64", ids), TensorSpec("attention_mask", "int64", ids)],
            [TensorSpec("text_states", "float32", (*ids, config.text.width))],
        )
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class ConditionerGraph(Graph):
    """Text states → every block's normalised cross-attention keys, its values, and its output for a one-token prompt.

    `constant` is exact only where the prompt has one valid token, which is what the empty prompt is.
    """

    def __init__(self, network: nn.Module, block_list: list[blocks.DiTBlock], config: EzAudioConfig, name: str) -> None:
        axes, dit, count = Axes.of(config), config.dit, len(block_list)
        heads = (count, axes.batch, dit.num_heads, axes.tokens, dit.head_width)
        super().__init__(
            name,
            [TensorSpec("text_states", "float32", (axes.batch, axes.tokens, config.text.width))],
            [
                TensorSpec("cross_keys", "float32", heads),
                TensorSpec("cross_values", "float32", heads),
                TensorSpec("cross_constant", "float32", (count, axes.batch, dit.width)),
            ],
        )
        self.num_heads = dit.num_heads
        first, _, last = network.context_embed  # type: ignore[misc]
        self.embed = nn.Sequential(Product.of(first), nn.SiLU(), Product.of(last))
        self.norms = nn.ModuleList(Norm(block.norm_context) for block in block_list)
        self.keys = nn.ModuleList(Product.of(block.cross_attn.to_k) for block in block_list)
        self.key_norms = nn.ModuleList(Norm(block.cross_attn.norm_k) for block in block_list)
        self.values = nn.ModuleList(Product.of(block.cross_attn.to_v) for block in block_list)
        self.projections = nn.ModuleList(Product.of(block.cross_attn.proj) for block in block_list)

    def forward(self, text_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedded = self.embed(text_states)
        keys, values, constants = [], [], []
        parts = zip(self.norms, self.keys, self.key_norms, self.values, self.projections, strict=True)
        for norm, to_k, norm_k, to_v, proj in parts:
            context = norm(embedded)
            value = to_v(context)
            keys.append(norm_k(ops.split_heads(to_k(context), self.num_heads)))
            values.append(ops.split_heads(value, self.num_heads))
            constants.append(proj(value[:, 0]))
        return torch.stack(keys), torch.stack(values), torch.stack(constants)


class ModulationGraph(Graph):
    """Timesteps → every block's norm weights, norm biases and gates, folded with the LayerNorm affine.

    (n·w + b)(1 + scale) + shift = n·[w(1 + scale)] + [b(1 + scale) + shift], so a modulated norm stays one
    LayerNormalization.
    """

    def __init__(self, network: nn.Module, block_list: list[blocks.DiTBlock], config: EzAudioConfig, name: str) -> None:
        axes, dit = Axes.of(config), config.dit
        final = hasattr(network, "final_block")
        outputs = [TensorSpec("block_modulation", "float32", (axes.steps, len(block_list), 6, dit.width))]
        if final:
            outputs.append(TensorSpec("final_modulation", "float32", (axes.steps, 2, dit.width)))
        super().__init__(name, [TensorSpec("timesteps", "int64", (axes.steps,))], outputs)
        self.time_embed, self.time_ada = network.time_embed, network.time_ada
        self.adaln = nn.ModuleList(block.adaln for block in block_list)
        self.norms = nn.ModuleList(norm for block in block_list for norm in (block.norm1, block.norm3))
        self.final_ada = network.time_ada_final if final else None
        self.final_norm = network.final_block.norm if final else None

    @staticmethod
    def fold(norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> list[Tensor]:
        return [norm.weight * (1 + scale), norm.bias * (1 + scale) + shift]

    def forward(self, timesteps: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        state = blocks.time_state(self.time_embed, timesteps)  # type: ignore[arg-type]
        shared = self.time_ada(state)  # type: ignore[operator]
        rows = []
        for index, adaln in enumerate(self.adaln):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = adaln(state, shared).unbind(1)
            attention = [*self.fold(self.norms[2 * index], shift_a, scale_a), 1 - gate_a]  # type: ignore[arg-type]
            mlp = [*self.fold(self.norms[2 * index + 1], shift_m, scale_m), 1 - gate_m]  # type: ignore[arg-type]
            rows.append(torch.stack([*attention, *mlp], dim=1))
        block_modulation = torch.stack(rows, dim=1)
        if self.final_ada is None:
            return block_modulation
        shift, scale = self.final_ada(state).chunk(2, dim=-1)  # type: ignore[operator]
        return block_modulation, torch.stack(self.fold(self.final_norm, shift, scale), dim=1)  # type: ignore[arg-type]


class FrameBiasGraph(Graph):
    """Given latent and mask → what the first convolution adds in every step, a ControlNet's condition included."""

    def __init__(self, dit: MaskDiT, config: EzAudioConfig, controlnet: ControlNet | None = None) -> None:
        axes, channels = Axes.of(config), config.dit.latent_channels
        inputs = [
            TensorSpec("given", "float32", (axes.batch, channels, axes.frames)),
            TensorSpec("mask", "bool", (axes.batch, axes.frames)),
        ]
        if controlnet is not None:
            inputs.append(TensorSpec("energy", "float32", (axes.batch, 1, axes.frames * 2)))
        outputs = [TensorSpec("frame_bias", "float32", (axes.batch, axes.frames, config.dit.width))]
        super().__init__("frame_bias" if controlnet is None else "controlnet_frame_bias", inputs, outputs)
        patch = (dit.model if controlnet is None else controlnet).patch_embed.proj
        self.project = Product(patch.weight[:, channels:, 0], patch.bias)
        self.mask_embed = nn.Parameter(dit.mask_embed.detach()[None, :, None], requires_grad=False)
        self.condition = None if controlnet is None else controlnet.controlnet_pre

    def forward(self, given: Tensor, mask: Tensor, energy: Tensor | None = None) -> Tensor:
        frames = mask[:, None]
        constant = torch.cat([torch.where(frames, self.mask_embed, given), frames.to(given.dtype)], dim=1)
        bias = self.project(constant.transpose(1, 2))
        return bias if self.condition is None else bias + self.condition(energy)


def _rows(config: EzAudioConfig, mode: str) -> tuple[Axis, Axis]:
    """Axes of the rows the network runs on, and of those rows that carry a prompt of their own."""
    batch = Axes.of(config).batch
    return {"guided": (batch * 2, batch), "negative": (batch * 2, batch * 2), "unguided": (batch, batch)}[mode]


def _stack_inputs(config: EzAudioConfig, mode: str, num_blocks: int) -> list[TensorSpec]:
    """Inputs that the transformer's body and the ControlNet share."""
    axes, dit = Axes.of(config), config.dit
    _, prompted = _rows(config, mode)
    heads = (num_blocks, prompted, dit.num_heads, axes.tokens, dit.head_width)
    inputs = [
        TensorSpec("latents", "float32", (axes.batch, dit.latent_channels, axes.frames)),
        TensorSpec("frame_bias", "float32", (axes.batch, axes.frames, dit.width)),
        TensorSpec("block_modulation", "float32", (num_blocks, 6, dit.width)),
        TensorSpec("cross_keys", "float32", heads),
        TensorSpec("cross_values", "float32", heads),
        TensorSpec("context_mask", "bool", (prompted, axes.tokens)),
    ]
    if mode == "guided":
        inputs.append(TensorSpec("cross_constant", "float32", (num_blocks, axes.batch, dit.width)))
    return inputs


class _Embedding(nn.Module):
    """First convolution of the noisy latent plus the frame bias, repeated for each guidance branch; and RoPE tables."""

    def __init__(self, patch: nn.Conv1d, config: EzAudioConfig, mode: str) -> None:
        super().__init__()
        self.patch = Product(patch.weight[:, : config.dit.latent_channels, 0])
        self.branches = 1 if mode == "unguided" else 2
        cos, sin = ops.rope_tables(Axes.of(config).frames.max, config.dit.head_width)
        self.cos, self.sin = nn.Parameter(cos, requires_grad=False), nn.Parameter(sin, requires_grad=False)

    def forward(self, latents: Tensor, frame_bias: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        frames = latents.shape[2]
        x = self.patch(latents.transpose(1, 2)) + frame_bias
        return torch.cat([x] * self.branches), (self.cos.narrow(0, 0, frames), self.sin.narrow(0, 0, frames))


class ControlNetGraph(Graph):
    """One evaluation of the ControlNet: residuals for the skips of every in block, in every guidance branch."""

    def __init__(self, controlnet: ControlNet, config: EzAudioConfig, mode: str) -> None:
        axes, dit = Axes.of(config), config.dit
        count = dit.num_in_blocks
        rows, _ = _rows(config, mode)
        inputs = [*_stack_inputs(config, mode, count), TensorSpec("conditioning_scale", "float32", ())]
        outputs = [TensorSpec("residuals", "float32", (count, rows, axes.frames, dit.width))]
        super().__init__(graph_name("controlnet", mode), inputs, outputs)
        self.mode = mode
        self.embedding = _Embedding(controlnet.patch_embed.proj, config, mode)
        self.blocks = nn.ModuleList(Block(block) for block in controlnet.in_blocks)  # type: ignore[arg-type]
        self.zeros = nn.ModuleList(Product.of(zero) for zero in controlnet.controlnet_zero_blocks)  # type: ignore[arg-type]

    def forward(
        self,
        latents: Tensor,
        frame_bias: Tensor,
        block_modulation: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
        context_mask: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        *maybe_constant, conditioning_scale = rest
        x, rope = self.embedding(latents, frame_bias)
        residuals = []
        for i, (block, zero) in enumerate(zip(self.blocks, self.zeros, strict=True)):
            constant = maybe_constant[0][i] if maybe_constant else None
            x = block(x, block_modulation[i], rope, cross_keys[i], cross_values[i], context_mask, constant)
            residuals.append(zero(x))
        return torch.stack(residuals) * conditioning_scale


class DenoiserGraph(Graph):
    """One step: velocity of every guidance branch, then guidance, rescale and the solver's row in float32."""

    def __init__(self, dit: MaskDiT, config: EzAudioConfig, mode: str, controlled: bool = False) -> None:
        axes, size = Axes.of(config), config.dit
        count = size.num_blocks
        latent = (axes.batch, size.latent_channels, axes.frames)
        inputs = _stack_inputs(config, mode, count)
        if controlled:
            rows, _ = _rows(config, mode)
            inputs.append(TensorSpec("residuals", "float32", (size.num_in_blocks, rows, axes.frames, size.width)))
        inputs += [
            TensorSpec("final_modulation", "float32", (2, size.width)),
            TensorSpec("previous_clean", "float32", latent),
            TensorSpec("noise", "float32", latent),
            TensorSpec("coefficients", "float32", (6,)),
        ]
        if mode != "unguided":
            inputs += [TensorSpec(f"guidance_{name}", "float32", (axes.batch,)) for name in ("scale", "rescale")]
        outputs = [TensorSpec("next_latents", "float32", latent), TensorSpec("clean", "float32", latent)]
        super().__init__(graph_name("denoiser_controlled" if controlled else "denoiser", mode), inputs, outputs)
        model = dit.model
        self.mode, self.controlled, self.num_in = mode, controlled, size.num_in_blocks
        self.embedding = _Embedding(model.patch_embed.proj, config, mode)
        self.blocks = nn.ModuleList(Block(block) for block in model.all_blocks())
        self.final_linear = Product.of(model.final_block.linear)
        self.final_layer = model.final_block.final_layer

    def velocity(self, given: dict[str, Tensor]) -> Tensor:
        """(R, C, L): velocity of every branch, prompts first."""
        x, rope = self.embedding(given["latents"], given["frame_bias"])
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            constant = given["cross_constant"][i] if self.mode == "guided" else None
            x = block(
                x,
                given["block_modulation"][i],
                rope,
                given["cross_keys"][i],
                given["cross_values"][i],
                given["context_mask"],
                constant,
                skip=skips.pop() if block.skip else None,
            )
            if i < self.num_in:
                skips.append(x + given["residuals"][i] if self.controlled else x)
        weight, bias = given["final_modulation"].unbind(0)
        x = F.layer_norm(x, (x.shape[-1],), weight, bias, ops.NORM_EPS)
        return self.final_layer(self.final_linear(x).transpose(1, 2))

    def forward(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip((spec.name for spec in self.inputs), args, strict=True))
        velocity, latents = self.velocity(given), given["latents"]
        if self.mode != "unguided":
            batch = latents.shape[0]
            conditional, negative = velocity.narrow(0, 0, batch), velocity.narrow(0, batch, batch)
            velocity = guide(conditional, negative, given["guidance_scale"], given["guidance_rescale"])
        return solver_step(given["coefficients"], latents, velocity, given["previous_clean"], given["noise"])


def graph_name(kind: str, mode: str) -> str:
    """`denoiser` for the default (empty negative prompt), `denoiser_negative`, `denoiser_unguided`."""
    return kind if mode == "guided" else f"{kind}_{mode}"
