"""Steps as CUDA graphs, and what keeps their shapes."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, random, small_model
from torch import nn

from ezaudio.config import DiTConfig
from ezaudio.random_weights import fill_randomly
from ezaudio.training.latent_diffusion import padded
from ezaudio.training.recorded import MAX_SHAPES, Recorded

SMALL = DiTConfig(
    latent_channels=8, width=144, depth=4, num_heads=2, context_width=32, adaln_rank=4, adaln_alpha=4, mlp_ratio=2.0
)


def history(network: nn.Module, model: nn.Module, with_text: bool, lengths: list[int]) -> list[float]:
    """Losses of a step of Adam at each length."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for step, frames in enumerate(lengths):
        x = random(2, SMALL.latent_channels, frames, seed=2 * step).to(DEVICE)
        context = random(2, 5, SMALL.context_width, seed=2 * step + 1).to(DEVICE) if with_text else None
        mask = (
            torch.arange(5, device=DEVICE) < torch.tensor([[5], [step % 5 + 1]], device=DEVICE) if with_text else None
        )
        timesteps = torch.tensor([step, 900 - step], device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            out = network(x, timesteps, context, mask)
        loss = (out.float() - x.roll(1, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("with_text", [False, True], ids=["without-text", "with-text"])
def test_on_a_gpu_recorded_steps_are_those_of_the_network(with_text: bool) -> None:
    model = small_model(SMALL)
    fill_randomly(model.cpu(), 0, "dit")
    model.to(DEVICE).fuse()
    other = copy.deepcopy(model)
    recorded = Recorded(other).train()
    lengths = [40] * 6 + [24, 40, 24]
    assert history(recorded, other, with_text, lengths) == pytest.approx(
        history(model, model, with_text, lengths), rel=1e-5
    )
    assert len(recorded._recordings) == 2
    longer = [50 + n for n in range(MAX_SHAPES)]
    assert all(loss > 0 for loss in history(recorded, other, with_text, longer))
    assert len(recorded._recordings) == MAX_SHAPES


@pytest.mark.skipif(DEVICE == "cuda", reason="says what happens without a GPU")
def test_without_a_gpu_nothing_is_recorded() -> None:
    model = small_model(SMALL)
    other = copy.deepcopy(model)
    recorded = Recorded(other).train()
    assert history(recorded, other, True, [6, 6]) == history(model, model, True, [6, 6])
    assert recorded._recordings == {}


class MockedStream:
    """Does nothing, as the graphs that are captured on it."""

    def wait_stream(self, stream: MockedStream) -> None: ...

    def replay(self) -> None: ...


@pytest.mark.skipif(DEVICE == "cuda", reason="stands in for a GPU where there is none")
def test_with_a_mock_of_cuda_recordings_share_a_pool_and_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gives memory that a graph of a pool has freed to later ones of the same stream only."""
    captured: list[tuple[Any, Any]] = []

    def graph(graph: MockedStream, pool: object, stream: MockedStream, capture_error_mode: str) -> nullcontext[None]:
        captured.append((pool, stream))
        return nullcontext()

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MockedStream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    recorded = Recorded(nn.Linear(3, 2)).train()
    for rows in (4, 5, 4):
        recorded(torch.ones(rows, 3)).sum().backward()
    assert len(captured) == 4  # forward and backward of two shapes
    assert len(set(captured)) == 1


def test_padding_of_text() -> None:
    states, mask = random(2, 3, 4, seed=1), torch.ones(2, 3, dtype=torch.bool)
    wide = padded(states, 5)
    assert wide is not None
    assert torch.equal(wide[:, :3], states)
    assert not wide[:, 3:].any()
    assert torch.equal(padded(mask, 5), torch.arange(5).expand(2, 5) < 3)
    assert padded(torch.ones(2, 3, dtype=torch.int64), 5).tolist() == [[1, 1, 1, 0, 0]] * 2
    assert padded(states, 2) is states
    assert padded(None, 5) is None
