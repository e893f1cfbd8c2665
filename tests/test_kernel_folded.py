"""What runs in inference alone: the fused snake, and the operators in the form of the exported graphs."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, dtype_name, needs_copy_engine, random

from ezaudio.blocks import FeedForward
from ezaudio.export.blocks import MLP, layer_norm
from ezaudio.export.blocks import attend as plain_attend
from ezaudio.kernels import folded, geglu_product
from ezaudio.kernels import reference as ops
from ezaudio.kernels.snake import snake
from ezaudio.runtime.torch_backend.fused import mlp


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return (got.double() - exact).abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("length", [1, 1025], ids="length {}".format)
def test_snake(length: int, dtype: torch.dtype) -> None:
    whole = random(2, 3, length + 4, seed=1, mean=0.5).to(DEVICE, dtype) * 30
    x = whole[:, :, 2:-2]  # as the cropped signal of an upsampling
    frequency, magnitude = (random(3, seed=seed).to(DEVICE).exp() for seed in (2, 3))
    got = snake(x, frequency, magnitude, dtype)
    f, m, wide = frequency.double()[:, None], magnitude.double()[:, None], x.double()
    exact = wide + m * torch.sin(f * wide) ** 2
    # f·x reaches 500, so half an ulp of it in float32 turns the sine by 3e-5.
    bound = 1e-3 if dtype == torch.float32 else torch.finfo(dtype).eps * exact.abs().max().item()
    assert got.dtype == dtype
    assert error(got, exact) <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_norms_keep_the_stream_in_float32(dtype: torch.dtype) -> None:
    x, skip = random(2, 5, 24, seed=1, mean=30.0).to(DEVICE), random(2, 5, 24, seed=2).to(DEVICE)
    update = random(2, 5, 24, seed=3).to(DEVICE, dtype)
    gate, weight, bias = (random(24, seed=seed).to(DEVICE) for seed in (4, 5, 6))
    double = random(48, seed=7).to(DEVICE), random(48, seed=8).to(DEVICE)
    exact = x.double() + (1 - gate.double()) * update.double()
    total, out = folded.norm(x, weight, bias, dtype, update, gate)
    assert (total.dtype, out.dtype) == (torch.float32, dtype)
    assert error(total, exact) <= 4e-6 * 2  # an ulp of 30
    rounding = torch.finfo(dtype).eps
    expected = layer_norm(exact.float(), weight, bias)
    assert error(out, expected.double()) <= rounding * expected.abs().max().item() + 2e-5
    joined = layer_norm(torch.cat([exact.float(), skip], dim=-1), *double)
    out = folded.skip_norm(x, skip, *double, dtype, update, gate)
    assert out.dtype == dtype
    assert error(out, joined.double()) <= rounding * joined.abs().max().item() + 2e-5
    whole, out = folded.norm(update, weight, bias, dtype, update)
    assert whole.dtype == torch.float32
    assert error(whole, 2 * update.double()) == 0
    same, _ = folded.norm(x, weight, bias, dtype)
    assert same is x
    second = random(2, 5, 24, seed=9).to(DEVICE, dtype)
    both, out = folded.norm(x, weight, bias, dtype, update, gate, second)
    assert error(both, exact + second.double()) <= 4e-6 * 3
    assert torch.equal(both, total + second.float())
    assert torch.equal(out, folded.norm(both, weight, bias, dtype)[1])
    assert torch.equal(
        folded.norm_alone(x, weight, bias, dtype, update, gate), folded.norm(x, weight, bias, dtype, update, gate)[1]
    )
    spread = torch.cat([second[:1], second[1:, 3:4].expand(1, 5, 24)])
    found = folded.norm(x, weight, bias, dtype, update, gate, second[:1], second[1:, 3])
    for got, same in zip(found, folded.norm(x, weight, bias, dtype, update, gate, spread), strict=True):
        assert torch.equal(got, same)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_attention_on_packed_keys(kind: str, dtype: torch.dtype) -> None:
    batch, heads, length, tokens, width = 2, 2, 7, 5, 72
    q = random(batch, heads, length, width, seed=1).to(DEVICE, dtype)
    k, v = (random(batch, heads, length if kind == "self" else tokens, width, seed=s).to(DEVICE, dtype) for s in (2, 3))
    affine_q, affine_k = (
        (random(width, seed=s, mean=0.2).to(DEVICE), random(width, seed=s + 1).to(DEVICE)) for s in (4, 6)
    )
    rope = tuple(table.to(DEVICE) for table in ops.rope_tables(length, width)) if kind == "self" else None
    mask = None
    if kind == "cross":
        mask = torch.ones(batch, tokens, dtype=torch.bool, device=DEVICE)
        mask[1, 3:] = False
    got = folded.attend(q, folded.pack_keys(k, affine_k, rope), v, affine_q, rope, mask)

    def plain(kept: torch.dtype) -> torch.Tensor:
        query, key = layer_norm(q, *affine_q), layer_norm(k, *affine_k)
        if rope is not None:
            query, key = ops.apply_rope(query, *rope), ops.apply_rope(key, *rope)
        return plain_attend(query, key, v.to(kept), mask)

    exact = plain(torch.float32).double()
    allowed = error(plain(dtype), exact)
    assert got.dtype == dtype
    assert error(got, exact) <= 2 * allowed + 2 * max(torch.finfo(dtype).eps, 1e-6) * exact.abs().max().item()


@needs_copy_engine
def test_an_mlp_takes_geglu_into_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    part = MLP(FeedForward(16, 32)).half().to(DEVICE)
    x = random(2, 5, 16, seed=1).to(DEVICE, torch.float16)
    products = []
    real = geglu_product.geglu_product
    monkeypatch.setattr(geglu_product, "geglu_product", lambda *given: products.append(real(*given)) or products[-1])
    found = []
    for fits in (False, True):
        monkeypatch.setattr(geglu_product, "fits", lambda *given, fits=fits: fits)
        found.append(mlp(part, x))
    assert len(products) == 1
    exact = part.float()(x.float()).double()
    assert all(error(got, exact) <= 4e-3 * exact.abs().max().item() for got in found)
