"""Fused GEGLU: value·GELU(gate) with the exact erf, x = [value, gate].

Φ(g) = (1 + erf(g/√2))/2        y = v·g·Φ(g)
dv = dy·g·Φ(g)                  dg = dy·v·(Φ(g) + g·e^(−g²/2)/√(2π))
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.rounding import narrow

BLOCK, WARPS = 512, 2

SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_TWO_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def normal_cdf(x: tl.tensor) -> tl.tensor:
    return 0.5 * (1.0 + tl.erf(x * SQRT_HALF))


@triton.jit
def _geglu_fwd_kernel(
    x_ptr: tl.pointer_type,  # (N, 2F)
    out_ptr: tl.pointer_type,  # (N, F)
    HIDDEN: tl.constexpr,  # F
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < HIDDEN
    value = tl.load(x_ptr + row * 2 * HIDDEN + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + row * 2 * HIDDEN + HIDDEN + column, mask=mask, other=0.0).to(tl.float32)
    out = value * gate * normal_cdf(gate)
    tl.store(out_ptr + row * HIDDEN + column, narrow(out, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _geglu_bwd_kernel(
    dout_ptr: tl.pointer_type,  # (N, F)
    x_ptr: tl.pointer_type,  # (N, 2F)
    dx_ptr: tl.pointer_type,  # (N, 2F)
    HIDDEN: tl.constexpr,  # F
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < HIDDEN
    pair = row * 2 * HIDDEN + column
    dout = tl.load(dout_ptr + row * HIDDEN + column, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + pair, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + pair + HIDDEN, mask=mask, other=0.0).to(tl.float32)
    cdf = normal_cdf(gate)
    density = INVERSE_SQRT_TWO_PI * tl.exp(-0.5 * gate * gate)
    dvalue = dout * gate * cdf
    dgate = dout * value * (cdf + gate * density)
    tl.store(dx_ptr + pair, narrow(dvalue, dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + pair + HIDDEN, narrow(dgate, dx_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("ezaudio::geglu", mutates_args=(), schema="(Tensor x) -> Tensor")
def _geglu(x: Tensor) -> Tensor:
    out = _geglu_fake(x)
    hidden = out.shape[-1]
    grid = (out.numel() // hidden, triton.cdiv(hidden, BLOCK))
    _geglu_fwd_kernel[grid](x, out, HIDDEN=hidden, BLOCK=BLOCK, num_warps=WARPS)
    return out


@_geglu.register_fake
def _geglu_fake(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@torch.library.custom_op("ezaudio::geglu_backward", mutates_args=(), schema="(Tensor dout, Tensor x) -> Tensor")
def _geglu_backward(dout: Tensor, x: Tensor) -> Tensor:
    dx = _geglu_backward_fake(dout, x)
    hidden = dout.shape[-1]
    grid = (dout.numel() // hidden, triton.cdiv(hidden, BLOCK))
    _geglu_bwd_kernel[grid](dout, x, dx, HIDDEN=hidden, BLOCK=BLOCK, num_warps=WARPS)
    return dx


@_geglu_backward.register_fake
def _geglu_backward_fake(dout: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: Tensor) -> Tensor:
    return _geglu_backward(dout.contiguous(), *ctx.saved_tensors)


_geglu.register_autograd(_backward, setup_context=_setup)


def geglu(x: Tensor) -> Tensor:
    """value·GELU(gate): (…, 2F) → (…, F)."""
    return _geglu(x.contiguous())
