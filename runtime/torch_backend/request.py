"""What a generation is asked for, as numbers: arrays from the host, and the shape that decides what is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezaudio.runtime.noise import PhiloxNoise
from ezaudio.runtime.solvers import SolverPlan

Float32: TypeAlias = NDArray[np.float32]

Given: TypeAlias = dict[str, Any]
"""Tensors by the names that the exported graphs give them."""

TOKEN_BUCKETS = (16, 32, 64)  # and the most that a prompt may have


class StepKind(NamedTuple):
    """Whether a step is guided, and whether it takes what the inner blocks made last in place of running them."""

    guided: bool
    reused: bool


class Draws(NamedTuple):
    """Where noise comes from: given, (B, C, L) and (N, B, C, L), or drawn on the device from seeds (B,) int64."""

    start: Tensor | None
    steps: Tensor | None
    seeds: Tensor | None
    every_step: bool


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """B clips of one length that walk one plan.

    Attributes:
        text_states: (S, D_text) of each item's prompt.
        negative_states: the same of the negative prompts; one token is a constant. None without guidance.
        steps: what each step of the plan is.
        seeds: of each item.
        scale, rescale: guidance of each item, (B,).
        noise: `torch` or `philox`, see `Settings`.
        given, mask: latents (B, C, L) to keep where the mask (B, L) is False; None makes everything.
        energy: (B, 1, 2L) for the ControlNet, with its weight `control_scale`; None without it.
        decoded: whether samples are wanted, or latents alone.
    """

    text_states: Sequence[Float32]
    negative_states: Sequence[Float32] | None
    plan: SolverPlan
    steps: tuple[StepKind, ...]
    num_frames: int
    seeds: Sequence[int]
    scale: Sequence[float]
    rescale: Sequence[float]
    noise: str = "torch"
    given: Float32 | None = None
    mask: NDArray[np.bool_] | None = None
    energy: Float32 | None = None
    control_scale: float = 1.0
    decoded: bool = True

    def __post_init__(self) -> None:
        batch = len(self.text_states)
        assert batch > 0
        assert all(len(values) == batch for values in (self.seeds, self.scale, self.rescale))
        assert self.negative_states is None or len(self.negative_states) == batch
        assert len(self.steps) == self.plan.num_steps
        assert not self.steps[0].reused
        assert self.negative_states is not None or not any(step.guided for step in self.steps)
        frames = (batch, self.num_frames)
        assert self.mask is None or self.mask.shape == frames
        assert self.given is None or (len(self.given), self.given.shape[2]) == frames
        assert self.energy is None or self.energy.shape == (batch, 1, 2 * self.num_frames)


@dataclass(frozen=True, slots=True)
class Shape:
    """What two requests must share to replay one recorded generation.

    Attributes:
        tokens: length that prompts are padded to; a masked key adds exactly nothing.
        negative_tokens: the same of negative prompts; 1 where they are constants, 0 without any.
        draws: whether every step adds noise; `on_device` where it comes from seeds.
    """

    batch: int
    num_frames: int
    tokens: int
    negative_tokens: int
    steps: tuple[StepKind, ...]
    draws: bool
    on_device: bool
    controlled: bool
    decoded: bool

    @classmethod
    def of(cls, request: Request, max_tokens: int, draws_on_device: bool) -> Shape:
        longest = max(len(states) for states in request.text_states)
        negative = max((len(states) for states in request.negative_states or ()), default=0)
        if not any(step.guided for step in request.steps):
            negative = 0
        tokens = bucket(max(longest, negative), max_tokens)
        return cls(
            batch=len(request.text_states),
            num_frames=request.num_frames,
            tokens=tokens if negative > 1 else bucket(longest, max_tokens),
            negative_tokens=tokens if negative > 1 else negative,
            steps=request.steps,
            draws=request.plan.draws_noise,
            on_device=request.noise == "philox" and draws_on_device,
            controlled=request.energy is not None,
            decoded=request.decoded,
        )


def bucket(tokens: int, max_tokens: int) -> int:
    """The length that a text of so many tokens is padded to."""
    return next((size for size in TOKEN_BUCKETS if tokens <= size < max_tokens), max_tokens)


def host_inputs(request: Request, shape: Shape, latent_channels: int) -> dict[str, Tensor]:
    """All that a recorded generation reads, by name, on the host."""
    size = (shape.batch, latent_channels, shape.num_frames)
    given = np.zeros(size, np.float32) if request.given is None else request.given
    mask = np.ones((shape.batch, shape.num_frames), np.bool_) if request.mask is None else request.mask
    arrays: dict[str, Any] = {
        **_padded("text", request.text_states, shape.tokens),
        "timesteps": request.plan.timesteps,
        "rows": request.plan.rows,
        "scale": np.array(request.scale, np.float32),
        "rescale": np.array(request.rescale, np.float32),
        "given": given,
        "mask": mask,
    }
    if shape.negative_tokens:
        assert request.negative_states is not None
        arrays |= _padded("negative", request.negative_states, shape.negative_tokens)
    if shape.controlled:
        arrays |= {"energy": request.energy, "control_scale": np.array(request.control_scale, np.float32)}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    seeds = [seed % 2**64 for seed in request.seeds]
    if shape.on_device:
        signed = [seed - 2**64 if seed >= 2**63 else seed for seed in seeds]
        return tensors | {"seeds": torch.from_numpy(np.array(signed, np.int64))}
    # The program's own defaults of types and devices are not asked: a seed gives one clip.
    plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    draws = torch.empty((1 + (request.plan.num_steps if shape.draws else 0), *size), **plain)
    for item, seed in enumerate(seeds):
        if request.noise == "torch":  # the stream that `TorchNoise` repeats, fifty times as fast
            generator = torch.Generator("cpu").manual_seed(seed)
            for draw in draws:
                draw[item] = torch.randn(size[1:], generator=generator, **plain)
        else:
            source = PhiloxNoise(seed)
            for step, draw in enumerate(draws):
                draw[item] = torch.from_numpy(source.draw(step, size[1:]))
    tensors["start"] = draws[0]
    return tensors | ({"noise": draws[1:]} if shape.draws else {})


def _padded(name: str, states: Sequence[Float32], tokens: int) -> dict[str, Any]:
    padded = np.zeros((len(states), tokens, states[0].shape[1]), np.float32)
    mask = np.zeros((len(states), tokens), np.bool_)
    for index, item in enumerate(states):
        padded[index, : len(item)], mask[index, : len(item)] = item, True
    return {f"{name}_states": padded, f"{name}_mask": mask}
