"""The fused model against what the official code computed."""

from __future__ import annotations

import golden
import pytest
import torch
from kernel_cases import DEVICE

from ezaudio.controlnet import audio_energy


@pytest.mark.slow
def test_fused_dit_matches_official() -> None:
    io = golden.load("dit_tiny_io")
    given = (io[f"b.{name}"].to(DEVICE) for name in ("x", "timesteps", "context", "context_mask"))
    with torch.no_grad():
        out = golden.dit().to(DEVICE).fuse()(*given)
    assert golden.relative_error(out.cpu(), io["b.out"]) < 1e-5  # measured: 3e-7


@pytest.mark.slow
def test_fused_controlnet_matches_official() -> None:
    io, dit, controlnet = golden.load("controlnet_tiny_io"), golden.dit(), golden.controlnet().to(DEVICE).fuse()
    energy = audio_energy(io["audio"])
    inputs = (dit.assemble(io["x"]), io["timestep"].expand(2), io["context"], io["context_mask"], energy)
    with torch.no_grad():
        residuals = controlnet(*(value.to(DEVICE) for value in inputs), io["conditioning_scale"].to(DEVICE))
    for index, residual in enumerate(residuals):
        assert golden.relative_error(residual.cpu(), io[f"skip.{index}"]) < 1e-5  # measured: 4e-7
