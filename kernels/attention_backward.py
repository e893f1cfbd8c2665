"""Backward of `attention.py`: queries in one kernel, keys and values in another.

With P = 2^(s − lse) and δ = Σ_e dout·out of each row:

    dv = Pᵀ·dout     ds = P∘(dout·vᵀ − δ)     dq̂ = ds·k̂/√E     dk̂ = dsᵀ·q̂·ln 2

and dq, dk, the norms' dw and db follow through RoPE and LayerNorm in the same kernels (`head_norm.py`). Each program
owns its block of queries or keys and writes it once; parameters get one partial sum a program, added up in a fixed
order. So there are no atomics, and two runs give the same bits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels import target
from ezaudio.kernels.head_norm import (
    LENGTHS,
    head_rows,
    head_strides,
    head_unit,
    load_head,
    norm_rope_backward,
    pack,
    store_head,
    tile_widths,
)
from ezaudio.kernels.operator import operator
from ezaudio.kernels.reference import NORM_EPS
from ezaudio.kernels.rounding import narrow, product

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=LENGTHS)
def _attention_bwd_dq_kernel(
    q_ptr: tl.pointer_type,  # (B, H, L, E), last stride 1
    packed_ptr: tl.pointer_type,  # (B, H, L, MAIN + TAIL) q̂, packed
    k_ptr: tl.pointer_type,  # (B, H, S, MAIN + TAIL) k̂, packed
    v_ptr: tl.pointer_type,  # (B, H, S, E), last stride 1
    weight_ptr: tl.pointer_type,  # (E,) norm of q
    cos_ptr: tl.pointer_type,  # (L, E/2)
    sin_ptr: tl.pointer_type,  # (L, E/2)
    mask_ptr: tl.pointer_type,  # (B, S) bytes
    out_ptr: tl.pointer_type,  # (B, L, H, E)
    dout_ptr: tl.pointer_type,  # (B, L, H, E)
    lse_ptr: tl.pointer_type,  # (B, H, L) float32
    delta_ptr: tl.pointer_type,  # (B, H, L) float32, written for the other kernel
    dq_ptr: tl.pointer_type,  # (B, L, H, E)
    partial_ptr: tl.pointer_type,  # (B·H·blocks, 2, E) float32: dw, db of the norm
    length: int,
    keys: int,
    heads: int,
    q_batch: int,
    q_head: int,
    q_row: int,
    v_batch: int,
    v_head: int,
    v_row: int,
    UNIT: tl.constexpr,  # of the strides of q and v
    SCALE: tl.constexpr,
    E: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EPS: tl.constexpr,
    ROPE: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    head = tl.program_id(1).to(tl.int64)
    batch, in_batch = head // heads, head % heads
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_mask = row < length
    packed_offset = (head * length + row) * (MAIN + TAIL)
    q_main = load_head(packed_ptr, packed_offset, row_mask, 0, MAIN, MAIN)
    out_offset = (batch * length + row) * (heads * E) + in_batch * E
    dout_main = load_head(dout_ptr, out_offset, row_mask, 0, MAIN, E)
    out = load_head(out_ptr, out_offset, row_mask, 0, MAIN, E).to(tl.float32)
    delta = tl.sum(out * dout_main.to(tl.float32), axis=1)
    if TAIL > 0:
        q_tail = load_head(packed_ptr, packed_offset, row_mask, MAIN, TAIL, MAIN + TAIL)
        dout_tail = load_head(dout_ptr, out_offset, row_mask, MAIN, TAIL, E)
        out = load_head(out_ptr, out_offset, row_mask, MAIN, TAIL, E).to(tl.float32)
        delta += tl.sum(out * dout_tail.to(tl.float32), axis=1)
    tl.store(delta_ptr + head * length + row, delta, mask=row_mask)
    lse = tl.load(lse_ptr + head * length + row, mask=row_mask, other=0.0)

    dq_main = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    dq_tail = dq_main
    if TAIL > 0:
        dq_tail = tl.zeros([BLOCK_Q, TAIL], tl.float32)
    for start in range(0, keys, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        valid = key < keys
        k_offset = (head * keys + key) * (MAIN + TAIL)
        v_offset = (batch * v_batch + in_batch * v_head) * UNIT + key.to(tl.int64) * (v_row * UNIT)
        k_main = load_head(k_ptr, k_offset, valid, 0, MAIN, MAIN)
        v_main = load_head(v_ptr, v_offset, valid, 0, MAIN, E)
        score = product(q_main, tl.trans(k_main), tl.zeros([BLOCK_Q, BLOCK_K], tl.float32))
        dshare = product(dout_main, tl.trans(v_main), tl.zeros([BLOCK_Q, BLOCK_K], tl.float32))
        if TAIL > 0:
            k_tail = load_head(k_ptr, k_offset, valid, MAIN, TAIL, MAIN + TAIL)
            score = product(q_tail, tl.trans(k_tail), score)
            dshare = product(dout_tail, tl.trans(load_head(v_ptr, v_offset, valid, MAIN, TAIL, E)), dshare)
        allowed = valid
        if MASKED:
            allowed = valid & (tl.load(mask_ptr + batch * keys + key, mask=valid, other=0) != 0)
        share = tl.exp2(tl.where(allowed[None, :], score - lse[:, None], float("-inf")))
        dscore = narrow(share * (dshare - delta[:, None]), q_ptr.dtype.element_ty)
        dq_main = product(dscore, k_main, dq_main)
        if TAIL > 0:
            dq_tail = product(dscore, k_tail, dq_tail)
    q_offset = (batch * q_batch + in_batch * q_head) * UNIT + row.to(tl.int64) * (q_row * UNIT)
    program = head * tl.num_programs(0) + tl.program_id(0)
    norm_rope_backward(
        dq_main * (SCALE * LN_2), dq_tail * (SCALE * LN_2), q_ptr, q_offset, row, row_mask, weight_ptr, cos_ptr,
        sin_ptr, dq_ptr, out_offset, partial_ptr + program * 2 * E, BLOCK_Q, E, MAIN, TAIL, EPS, ROPE,
    )  # fmt: skip


@triton.jit(do_not_specialize=LENGTHS)
def _attention_bwd_dkv_kernel(
    q_ptr: tl.pointer_type,  # (B, H, L, MAIN + TAIL) q̂, packed
    k_ptr: tl.pointer_type,  # (B, H, S, E), last stride 1
    packed_ptr: tl.pointer_type,  # (B, H, S, MAIN + TAIL) k̂, packed
    v_ptr: tl.pointer_type,  # (B, H, S, E), last stride 1
    weight_ptr: tl.pointer_type,  # (E,) norm of k
    cos_ptr: tl.pointer_type,  # (S, E/2)
    sin_ptr: tl.pointer_type,  # (S, E/2)
    mask_ptr: tl.pointer_type,  # (B, S) bytes
    dout_ptr: tl.pointer_type,  # (B, L, H, E)
    lse_ptr: tl.pointer_type,  # (B, H, L) float32
    delta_ptr: tl.pointer_type,  # (B, H, L) float32
    dk_ptr: tl.pointer_type,  # (B, S, H, E)
    dv_ptr: tl.pointer_type,  # (B, S, H, E)
    partial_ptr: tl.pointer_type,  # (B·H·blocks, 2, E) float32: dw, db of the norm
    length: int,
    keys: int,
    heads: int,
    k_batch: int,
    k_head: int,
    k_row: int,
    v_batch: int,
    v_head: int,
    v_row: int,
    UNIT: tl.constexpr,  # of the strides of k and v
    E: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EPS: tl.constexpr,
    ROPE: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    head = tl.program_id(1).to(tl.int64)
    batch, in_batch = head // heads, head % heads
    key = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    valid = key < keys
    packed_offset = (head * keys + key) * (MAIN + TAIL)
    v_offset = (batch * v_batch + in_batch * v_head) * UNIT + key.to(tl.int64) * (v_row * UNIT)
    k_main = load_head(packed_ptr, packed_offset, valid, 0, MAIN, MAIN)
    v_main = load_head(v_ptr, v_offset, valid, 0, MAIN, E)
    allowed = valid
    if MASKED:
        allowed = valid & (tl.load(mask_ptr + batch * keys + key, mask=valid, other=0) != 0)
    dk_main = tl.zeros([BLOCK_K, MAIN], tl.float32)
    dv_main = tl.zeros([BLOCK_K, MAIN], tl.float32)
    dk_tail = dk_main
    if TAIL > 0:
        k_tail = load_head(packed_ptr, packed_offset, valid, MAIN, TAIL, MAIN + TAIL)
        v_tail = load_head(v_ptr, v_offset, valid, MAIN, TAIL, E)
        dk_tail = tl.zeros([BLOCK_K, TAIL], tl.float32)
        dv_tail = tl.zeros([BLOCK_K, TAIL], tl.float32)
    if TAIL == 0 and v_ptr.dtype.element_ty != tl.float32:  # as forward; with a tail none waits, and registers run out
        tl.assume(length > 0)
    for start in range(0, length, BLOCK_Q):
        row = start + tl.arange(0, BLOCK_Q)
        row_mask = row < length
        q_offset = (head * length + row) * (MAIN + TAIL)
        out_offset = (batch * length + row) * (heads * E) + in_batch * E
        q_main = load_head(q_ptr, q_offset, row_mask, 0, MAIN, MAIN)
        dout_main = load_head(dout_ptr, out_offset, row_mask, 0, MAIN, E)
        lse = tl.load(lse_ptr + head * length + row, mask=row_mask, other=0.0)
        delta = tl.load(delta_ptr + head * length + row, mask=row_mask, other=0.0)
        score = product(k_main, tl.trans(q_main), tl.zeros([BLOCK_K, BLOCK_Q], tl.float32))
        dshare = product(v_main, tl.trans(dout_main), tl.zeros([BLOCK_K, BLOCK_Q], tl.float32))
        if TAIL > 0:
            q_tail = load_head(q_ptr, q_offset, row_mask, MAIN, TAIL, MAIN + TAIL)
            dout_tail = load_head(dout_ptr, out_offset, row_mask, MAIN, TAIL, E)
            score = product(k_tail, tl.trans(q_tail), score)
            dshare = product(v_tail, tl.trans(dout_tail), dshare)
        # Rows past the end need no mask: their dout and delta are zero, and so is what they add.
        share = tl.exp2(tl.where(allowed[:, None], score - lse[None, :], float("-inf")))
        dscore = narrow(share * (dshare - delta[None, :]), k_ptr.dtype.element_ty)
        share = narrow(share, v_ptr.dtype.element_ty)
        dv_main = product(share, dout_main, dv_main)
        dk_main = product(dscore, q_main, dk_main)
        if TAIL > 0:
            dv_tail = product(share, dout_tail, dv_tail)
            dk_tail = product(dscore, q_tail, dk_tail)
    out_offset = (batch * keys + key) * (heads * E) + in_batch * E
    store_head(dv_ptr, out_offset, valid, dv_main, 0, MAIN, E)
    if TAIL > 0:
        store_head(dv_ptr, out_offset, valid, dv_tail, MAIN, TAIL, E)
    program = head * tl.num_programs(0) + tl.program_id(0)
    k_offset = (batch * k_batch + in_batch * k_head) * UNIT + key.to(tl.int64) * (k_row * UNIT)
    norm_rope_backward(
        dk_main * LN_2, dk_tail * LN_2, k_ptr, k_offset, key, valid, weight_ptr, cos_ptr, sin_ptr, dk_ptr, out_offset,
        partial_ptr + program * 2 * E, BLOCK_K, E, MAIN, TAIL, EPS, ROPE,
    )  # fmt: skip


def tiles(dtype: torch.dtype, tail: int) -> tuple[dict[str, int], dict[str, int]]:
    """Tile sizes and warps of the two kernels, without spills: the fastest on an H100, and elsewhere like ones.

    float32 products have no tensor cores, so both their operands sit in registers. On sm_90 the 64 rows of a result
    are what a warpgroup product needs.
    """
    if dtype == torch.float32:
        small = {"BLOCK_Q": 16, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1}
        dq = small if target.is_hopper() else small | {"BLOCK_Q": 32, "BLOCK_K": 32}
        return dq, small | {"num_warps": 4 if tail else 8}
    if tail and target.is_hopper():
        both = {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
        return both, both
    warps, stages = 8 if tail else 4, 3 if target.is_hopper() else 2
    dq = {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": warps, "num_stages": 3}
    return dq, {"BLOCK_Q": 32, "BLOCK_K": 64, "num_warps": warps, "num_stages": stages}


@operator(
    "attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor q_weight, Tensor q_bias, Tensor k_weight,"
    " Tensor k_bias, Tensor? cos, Tensor? sin, Tensor? key_mask, Tensor out, Tensor lse)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    key_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, width = q.shape
    keys = k.shape[2]
    main, tail = tile_widths(width)
    dq_tile, dkv_tile = tiles(q.dtype, tail)
    dq, dk, dv, _, _ = _attention_backward_fake(dout, q, k, v, q_weight, q_bias, k_weight)
    scale = math.log2(math.e) / math.sqrt(width)
    packed_q = pack(q, q_weight, q_bias, cos, sin, scale)
    packed_k, delta = pack(k, k_weight, k_bias, cos, sin), torch.empty_like(lse)
    q, k, v = head_rows(q), head_rows(k), head_rows(v)
    unit = head_unit(q, k, v)
    shape = {
        "UNIT": unit, "E": width, "MAIN": main, "TAIL": tail, "EPS": NORM_EPS, "ROPE": cos is not None,
        "MASKED": key_mask is not None,
    }  # fmt: skip
    grid = triton.cdiv(length, dq_tile["BLOCK_Q"]), batch * heads
    partial_q = lse.new_empty((grid[0] * grid[1], 2, width))
    _attention_bwd_dq_kernel[grid](
        q, packed_q, packed_k, v, q_weight, cos, sin, key_mask, out, dout, lse, delta, dq, partial_q,
        length, keys, heads, *head_strides(q, unit), *head_strides(v, unit), SCALE=scale, **shape, **dq_tile,
    )  # fmt: skip
    grid = triton.cdiv(keys, dkv_tile["BLOCK_K"]), batch * heads
    partial_k = lse.new_empty((grid[0] * grid[1], 2, width))
    _attention_bwd_dkv_kernel[grid](
        packed_q, k, packed_k, v, k_weight, cos, sin, key_mask, dout, lse, delta, dk, dv, partial_k,
        length, keys, heads, *head_strides(k, unit), *head_strides(v, unit), **shape, **dkv_tile,
    )  # fmt: skip
    return dq, dk, dv, partial_q.sum(0), partial_k.sum(0)


@_attention_backward.register_fake
def _attention_backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, width = q.shape
    dk, dv = (k.new_empty((batch, k.shape[2], heads, width)) for _ in range(2))
    dnorm_q, dnorm_k = (q.new_empty((2, width), dtype=torch.float32) for _ in range(2))
    return q.new_empty((batch, length, heads, width)), dk, dv, dnorm_q, dnorm_k


def attention_backward(dout: Tensor, *forward: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of q, k, v (B, H, ·, E), then of the norms' weight and bias (E,), of q and of k.

    Args:
        dout: (B, L, H, E) contiguous.
        forward: what forward took and gave, in that order.
    """
    dq, dk, dv, dnorm_q, dnorm_k = _attention_backward(dout, *forward)
    heads = (x.transpose(1, 2) for x in (dq, dk, dv))
    weights = (weight.dtype for weight in forward[3:7] if weight is not None)
    norms = (x.to(dtype) for x, dtype in zip((*dnorm_q, *dnorm_k), weights, strict=True))
    return *heads, *norms
