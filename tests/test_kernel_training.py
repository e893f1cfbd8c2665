"""Training on the fused operators goes where plain PyTorch's goes: a larger model on a GPU, a tiny one elsewhere.

The interpreter takes half a second a step, so there a usual run stops after 12 of the 200 steps:

    EZAUDIO_TRAINING_STEPS=200 pytest tests/test_kernel_training.py
"""

from __future__ import annotations

import os

import pytest
import torch
from kernel_cases import DEVICE, random, small_model

from ezaudio.config import DiTConfig
from ezaudio.random_weights import fill_randomly

ON_GPU = DEVICE == "cuda"
STEPS = int(os.environ.get("EZAUDIO_TRAINING_STEPS", 200 if ON_GPU else 12))
TINY = DiTConfig(
    latent_channels=4, width=16, depth=2, num_heads=1, context_width=8, adaln_rank=2, adaln_alpha=2, mlp_ratio=2.0
)
LARGER = DiTConfig(
    latent_channels=16, width=288, depth=6, num_heads=4, context_width=64, adaln_rank=8, adaln_alpha=8, mlp_ratio=4.0
)
WINDOW = 10  # steps of which losses are averaged where single ones are mostly rounding


def losses(config: DiTConfig, fuse: bool, batch: int, frames: int, steps: int, autocast: bool = False) -> list[float]:
    """Of Adam steps on data that differs with every step: the target is the noisy input, turned by a frame."""
    model = small_model(config)
    if config is LARGER:
        fill_randomly(model.cpu(), 0, "dit")  # the small model's values would make a wide one's explode
        model.to(DEVICE)
    if fuse:
        model.fuse()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3 if config is TINY else 3e-4)
    history = []
    for step in range(steps):
        x = random(batch, config.latent_channels, frames, seed=3 * step).to(DEVICE)
        context = random(batch, 5, config.context_width, seed=3 * step + 1).to(DEVICE)
        mask = torch.arange(5, device=DEVICE) < 1 + torch.arange(batch, device=DEVICE)[:, None] % 5
        timesteps = (random(batch, seed=3 * step + 2).abs() * 300).long().clamp(max=999).to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            out = model(x, timesteps, context, mask)
        loss = (out.float() - x.roll(1, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def deviation(history: list[float], expected: list[float], window: int = 1) -> float:
    """The largest relative difference of losses, averaged over windows of steps."""
    a, b = (
        torch.tensor(values, dtype=torch.float64).unflatten(0, (-1, window)).mean(1) for values in (history, expected)
    )
    return ((a - b).abs() / b).max().item()


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="the tiny model, for the interpreter")
def test_losses_are_those_of_plain_pytorch() -> None:
    plain, fused = (losses(TINY, fuse, batch=1, frames=8, steps=STEPS) for fuse in (False, True))
    assert sum(plain[-4:]) < 0.8 * sum(plain[:4])
    assert deviation(fused, plain) < 1e-4  # measured over 200 steps: 3.4e-6


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="the tiny model, for the interpreter")
def test_autocast_strays_no_further_than_pytorchs() -> None:
    exact, eager, fused = (
        losses(TINY, fuse, batch=1, frames=8, steps=4, autocast=autocast)
        for fuse, autocast in ((False, False), (False, True), (True, True))
    )
    assert deviation(fused, exact) <= 2 * deviation(eager, exact)  # measured: 0.019 and 0.034


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_losses_of_a_larger_model(autocast: bool) -> None:
    """In float32 every loss; in bf16 windows of steps, no further from float32 than twice what eager autocast is."""
    exact, fused = (losses(LARGER, fuse, 4, 100, STEPS, autocast and fuse) for fuse in (False, True))
    assert sum(exact[-WINDOW:]) < 0.8 * sum(exact[:WINDOW])
    allowed = 1e-2
    if autocast:
        allowed += 2 * deviation(losses(LARGER, False, 4, 100, STEPS, True), exact, WINDOW)
    assert deviation(fused, exact, WINDOW) <= allowed  # not measured yet
