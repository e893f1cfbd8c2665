"""Fused gated residual and LayerNorm over [x, skip] against the reference."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import (
    BOTH,
    DEVICE,
    DTYPES,
    KERNELS,
    MANY_PROGRAMS,
    PIECES,
    WHOLE,
    dtype_name,
    failures,
    mutant,
    mutation_name,
    random,
)
from torch import Tensor

from ezaudio.kernels import norm_tiles, skip_norm
from ezaudio.kernels import reference as ops

SHAPES = {
    "ragged": (2, 7, 24),
    "length-1": (3, 1, 32),
    **MANY_PROGRAMS,
}


def inputs(batch: int, length: int, width: int, gated: bool = True, mean: float = 0.0) -> dict[str, Tensor]:
    given = {
        "x": random(batch, length, width, seed=1, mean=mean),
        "skip": random(batch, length, width, seed=2, mean=mean),
        "weight": random(2 * width, seed=3),
        "bias": random(2 * width, seed=4),
    }
    if gated:
        given |= {"update": random(batch, length, width, seed=5), "gate": random(batch, width, seed=6)}
    return given


def plain(
    x: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    if update is not None and gate is not None:
        x = ops.gated_residual(x, update, gate)
    return ops.skip_norm(x, skip, weight, bias)


def fails(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    gated: bool = True,
    mean: float = 0.0,
    module: ModuleType = skip_norm,
) -> dict[str, str]:
    given = inputs(*shape, gated=gated, mean=mean)
    return failures(module.skip_norm, plain, given, [(*shape[:2], 2 * shape[2])], dtype, float32=("gate",))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_forms_match(gated: bool, dtype: torch.dtype) -> None:
    assert fails(SHAPES["ragged"], dtype, gated) == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_match(shape: str) -> None:
    assert fails(SHAPES[shape], torch.float32) == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_mean_far_from_zero_costs_nothing(dtype: torch.dtype) -> None:
    assert fails((2, 9, 48), dtype, mean=30.0) == {}


def test_two_runs_give_equal_bits() -> None:
    runs = []
    for _ in range(2):
        given = {name: x.to(DEVICE).requires_grad_() for name, x in inputs(2, 37, 24).items()}
        out = skip_norm.skip_norm(**given)
        out.backward(random(2, 37, 48, seed=9).to(DEVICE))
        runs.append([out, *(x.grad for x in given.values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("old", "new", "gradient", "shapes"),
    [
        ("slant - level[:, None] - normal", "slant - normal", "skip", BOTH),
        (" - normal * tilt[:, None])", ")", "x", BOTH),
        ("sum_pair(slant_x + slant_skip,", "sum_pair(slant_x,", "skip", WHOLE),
        ("slant_x * x + slant_skip * skip)", "slant_x * x)", "x", WHOLE),
        ("                slant_x + slant_skip,\n", "                slant_x,\n", "skip", PIECES),
        ("                end_slant_x + end_slant_skip,\n", "                end_slant_x,\n", "x", PIECES),
        ("end_slant_x * end_x + end_slant_skip * end_skip", "end_slant_x * end_x", "x", PIECES),
        ("dupdate = dx * opening[None, :]", "dupdate = dx", "update", BOTH),
        ("added(closing, dx * update)", "added(closing, update)", "gate", BOTH),
        ("-tl.sum(end_closing, axis=0)", "tl.sum(end_closing, axis=0)", "gate", PIECES),
        ("return total + x", "return x + 0.0 * total", "weight", BOTH),
        ("end_column, tl.sum(end_s_skip, axis=0)", "end_column, tl.sum(end_s_x, axis=0)", "bias", PIECES),
        ("end_column, tl.sum(end_a_x, axis=0)", "end_column, tl.sum(end_a_skip, axis=0)", "weight", PIECES),
        ("weight_skip, s_skip, a_skip)", "weight_x, s_skip, a_skip)", "skip", BOTH),
    ],
    ids=mutation_name,
)
def test_a_dropped_term_is_caught(old: str, new: str, gradient: str, shapes: tuple[str, ...], tmp_path: Path) -> None:
    files = ("norm_gradient.py", "skip_norm.py")
    load = mutant(tmp_path, next(file for file in files if old in (KERNELS / file).read_text()), old, new)
    load("norm_tiles").PROGRAMS = 3  # several tiles a program, or a lost running total would not show
    for shape in shapes:
        assert gradient in fails(SHAPES[shape], torch.float32, module=load("skip_norm"))


@pytest.mark.parametrize("shape", BOTH)
def test_several_rows_a_program(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_tiles, "PROGRAMS", 3)
    assert fails(SHAPES[shape], torch.float32) == {}
