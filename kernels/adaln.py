"""Fused AdaLN-SOLA (paper section 3.2): gated residual, LayerNorm and modulation in one pass over the tokens.

    x' = x + (1 − gate)·update          n = (x' − μ)/√(σ² + ε)·w + b          h = n·(1 + scale) + shift

μ and σ² are of each row x', in float32. Without `update` x' is x, without `gate` the update is added whole, without
`scale` h is n. Backward is in `adaln_backward.py`; it needs x', the update, and μ and 1/√(σ² + ε) of each row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.adaln_backward import batch_stride, residual_norm_backward
from ezaudio.kernels.norm_tiles import columns, forward_tile, vector
from ezaudio.kernels.operator import operator
from ezaudio.kernels.reference import NORM_EPS
from ezaudio.kernels.rounding import narrow

NORM_TILE = {"whole": (2, 4), "padded": (2, 1)}  # rows, warps: of 8000 rows on an H200 the fastest, or as fast


@triton.jit
def _residual_norm_fwd_kernel(
    x_ptr: tl.pointer_type,  # (B, L, D)
    update_ptr: tl.pointer_type,  # (B, L, D)
    second_ptr: tl.pointer_type,  # (P, L, D), added whole
    constant_ptr: tl.pointer_type,  # (B − P, D), added to every token of a row after the first P
    gate_ptr: tl.pointer_type,  # (B, D) float32, rows gate_stride apart
    weight_ptr: tl.pointer_type,  # (D,)
    bias_ptr: tl.pointer_type,  # (D,)
    shift_ptr: tl.pointer_type,  # (B, D) float32, rows shift_stride apart
    scale_ptr: tl.pointer_type,  # (B, D) float32, rows shift_stride apart
    sum_ptr: tl.pointer_type,  # (B, L, D) x'
    out_ptr: tl.pointer_type,  # (B, L, D) h
    stats_ptr: tl.pointer_type,  # (B, 2, L) float32: μ, 1/√(σ² + ε)
    length: int,
    varied: int,  # P
    gate_stride: int,
    shift_stride: int,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,  # power of two, at least WIDTH
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    HAS_CONSTANT: tl.constexpr,
    KEPT: tl.constexpr,  # x' is written, not h alone
    MODULATED: tl.constexpr,
    TRAINED: tl.constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = columns(sum_ptr if KEPT else x_ptr, BLOCK)
    valid = column < WIDTH
    mask = (row < length)[:, None] & valid[None, :]
    offset = (batch * length + row)[:, None] * WIDTH + column[None, :]

    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        update = tl.load(update_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if HAS_GATE:
            update *= 1.0 - vector(gate_ptr + batch * gate_stride, column, valid, ROWS)[None, :]
        x += update
    if HAS_CONSTANT:
        if batch < varied:
            x += tl.load(second_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        else:
            constant = vector(constant_ptr + (batch - varied) * WIDTH, column, valid, ROWS)
            x += tl.broadcast_to(constant[None, :], (ROWS, BLOCK))
    elif HAS_SECOND:
        x += tl.load(second_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if KEPT:
        stored = narrow(x, sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offset, stored, mask=mask)
        x = stored.to(tl.float32)  # what backward reads

    mean = tl.sum(x, axis=1) / WIDTH
    centred = tl.where(mask, x - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / WIDTH + EPS)
    weight = vector(weight_ptr, column, valid, ROWS)
    bias = vector(bias_ptr, column, valid, ROWS)
    out = centred * inverse[:, None] * weight[None, :] + bias[None, :]
    if MODULATED:
        scale = vector(scale_ptr + batch * shift_stride, column, valid, ROWS)
        shift = vector(shift_ptr + batch * shift_stride, column, valid, ROWS)
        out = out * (1.0 + scale)[None, :] + shift[None, :]
    tl.store(out_ptr + offset, narrow(out, out_ptr.dtype.element_ty), mask=mask)
    if TRAINED:
        tl.store(stats_ptr + batch * 2 * length + row, mean, mask=row < length)
        tl.store(stats_ptr + batch * 2 * length + length + row, inverse, mask=row < length)


@operator(
    "residual_norm",
    "(Tensor x, Tensor? update, Tensor? gate, Tensor weight, Tensor bias, Tensor? shift, Tensor? scale)"
    " -> (Tensor, Tensor, Tensor)",
)
def _residual_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = x.shape
    tile = forward_tile(width, **NORM_TILE)
    total, out, stats = _residual_norm_fake(x, update)
    _residual_norm_fwd_kernel[(triton.cdiv(length, tile["ROWS"]), batch)](
        x, update, None, None, gate, weight, bias, shift, scale, total, out, stats,
        length, batch, batch_stride(gate), batch_stride(shift, scale),
        WIDTH=width, EPS=NORM_EPS, **tile,
        HAS_UPDATE=update is not None, HAS_GATE=gate is not None, HAS_SECOND=False, HAS_CONSTANT=False,
        KEPT=update is not None, MODULATED=shift is not None, TRAINED=True,
    )  # fmt: skip
    return total, out, stats


@_residual_norm.register_fake
def _residual_norm_fake(x: Tensor, update: Tensor | None, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    stats = x.new_empty((x.shape[0], 2, x.shape[1]), dtype=torch.float32)
    return x.new_empty(x.shape if update is not None else (0,)), x.new_empty(x.shape), stats


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, update, gate, weight, bias, _, scale = inputs
    ctx.has_update = update is not None
    ctx.update_dtype = None if update is None else update.dtype
    total = x if update is None else output[0]
    ctx.save_for_backward(total, output[2], None if gate is None else update, gate, weight, bias, scale)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, dsum: Tensor, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    total, stats, update, gate, weight, bias, scale = ctx.saved_tensors
    dtotal = dsum.contiguous() if ctx.has_update else None
    dx, dupdate, dweight, dbias, dshift, dscale, dgate = residual_norm_backward(
        dtotal, dout.contiguous(), total, stats, update, gate, weight, bias, scale
    )
    if gate is None:
        dupdate, dgate = dx.to(ctx.update_dtype) if ctx.has_update else None, None
    return dx, dupdate, dgate, dweight, dbias, *((None, None) if scale is None else (dshift, dscale))


_residual_norm.register_autograd(_backward, setup_context=_setup)


def residual_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x' = x + (1 − gate)·update and h = LN(x')·(1 + scale) + shift.

    Args:
        x, update: (B, L, D). Without an update x' is x itself.
        weight, bias: (D,) affine of the LayerNorm.
        gate: (B, D) or (1, D) float32; None adds the update whole.
        shift, scale: (B, D) or (1, D) float32, of one stride; None for a plain LayerNorm.

    Returns:
        x', h: (B, L, D) in the dtype of x.
    """
    assert (shift is None) == (scale is None)
    assert gate is None or update is not None
    assert update is None or update.shape == x.shape
    batch, _, width = x.shape
    gate, shift, scale = (None if v is None else v.expand(batch, width) for v in (gate, shift, scale))
    x = x.contiguous()
    total, out, _ = _residual_norm(x, None if update is None else update.contiguous(), gate, weight, bias, shift, scale)
    return (x if update is None else total), out
