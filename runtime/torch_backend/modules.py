"""The graphs of a bundle as PyTorch modules on one device: cut from models, or empty for a bundle's weights.

The modules are those that the exporter traces, so there is no second description of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ezaudio.config import EzAudioConfig
from ezaudio.controlnet import ControlNet
from ezaudio.dit import MaskDiT
from ezaudio.export.graphs import (
    ConditionerGraph,
    ControlNetGraph,
    DenoiserGraph,
    FrameBiasGraph,
    Graph,
    ModulationGraph,
)
from ezaudio.export.text_graph import TextEncoderGraph, no_weights
from ezaudio.export.vae_graphs import DecoderGraph, EncoderGraph
from ezaudio.vae import AutoencoderOobleck

SHARED = ("embedding", "blocks", "final_linear", "final_layer")
"""Parts that every form of the denoiser has in common."""

# The same table of roles as `export/policy.py`, by names of parameters (graph.parameter). What is in float32 beyond it
# (T5's queries, keys and last products) is so by its module, with its weights in half precision.
FLOAT32 = (
    "*modulation.*",  # once a run, and its rows scale every block
    "*frame_bias.*",  # once a clip, and it is added to the latents
    "*.embedding.*",  # RoPE tables, and the layer next to the latents
    "denoiser*.final_l*",  # guidance multiplies their error by 5 to 11
    "decoder.layers.[!0].weight",  # the last layer: a sample rounded to bf16 is noise
    "decoder.layers.[!0].bias",
    "decoder.layers.0.*",  # where companded latents are expanded
    "decoder.layers.1.1.*",
    "encoder.layers.[!0].weight",
    "encoder.layers.[!0].bias",
    "*norm*",
    "*.frequency",  # snake loses its phase in half precision
    "*.magnitude",
    "text_encoder.position_bias",
)
FLOAT32_IN_BF16 = ("decoder.*", "encoder.*")  # 8 bits are too few for audio


def compute_type(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a parameter, named graph.parameter, is held and computed in."""
    patterns = (*FLOAT32, *(FLOAT32_IN_BF16 if dtype == torch.bfloat16 else ()))
    return torch.float32 if any(fnmatchcase(name, pattern) for pattern in patterns) else dtype


def graphs_of(
    config: EzAudioConfig,
    dit: MaskDiT | None = None,
    vae: AutoencoderOobleck | None = None,
    text_weights: Mapping[str, Tensor] | None = None,
    controlnet: ControlNet | None = None,
) -> dict[str, Graph]:
    """The graphs that the given models make, by their names in a bundle.

    Args:
        text_weights: state dict of the T5 encoder, see `TextEncoderGraph`.
        controlnet: goes with the DiT.
    """
    found: list[Graph] = []
    if text_weights is not None:
        found.append(TextEncoderGraph(text_weights, config))
    if dit is not None:
        blocks = dit.model.all_blocks()
        forms = ("denoiser", "denoiser_shallow", *([] if controlnet is None else ["denoiser_controlled"]))
        found += [
            ConditionerGraph(dit.model, blocks, config, "conditioner"),
            ModulationGraph(dit.model, blocks, config, "modulation"),
            FrameBiasGraph(dit, config),
            *(DenoiserGraph(dit, config, form) for form in forms),
        ]
        if controlnet is not None:
            of_control = list(controlnet.in_blocks)
            found += [
                ConditionerGraph(controlnet, of_control, config, "controlnet_conditioner"),  # type: ignore[arg-type]
                ModulationGraph(controlnet, of_control, config, "controlnet_modulation"),  # type: ignore[arg-type]
                FrameBiasGraph(dit, config, controlnet),
                ControlNetGraph(controlnet, config),
            ]
    if vae is not None:
        found += [DecoderGraph(vae, config), EncoderGraph(vae, config)]
    graphs = {graph.name: graph.eval().requires_grad_(False) for graph in found}
    for name in ("denoiser_shallow", "denoiser_controlled"):
        if name in graphs:
            _share(graphs[name], graphs["denoiser"])
    return graphs


def empty_graphs(config: EzAudioConfig, names: Collection[str]) -> dict[str, Graph]:
    """The named graphs with parameters on the meta device. Raises ValueError where the settings make no model."""
    with torch.device("meta"):
        dit, vae = MaskDiT(config.dit), AutoencoderOobleck(config.vae)
        controlnet = ControlNet(config.dit, config.controlnet) if "controlnet" in names else None
    graphs = graphs_of(config, dit, vae, no_weights(config.text), controlnet)
    return {name: graph for name, graph in graphs.items() if name in names}


def _share(graph: Graph, denoiser: Graph) -> None:
    """Give a form of the denoiser the modules, and so the memory, of the whole one."""
    for name in SHARED:
        own, whole = getattr(graph, name), getattr(denoiser, name)
        setattr(graph, name, nn.ModuleDict({key: whole[key] for key in own}) if name == "blocks" else whole)


def place(graphs: Mapping[str, Graph], device: torch.device, dtype: torch.dtype) -> None:
    """Move every parameter to the device, in the type that it is computed in; equal memory stays one."""
    placed: dict[tuple[object, ...], tuple[Tensor, nn.Parameter]] = {}
    for graph_name, graph in graphs.items():
        for prefix, module in graph.named_modules():
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                full = ".".join(part for part in (graph_name, prefix, leaf) if part)
                target = compute_type(full, dtype)
                source = parameter.detach()
                place = (source.data_ptr(), source.dtype, source.shape, source.stride(), target)
                if place not in placed:  # the source is kept, so that no other tensor gets its address meanwhile
                    moved = source.to(device, target)
                    placed[place] = (source, nn.Parameter(moved, requires_grad=False))
                setattr(module, leaf, placed[place][1])
            for leaf, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, leaf, buffer.to(device))


def num_bytes(graphs: Mapping[str, Graph]) -> int:
    """Bytes of all weights, what is shared once."""
    stores = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for graph in graphs.values()
        for p in graph.parameters()
    }
    return sum(stores.values())
