"""Requests, models and devices of the tests of the backend `torch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ezaudio.config import DEBUG
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.torch_backend.random_graphs import random_graphs
from ezaudio.runtime.torch_backend.request import Request, StepKind
from ezaudio.runtime.torch_backend.sessions import TorchSessions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
no_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="stands in for a GPU where there is none")


def states(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((length, DEBUG.text.width), np.float32) for length in lengths]


def request(batch: int = 1, negative: int = 1, num_steps: int = 2, **given: Any) -> Request:
    """negative: tokens of the negative prompts, 0 without guidance."""
    plan = solver_plan("ddim", num_steps, 1.0, DEBUG.diffusion)
    steps = given.pop("steps", (StepKind(negative > 0, False),) * num_steps)
    return Request(
        text_states=given.pop("text_states", states(*range(5, 5 + batch))),
        negative_states=states(*[negative] * batch, seed=1) if negative else None,
        plan=plan,
        steps=steps,
        num_frames=5,
        seeds=list(range(batch)),
        scale=[3.0] * batch,
        rescale=[0.5] * batch,
        **given,
    )


def sessions(
    dtype: torch.dtype = torch.float32, fused: bool = False, device: str = "cpu", **given: Any
) -> TorchSessions:
    return TorchSessions(random_graphs(DEBUG, controlnet=True), DEBUG, device, dtype, fused=fused, **given)


def controlled(batch: int = 1) -> dict[str, Any]:
    return {"energy": np.random.default_rng(5).random((batch, 1, 10), np.float32), "control_scale": 0.7}


def edited(batch: int = 1) -> dict[str, Any]:
    mask = np.ones((batch, 5), np.bool_)
    mask[:, :2] = False
    return {"given": np.random.default_rng(6).standard_normal((batch, 8, 5), np.float32), "mask": mask}


SHALLOW = (StepKind(True, False), StepKind(True, True), StepKind(False, True))
REQUESTS: dict[str, dict[str, Any]] = {
    "unguided": {"negative": 0},
    "constant": {"noise": "philox"},
    "negative": {"negative": 3, **edited()},
    "reuse": {"num_steps": 3, "steps": SHALLOW},
    "controlled": {**controlled()},
    "controlled, negative": {"negative": 3, **controlled()},
}
