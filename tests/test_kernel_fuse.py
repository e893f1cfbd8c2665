"""`fuse()`: the whole model on the kernels, against the plain one and the official code."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from kernel_cases import DEVICE, random, relative_error, small_model
from torch import Tensor

from ezaudio.config import DEBUG
from ezaudio.controlnet import ControlNet
from ezaudio.dit import MaskDiT
from ezaudio.kernels import adaln, attention, geglu, sampler_step, skip_norm
from ezaudio.kernels import reference as ops

BATCH = (2, DEBUG.dit.latent_channels, 9), (2, 5, DEBUG.dit.context_width)


def arguments(seed: int = 1) -> dict[str, Tensor]:
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 1:] = False
    given = {
        "x": random(*BATCH[0], seed=seed),
        "timesteps": torch.tensor([999, 10]),
        "context": random(*BATCH[1], seed=seed + 1),
        "context_mask": mask,
    }
    return {name: value.to(DEVICE) for name, value in given.items()}


def test_operators_run_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mock of the switch between GPUs: Triton itself takes the program's present one."""
    entered: list[Tensor] = []

    def device_of(tensor: Tensor) -> nullcontext[None]:
        entered.append(tensor)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    model = small_model(DEBUG.dit).fuse()
    model(**arguments()).backward(random(*BATCH[0], seed=9).to(DEVICE))
    assert len(entered) > 10  # forward and backward of every operator of two blocks
    assert all(isinstance(tensor, Tensor) for tensor in entered)


def test_sizes_that_do_not_fit_are_refused_before_they_are_read() -> None:
    x, vector = random(2, 5, 8, seed=1).to(DEVICE), random(8, seed=2).to(DEVICE)
    with pytest.raises(RuntimeError, match="expand"):
        adaln.residual_norm(x, vector, vector, x, random(3, 8, seed=3).to(DEVICE))
    for update in (x[:1], x[:, :4]):
        with pytest.raises(AssertionError):
            adaln.residual_norm(x, vector, vector, update)
        with pytest.raises(AssertionError):
            skip_norm.skip_norm(x, update, torch.cat([vector, vector]), torch.cat([vector, vector]))
    with pytest.raises(AssertionError):
        sampler_step.sampler_step(x, x[:1], torch.zeros(6, device=DEVICE))


def test_control_residuals_reach_the_fused_skips() -> None:
    """Each its own: of several in blocks, where the debug model has one."""
    plain = small_model(replace(DEBUG.dit, depth=6))
    fused = copy.deepcopy(plain).fuse()
    residuals = [random(2, 9, DEBUG.dit.width, seed=seed).to(DEVICE) for seed in (5, 6, 7)]
    with torch.no_grad():
        expected, got = (model(**arguments(), residuals=residuals) for model in (plain, fused))
    assert relative_error(got.cpu(), expected.cpu()) < 1e-5  # measured: 4e-7


@pytest.mark.parametrize("shared", ["", "timesteps", "context_mask"])
def test_gradients_of_the_whole_model_match(shared: str) -> None:
    """shared: one row for both clips, which plain PyTorch broadcasts."""
    plain = small_model(DEBUG.dit)
    fused = copy.deepcopy(plain).fuse()
    given = arguments()
    for name, row in {"timesteps": torch.tensor([10]), "context_mask": torch.arange(5)[None] < 3}.items():
        given[name] = row.to(DEVICE) if name == shared else given[name]
    for model in (plain, fused):
        model(**given).backward(random(*BATCH[0], seed=9).to(DEVICE))
    for (name, a), (_, b) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        if name.endswith("cross_attn.norm_k.bias"):
            continue  # zero in exact arithmetic
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert relative_error(b.grad.cpu(), a.grad.cpu()) < 5e-4, name  # measured: 1.1e-4, where terms cancel


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    plain = small_model(DEBUG.dit)
    half = copy.deepcopy(plain).to(dtype)
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in arguments().items()}
    with torch.no_grad():
        exact = plain(**{name: value.float() if value.dtype == dtype else value for name, value in given.items()})
        eager, fused = half(**given), half.fuse()(**given)
    assert fused.dtype == dtype
    error, allowed = (relative_error(out.float().cpu(), exact.cpu()) for out in (fused, eager))
    assert error <= 2 * allowed


@pytest.mark.slow
def test_compile_and_export_see_the_operators() -> None:
    model = small_model(DEBUG.dit).fuse()
    given = arguments()
    with torch.no_grad():
        exported = torch.export.export(model, (), given)
        names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        operators = {"ezaudio.residual_norm.default", "ezaudio.attention.default", "ezaudio.geglu.default"}
        assert {*operators, "ezaudio.skip_norm.default"} <= names
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    upstream = random(*BATCH[0], seed=9).to(DEVICE)
    outputs = []
    for run in (model, compiled):
        model.zero_grad()
        out = run(**given)
        out.backward(upstream)
        outputs.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_operators_are_registered_soundly() -> None:
    """Schema, fake tensors, autograd and their compilation, by PyTorch's own check."""
    x, update = (random(2, 3, 16, seed=i).to(DEVICE).requires_grad_() for i in (1, 2))
    weight, bias = (random(16, seed=i).to(DEVICE).requires_grad_() for i in (3, 4))
    shift, scale, gate = (random(2, 16, seed=i).to(DEVICE).requires_grad_() for i in (5, 6, 7))
    double = (random(32, seed=i).to(DEVICE).requires_grad_() for i in (8, 9))
    torch.library.opcheck(adaln._residual_norm, (x, update, gate, weight, bias, shift, scale))
    torch.library.opcheck(skip_norm._skip_norm, (x, update, gate, x, *double))
    torch.library.opcheck(geglu._geglu, (x,))
    q = random(1, 2, 3, 16, seed=1).to(DEVICE).requires_grad_()
    tables = (table.to(DEVICE) for table in ops.rope_tables(3, 16))
    torch.library.opcheck(attention._attention, (q, q, q, weight, bias, weight, bias, *tables, None))
    seeds = torch.tensor([1, 2], device=DEVICE)
    torch.library.opcheck(sampler_step._philox_normal, (seeds, seeds, 0, [2, 3, 5]))
    latents, row = random(2, 3, 5, seed=1).to(DEVICE), random(6, seed=2).to(DEVICE)
    no = None
    torch.library.opcheck(
        sampler_step._sampler_step, (latents, latents, row, no, no, no, no, no, seeds, seeds, 1, no, no)
    )


def test_fuse_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs Triton: pip install 'ezaudio\[gpu\]'"):
        MaskDiT(DEBUG.dit).fuse()
    with pytest.raises(RuntimeError, match="needs Triton"):
        ControlNet(DEBUG.dit, DEBUG.controlnet).fuse()
