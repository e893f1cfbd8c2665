"""Backward of `adaln.py`, in two kernels.

With r = 1/√(σ² + ε), x̂ = (x' − μ)·r, g = dh·(1 + scale)·w and means over the width:

    dx = dx' + r·(g − mean(g) − x̂·mean(g·x̂))         dupdate = (1 − gate)·dx         dgate = −Σ dx·update

The sums over rows that parameters need follow from S = Σ dh and A = Σ dh·x̂ of each clip:

    dshift = S     dscale = w·A + b·S     dw = Σ (1 + scale)·A     db = Σ (1 + scale)·S     (Σ over the batch)

Each program adds up its own rows and writes S, A and dgate once; the second kernel adds the programs of a clip, and one
sum the clips, in a fixed order: no atomics, and two runs give the same bits. Statistics are computed again, since the
row is in registers anyway.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.reference import NORM_EPS
from ezaudio.kernels.rounding import narrow

PARTIALS = 3  # S, A, dgate
PROGRAMS = 256  # aimed at: two for each multiprocessor, while partial sums stay a few percent of the traffic


@triton.jit
def _residual_norm_bwd_kernel(
    dsum_ptr: tl.pointer_type,  # (B, L, D) gradient of x'
    dout_ptr: tl.pointer_type,  # (B, L, D) gradient of h
    sum_ptr: tl.pointer_type,  # (B, L, D) x'
    update_ptr: tl.pointer_type,  # (B, L, D)
    gate_ptr: tl.pointer_type,  # (B, D) float32, rows gate_stride apart
    weight_ptr: tl.pointer_type,  # (D,)
    scale_ptr: tl.pointer_type,  # (B, D) float32, rows scale_stride apart
    dx_ptr: tl.pointer_type,  # (B, L, D)
    dupdate_ptr: tl.pointer_type,  # (B, L, D)
    partial_ptr: tl.pointer_type,  # (B, P, 3, D) float32: S, A, dgate of each program
    length: int,
    gate_stride: int,
    scale_stride: int,
    rows_per_program: int,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
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
    # Two stages: the next rows are on their way while these wait for each other in the sums over the width.
    for start in tl.range(first, tl.minimum(first + rows_per_program, length), ROWS, num_stages=2):
        row = start + tl.arange(0, ROWS)
        mask = (row < length)[:, None] & valid[None, :]
        offset = (batch * length + row)[:, None] * WIDTH + column[None, :]
        x = tl.load(sum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(x, axis=1) / WIDTH
        centred = tl.where(mask, x - mean[:, None], 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / WIDTH + EPS)
        normal = centred * inverse[:, None]
        total_s += tl.sum(dout, axis=0)
        total_a += tl.sum(dout * normal, axis=0)
        slant = dout * slope[None, :]
        level = tl.sum(slant, axis=1) / WIDTH
        tilt = tl.sum(slant * normal, axis=1) / WIDTH
        dx = inverse[:, None] * (slant - level[:, None] - normal * tilt[:, None])
        if HAS_UPDATE:
            dx += tl.load(dsum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offset, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
        if HAS_GATE:
            update = tl.load(update_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            total_gate -= tl.sum(tl.where(mask, dx * update, 0.0), axis=0)
            dupdate = dx * opening[None, :]
            tl.store(dupdate_ptr + offset, narrow(dupdate, dupdate_ptr.dtype.element_ty), mask=mask)
    partial = partial_ptr + (batch * tl.num_programs(0) + tl.program_id(0)) * 3 * WIDTH + column
    tl.store(partial, total_s, mask=valid)
    tl.store(partial + WIDTH, total_a, mask=valid)
    if HAS_GATE:
        tl.store(partial + 2 * WIDTH, total_gate, mask=valid)


@triton.jit
def _residual_norm_reduce_kernel(
    partial_ptr: tl.pointer_type,  # (B, P, 3, D) float32
    weight_ptr: tl.pointer_type,  # (D,)
    bias_ptr: tl.pointer_type,  # (D,)
    scale_ptr: tl.pointer_type,  # (B, D) float32, rows scale_stride apart
    parameter_ptr: tl.pointer_type,  # (2, B, D) float32: shares of dw and db
    dmodulation_ptr: tl.pointer_type,  # (3, B, D) float32: dshift, dscale, dgate
    batch: int,
    num_partials: int,
    scale_stride: int,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    MODULATED: tl.constexpr,
) -> None:
    item = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = column < WIDTH
    total_s = tl.zeros([ROWS, BLOCK], tl.float32)
    total_a = tl.zeros([ROWS, BLOCK], tl.float32)
    total_gate = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, num_partials, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < num_partials)[:, None] & valid[None, :]
        partial = partial_ptr + (item * num_partials + row)[:, None] * 3 * WIDTH + column[None, :]
        total_s += tl.load(partial, mask=mask, other=0.0)
        total_a += tl.load(partial + WIDTH, mask=mask, other=0.0)
        if HAS_GATE:
            total_gate += tl.load(partial + 2 * WIDTH, mask=mask, other=0.0)
    s = tl.sum(total_s, axis=0)
    a = tl.sum(total_a, axis=0)
    target = item * WIDTH + column
    if MODULATED:
        weight = tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + column, mask=valid, other=0.0).to(tl.float32)
        tl.store(dmodulation_ptr + target, s, mask=valid)
        tl.store(dmodulation_ptr + batch * WIDTH + target, weight * a + bias * s, mask=valid)
        opening = 1.0 + tl.load(scale_ptr + item * scale_stride + column, mask=valid, other=0.0)
        s *= opening
        a *= opening
    if HAS_GATE:
        tl.store(dmodulation_ptr + 2 * batch * WIDTH + target, tl.sum(total_gate, axis=0), mask=valid)
    tl.store(parameter_ptr + target, a, mask=valid)
    tl.store(parameter_ptr + batch * WIDTH + target, s, mask=valid)


def tile_shape(width: int, rows: int, warps: int) -> dict[str, int]:
    """Of a forward program: at least so many rows of `width` values, so that their sums overlap; of narrow rows more,
    16 values a thread."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "ROWS": min(16, max(rows, 512 * warps // block)), "num_warps": warps}


def backward_tile(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Of a backward program: its warps span a row, 16 bytes a thread, so that rows add up inside of threads."""
    block, size = triton.next_power_of_2(width), dtype.itemsize
    return {"BLOCK": block, "ROWS": size, "num_warps": min(2 * size, max(1, block * size // 512))}


def rows_per_program(batch: int, length: int, tile: dict[str, int], halves: int = 1) -> int:
    """Rows each backward program adds up: a multiple of the tile's, from the shape alone so that every GPU sums alike.

    As many programs as are resident at once: two on each multiprocessor, four where rows are short.
    """
    programs = PROGRAMS * (2 if tile["BLOCK"] * halves <= 1024 else 1)
    wanted = triton.cdiv(batch * length, programs)
    return triton.cdiv(min(wanted, length), tile["ROWS"]) * tile["ROWS"]


def batch_stride(*vectors: Tensor | None) -> int:
    """Distance between the rows of (B, D) float32 vectors that may be slices of one tensor of modulations."""
    strides = {vector.stride(0) for vector in vectors if vector is not None}
    assert len(strides) <= 1, strides
    assert all(v.dtype == torch.float32 and v.stride(1) == 1 for v in vectors if v is not None)
    return strides.pop() if strides else 0


@torch.library.custom_op(
    "ezaudio::residual_norm_backward",
    mutates_args=(),
    schema="(Tensor? dsum, Tensor dout, Tensor total, Tensor? update, Tensor? gate, Tensor weight, Tensor bias,"
    " Tensor? scale) -> (Tensor, Tensor, Tensor, Tensor)",
)
def residual_norm_backward(
    dsum: Tensor | None,
    dout: Tensor,
    total: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the update (B, L, D), of weight and bias (2, D), of shift, scale and gate (3, B, D)."""
    batch, length, width = total.shape
    tile = backward_tile(width, total.dtype)
    per_program = rows_per_program(batch, length, tile)
    programs = triton.cdiv(length, per_program)
    dx, dupdate, _, dmodulation = _residual_norm_backward_fake(dsum, dout, total, update, gate, weight, bias, scale)
    parameters = torch.empty_like(dmodulation[:2])
    partial = total.new_empty((batch, programs, PARTIALS, width), dtype=torch.float32)
    flags = {"HAS_GATE": gate is not None, "MODULATED": scale is not None}
    _residual_norm_bwd_kernel[(programs, batch)](
        dsum, dout, total, update, gate, weight, scale, dx, dupdate, partial,
        length, batch_stride(gate), batch_stride(scale), per_program,
        WIDTH=width, EPS=NORM_EPS, HAS_UPDATE=dsum is not None, **flags, **tile,
    )  # fmt: skip
    _residual_norm_reduce_kernel[(triton.cdiv(width, 32), batch)](
        partial, weight, bias, scale, parameters, dmodulation, batch, programs, batch_stride(scale),
        WIDTH=width, BLOCK=32, ROWS=32, **flags, num_warps=4,
    )  # fmt: skip
    return dx, dupdate, parameters.sum(1), dmodulation


@residual_norm_backward.register_fake
def _residual_norm_backward_fake(
    dsum: Tensor | None,
    dout: Tensor,
    total: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, width = total.shape
    return (
        total.new_empty(total.shape),
        total.new_empty((0,)) if update is None or gate is None else update.new_empty(update.shape),
        total.new_empty((2, width), dtype=torch.float32),
        total.new_empty((3, batch, width), dtype=torch.float32),
    )
