"""Fused GEGLU against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, dtype_name, failures, mutant, random

from ezaudio.kernels import reference as ops
from ezaudio.kernels.geglu import geglu

SHAPES = {"ragged": (2, 3, 13), "length-1": (1, 1, 8), "two-blocks": (1, 2, 1500), "one-row": (5,)}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches(shape: str, dtype: torch.dtype) -> None:
    size = SHAPES[shape]
    given = {"x": random(*size[:-1], 2 * size[-1], seed=1)}
    assert failures(geglu, ops.geglu, given, [size], dtype) == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_mean_far_from_zero(dtype: torch.dtype) -> None:
    given = {"x": random(2, 3, 26, seed=1, mean=30.0)}
    assert failures(geglu, ops.geglu, given, [(2, 3, 13)], dtype) == {}


def test_two_runs_give_equal_bits() -> None:
    runs = []
    for _ in range(2):
        x = random(2, 3, 26, seed=1).to(DEVICE).requires_grad_()
        out = geglu(x)
        out.backward(random(2, 3, 13, seed=2).to(DEVICE))
        runs.append((out, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(cdf + gate * density)", "cdf"),
        ("dout * value * (cdf", "dout * (cdf"),
        ("dvalue = dout * gate * cdf", "dvalue = dout * gate"),
    ],
    ids=["density", "value", "cdf"],
)
def test_a_dropped_term_is_caught(old: str, new: str, tmp_path: Path) -> None:
    module = mutant(tmp_path, "geglu.py", old, new)("geglu")
    assert "x" in failures(module.geglu, ops.geglu, {"x": random(2, 3, 26, seed=1)}, [(2, 3, 13)], torch.float32)
