"""Fused QK-norm, RoPE and attention without an L×L matrix (FlashAttention-2, arXiv 2307.08691).

    q̂ = rope(LN(q))·log₂e/√E     k̂ = rope(LN(k))     s = q̂·k̂ᵀ     out = Σ 2^(s − lse)·v     lse = log₂ Σ 2^s

with s = −∞ where the key mask is False. Queries are normalised where they are loaded; keys once, before, since every
block of queries reads them all. Backward is in `attention_backward.py`. Kept for it are q, k, v, lse and the output,
which the projection after it keeps anyway; q̂ and k̂ are made again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels import target
from ezaudio.kernels.attention_backward import attention_backward
from ezaudio.kernels.head_norm import (
    LENGTHS,
    head_rows,
    head_strides,
    head_unit,
    load_head,
    norm_rope,
    pack,
    store_head,
    tile_widths,
)
from ezaudio.kernels.operator import operator
from ezaudio.kernels.reference import NORM_EPS
from ezaudio.kernels.rounding import narrow, product

LOG2_E = math.log2(math.e)
MANY = 4  # programs for a multiprocessor, from which on a larger block of queries is faster
LOWEST = tl.constexpr(-1e30)  # start of the running maximum: finite, so that −∞ − LOWEST is −∞ and never NaN


@triton.jit(do_not_specialize=LENGTHS)
def _attention_fwd_kernel(
    q_ptr: tl.pointer_type,  # (B, H, L, E), last stride 1
    k_ptr: tl.pointer_type,  # (B, H, S, MAIN + TAIL) k̂, packed
    v_ptr: tl.pointer_type,  # (B, H, S, E), last stride 1
    weight_ptr: tl.pointer_type,  # (E,) norm of q
    bias_ptr: tl.pointer_type,  # (E,)
    cos_ptr: tl.pointer_type,  # (L, E/2)
    sin_ptr: tl.pointer_type,  # (L, E/2)
    mask_ptr: tl.pointer_type,  # (B, S) bytes, 0 where the key is not valid
    out_ptr: tl.pointer_type,  # (B, L, H, E)
    lse_ptr: tl.pointer_type,  # (B, H, L) float32
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
    SCALE: tl.constexpr,  # log₂e/√E
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
    q_offset = (batch * q_batch + in_batch * q_head) * UNIT + row.to(tl.int64) * (q_row * UNIT)
    main, tail = norm_rope(
        q_ptr, q_offset, row, row_mask, weight_ptr, bias_ptr, cos_ptr, sin_ptr, BLOCK_Q, E, MAIN, TAIL, EPS, ROPE
    )
    q_main = narrow(main * SCALE, q_ptr.dtype.element_ty)
    q_tail = narrow(tail * SCALE, q_ptr.dtype.element_ty)
    highest = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out_main = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    if TAIL > 0:
        out_tail = tl.zeros([BLOCK_Q, TAIL], tl.float32)
    # Past a loop that may not run ptxas keeps no products of tensor cores in flight: each waits for the one before.
    if v_ptr.dtype.element_ty != tl.float32:
        tl.assume(keys > 0)
    for start in range(0, keys, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        valid = key < keys
        k_offset = (head * keys + key) * (MAIN + TAIL)
        v_offset = (batch * v_batch + in_batch * v_head) * UNIT + key.to(tl.int64) * (v_row * UNIT)
        k_main = load_head(k_ptr, k_offset, valid, 0, MAIN, MAIN)
        score = product(q_main, tl.trans(k_main), tl.zeros([BLOCK_Q, BLOCK_K], tl.float32))
        if TAIL > 0:
            score = product(q_tail, tl.trans(load_head(k_ptr, k_offset, valid, MAIN, TAIL, MAIN + TAIL)), score)
        allowed = valid
        if MASKED:
            allowed = valid & (tl.load(mask_ptr + batch * keys + key, mask=valid, other=0) != 0)
        score = tl.where(allowed[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=1))
        shrink = tl.exp2(highest - higher)
        share = tl.exp2(score - higher[:, None])
        total = total * shrink + tl.sum(share, axis=1)
        share = narrow(share, v_ptr.dtype.element_ty)
        out_main = product(share, load_head(v_ptr, v_offset, valid, 0, MAIN, E), out_main * shrink[:, None])
        if TAIL > 0:
            out_tail = product(share, load_head(v_ptr, v_offset, valid, MAIN, TAIL, E), out_tail * shrink[:, None])
        highest = higher
    total = tl.where(total == 0.0, 1.0, total)  # a row without a valid key gives zeros
    out_offset = (batch * length + row) * (heads * E) + in_batch * E
    store_head(out_ptr, out_offset, row_mask, out_main / total[:, None], 0, MAIN, E)
    if TAIL > 0:
        store_head(out_ptr, out_offset, row_mask, out_tail / total[:, None], MAIN, TAIL, E)
    tl.store(lse_ptr + head * length + row, highest + tl.log2(total), mask=row_mask)


@operator(
    "attention",
    "(Tensor q, Tensor k, Tensor v, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias,"
    " Tensor? cos, Tensor? sin, Tensor? key_mask) -> (Tensor, Tensor)",
)
def _attention(
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
) -> tuple[Tensor, Tensor]:
    packed = pack(k, k_weight, k_bias, cos, sin)
    return attend_packed(q, packed, v, q_weight, q_bias, cos, sin, key_mask, 1 / math.sqrt(q.shape[3]))


def forward_tile(dtype: torch.dtype, tail: int, length: int, heads: int) -> dict[str, int]:
    """Tile sizes and warps: the fastest on an H100, and elsewhere a like one, that spill no registers.

    Args:
        heads: of all rows of the batch.
    """
    if dtype == torch.float32:
        return {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2 if target.is_hopper() else 1}
    if tail and not target.is_hopper():
        return {"BLOCK_Q": 128, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}
    if tail and triton.cdiv(length, 128) * heads >= MANY * target.multiprocessors():
        return {"BLOCK_Q": 128, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
    return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}


def attend_packed(
    q: Tensor,
    packed_k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, L, H, E) and lse (B, H, L) for keys that `pack` made; scale: of the scores, beside log₂e."""
    batch, heads, length, width = q.shape
    keys = v.shape[2]
    assert min(length, keys) > 0
    main, tail = tile_widths(width)
    tile = forward_tile(q.dtype, tail, length, batch * heads)
    out, lse = _attention_fake(q, packed_k, v)
    q, v = head_rows(q), head_rows(v)
    unit = head_unit(q, v)
    _attention_fwd_kernel[(triton.cdiv(length, tile["BLOCK_Q"]), batch * heads)](
        q, packed_k, v, q_weight, q_bias, cos, sin, key_mask, out, lse,
        length, keys, heads, *head_strides(q, unit), *head_strides(v, unit), UNIT=unit, SCALE=LOG2_E * scale,
        E=width, MAIN=main, TAIL=tail, EPS=NORM_EPS, ROPE=cos is not None, MASKED=key_mask is not None, **tile,
    )  # fmt: skip
    return out, lse


@_attention.register_fake
def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = q.shape
    return q.new_empty((batch, length, heads, width)), q.new_empty((batch, heads, length), dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *attention_backward(dout.contiguous(), *ctx.saved_tensors), None, None, None


_attention.register_autograd(_backward, setup_context=_setup)


def qk_norm_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    norm_q: tuple[Tensor, Tensor],
    norm_k: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor] | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """softmax(rope(LN(q)) · rope(LN(k))ᵀ / √E) · v.

    Args:
        q: (B, H, L, E), last stride 1; E even.
        k, v: (B, H, S, E) in the dtype of q, last stride 1.
        norm_q, norm_k: weight and bias (E,) of the LayerNorm over the head width.
        rope: cos and sin (L, E/2) float32; self-attention only.
        key_mask: (B, S) or (1, S), True where the key is valid. A row without a valid key gives zeros.

    Returns:
        (B, L, H·E).
    """
    assert q.dtype == k.dtype == v.dtype
    assert q.stride(3) == k.stride(3) == v.stride(3) == 1
    assert k.shape == v.shape
    assert (k.shape[:2], k.shape[3]) == (q.shape[:2], q.shape[3])
    cos, sin = (None, None) if rope is None else (table.contiguous() for table in rope)
    mask = None if key_mask is None else key_mask.expand(len(q), k.shape[2]).contiguous()
    assert cos is None or (cos.shape[0] >= max(q.shape[2], k.shape[2]) and cos.dtype == torch.float32)
    out, _ = _attention(q, k, v, *norm_q, *norm_k, cos, sin, mask)
    return out.flatten(2)
