"""A whole generation as one function of tensors: text states in, latents and samples out. No host in it.

Conditioner, modulation, frame bias, every step, decoder: what differs between requests of one `Shape` is in the
tensors, so a CUDA graph of this function serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ezaudio.config import VAEConfig
from ezaudio.runtime.decoding import frame_bounds, part_bounds
from ezaudio.runtime.torch_backend.request import Draws, Given, Shape

MODULATION_CHUNK = 64  # steps, so that 1000 of them need no 1000 rows at once

AfterStep = Callable[[int], None]


class Cross(NamedTuple):
    """What cross-attention reads: keys and values (blocks, P, H, S, …), mask (P, S), constants (blocks, R − P, D)."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    constant: Tensor

    def given(self, batch: int, guided: bool) -> Given:
        """For a step that is guided or not: prompts are the first `batch` rows."""
        prompts = len(self.mask) if guided else batch
        return {
            "cross_keys": self.keys[:, :prompts],
            "cross_values": self.values[:, :prompts],
            "context_mask": self.mask[:prompts],
            "cross_constant": self.constant if guided else self.constant[:, :0],
        }


class Network(NamedTuple):
    """Graphs by name, and the functions that run a step's parts: the module `plain` or `fused`."""

    graphs: Mapping[str, Any]
    parts: ModuleType
    vae: VAEConfig


def generate(network: Network, shape: Shape, x: Mapping[str, Tensor], after_step: AfterStep) -> dict[str, Tensor]:
    """`latents` (B, C, L) and, where they are decoded, `samples` (B, L·hop), not clipped.

    Args:
        x: see `request.host_inputs`.
        after_step: called with a step's number once all of it is enqueued.
    """
    latents = denoise(network, shape, x, after_step)
    if not shape.decoded:
        return {"latents": latents}
    # Clip by clip: large enough for a GPU, in a batch's memory of one, and no clip depends on its batch.
    return {"latents": latents, "samples": torch.cat([decode(network, clip[None]) for clip in latents])}


def denoise(network: Network, shape: Shape, x: Mapping[str, Tensor], after_step: AfterStep) -> Tensor:
    """All steps: (B, C, L)."""
    graphs, parts, batch = network.graphs, network.parts, shape.batch
    draws = Draws(x.get("start"), x.get("noise"), x.get("seeds"), shape.draws)
    denoiser = _Stack(network, shape, x, "")
    denoiser.kept["frame_bias"] = graphs["frame_bias"](x["given"], x["mask"])
    control = None
    if shape.controlled:
        control = _Stack(network, shape, x, "controlnet_")
        control.kept["frame_bias"] = graphs["controlnet_frame_bias"](x["given"], x["mask"], x["energy"])
        control.kept["conditioning_scale"] = x["control_scale"]
    latents = parts.start(draws, tuple(x["given"].shape))
    clean = inner = None
    for step, (guided, reused) in enumerate(shape.steps):
        given = denoiser.given(step, latents, guided)
        name = "denoiser"
        if control is not None:
            given["residuals"] = parts.residuals(graphs["controlnet"], control.given(step, latents, guided))
            name = "denoiser_controlled"
        elif reused:
            given["inner"] = inner
            name = "denoiser_shallow"
        elif any(later.reused for later in shape.steps[step + 1 :]):
            given["keep_inner"] = True
        velocity, made = parts.velocity(graphs[name], given)
        inner = inner if reused else made
        latents, clean = parts.sampler_step(
            latents,
            velocity[:batch],
            velocity[batch:] if guided else None,
            clean,
            x["rows"][step],
            x["scale"],
            x["rescale"],
            draws,
            step,
            (x["given"], x["mask"]) if step == len(shape.steps) - 1 else None,
        )
        after_step(step)
    return latents


class _Stack:
    """What the denoiser or the ControlNet (`prefix`) is given in a step; `kept` in every one."""

    def __init__(self, network: Network, shape: Shape, x: Mapping[str, Tensor], prefix: str) -> None:
        self.kept: Given = {}
        self._batch, self._timesteps = shape.batch, x["timesteps"]
        self._graph, self._parts = network.graphs[f"{prefix}modulation"], network.parts
        self._cross = _condition(network, shape, x, prefix)
        self._rows: tuple[Tensor, ...] = ()

    def given(self, step: int, latents: Tensor, guided: bool) -> Given:
        index = step % MODULATION_CHUNK
        if index == 0:
            self._rows = self._parts.modulations(self._graph, self._timesteps[step : step + MODULATION_CHUNK])
        rows = zip(("block_modulation", "final_modulation"), self._rows, strict=False)
        changed = {"latents": latents, **{name: table[index] for name, table in rows}}
        return {**self.kept, **changed, **self._cross.given(self._batch, guided)}


def _condition(network: Network, shape: Shape, x: Mapping[str, Tensor], prefix: str) -> Cross:
    graph = network.graphs[f"{prefix}conditioner"]
    states, mask = x["text_states"], x["text_mask"]
    if shape.negative_tokens > 1:
        states, mask = torch.cat([states, x["negative_states"]]), torch.cat([mask, x["negative_mask"]])
    keys, values, constant = network.parts.condition(graph, states)
    none = constant[:, :0]
    if shape.negative_tokens != 1:
        return Cross(keys, values, mask, none)
    return Cross(keys, values, mask, network.parts.condition(graph, x["negative_states"])[2])


def decode(network: Network, latents: Tensor) -> Tensor:
    """Latents (1, C, L) → samples (1, L·hop), in parts where the clip is long."""
    vae, frames = network.vae, latents.shape[2]
    pieces = []
    for begin, end in part_bounds(frames * vae.hop, vae.sample_rate):
        first, last = frame_bounds(begin, end, frames, vae)
        decoded = network.parts.decode(network.graphs["decoder"], latents[:, :, first:last])
        pieces.append(decoded[:, begin - first * vae.hop : end - first * vae.hop])
    return torch.cat(pieces, dim=1).float()
