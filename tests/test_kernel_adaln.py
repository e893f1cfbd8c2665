"""Fused gated residual, LayerNorm and modulation against the reference."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
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

from ezaudio.kernels import adaln, modulation, norm_tiles
from ezaudio.kernels import reference as ops

FORMS = ["plain", "modulated", "gated", "ungated-modulated", "gated-modulated"]
SHAPES = {
    "ragged": (2, 7, 24),
    "length-1": (3, 1, 32),
    "power-of-two": (1, 8, 16),
    **MANY_PROGRAMS,
    "many-clips": (19, 5, 8),
}


def inputs(form: str, batch: int, length: int, width: int, mean: float = 0.0) -> dict[str, Tensor]:
    given = {
        "x": random(batch, length, width, seed=1, mean=mean),
        "weight": random(width, seed=2),
        "bias": random(width, seed=3),
    }
    if form not in ("plain", "modulated"):
        given["update"] = random(batch, length, width, seed=4)
    if form.startswith("gated"):
        given["gate"] = random(batch, width, seed=5)
    if form.endswith("modulated"):
        given |= {"shift": random(batch, width, seed=6), "scale": random(batch, width, seed=7)}
    return given


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, ...]:
    if update is not None:
        x = ops.gated_residual(x, update, torch.zeros_like(x[:, 0]) if gate is None else gate)
    if shift is not None and scale is not None:
        h = ops.modulated_norm(x, weight, bias, shift, scale)
    else:
        h = F.layer_norm(x, weight.shape, weight, bias, ops.NORM_EPS)
    return (h,) if update is None else (x, h)


def fails(
    form: str, shape: tuple[int, int, int], dtype: torch.dtype, module: ModuleType = adaln, mean: float = 0.0
) -> dict[str, str]:
    given = inputs(form, *shape, mean=mean)

    def fused(**tensors: Tensor) -> tuple[Tensor, ...]:
        total, h = module.residual_norm(**tensors)
        return (total, h) if "update" in tensors else (h,)

    outputs = [shape] * (2 if "update" in given else 1)
    return failures(fused, plain, given, outputs, dtype, float32=("gate", "shift", "scale"))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("form", FORMS)
def test_forms_match(form: str, dtype: torch.dtype) -> None:
    assert fails(form, SHAPES["ragged"], dtype) == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_match(shape: str) -> None:
    assert fails("gated-modulated", SHAPES[shape], torch.float32) == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_mean_far_from_zero_costs_nothing(dtype: torch.dtype) -> None:
    assert fails("gated-modulated", (2, 9, 48), dtype, mean=30.0) == {}


@pytest.mark.parametrize(
    ("width", "held"), [(1024, (1024, 0)), (1152, (1024, 128)), (1176, (2048, 0)), (20, (32, 0)), (1, (1, 0))]
)
def test_a_row_is_held_in_the_pieces_that_waste_little(width: int, held: tuple[int, int]) -> None:
    assert norm_tiles.pieces(width) == held


@pytest.mark.parametrize("shape", BOTH)
def test_several_rows_a_program(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_tiles, "PROGRAMS", 3)
    tile = norm_tiles.backward_tile(SHAPES[shape][2], torch.float32)
    pieces = {"BLOCK": 32, "TAIL": 4 if shape == "many-programs" else 0}
    assert tile == {**pieces, "ROWS": 2, "num_warps": 1, "STAGES": 2}
    assert norm_tiles.rows_per_program(2, 37, tile) == 26
    assert fails("gated-modulated", SHAPES[shape], torch.float32) == {}


def test_slices_of_one_modulation_tensor_are_read_in_place() -> None:
    x, update = random(2, 5, 16, seed=1).to(DEVICE), random(2, 5, 16, seed=2).to(DEVICE)
    weight, bias = random(16, seed=3).to(DEVICE), random(16, seed=4).to(DEVICE)
    shift, scale, gate = random(2, 6, 16, seed=5).to(DEVICE).unbind(1)[:3]
    assert not gate.is_contiguous()
    sliced = adaln.residual_norm(x, weight, bias, update, gate, shift, scale)
    copied = adaln.residual_norm(x, weight, bias, update, gate.clone(), shift.clone(), scale.clone())
    assert all(torch.equal(a, b) for a, b in zip(sliced, copied, strict=True))


@pytest.mark.parametrize("form", ["gated-modulated", "plain"])
def test_two_runs_give_equal_bits(form: str) -> None:
    runs = []
    for _ in range(2):
        given = {name: x.to(DEVICE).requires_grad_() for name, x in inputs(form, 2, 37, 24).items()}
        out = adaln.residual_norm(**given)[1]
        out.backward(random(2, 37, 24, seed=9).to(DEVICE))
        runs.append([out, *(x.grad for x in given.values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("old", "new", "gradient", "shapes"),
    [
        ("slant - level[:, None] - normal", "slant - normal", "x", BOTH),
        (" - normal * tilt[:, None])", ")", "x", BOTH),
        ("sum_pair(slant, slant * normal)", "sum_pair(slant, slant)", "x", WHOLE),
        ("sum(pair + tl.join(end_a, end_b), axis=1)", "sum(pair, axis=1)", "x", PIECES),
        ("dx += tl.load(dsum_ptr", "dx += 0.0 * tl.load(dsum_ptr", "x", BOTH),
        ("slope *= 1.0 + tl.load(scale_ptr", "slope *= 1.0 + 0.0 * tl.load(scale_ptr", "x", BOTH),
        ("dupdate = dx * opening[None, :]", "dupdate = dx", "update", BOTH),
        ("end_offset, end_mask, end_opening,", "end_offset, end_mask, end_slope,", "update", PIECES),
        ("added(closing, dx * update)", "added(closing, update)", "gate", BOTH),
        ("return total + x", "return x + 0.0 * total", "shift", BOTH),
        ("-tl.sum(end_closing, axis=0)", "tl.sum(end_closing, axis=0)", "gate", PIECES),
        ("end_column, tl.sum(end_s, axis=0)", "end_column, tl.sum(end_a, axis=0)", "shift", PIECES),
        ("end_column, tl.sum(end_a, axis=0)", "end_column, tl.sum(end_s, axis=0)", "weight", PIECES),
        ("weight[None, :] * a + bias[None, :] * s", "weight[None, :] * a", "scale", BOTH),
        ("            s *= 1.0 + scale\n", "", "bias", BOTH),
        ("            a *= 1.0 + scale\n", "", "weight", BOTH),
        ("dbias += tl.sum", "dbias = tl.sum", "bias", BOTH),
        ("gate += tl.load(partial", "gate = tl.load(partial", "gate", BOTH),
        ("s += tl.load(partial,", "s = tl.load(partial,", "shift", BOTH),
        ("a += tl.load(partial +", "a = tl.load(partial +", "scale", BOTH),
        (" + shift[None, :]", "", "out1", BOTH),
        ("1.0 - vector(gate_ptr + batch * gate_stride, column, valid, ROWS)[None, :]", "1.0", "out0", BOTH),
        ("sum(tile.to(tl.float32), axis=0)", "sum(tile.to(tl.float32) * 0.5, axis=0)", "out1", BOTH),
    ],
    ids=mutation_name,
)
def test_a_dropped_term_is_caught(old: str, new: str, gradient: str, shapes: tuple[str, ...], tmp_path: Path) -> None:
    files = ("norm_gradient.py", "adaln_backward.py", "row_sums.py", "adaln.py", "norm_tiles.py")
    load = mutant(tmp_path, next(file for file in files if old in (KERNELS / file).read_text()), old, new)
    # Several tiles a program, several sums after it, or a lost running total would not show.
    sums, load("norm_tiles").PROGRAMS = load("row_sums"), 3
    sums.ITEMS, sums.ROWS = 1, 1
    for shape in shapes:
        assert gradient in fails("gated-modulated", SHAPES[shape], torch.float32, load("adaln"))


def test_modulation_of_all_blocks_is_that_of_each() -> None:
    width, rank, blocks = 12, 2, 3
    state, shared = random(2, width, seed=1), random(2, 6 * width, seed=2)
    lora_a = [random(6 * rank, width, seed=10 + i) for i in range(blocks)]
    lora_b = [random(6 * width, 6 * rank, seed=20 + i) for i in range(blocks)]
    tables = [random(6, width, seed=30 + i) for i in range(blocks)]
    got = modulation.modulation(state, shared, lora_a, lora_b, tables, 1.5)
    assert got.shape == (blocks, 2, 6, width)
    for index in range(blocks):
        expected = ops.adaln_sola(shared, state @ lora_a[index].T, lora_b[index], tables[index], 1.5)
        torch.testing.assert_close(got[index], expected, rtol=1e-5, atol=1e-5)  # measured: 2e-6
