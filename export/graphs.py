"""The graphs of a bundle: what each one takes and gives, and how it is cut from the PyTorch models.

A graph computes only what changes at its own rate: text_encoder and conditioner once a prompt, modulation once a run,
frame_bias once a clip, the denoiser once a step, the decoder once a clip.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ezaudio import blocks
from ezaudio.config import EzAudioConfig
from ezaudio.controlnet import ControlNet
from ezaudio.dit import MaskDiT
from ezaudio.export.blocks import Block, Norm, Product, layer_norm
from ezaudio.kernels import reference as ops
from ezaudio.runtime.engines.profiles import num_frames
from ezaudio.runtime.tensor_spec import Axis, TensorSpec
from ezaudio.sampling import guide, solver_step

MAX_BATCH = 8


@dataclass(frozen=True, slots=True)
class Axes:
    """The sizes that vary at run time, with the ranges a model is good for.

    A step's network runs on `rows`: guidance branches along the batch, prompts first. Those of `prompt_rows` attend to
    a prompt, the `constant_rows` after them add the constant that a one-token prompt comes to. Guidance with an empty
    negative prompt has batch + batch rows, with any other 2·batch + 0, and no guidance batch + 0.
    """

    batch: Axis
    frames: Axis
    tokens: Axis
    steps: Axis
    prompt_rows: Axis
    constant_rows: Axis
    rows: Axis

    @classmethod
    def of(cls, config: EzAudioConfig) -> Axes:
        usual, longest = (num_frames(s, config) for s in (config.defaults.duration_s, config.max_duration_s))
        most_tokens, most_steps = config.text.max_tokens, config.diffusion.num_train_steps
        return cls(
            batch=Axis("batch", 1, 1, MAX_BATCH),
            frames=Axis("frames", 1, usual, longest),
            tokens=Axis("tokens", 1, min(16, most_tokens), most_tokens),
            steps=Axis("steps", 1, min(50, most_steps), most_steps),
            prompt_rows=Axis("prompt_rows", 1, 1, 2 * MAX_BATCH),
            constant_rows=Axis("constant_rows", 0, 1, MAX_BATCH),
            rows=Axis("rows", 1, 2, 2 * MAX_BATCH),
        )


class Graph(nn.Module):
    """A module to export, with its name in the bundle and the tensors it takes and gives."""

    def __init__(self, name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
        super().__init__()
        self.name, self.inputs, self.outputs = name, inputs, outputs

    def by_name(self, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The arguments of `forward` by the names of the inputs."""
        return dict(zip((spec.name for spec in self.inputs), args, strict=True))

    def arrange(self, by_name: dict[str, Any]) -> Any:
        """What is said of each input, in the structure of forward's signature (*args is a tuple of its own)."""
        values = tuple(by_name[spec.name] for spec in self.inputs)
        parameters = list(inspect.signature(self.forward).parameters.values())
        if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
            return values
        fixed = len(parameters) - 1
        return (*values[:fixed], values[fixed:])


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


def _stack_inputs(config: EzAudioConfig, num_blocks: int) -> list[TensorSpec]:
    """Inputs that the transformer's body and the ControlNet share."""
    axes, dit = Axes.of(config), config.dit
    heads = (num_blocks, axes.prompt_rows, dit.num_heads, axes.tokens, dit.head_width)
    return [
        TensorSpec("latents", "float32", (axes.batch, dit.latent_channels, axes.frames)),
        TensorSpec("frame_bias", "float32", (axes.batch, axes.frames, dit.width)),
        TensorSpec("block_modulation", "float32", (num_blocks, 6, dit.width)),
        TensorSpec("cross_keys", "float32", heads),
        TensorSpec("cross_values", "float32", heads),
        TensorSpec("context_mask", "bool", (axes.prompt_rows, axes.tokens)),
        TensorSpec("cross_constant", "float32", (num_blocks, axes.constant_rows, dit.width)),
    ]


class _Embedding(nn.Module):
    """First convolution of the noisy latent plus the frame bias, repeated for each guidance branch; and RoPE tables."""

    def __init__(self, patch: nn.Conv1d, config: EzAudioConfig) -> None:
        super().__init__()
        self.patch = Product(patch.weight[:, : config.dit.latent_channels, 0])
        cos, sin = ops.rope_tables(Axes.of(config).frames.max, config.dit.head_width)
        self.cos, self.sin = nn.Parameter(cos, requires_grad=False), nn.Parameter(sin, requires_grad=False)

    def forward(self, given: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        latents = given["latents"]
        batch, frames = latents.shape[0], latents.shape[2]
        x = self.patch(latents.transpose(1, 2)) + given["frame_bias"]
        rows = torch.arange(_num_rows(given), device=latents.device)
        branches = x.index_select(0, torch.where(rows < batch, rows, rows - batch))
        return branches, (self.cos.narrow(0, 0, frames), self.sin.narrow(0, 0, frames))


def _num_rows(given: dict[str, Tensor]) -> int:
    """How many rows the network runs on."""
    return given["cross_keys"].shape[1] + given["cross_constant"].shape[1]


def _first_rows(x: Tensor, given: dict[str, Tensor], dim: int) -> Tensor:
    """The first rows of x, as many as the network runs on: all there are, or the prompts' of a guided step.

    Selected, not narrowed: torch.export would want a proof that there are as many.
    """
    return x.index_select(dim, torch.arange(_num_rows(given), device=x.device))


def _exported(block_list: list[blocks.DiTBlock], numbers: Iterable[int]) -> nn.ModuleDict:
    """Blocks by their number, in their exported form."""
    return nn.ModuleDict({str(number): Block(block_list[number]) for number in numbers})


def _run_block(
    exported: nn.ModuleDict,
    number: int,
    x: Tensor,
    given: dict[str, Tensor],
    rope: tuple[Tensor, Tensor],
    skip: Tensor | None = None,
) -> Tensor:
    """Block `number` on its part of the inputs that `_stack_inputs` lists."""
    return exported[str(number)](
        x,
        given["block_modulation"][number],
        rope,
        given["cross_keys"][number],
        given["cross_values"][number],
        given["context_mask"],
        given["cross_constant"][number],
        skip=skip,
    )


class ControlNetGraph(Graph):
    """One evaluation of the ControlNet: residuals for the skips of every in block, in every guidance branch."""

    def __init__(self, controlnet: ControlNet, config: EzAudioConfig) -> None:
        axes, dit = Axes.of(config), config.dit
        count = dit.num_in_blocks
        inputs = [*_stack_inputs(config, count), TensorSpec("conditioning_scale", "float32", ())]
        outputs = [TensorSpec("residuals", "float32", (count, axes.rows, axes.frames, dit.width))]
        super().__init__("controlnet", inputs, outputs)
        self.embedding = _Embedding(controlnet.patch_embed.proj, config)
        self.blocks = _exported(list(controlnet.in_blocks), range(count))  # type: ignore[arg-type]
        self.zeros = nn.ModuleList(Product.of(zero) for zero in controlnet.controlnet_zero_blocks)  # type: ignore[arg-type]

    def forward(self, *args: Tensor) -> Tensor:
        given = self.by_name(args)
        x, rope = self.embedding(given)
        residuals = []
        for i, zero in enumerate(self.zeros):
            x = _run_block(self.blocks, i, x, given, rope)
            residuals.append(zero(x))
        return torch.stack(residuals) * given["conditioning_scale"]


class DenoiserGraph(Graph):
    """One step: velocity of every guidance branch, then guidance, rescale and the solver's row in float32.

    Three forms. `denoiser` runs every block and also gives `inner`, what the innermost blocks make of it;
    `denoiser_shallow` takes `inner` of an earlier step and runs only the outermost blocks, those whose skips reach
    around it (the idea of DeepCache, Ma et al. 2024, on the DiT's long skips); `denoiser_controlled` runs every block
    and adds the ControlNet's residuals to the skips.
    """

    def __init__(self, dit: MaskDiT, config: EzAudioConfig, form: str = "denoiser") -> None:
        axes, size = Axes.of(config), config.dit
        latent = (axes.batch, size.latent_channels, axes.frames)
        inner = TensorSpec("inner", "float32", (axes.rows, axes.frames, size.width))
        inputs = _stack_inputs(config, size.num_blocks)
        if form == "denoiser_controlled":
            residuals = (size.num_in_blocks, axes.rows, axes.frames, size.width)
            inputs.append(TensorSpec("residuals", "float32", residuals))
        elif form == "denoiser_shallow":
            inputs.append(inner)
        inputs += [
            TensorSpec("final_modulation", "float32", (2, size.width)),
            TensorSpec("previous_clean", "float32", latent),
            TensorSpec("noise", "float32", latent),
            TensorSpec("coefficients", "float32", (6,)),
            TensorSpec("guidance_scale", "float32", (axes.batch,)),
            TensorSpec("guidance_rescale", "float32", (axes.batch,)),
        ]
        outputs = [TensorSpec("next_latents", "float32", latent), TensorSpec("clean", "float32", latent)]
        if form == "denoiser":
            outputs.append(inner)
        super().__init__(form, inputs, outputs)
        model = dit.model
        self.num_in, self.num_blocks, self.num_outer = size.num_in_blocks, size.num_blocks, size.num_outer_blocks
        numbers = list(range(size.num_blocks))
        if form == "denoiser_shallow":
            numbers = numbers[: self.num_outer] + numbers[-self.num_outer :]
        self.embedding = _Embedding(model.patch_embed.proj, config)
        self.blocks = _exported(model.all_blocks(), numbers)
        self.final_linear = Product.of(model.final_block.linear)
        self.final_layer = model.final_block.final_layer

    def velocity(self, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(R, C, L): velocity of every branch, prompts first; and (R, L, D): what enters the last outer blocks."""
        x, rope = self.embedding(given)
        skips: list[Tensor] = []
        turn = self.num_blocks - self.num_outer
        inner = x
        for number in range(self.num_blocks):
            if number == turn:
                if self.name == "denoiser_shallow":
                    x = _first_rows(given["inner"], given, dim=0)
                inner = x
            if self.name == "denoiser_shallow" and self.num_outer <= number < turn:
                continue
            skip = skips.pop() if number > self.num_in else None
            x = _run_block(self.blocks, number, x, given, rope, skip)
            if number < self.num_in:
                skips.append(x)
                if self.name == "denoiser_controlled":
                    skips[-1] = x + _first_rows(given["residuals"][number], given, dim=0)
        weight, bias = given["final_modulation"].unbind(0)
        return self.final_layer(self.final_linear(layer_norm(x, weight, bias)).transpose(1, 2)), inner

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        given = self.by_name(args)
        (velocity, inner), latents = self.velocity(given), given["latents"]
        # Without a second branch `negative` is the conditional one itself, and guidance changes nothing.
        batch = torch.arange(latents.shape[0], device=latents.device)
        conditional = velocity.index_select(0, batch)
        negative = velocity.index_select(0, batch + (velocity.shape[0] - latents.shape[0]))
        velocity = guide(conditional, negative, given["guidance_scale"], given["guidance_rescale"])
        results = solver_step(given["coefficients"], latents, velocity, given["previous_clean"], given["noise"])
        return (*results, inner) if self.name == "denoiser" else results
