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

from ezaudio.kernels.rounding import narrow
from ezaudio.kernels.row_sums import add_programs, backward_tile, empty_sums, rows_per_program, sum_pair

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


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
    slope = tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)
    if MODULATED:
        slope *= 1.0 + tl.load(scale_ptr + batch * scale_stride + column, mask=valid, other=0.0)
    if HAS_GATE:
        opening = 1.0 - tl.load(gate_ptr + batch * gate_stride + column, mask=valid, other=0.0)
    total_s = tl.zeros([BLOCK], tl.float32)
    total_a = tl.zeros([BLOCK], tl.float32)
    total_gate = tl.zeros([BLOCK], tl.float32)
    # The next rows are on their way while these wait for each other in the sums over the width.
    for start in tl.range(first, tl.minimum(first + rows_per_program, length), ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        mask = (row < length)[:, None] & valid[None, :]
        offset = (batch * length + row)[:, None] * WIDTH + column[None, :]
        x = tl.load(sum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(stats_ptr + batch * 2 * length + row, mask=row < length, other=0.0)
        inverse = tl.load(stats_ptr + batch * 2 * length + length + row, mask=row < length, other=0.0)
        normal = (x - mean[:, None]) * inverse[:, None]
        total_s += tl.sum(dout, axis=0)
        total_a += tl.sum(dout * normal, axis=0)
        slant = dout * slope[None, :]
        level, tilt = sum_pair(slant, slant * normal)
        dx = inverse[:, None] * (slant - (level / WIDTH)[:, None] - normal * (tilt / WIDTH)[:, None])
        if HAS_UPDATE:
            dx += tl.load(dsum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offset, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
        if HAS_GATE:
            update = tl.load(update_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            total_gate -= tl.sum(dx * update, axis=0)
            dupdate = dx * opening[None, :]
            tl.store(dupdate_ptr + offset, narrow(dupdate, dupdate_ptr.dtype.element_ty), mask=mask)
    SUMS: tl.constexpr = 3 * WIDTH if HAS_GATE else 2 * WIDTH
    partial = partial_ptr + (batch * tl.num_programs(0) + tl.program_id(0)) * SUMS + column
    tl.store(partial, total_s, mask=valid)
    tl.store(partial + WIDTH, total_a, mask=valid)
    if HAS_GATE:
        tl.store(partial + 2 * WIDTH, total_gate, mask=valid)


def tile_shape(width: int, rows: int, warps: int) -> dict[str, int]:
    """Of a forward program: at least so many rows of `width` values, so that their sums overlap; of narrow rows more,
    16 values a thread."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "ROWS": min(16, max(rows, 512 * warps // block)), "num_warps": warps}


def batch_stride(*vectors: Tensor | None) -> int:
    """Distance between the rows of (B, D) float32 vectors that may be slices of one tensor of modulations."""
    strides = {vector.stride(0) for vector in vectors if vector is not None}
    assert len(strides) <= 1, strides
    assert all(v.dtype == torch.float32 and v.stride(1) == 1 for v in vectors if v is not None)
    return strides.pop() if strides else 0


@torch.library.custom_op(
    "ezaudio::residual_norm_backward",
    mutates_args=(),
    schema="(Tensor? dsum, Tensor dout, Tensor total, Tensor stats, Tensor? update, Tensor? gate, Tensor weight,"
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
