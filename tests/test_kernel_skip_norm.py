"""Fused gated residual and LayerNorm over [x, skip] against the reference."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, dtype_name, failures, mutant, random
from torch import Tensor

from ezaudio.kernels import reference as ops
from ezaudio.kernels import row_sums, skip_norm

SHAPES = {"ragged": (2, 7, 24), "length-1": (3, 1, 32), "many-programs": (2, 37, 20)}


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
    ("old", "new", "gradient"),
    [
        ("dout_x - level[:, None] - x", "dout_x - x", "x"),
        ("dout_x - level[:, None] - x * tilt[:, None]", "dout_x - level[:, None]", "x"),
        ("dout_skip - level[:, None] - skip", "dout_skip - skip", "skip"),
        ("dout_skip - level[:, None] - skip * tilt[:, None]", "dout_skip - level[:, None]", "skip"),
        ("sum_pair(dout_x + dout_skip,", "sum_pair(dout_x,", "skip"),
        ("dupdate = dx * opening[None, :]", "dupdate = dx", "update"),
        ("tl.sum(dx * update, axis=0)", "tl.sum(update, axis=0)", "gate"),
        ("dw_x += tl.sum(dout_x * x, axis=0)", "dw_x = tl.sum(dout_x * x, axis=0)", "weight"),
        ("db_skip += tl.sum(dout_skip, axis=0)", "db_skip = tl.sum(dout_skip, axis=0)", "bias"),
    ],
    ids=lambda value: value.strip()[:28],
)
def test_a_dropped_term_is_caught(old: str, new: str, gradient: str, tmp_path: Path) -> None:
    load = mutant(tmp_path, "skip_norm.py", old, new)
    load("row_sums").PROGRAMS = 3  # several tiles a program, or a lost running total would not show
    assert gradient in fails(SHAPES["many-programs"], torch.float32, module=load("skip_norm"))


def test_several_rows_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sums, "PROGRAMS", 3)
    assert fails(SHAPES["many-programs"], torch.float32) == {}
