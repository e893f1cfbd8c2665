"""Fused entry of an out block: gated residual, then LayerNorm over the width 2D of [x', skip], never concatenated.

    x' = x + (1 − gate)·update          h = ([x', skip] − μ)/√(σ² + ε)·w + b

x' itself is not stored: the out block goes on from a projection of h. Without `update` x' is x. Backward, with
r = 1/√(σ² + ε), z = [x', skip], ẑ = (z − μ)·r, g = dh·w and means over 2D:

    dz = r·(g − mean(g) − ẑ·mean(g·ẑ))      [dx, dskip] = dz      dupdate = (1 − gate)·dx      dgate = −Σ dx·update
    dw = Σ dh·ẑ                             db = Σ dh

Backward keeps μ and r of each row; what programs have summed over rows, `row_sums.py` adds.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.adaln_backward import batch_stride
from ezaudio.kernels.norm_gradient import added, levelled, slanted, sum_pair, sum_pieces
from ezaudio.kernels.norm_tiles import backward_tile, columns, forward_tile, rows_per_program, vector
from ezaudio.kernels.operator import operator
from ezaudio.kernels.reference import NORM_EPS
from ezaudio.kernels.rounding import narrow
from ezaudio.kernels.row_sums import add_programs, empty_sums

SKIP_TILE = {"whole": (1, 2), "padded": (1, 2)}  # rows, warps: the fastest of 8000 rows on an H200

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _gated_sum(
    x_ptr: tl.pointer_type,  # (B, L, D)
    update_ptr: tl.pointer_type,  # (B, L, D)
    opening: tl.tensor,  # (BLOCK,) 1 − gate
    offset: tl.tensor,  # (ROWS, BLOCK)
    mask: tl.tensor,  # (ROWS, BLOCK)
    HAS_UPDATE: tl.constexpr,
) -> tl.tensor:
    """x' rounded to the dtype of x, and the update, which is x' again where there is none."""
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    update = x
    if HAS_UPDATE:
        update = tl.load(update_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        x = narrow(x + update * opening[None, :], x_ptr.dtype.element_ty).to(tl.float32)
    return x, update


@triton.jit
def _skip_norm_fwd_kernel(
    x_ptr: tl.pointer_type,  # (B, L, D)
    update_ptr: tl.pointer_type,  # (B, L, D)
    gate_ptr: tl.pointer_type,  # (B, D) float32, rows gate_stride apart
    skip_ptr: tl.pointer_type,  # (B, L, D)
    weight_ptr: tl.pointer_type,  # (2D,)
    bias_ptr: tl.pointer_type,  # (2D,)
    out_ptr: tl.pointer_type,  # (B, L, 2D) h
    stats_ptr: tl.pointer_type,  # (B, 2, L) float32: μ, r
    length: int,
    gate_stride: int,
    WIDTH: tl.constexpr,  # D
    BLOCK: tl.constexpr,  # power of two, at least WIDTH
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    TRAINED: tl.constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = columns(x_ptr, BLOCK)
    valid = column < WIDTH
    mask = (row < length)[:, None] & valid[None, :]
    token = (batch * length + row)[:, None] * WIDTH
    opening = tl.zeros([BLOCK], tl.float32)
    if HAS_UPDATE:
        opening = 1.0 - vector(gate_ptr + batch * gate_stride, column, valid, ROWS)
    x, _ = _gated_sum(x_ptr, update_ptr, opening, token + column[None, :], mask, HAS_UPDATE)
    skip = tl.load(skip_ptr + token + column[None, :], mask=mask, other=0.0).to(tl.float32)

    mean = tl.sum(x + skip, axis=1) / (2 * WIDTH)
    x = tl.where(mask, x - mean[:, None], 0.0)
    skip = tl.where(mask, skip - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x + skip * skip, axis=1) / (2 * WIDTH) + EPS)
    weight_x = vector(weight_ptr, column, valid, ROWS)
    weight_skip = vector(weight_ptr + WIDTH, column, valid, ROWS)
    bias_x = vector(bias_ptr, column, valid, ROWS)
    bias_skip = vector(bias_ptr + WIDTH, column, valid, ROWS)
    out_x = x * inverse[:, None] * weight_x[None, :] + bias_x[None, :]
    out_skip = skip * inverse[:, None] * weight_skip[None, :] + bias_skip[None, :]
    out = out_ptr + 2 * token + column[None, :]
    tl.store(out, narrow(out_x, out_ptr.dtype.element_ty), mask=mask)
    tl.store(out + WIDTH, narrow(out_skip, out_ptr.dtype.element_ty), mask=mask)
    if TRAINED:
        tl.store(stats_ptr + batch * 2 * length + row, mean, mask=row < length)
        tl.store(stats_ptr + batch * 2 * length + length + row, inverse, mask=row < length)


@triton.jit
def _read(
    x_ptr: tl.pointer_type,  # (B, L, D)
    update_ptr: tl.pointer_type,  # (B, L, D)
    skip_ptr: tl.pointer_type,  # (B, L, D)
    dout_ptr: tl.pointer_type,  # (B, L, 2D)
    weight_ptr: tl.pointer_type,  # (2D,)
    opening: tl.tensor,  # (BLOCK,)
    token: tl.tensor,  # (ROWS, 1)
    column: tl.tensor,  # (BLOCK,)
    valid: tl.tensor,  # (BLOCK,)
    mask: tl.tensor,  # (ROWS, BLOCK)
    mean: tl.tensor,  # (ROWS,)
    inverse: tl.tensor,  # (ROWS,)
    s_x: tl.tensor,
    a_x: tl.tensor,
    s_skip: tl.tensor,
    a_skip: tl.tensor,
    WIDTH: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
) -> tl.tensor:
    """ẑ and g of both halves, the update, and the sums of columns with these rows."""
    offset = token + column[None, :]
    x, update = _gated_sum(x_ptr, update_ptr, opening, offset, mask, HAS_UPDATE)
    skip = tl.load(skip_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    dout_x = tl.load(dout_ptr + token + offset, mask=mask, other=0.0).to(tl.float32)
    dout_skip = tl.load(dout_ptr + token + offset + WIDTH, mask=mask, other=0.0).to(tl.float32)
    # Weights come from the first-level cache for every row: the sums of columns take all registers.
    weight_x = tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)
    weight_skip = tl.load(weight_ptr + WIDTH + column, mask=valid, other=0.0).to(tl.float32)
    x, slant_x, s_x, a_x = slanted(x, dout_x, mean, inverse, weight_x, s_x, a_x)
    skip, slant_skip, s_skip, a_skip = slanted(skip, dout_skip, mean, inverse, weight_skip, s_skip, a_skip)
    return x, slant_x, skip, slant_skip, update, s_x, a_x, s_skip, a_skip


@triton.jit
def _write(
    dx: tl.tensor,  # (ROWS, BLOCK)
    dskip: tl.tensor,  # (ROWS, BLOCK)
    update: tl.tensor,  # (ROWS, BLOCK)
    opening: tl.tensor,  # (BLOCK,)
    closing: tl.tensor,  # (BLOCK,), or (ROWS, BLOCK): Σ dx·update
    dx_ptr: tl.pointer_type,
    dupdate_ptr: tl.pointer_type,
    dskip_ptr: tl.pointer_type,
    offset: tl.tensor,
    mask: tl.tensor,
    HAS_UPDATE: tl.constexpr,
) -> tl.tensor:
    """Store the gradients of some rows; Σ dx·update with these rows."""
    tl.store(dx_ptr + offset, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dskip_ptr + offset, narrow(dskip, dskip_ptr.dtype.element_ty), mask=mask)
    if HAS_UPDATE:
        closing = added(closing, dx * update)
        dupdate = dx * opening[None, :]
        tl.store(dupdate_ptr + offset, narrow(dupdate, dupdate_ptr.dtype.element_ty), mask=mask)
    return closing


@triton.jit
def _skip_norm_bwd_kernel(
    dout_ptr: tl.pointer_type,  # (B, L, 2D) gradient of h
    x_ptr: tl.pointer_type,  # (B, L, D)
    update_ptr: tl.pointer_type,  # (B, L, D)
    gate_ptr: tl.pointer_type,  # (B, D) float32, rows gate_stride apart
    skip_ptr: tl.pointer_type,  # (B, L, D)
    stats_ptr: tl.pointer_type,  # (B, 2, L) float32: μ, r
    weight_ptr: tl.pointer_type,  # (2D,)
    dx_ptr: tl.pointer_type,  # (B, L, D)
    dupdate_ptr: tl.pointer_type,  # (B, L, D)
    dskip_ptr: tl.pointer_type,  # (B, L, D)
    partial_ptr: tl.pointer_type,  # (B, P, 4D or 5D) float32: S of x' and skip, A of both, dgate
    length: int,
    gate_stride: int,
    rows_per_program: int,
    WIDTH: tl.constexpr,  # D
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,  # of the second piece of a row, or 0
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * rows_per_program
    column = tl.arange(0, BLOCK)
    valid = column < WIDTH
    opening = tl.zeros([BLOCK], tl.float32)
    s_x = tl.zeros([BLOCK], tl.float32)
    a_x = tl.zeros([BLOCK], tl.float32)
    s_skip = tl.zeros([BLOCK], tl.float32)
    a_skip = tl.zeros([BLOCK], tl.float32)
    closing = tl.zeros([BLOCK], tl.float32)
    if HAS_UPDATE:
        gate_ptr += batch * gate_stride
        opening = 1.0 - tl.load(gate_ptr + column, mask=valid, other=0.0)
    if TAIL > 0:
        end_column = BLOCK + tl.arange(0, TAIL)
        end_valid = end_column < WIDTH
        end_opening = tl.zeros([TAIL], tl.float32)
        end_s_x = tl.zeros([ROWS, TAIL], tl.float32)
        end_a_x = tl.zeros([ROWS, TAIL], tl.float32)
        end_s_skip = tl.zeros([ROWS, TAIL], tl.float32)
        end_a_skip = tl.zeros([ROWS, TAIL], tl.float32)
        end_closing = tl.zeros([ROWS, TAIL], tl.float32)
        if HAS_UPDATE:
            end_opening = 1.0 - tl.load(gate_ptr + end_column, mask=end_valid, other=0.0)
    # The next rows are on their way while these wait for each other in the sums over the width.
    for start in tl.range(first, tl.minimum(first + rows_per_program, length), ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        present = (row < length)[:, None]
        token = (batch * length + row)[:, None] * WIDTH
        mask = present & valid[None, :]
        mean = tl.load(stats_ptr + batch * 2 * length + row, mask=row < length, other=0.0)
        inverse = tl.load(stats_ptr + batch * 2 * length + length + row, mask=row < length, other=0.0)
        x, slant_x, skip, slant_skip, update, s_x, a_x, s_skip, a_skip = _read(
            x_ptr, update_ptr, skip_ptr, dout_ptr, weight_ptr, opening, token, column, valid, mask,
            mean, inverse, s_x, a_x, s_skip, a_skip, WIDTH, HAS_UPDATE,
        )  # fmt: skip
        if TAIL == 0:
            level, tilt = sum_pair(slant_x + slant_skip, slant_x * x + slant_skip * skip)
        else:
            end_mask = present & end_valid[None, :]
            end_x, end_slant_x, end_skip, end_slant_skip, end_update, end_s_x, end_a_x, end_s_skip, end_a_skip = _read(
                x_ptr, update_ptr, skip_ptr, dout_ptr, weight_ptr, end_opening, token, end_column, end_valid, end_mask,
                mean, inverse, end_s_x, end_a_x, end_s_skip, end_a_skip, WIDTH, HAS_UPDATE,
            )  # fmt: skip
            level, tilt = sum_pieces(
                slant_x + slant_skip,
                slant_x * x + slant_skip * skip,
                end_slant_x + end_slant_skip,
                end_slant_x * end_x + end_slant_skip * end_skip,
            )
        level /= 2 * WIDTH
        tilt /= 2 * WIDTH
        dx = levelled(x, slant_x, inverse, level, tilt)
        dskip = levelled(skip, slant_skip, inverse, level, tilt)
        offset = token + column[None, :]
        closing = _write(dx, dskip, update, opening, closing, dx_ptr, dupdate_ptr, dskip_ptr, offset, mask, HAS_UPDATE)
        if TAIL > 0:
            dx = levelled(end_x, end_slant_x, inverse, level, tilt)
            dskip = levelled(end_skip, end_slant_skip, inverse, level, tilt)
            offset = token + end_column[None, :]
            end_closing = _write(
                dx, dskip, end_update, end_opening, end_closing,
                dx_ptr, dupdate_ptr, dskip_ptr, offset, end_mask, HAS_UPDATE,
            )  # fmt: skip
    SUMS: tl.constexpr = 5 * WIDTH if HAS_UPDATE else 4 * WIDTH
    partial_ptr += (batch * tl.num_programs(0) + tl.program_id(0)) * SUMS
    tl.store(partial_ptr + column, s_x, mask=valid)
    tl.store(partial_ptr + WIDTH + column, s_skip, mask=valid)
    tl.store(partial_ptr + 2 * WIDTH + column, a_x, mask=valid)
    tl.store(partial_ptr + 3 * WIDTH + column, a_skip, mask=valid)
    if HAS_UPDATE:
        tl.store(partial_ptr + 4 * WIDTH + column, -closing, mask=valid)
    if TAIL > 0:
        tl.store(partial_ptr + end_column, tl.sum(end_s_x, axis=0), mask=end_valid)
        tl.store(partial_ptr + WIDTH + end_column, tl.sum(end_s_skip, axis=0), mask=end_valid)
        tl.store(partial_ptr + 2 * WIDTH + end_column, tl.sum(end_a_x, axis=0), mask=end_valid)
        tl.store(partial_ptr + 3 * WIDTH + end_column, tl.sum(end_a_skip, axis=0), mask=end_valid)
        if HAS_UPDATE:
            tl.store(partial_ptr + 4 * WIDTH + end_column, -tl.sum(end_closing, axis=0), mask=end_valid)


@operator(
    "skip_norm",
    "(Tensor x, Tensor? update, Tensor? gate, Tensor skip, Tensor weight, Tensor bias) -> (Tensor, Tensor)",
)
def _skip_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, skip: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    batch, length, width = x.shape
    tile = forward_tile(width, **SKIP_TILE)
    out, stats = _skip_norm_fake(x)
    _skip_norm_fwd_kernel[(triton.cdiv(length, tile["ROWS"]), batch)](
        x, update, gate, skip, weight, bias, out, stats, length, batch_stride(gate),
        WIDTH=width, EPS=NORM_EPS, HAS_UPDATE=update is not None, TRAINED=True, **tile,
    )  # fmt: skip
    return out, stats


@_skip_norm.register_fake
def _skip_norm_fake(x: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, length, width = x.shape
    return x.new_empty((batch, length, 2 * width)), x.new_empty((batch, 2, length), dtype=torch.float32)


@operator(
    "skip_norm_backward",
    "(Tensor dout, Tensor x, Tensor? update, Tensor? gate, Tensor skip, Tensor weight, Tensor bias,"
    " Tensor stats) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _skip_norm_backward(
    dout: Tensor,
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    stats: Tensor,
) -> Gradients:
    """Gradients of x, update and skip (B, L, D), of weight, bias and gate; what has none is empty."""
    batch, length, width = x.shape
    tile = backward_tile(width, x.dtype, halves=2)
    per_program = rows_per_program(batch, length, tile)
    programs = triton.cdiv(length, per_program)
    dx, dupdate, dskip = _token_gradients(x, update, skip)
    partial = x.new_empty((batch, programs, (4 if update is None else 5) * width), dtype=torch.float32)
    _skip_norm_bwd_kernel[(programs, batch)](
        dout, x, update, gate, skip, stats, weight, dx, dupdate, dskip, partial,
        length, batch_stride(gate), per_program,
        WIDTH=width, HAS_UPDATE=update is not None, **tile,
    )  # fmt: skip
    sums = add_programs(partial, weight, bias)
    return dx, dupdate, dskip, sums.weight, sums.bias, sums.gate


@_skip_norm_backward.register_fake
def _skip_norm_backward_fake(
    dout: Tensor,
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    stats: Tensor,
) -> Gradients:
    sums = empty_sums(x.shape[0], 0 if update is None else x.shape[2], weight, bias, None)
    return *_token_gradients(x, update, skip), sums.weight, sums.bias, sums.gate


def _token_gradients(x: Tensor, update: Tensor | None, skip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dupdate = x.new_empty((0,)) if update is None else update.new_empty(update.shape)
    return x.new_empty(x.shape), dupdate, skip.new_empty(skip.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    dx, dupdate, dskip, *parameters, dgate = _skip_norm_backward(dout.contiguous(), *ctx.saved_tensors)
    gated = (None, None) if ctx.saved_tensors[1] is None else (dupdate, dgate)
    return dx, *gated, dskip, *parameters


_skip_norm.register_autograd(_backward, setup_context=_setup)


def skip_norm(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, update: Tensor | None = None, gate: Tensor | None = None
) -> Tensor:
    """LN([x + (1 − gate)·update, skip]).

    Args:
        x, update, skip: (B, L, D).
        weight, bias: (2D,) affine of the LayerNorm.
        gate: (B, D) or (1, D) float32; comes with the update.

    Returns:
        (B, L, 2D) in the dtype of x.
    """
    assert (update is None) == (gate is None)
    assert all(part is None or part.shape == x.shape for part in (update, skip))
    update = None if update is None else update.contiguous()
    gate = None if gate is None else gate.expand(len(x), x.shape[2])
    return _skip_norm(x.contiguous(), update, gate, skip.contiguous(), weight, bias)[0]
