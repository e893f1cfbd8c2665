"""Sums over rows that the backward pass of a norm needs for its parameters: of programs, then of clips.

With S = Σ dh and A = Σ dh·x̂ over the rows of each clip, and scale and shift where the norm is modulated:

    dshift = S     dscale = w·A + b·S     dw = Σ (1 + scale)·A     db = Σ (1 + scale)·S     (Σ over the batch)

Each program of a backward kernel adds up its own rows and writes S, A and dgate once; one launch adds the programs of
each clip, and then the clips, in a fixed order: no atomics, and two runs give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.rounding import narrow

ITEMS, ROWS = 16, 16  # clips and programs whose sums are read at once: each round waits for memory anew
BLOCK, WARPS = 16, 4  # columns: two sectors, so that most multiprocessors have a share


class Sums(NamedTuple):
    """Gradients of weight and bias (N,) in their types, of shift and scale (B, N) and gate (B, G) in float32.

    Without modulation those of shift and scale are empty.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    scale: Tensor
    gate: Tensor


@triton.jit
def _row_sums_kernel(
    partial_ptr: tl.pointer_type,  # (B, P, 2N + G) float32: S, A, dgate of each program
    weight_ptr: tl.pointer_type,  # (N,)
    bias_ptr: tl.pointer_type,  # (N,)
    scale_ptr: tl.pointer_type,  # (B, N) float32, rows scale_stride apart
    dweight_ptr: tl.pointer_type,  # (N,)
    dbias_ptr: tl.pointer_type,  # (N,)
    dshift_ptr: tl.pointer_type,  # (B, N) float32
    dscale_ptr: tl.pointer_type,  # (B, N) float32
    dgate_ptr: tl.pointer_type,  # (B, G) float32
    batch: int,
    num_partials: int,  # P
    scale_stride: int,
    WIDTH: tl.constexpr,  # N
    GATED: tl.constexpr,  # G
    ITEMS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MODULATED: tl.constexpr,
) -> None:
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = column < WIDTH
    gated = column < GATED
    if MODULATED:
        weight = tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + column, mask=valid, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    for first in range(0, batch, ITEMS):
        item = first + tl.arange(0, ITEMS)  # 32 bits are enough: there are PROGRAMS + B rows at most
        inside = item < batch
        target = item[:, None] * WIDTH + column[None, :]
        mask = inside[:, None] & valid[None, :]
        if MODULATED:
            scale = tl.load(scale_ptr + item[:, None] * scale_stride + column[None, :], mask=mask, other=0.0)
        s = tl.zeros([ITEMS, BLOCK], tl.float32)
        a = tl.zeros([ITEMS, BLOCK], tl.float32)
        gate = tl.zeros([ITEMS, BLOCK], tl.float32)
        for start in range(0, num_partials, ROWS):
            for step in tl.static_range(ROWS):  # all are on their way before the first is added
                row = start + step
                read = mask & (row < num_partials)
                partial = partial_ptr + (item * num_partials + row)[:, None] * (2 * WIDTH + GATED) + column[None, :]
                s += tl.load(partial, mask=read, other=0.0)
                a += tl.load(partial + WIDTH, mask=read, other=0.0)
                if GATED > 0:
                    gate += tl.load(partial + 2 * WIDTH, mask=read & gated[None, :], other=0.0)
        if MODULATED:
            tl.store(dshift_ptr + target, s, mask=mask)
            tl.store(dscale_ptr + target, weight[None, :] * a + bias[None, :] * s, mask=mask)
            s *= 1.0 + scale
            a *= 1.0 + scale
        if GATED > 0:
            tl.store(dgate_ptr + item[:, None] * GATED + column[None, :], gate, mask=inside[:, None] & gated[None, :])
        dbias += tl.sum(s, axis=0)
        dweight += tl.sum(a, axis=0)
    tl.store(dweight_ptr + column, narrow(dweight, dweight_ptr.dtype.element_ty), mask=valid)
    tl.store(dbias_ptr + column, narrow(dbias, dbias_ptr.dtype.element_ty), mask=valid)


def add_programs(partial: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None) -> Sums:
    """What the parameters of a norm get, from `partial` (B, P, 2N + G) of a backward kernel.

    Args:
        weight, bias: (N,).
        scale: (B, N) float32, last stride 1; None without modulation.
    """
    batch, programs, total = partial.shape
    (width,) = weight.shape
    gated = total - 2 * width
    found = empty_sums(batch, gated, weight, bias, scale)
    _row_sums_kernel[(triton.cdiv(width, BLOCK),)](
        partial, weight, bias, scale, *found, batch, programs, 0 if scale is None else scale.stride(0),
        WIDTH=width, GATED=gated, ITEMS=ITEMS, ROWS=ROWS, BLOCK=BLOCK, MODULATED=scale is not None,
        num_warps=WARPS,
    )  # fmt: skip
    return found


def empty_sums(batch: int, gated: int, weight: Tensor, bias: Tensor, scale: Tensor | None) -> Sums:
    """Without values: also what a trace sees."""
    modulated = 0 if scale is None else len(weight)
    vectors = (weight.new_empty((batch, width), dtype=torch.float32) for width in (modulated, modulated, gated))
    return Sums(torch.empty_like(weight), torch.empty_like(bias), *vectors)
