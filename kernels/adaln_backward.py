"""Backward of `adaln.py`.

With r = 1/√(σ² + ε), x̂ = (x' − μ)·r, g = dh·(1 + scale)·w and means over the width:

    dx = dx' + r·(g − mean(g) − x̂·mean(g·x̂))         dupdate = (1 − gate)·dx         dgate = −Σ dx·update

What parameters get are sums over rows, S = Σ dh, A = Σ dh·x̂ and −Σ dx·update of each program, which `row_sums.py` adds.
μ and r are those of the forward pass: computed again, they would be two more sums that every row waits for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.norm_gradient import added, levelled, slanted, sum_pair, sum_pieces
from ezaudio.kernels.norm_tiles import backward_tile, rows_per_program
from ezaudio.kernels.operator import operator
from ezaudio.kernels.rounding import narrow
from ezaudio.kernels.row_sums import add_programs, empty_sums

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _slope(
    weight_ptr: tl.pointer_type,  # (D,)
    scale_ptr: tl.pointer_type,  # (D,) of a clip
    column: tl.tensor,
    valid: tl.tensor,
    MODULATED: tl.constexpr,
) -> tl.tensor:
    """What a norm multiplies x̂ by."""
    slope = tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)
    if MODULATED:
        slope *= 1.0 + tl.load(scale_ptr + column, mask=valid, other=0.0)
    return slope


@triton.jit
def _write(
    dx: tl.tensor,  # (ROWS, BLOCK)
    dsum_ptr: tl.pointer_type,
    update_ptr: tl.pointer_type,
    dx_ptr: tl.pointer_type,
    dupdate_ptr: tl.pointer_type,
    offset: tl.tensor,
    mask: tl.tensor,
    opening: tl.tensor,  # (BLOCK,) 1 − gate
    closing: tl.tensor,  # (BLOCK,), or (ROWS, BLOCK): Σ dx·update
    HAS_UPDATE: tl.constexpr,
    HAS_GATE: tl.constexpr,
) -> tl.tensor:
    """Store the gradients of some rows; Σ dx·update with these rows."""
    if HAS_UPDATE:
        dx += tl.load(dsum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + offset, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
    if HAS_GATE:
        update = tl.load(update_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        closing = added(closing, dx * update)
        dupdate = dx * opening[None, :]
        tl.store(dupdate_ptr + offset, narrow(dupdate, dupdate_ptr.dtype.element_ty), mask=mask)
    return closing


@triton.jit
def _residual_norm_bwd_kernel(
    dsum_ptr: tl.pointer_type,  # (B, L, D) gradient of x'
    dout_ptr: tl.pointer_type,  # (B, L, D) gradient of h
    sum_ptr: tl.pointer_type,  # (B, L, D) x'
    stats_ptr: tl.pointer_type,  # (B, 2, L) float32: μ, r
    update_ptr: tl.pointer_type,  # (B, L, D)
    gate_ptr: tl.pointer_type,  # (B, D) float32, rows gate_stride apart
    weight_ptr: tl.pointer_type,  # (D,)
    scale_ptr: tl.pointer_type,  # (B, D) float32, rows scale_stride apart
    dx_ptr: tl.pointer_type,  # (B, L, D)
    dupdate_ptr: tl.pointer_type,  # (B, L, D)
    partial_ptr: tl.pointer_type,  # (B, P, 2D or 3D) float32: S, A, dgate of each program
    length: int,
    gate_stride: int,
    scale_stride: int,
    rows_per_program: int,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,  # of the second piece of a row, or 0
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    MODULATED: tl.constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * rows_per_program
    column = tl.arange(0, BLOCK)
    valid = column < WIDTH
    if MODULATED:
        scale_ptr += batch * scale_stride
    slope = _slope(weight_ptr, scale_ptr, column, valid, MODULATED)
    opening = slope
    if HAS_GATE:
        gate_ptr += batch * gate_stride
        opening = 1.0 - tl.load(gate_ptr + column, mask=valid, other=0.0)
    s = tl.zeros([BLOCK], tl.float32)
    a = tl.zeros([BLOCK], tl.float32)
    closing = tl.zeros([BLOCK], tl.float32)
    if TAIL > 0:
        end_column = BLOCK + tl.arange(0, TAIL)
        end_valid = end_column < WIDTH
        end_slope = _slope(weight_ptr, scale_ptr, end_column, end_valid, MODULATED)
        end_opening = end_slope
        if HAS_GATE:
            end_opening = 1.0 - tl.load(gate_ptr + end_column, mask=end_valid, other=0.0)
        end_s = tl.zeros([ROWS, TAIL], tl.float32)
        end_a = tl.zeros([ROWS, TAIL], tl.float32)
        end_closing = tl.zeros([ROWS, TAIL], tl.float32)
    # The next rows are on their way while these wait for each other in the sums over the width.
    for start in tl.range(first, tl.minimum(first + rows_per_program, length), ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        present = (row < length)[:, None]
        token = (batch * length + row)[:, None] * WIDTH
        mask = present & valid[None, :]
        offset = token + column[None, :]
        mean = tl.load(stats_ptr + batch * 2 * length + row, mask=row < length, other=0.0)
        inverse = tl.load(stats_ptr + batch * 2 * length + length + row, mask=row < length, other=0.0)
        x = tl.load(sum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if TAIL > 0:
            end_mask = present & end_valid[None, :]
            end_offset = token + end_column[None, :]
            end_x = tl.load(sum_ptr + end_offset, mask=end_mask, other=0.0).to(tl.float32)
            end_dout = tl.load(dout_ptr + end_offset, mask=end_mask, other=0.0).to(tl.float32)
            end_normal, end_slant, end_s, end_a = slanted(end_x, end_dout, mean, inverse, end_slope, end_s, end_a)
        normal, slant, s, a = slanted(x, dout, mean, inverse, slope, s, a)
        if TAIL > 0:
            level, tilt = sum_pieces(slant, slant * normal, end_slant, end_slant * end_normal)
        else:
            level, tilt = sum_pair(slant, slant * normal)
        level /= WIDTH
        tilt /= WIDTH
        dx = levelled(normal, slant, inverse, level, tilt)
        closing = _write(
            dx, dsum_ptr, update_ptr, dx_ptr, dupdate_ptr, offset, mask, opening, closing, HAS_UPDATE, HAS_GATE
        )
        if TAIL > 0:
            dx = levelled(end_normal, end_slant, inverse, level, tilt)
            end_closing = _write(
                dx, dsum_ptr, update_ptr, dx_ptr, dupdate_ptr,
                end_offset, end_mask, end_opening, end_closing, HAS_UPDATE, HAS_GATE,
            )  # fmt: skip
    SUMS: tl.constexpr = 3 * WIDTH if HAS_GATE else 2 * WIDTH
    partial_ptr += (batch * tl.num_programs(0) + tl.program_id(0)) * SUMS
    tl.store(partial_ptr + column, s, mask=valid)
    tl.store(partial_ptr + WIDTH + column, a, mask=valid)
    if HAS_GATE:
        tl.store(partial_ptr + 2 * WIDTH + column, -closing, mask=valid)
    if TAIL > 0:
        tl.store(partial_ptr + end_column, tl.sum(end_s, axis=0), mask=end_valid)
        tl.store(partial_ptr + WIDTH + end_column, tl.sum(end_a, axis=0), mask=end_valid)
        if HAS_GATE:
            tl.store(partial_ptr + 2 * WIDTH + end_column, -tl.sum(end_closing, axis=0), mask=end_valid)


def batch_stride(*vectors: Tensor | None) -> int:
    """Distance between the rows of (B, D) float32 vectors that may be slices of one tensor of modulations."""
    strides = {vector.stride(0) for vector in vectors if vector is not None}
    assert len(strides) <= 1, strides
    assert all(v.dtype == torch.float32 and v.stride(1) == 1 for v in vectors if v is not None)
    return strides.pop() if strides else 0


@operator(
    "residual_norm_backward",
    "(Tensor? dsum, Tensor dout, Tensor total, Tensor stats, Tensor? update, Tensor? gate, Tensor weight,"
    " Tensor bias, Tensor? scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def residual_norm_backward(
    dsum: Tensor | None,
    dout: Tensor,
    total: Tensor,
    stats: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
) -> Gradients:
    """Gradients of x and of the update (B, L, D), then those of `Sums`; what has none is empty."""
    batch, length, width = total.shape
    tile = backward_tile(width, total.dtype)
    per_program = rows_per_program(batch, length, tile)
    programs = triton.cdiv(length, per_program)
    sums = 2 if gate is None else 3
    dx, dupdate = total.new_empty(total.shape), _dupdate(total, update, gate)
    partial = total.new_empty((batch, programs, sums * width), dtype=torch.float32)
    _residual_norm_bwd_kernel[(programs, batch)](
        dsum, dout, total, stats, update, gate, weight, scale, dx, dupdate, partial,
        length, batch_stride(gate), batch_stride(scale), per_program, WIDTH=width,
        HAS_UPDATE=dsum is not None, HAS_GATE=gate is not None, MODULATED=scale is not None, **tile,
    )  # fmt: skip
    return dx, dupdate, *add_programs(partial, weight, bias, scale)


@residual_norm_backward.register_fake
def _residual_norm_backward_fake(
    dsum: Tensor | None,
    dout: Tensor,
    total: Tensor,
    stats: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
) -> Gradients:
    batch, _, width = total.shape
    sums = empty_sums(batch, 0 if gate is None else width, weight, bias, scale)
    return total.new_empty(total.shape), _dupdate(total, update, gate), *sums


def _dupdate(total: Tensor, update: Tensor | None, gate: Tensor | None) -> Tensor:
    return total.new_empty((0,)) if update is None or gate is None else update.new_empty(update.shape)
