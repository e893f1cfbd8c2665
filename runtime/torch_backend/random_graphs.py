"""Graphs with random weights of the right shapes, from PyTorch alone: for benchmarks on a GPU, and for tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ezaudio.config import EzAudioConfig
from ezaudio.controlnet import ControlNet
from ezaudio.dit import MaskDiT
from ezaudio.export.graphs import Graph
from ezaudio.export.text_graph import no_weights
from ezaudio.random_weights import fill_randomly
from ezaudio.runtime.torch_backend.modules import graphs_of
from ezaudio.vae import AutoencoderOobleck


def random_graphs(
    config: EzAudioConfig, seed: int = 0, controlnet: bool = False, device: str = "cpu"
) -> dict[str, Graph]:
    """All graphs of a system on the CPU, in float32. XL with its text encoder takes 9 GB.

    device: where they are drawn; a GPU does it in a moment, and draws others.
    """

    def filled(module: nn.Module, part: str) -> nn.Module:
        fill_randomly(module, seed, part, device)
        return module.cpu().eval()

    with torch.device("meta"):
        dit, vae = MaskDiT(config.dit), AutoencoderOobleck(config.vae)
        control = ControlNet(config.dit, config.controlnet) if controlnet else None
    filled(dit, "dit")
    filled(vae, "vae")
    if control is not None:
        filled(control, "controlnet")
    return graphs_of(config, dit, vae.fold_weight_norm(), random_text_weights(config, seed, device), control)


def random_text_weights(config: EzAudioConfig, seed: int, device: str) -> dict[str, Tensor]:
    """Of the text encoder, under which its states keep their size; queries are small since T5 does not scale scores."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, shape in ((name, meta.shape) for name, meta in no_weights(config.text).items()):
        values = torch.randn(shape, generator=generator, device=device).cpu()
        if name.endswith("layer_norm.weight"):
            weights[name] = 1 + 0.1 * values
        elif name in ("shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"):
            weights[name] = 0.5 * values
        else:
            gain = 0.15 if name.endswith("SelfAttention.q.weight") else 1.0
            weights[name] = values * (gain / math.sqrt(shape[-1]))
    return weights
