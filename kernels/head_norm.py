"""QK-norm and RoPE of the rows of one head, in registers, forward and backward: the ends of the attention kernels.

    n = (x − μ)/√(σ² + ε)·w + b          y₁ = n₁·cos − n₂·sin          y₂ = n₂·cos + n₁·sin

over the E values of a head; n₁ and n₂ are the halves that RoPE turns against each other (RoFormer eq. 34).

A head is held as a main and a tail tile of powers of two: E = 64 is 64 and nothing, E = 72 is 64 and 8, padded to the
16 that a product needs, not to 128. Columns are packed so that both tiles hold whole pairs: main has pairs 0…31, its
left half their first members and its right half their second ones; tail has pairs 32…35 likewise. Scores do not depend
on the order of columns, so packed keys are also what memory holds between kernels, padding included.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.reference import NORM_EPS
from ezaudio.kernels.rounding import narrow

LENGTHS = ["length", "keys"]
"""Arguments of attention kernels that Triton takes as they come. A 1 it would write into the code, whose loop is then
one round, and of that ptxas 12.8 makes wrong code where heads have a tail (`kernel_compile.py` of the tests).
"""


def tile_widths(head_width: int) -> tuple[int, int]:
    """(MAIN, TAIL) columns of the two tiles; TAIL is 0 for powers of two."""
    half = head_width // 2
    main = max(8, 1 << (half.bit_length() - 1))
    rest = max(0, half - main)
    return 2 * main, 2 * max(8, triton.next_power_of_2(rest)) if rest else 0


def head_unit(*tensors: Tensor) -> int:
    """The largest of 8, 4, 2, 1 that divides every stride of (B, H, L, E) tensors: kernels take strides in such units.

    A head of 72 values starts at multiples of 8, which 16-byte loads need and 16, all that Triton sees of an integer,
    does not divide.
    """
    strides = math.gcd(*(stride for tensor in tensors for stride in tensor.stride()[:3]))
    return math.gcd(strides, 8)


def head_rows(x: Tensor) -> Tensor:
    """(B, H, L, E), last stride 1: x, or a copy of it where its rows do not start where wide loads can.

    Only wide loads are pipelined; and where those of a tail are not, ptxas 12.8 makes wrong code (`kernel_compile.py`
    of the tests).
    """
    if x.data_ptr() % 16 == 0 and head_unit(x) % math.gcd(x.shape[3], 8) == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def head_strides(x: Tensor, unit: int) -> tuple[int, int, int]:
    """Of batch, head and row, in units."""
    batch, head, row = (stride // unit for stride in x.stride()[:3])
    return batch, head, row


@triton.jit
def load_head(
    ptr: tl.pointer_type, offset: tl.tensor, mask: tl.tensor, FIRST: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr
) -> tl.tensor:
    """(ROWS, WIDTH) columns FIRST… of the rows that start at offset, zero past column E and in masked rows."""
    column = FIRST + tl.arange(0, WIDTH)
    return tl.load(ptr + offset[:, None] + column[None, :], mask=mask[:, None] & (column < E)[None, :], other=0.0)


@triton.jit
def store_head(
    ptr: tl.pointer_type,
    offset: tl.tensor,
    mask: tl.tensor,
    x: tl.tensor,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
) -> None:
    column = FIRST + tl.arange(0, WIDTH)
    target = ptr + offset[:, None] + column[None, :]
    tl.store(target, narrow(x, ptr.dtype.element_ty), mask=mask[:, None] & (column < E)[None, :])


@triton.jit
def halves(x: tl.tensor, ROWS: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """(ROWS, WIDTH) → its left and right half."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, WIDTH // 2)), (0, 2, 1)))


@triton.jit
def join_halves(left: tl.tensor, right: tl.tensor, ROWS: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (ROWS, WIDTH))


@triton.jit
def pair_columns(FIRST: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr) -> tl.tensor:
    """Column of the head that each packed column holds, from pair FIRST on, and whether there is one."""
    column = tl.arange(0, WIDTH)
    pair = FIRST + column % (WIDTH // 2)
    return column // (WIDTH // 2) * HALF + pair, pair < HALF


@triton.jit
def rotate(
    x: tl.tensor,  # (ROWS, WIDTH)
    cos_ptr: tl.pointer_type,  # (L, E/2)
    sin_ptr: tl.pointer_type,  # (L, E/2)
    row: tl.tensor,  # (ROWS,)
    row_mask: tl.tensor,  # (ROWS,)
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    TRANSPOSED: tl.constexpr,
) -> tl.tensor:
    """RoPE on one tile; transposed is backward."""
    pair = FIRST + tl.arange(0, WIDTH // 2)
    mask = row_mask[:, None] & (pair < HALF)[None, :]
    offset = row[:, None] * HALF + pair[None, :]
    cos = tl.load(cos_ptr + offset, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + offset, mask=mask, other=0.0)
    if TRANSPOSED:
        sin = -sin
    first, second = halves(x, ROWS, WIDTH)
    return join_halves(first * cos - second * sin, second * cos + first * sin, ROWS, WIDTH)


@triton.jit
def normalize(
    x_ptr: tl.pointer_type,  # (…, E), last stride 1
    offset: tl.tensor,  # (ROWS,) int64, where each row starts
    row_mask: tl.tensor,  # (ROWS,)
    E: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    EPS: tl.constexpr,
) -> tl.tensor:
    """Main and tail tile of (x − μ)/√(σ² + ε), zero where padded, and 1/√(σ² + ε). Without a tail it is the main."""
    column, valid = pair_columns(0, MAIN, E // 2)
    mask = row_mask[:, None] & valid[None, :]
    main = tl.load(x_ptr + offset[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(main, axis=1)
    if TAIL > 0:
        tail_column, tail_valid = pair_columns(MAIN // 2, TAIL, E // 2)
        tail_mask = row_mask[:, None] & tail_valid[None, :]
        tail = tl.load(x_ptr + offset[:, None] + tail_column[None, :], mask=tail_mask, other=0.0).to(tl.float32)
        total += tl.sum(tail, axis=1)
    mean = total / E
    main = tl.where(mask, main - mean[:, None], 0.0)
    squares = tl.sum(main * main, axis=1)
    if TAIL > 0:
        tail = tl.where(tail_mask, tail - mean[:, None], 0.0)
        squares += tl.sum(tail * tail, axis=1)
    inverse = 1.0 / tl.sqrt(squares / E + EPS)
    main *= inverse[:, None]
    if TAIL > 0:
        tail *= inverse[:, None]
    else:
        tail = main
    return main, tail, inverse


@triton.jit
def norm_rope(
    x_ptr: tl.pointer_type,  # (…, E), last stride 1
    offset: tl.tensor,  # (ROWS,) int64, where each row starts
    row: tl.tensor,  # (ROWS,) position
    row_mask: tl.tensor,  # (ROWS,)
    weight_ptr: tl.pointer_type,  # (E,)
    bias_ptr: tl.pointer_type,  # (E,)
    cos_ptr: tl.pointer_type,  # (L, E/2)
    sin_ptr: tl.pointer_type,  # (L, E/2)
    ROWS: tl.constexpr,
    E: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    EPS: tl.constexpr,
    ROPE: tl.constexpr,
) -> tl.tensor:
    """Main and tail tile of rope(LN(x)) in float32. Without a tail the second is the first."""
    main, tail, _ = normalize(x_ptr, offset, row_mask, E, MAIN, TAIL, EPS)
    column, valid = pair_columns(0, MAIN, E // 2)
    main = main * tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    main = main + tl.load(bias_ptr + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    if ROPE:
        main = rotate(main, cos_ptr, sin_ptr, row, row_mask, 0, ROWS, MAIN, E // 2, False)
    if TAIL > 0:
        tail_column, tail_valid = pair_columns(MAIN // 2, TAIL, E // 2)
        tail = tail * tl.load(weight_ptr + tail_column, mask=tail_valid, other=0.0).to(tl.float32)[None, :]
        tail = tail + tl.load(bias_ptr + tail_column, mask=tail_valid, other=0.0).to(tl.float32)[None, :]
        if ROPE:
            tail = rotate(tail, cos_ptr, sin_ptr, row, row_mask, MAIN // 2, ROWS, TAIL, E // 2, False)
    else:
        tail = main
    return main, tail


@triton.jit
def norm_rope_backward(
    main: tl.tensor,  # (ROWS, MAIN) gradient of rope(LN(x)), zero in masked rows
    tail: tl.tensor,  # (ROWS, TAIL)
    x_ptr: tl.pointer_type,  # (…, E), last stride 1
    offset: tl.tensor,  # (ROWS,) int64, where each row of x starts
    row: tl.tensor,  # (ROWS,) position
    row_mask: tl.tensor,  # (ROWS,)
    weight_ptr: tl.pointer_type,  # (E,)
    cos_ptr: tl.pointer_type,  # (L, E/2)
    sin_ptr: tl.pointer_type,  # (L, E/2)
    dx_ptr: tl.pointer_type,  # (…, E)
    dx_offset: tl.tensor,  # (ROWS,) int64, where each row of dx starts
    partial_ptr: tl.pointer_type,  # (2, E) float32, this program's share of dw and db
    ROWS: tl.constexpr,
    E: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    EPS: tl.constexpr,
    ROPE: tl.constexpr,
) -> None:
    """dn = ropeᵀ(dy), g = dn·w, dx = r·(g − mean(g) − x̂·mean(g·x̂)); partial dw = Σ dn·x̂, db = Σ dn."""
    normal, tail_normal, inverse = normalize(x_ptr, offset, row_mask, E, MAIN, TAIL, EPS)
    column, valid = pair_columns(0, MAIN, E // 2)
    if ROPE:
        main = rotate(main, cos_ptr, sin_ptr, row, row_mask, 0, ROWS, MAIN, E // 2, True)
    tl.store(partial_ptr + column, tl.sum(main * normal, axis=0), mask=valid)
    tl.store(partial_ptr + E + column, tl.sum(main, axis=0), mask=valid)
    main = main * tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    level = tl.sum(main, axis=1)
    tilt = tl.sum(main * normal, axis=1)
    if TAIL > 0:
        tail_column, tail_valid = pair_columns(MAIN // 2, TAIL, E // 2)
        if ROPE:
            tail = rotate(tail, cos_ptr, sin_ptr, row, row_mask, MAIN // 2, ROWS, TAIL, E // 2, True)
        tl.store(partial_ptr + tail_column, tl.sum(tail * tail_normal, axis=0), mask=tail_valid)
        tl.store(partial_ptr + E + tail_column, tl.sum(tail, axis=0), mask=tail_valid)
        tail = tail * tl.load(weight_ptr + tail_column, mask=tail_valid, other=0.0).to(tl.float32)[None, :]
        level += tl.sum(tail, axis=1)
        tilt += tl.sum(tail * tail_normal, axis=1)
    level = level / E
    tilt = tilt / E
    dx = inverse[:, None] * (main - level[:, None] - normal * tilt[:, None])
    target = dx_ptr + dx_offset[:, None] + column[None, :]
    tl.store(target, narrow(dx, dx_ptr.dtype.element_ty), mask=row_mask[:, None] & valid[None, :])
    if TAIL > 0:
        dx = inverse[:, None] * (tail - level[:, None] - tail_normal * tilt[:, None])
        target = dx_ptr + dx_offset[:, None] + tail_column[None, :]
        tl.store(target, narrow(dx, dx_ptr.dtype.element_ty), mask=row_mask[:, None] & tail_valid[None, :])


@triton.jit
def _norm_rope_fwd_kernel(
    x_ptr: tl.pointer_type,  # (B, H, L, E), last stride 1
    weight_ptr: tl.pointer_type,  # (E,)
    bias_ptr: tl.pointer_type,  # (E,)
    cos_ptr: tl.pointer_type,  # (L, E/2)
    sin_ptr: tl.pointer_type,  # (L, E/2)
    out_ptr: tl.pointer_type,  # (B, H, L, MAIN + TAIL) packed
    length: int,
    heads: int,
    batch_stride: int,
    head_stride: int,
    row_stride: int,
    UNIT: tl.constexpr,  # of the strides
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    E: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    EPS: tl.constexpr,
    ROPE: tl.constexpr,
) -> None:
    """Packed rope(LN(x))·SCALE, once for all that read it: in an inner loop it would be done again for each block."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < length
    offset = (head // heads * batch_stride + head % heads * head_stride) * UNIT + row.to(tl.int64) * (row_stride * UNIT)
    main, tail = norm_rope(
        x_ptr, offset, row, row_mask, weight_ptr, bias_ptr, cos_ptr, sin_ptr, ROWS, E, MAIN, TAIL, EPS, ROPE
    )
    packed = out_ptr + (head * length + row)[:, None] * (MAIN + TAIL)
    tl.store(
        packed + tl.arange(0, MAIN)[None, :], narrow(main * SCALE, out_ptr.dtype.element_ty), mask=row_mask[:, None]
    )
    if TAIL > 0:
        target = packed + MAIN + tl.arange(0, TAIL)[None, :]
        tl.store(target, narrow(tail * SCALE, out_ptr.dtype.element_ty), mask=row_mask[:, None])


def pack(x: Tensor, weight: Tensor, bias: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float = 1.0) -> Tensor:
    """rope(LN(x))·scale of (B, H, L, E), last stride 1, as packed rows (B, H, L, MAIN + TAIL)."""
    batch, heads, length, width = x.shape
    main, tail = tile_widths(width)
    out = x.new_empty((batch, heads, length, main + tail))
    x = head_rows(x)
    unit = head_unit(x)
    _norm_rope_fwd_kernel[(triton.cdiv(length, 64), batch * heads)](
        x, weight, bias, cos, sin, out, length, heads, *head_strides(x, unit), UNIT=unit,
        SCALE=scale, ROWS=64, E=width, MAIN=main, TAIL=tail, EPS=NORM_EPS, ROPE=cos is not None, num_warps=4,
    )  # fmt: skip
    return out
