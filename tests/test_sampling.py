"""Whole loops of the reference sampler against the official code."""

from __future__ import annotations

import golden
import pytest
import torch

from ezaudio.config import DiffusionConfig
from ezaudio.runtime.noise import TorchNoise
from ezaudio.runtime.solvers import solver_plan
from ezaudio.sampling import Condition, guide, sample, standard_deviation

IO = golden.load("pipeline_tiny_io")

# name → steps, eta, guidance, rescale, seed, tolerance (MODEL.md: 1e-4 with eta 0, 1e-3 with eta 1)
LOOPS = {
    "ddim10_eta0_w3": (10, 0.0, 3.0, 0.0, 7, 1e-4),
    "ddim10_eta1_noguide": (10, 1.0, 1.0, 0.0, 3, 1e-3),
    "ddim20_eta1_w5_phi075": (20, 1.0, 5.0, 0.75, 11, 1e-3),
    "edit_ddim10_eta1_w3.5": (10, 1.0, 3.5, 0.0, 5, 1e-3),
}


def condition(name: str) -> Condition:
    states, mask = IO["text_states"], IO["attention_mask"].bool()
    guided = name != "ddim10_eta1_noguide"
    editing = name.startswith("edit")
    return Condition(
        context=states[:1],
        context_mask=mask[:1],
        negative_context=states[1:] if guided else None,
        negative_mask=mask[1:] if guided else None,
        given=IO["edit.gt"] if editing else None,
        mask=IO["edit.mask"][:, 0] if editing else None,
    )


@pytest.mark.parametrize("name", LOOPS)
def test_loop_matches_official(name: str) -> None:
    steps, eta, scale, rescale, seed, tolerance = LOOPS[name]
    plan = solver_plan("ddim", steps, eta, DiffusionConfig())
    latents = sample(golden.dit(), plan, condition(name), [TorchNoise(seed)], 40, scale, rescale)
    expected = IO[f"latent.{name}"]
    if name.startswith("edit"):
        kept = ~IO["edit.mask"]
        assert torch.equal(latents[kept], IO["edit.gt"][kept])
    assert golden.relative_error(latents, expected) < tolerance


def test_guidance_matches_official() -> None:
    io = golden.load("diffusion_tiny_io")
    scale, rescale = torch.full((2,), 5.0), torch.full((2,), 0.75)
    guided = guide(io["cfg.pos"], io["cfg.neg"], scale, rescale)
    assert golden.relative_error(guided, io["cfg.rescaled_w5_phi0.75"]) < 1e-6


def test_deviation_is_unbiased_and_survives_constants() -> None:
    x = torch.randn(3, 4, 5) + 30
    assert torch.allclose(standard_deviation(x)[:, 0, 0], x.flatten(1).std(dim=1))
    silent = torch.zeros(1, 4, 5)
    assert torch.isfinite(guide(silent, silent, torch.ones(1), torch.ones(1))).all()


def test_a_scale_of_one_is_no_guidance() -> None:
    c, u = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    assert torch.allclose(guide(c, u, torch.ones(2), torch.full((2,), 0.7)), c, atol=1e-6)


def test_an_item_does_not_depend_on_its_batch() -> None:
    plan = solver_plan("dpmpp_2m_sde", 4, 1.0, DiffusionConfig())
    one = condition("ddim10_eta0_w3")
    two = Condition(
        *(t.expand(2, *t.shape[1:]) for t in (one.context, one.context_mask, one.negative_context, one.negative_mask))
    )  # type: ignore[union-attr]
    dit = golden.dit()
    alone = sample(dit, plan, one, [TorchNoise(4)], 24, 3.0)
    together = sample(dit, plan, two, [TorchNoise(9), TorchNoise(4)], 24, 3.0)
    assert golden.relative_error(together[1:], alone) < 1e-5
