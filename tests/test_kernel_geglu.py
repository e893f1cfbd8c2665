"""Fused GEGLU against the reference."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, dtype_name, failures, mutant, needs_copy_engine, random
from torch import Tensor

from ezaudio.kernels import geglu_product as product
from ezaudio.kernels import reference as ops
from ezaudio.kernels import target
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


HALF = [torch.float16, torch.bfloat16]
PRODUCTS = {"one-token": (1, 16, 8), "ragged": (150, 24, 72), "a-clip": (2, 40, 64, 128)}


def given(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x (…, K), W (K, 2F), b (2F,) for a shape (…, K, F)."""
    *tokens, depth, hidden = shape
    x, weight = random(*tokens, depth, seed=1), random(depth, 2 * hidden, seed=2) / depth**0.5
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), random(2 * hidden, seed=3).to(DEVICE, dtype)


def product_error(module: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[float, float]:
    """Of the product with GEGLU, and what it may be: two ulp of the largest, since nothing is rounded before."""
    x, weight, bias = given(shape, dtype)
    exact = ops.geglu(x.double() @ weight.double() + bias.double())
    got = module.geglu_product(x, weight, bias)
    assert (got.dtype, got.shape) == (dtype, exact.shape)
    return (got.double() - exact).abs().max().item(), 2 * torch.finfo(dtype).eps * exact.abs().max().item()


@needs_copy_engine
@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
@pytest.mark.parametrize("shape", PRODUCTS)
def test_of_a_product(shape: str, dtype: torch.dtype) -> None:
    error, bound = product_error(product, PRODUCTS[shape], dtype)
    assert error <= bound


@needs_copy_engine
def test_of_a_product_in_several_groups_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "GROUP", 1)
    error, bound = product_error(product, PRODUCTS["ragged"], torch.float16)
    assert error <= bound


@needs_copy_engine
def test_of_a_product_either_way_that_weights_lie() -> None:
    x, weight, bias = given(PRODUCTS["ragged"], torch.float16)
    lying = weight.T.contiguous().T
    assert lying.stride() != weight.stride()
    assert torch.equal(product.geglu_product(x, weight, bias), product.geglu_product(x, lying, bias))


@pytest.mark.gpu
@pytest.mark.skipif(not target.is_hopper(), reason="needs a CUDA device of compute capability 9")
def test_of_a_product_a_clip_does_not_depend_on_its_batch() -> None:
    x, weight, bias = given((3, 70, 24, 72), torch.float16)
    whole = product.geglu_product(x, weight, bias)
    assert torch.equal(whole[1:2], product.geglu_product(x[1:2], weight, bias))


@needs_copy_engine
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("value += tl.load(bias_ptr", "value += 0.0 * tl.load(bias_ptr"),
        ("gate += tl.load(bias_ptr", "gate += 0.0 * tl.load(bias_ptr"),
        ("value * gate * cdf", "value * cdf"),
        ("(group * GROUP + within % rows)", "(within % rows)"),
    ],
    ids=["bias-of-value", "bias-of-gate", "gate", "second-group"],
)
def test_of_a_product_a_dropped_term_is_caught(old: str, new: str, tmp_path: Path) -> None:
    module = mutant(tmp_path, "geglu_product.py", old, new)("geglu_product")
    module.GROUP = 1
    error, bound = product_error(module, PRODUCTS["ragged"], torch.float16)
    assert not error <= bound


def test_a_product_takes_geglu_along_where_its_tiles_fill_the_gpu() -> None:
    assert product.filled(1000, 4096, 132)  # a guided clip of L on an H100 or H200
    assert not product.filled(1000, 4608, 132)  # one of XL
    assert product.filled(8000, 4608, 132)  # eight
    assert not product.filled(1000, 4096, 114)  # L on an H100 of the PCIe form
    assert not product.filled(20, 512, 132)
    x, weight, _ = given(PRODUCTS["ragged"], torch.float16)
    assert not product.fits(x.float(), weight.float())
    assert not product.fits(x, weight[:, :24])  # rows that do not start at multiples of 16 bytes
