"""A product and the GEGLU after it in one kernel, for inference: what the product gives is halved before it is written.

    [value, gate] = x·W + b          y = value·gate·Φ(gate)

Apart, the product writes 8D values a token that GEGLU reads back. Here each program multiplies a tile of x by two tiles
of W, of values and of their gates, which meet in registers. Tiles are copied whole by Hopper's copy engine (TMA).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ezaudio.kernels import target
from ezaudio.kernels.geglu import normal_cdf
from ezaudio.kernels.rounding import narrow, product

TILE = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
GROUP = 8  # rows of tiles that run together, so that W comes from memory once for all of them
PER_MULTIPROCESSOR = 2  # programs that are resident at once
MIN_FILLED = 0.9


@triton.jit
def _geglu_product_kernel(
    x_desc: tl.tensor_descriptor,  # (M, K), in tiles of BLOCK_M × BLOCK_K
    weight_desc: tl.tensor_descriptor,  # (K, 2F), in tiles of BLOCK_K × BLOCK_N, or both transposed
    bias_ptr: tl.pointer_type,  # (2F,)
    out_ptr: tl.pointer_type,  # (M, F)
    tokens: int,  # M
    DEPTH: tl.constexpr,  # K
    HIDDEN: tl.constexpr,  # F
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
) -> None:
    COLUMNS: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    number = tl.program_id(0)
    group = number // (GROUP * COLUMNS)
    rows = tl.minimum(tl.cdiv(tokens, BLOCK_M) - group * GROUP, GROUP)
    within = number % (GROUP * COLUMNS)
    first_row = (group * GROUP + within % rows) * BLOCK_M
    first_column = within // rows * BLOCK_N

    value = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for depth in range(0, DEPTH, BLOCK_K):
        x = x_desc.load([first_row, depth])
        if TRANSPOSED:
            value = product(x, tl.trans(weight_desc.load([first_column, depth])), value)
            gate = product(x, tl.trans(weight_desc.load([HIDDEN + first_column, depth])), gate)
        else:
            value = product(x, weight_desc.load([depth, first_column]), value)
            gate = product(x, weight_desc.load([depth, HIDDEN + first_column]), gate)

    row = first_row + tl.arange(0, BLOCK_M)
    column = first_column + tl.arange(0, BLOCK_N)
    valid = column < HIDDEN
    value += tl.load(bias_ptr + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias_ptr + HIDDEN + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    cdf, _ = normal_cdf(gate)
    out = out_ptr + row.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    mask = (row < tokens)[:, None] & valid[None, :]
    tl.store(out, narrow(value * gate * cdf, out_ptr.dtype.element_ty), mask=mask)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `geglu_product` can take them here, and is the faster way: half precision on Hopper, rows at multiples of
    16 bytes, tiles that fill the GPU.
    """
    half = x.dtype == weight.dtype and x.dtype in (torch.float16, torch.bfloat16)
    aligned = weight.shape[0] % 8 == 0 and weight.shape[1] % 16 == 0
    if not (half and aligned and target.is_hopper()):
        return False
    return filled(x.numel() // x.shape[-1], weight.shape[1] // 2, target.multiprocessors())


def filled(tokens: int, hidden: int, multiprocessors: int) -> bool:
    """Whether the tiles keep a GPU busy to their end: else product and GEGLU are faster apart.

    On 132 multiprocessors the 512 tiles of a clip of L are two rounds; the 576 of XL leave 48 for a third, which costs
    more than GEGLU does. Those of 8 clips are 17 rounds of XL.
    """
    tiles = triton.cdiv(tokens, TILE["BLOCK_M"]) * triton.cdiv(hidden, TILE["BLOCK_N"])
    rounds = tiles / (PER_MULTIPROCESSOR * multiprocessors)
    return rounds / math.ceil(rounds) >= MIN_FILLED


def geglu_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GEGLU(x·W + b).

    Args:
        x: (…, K), contiguous.
        weight: (K, 2F) in the dtype of x, contiguous or the transpose of what is: values, then gates.
        bias: (2F,).

    Returns:
        (…, F) in the dtype of x.
    """
    depth, hidden = weight.shape[0], weight.shape[1] // 2
    rows = x.view(-1, depth)
    tokens = rows.shape[0]
    out = x.new_empty((*x.shape[:-1], hidden))
    tiles = TensorDescriptor.from_tensor(rows, [TILE["BLOCK_M"], TILE["BLOCK_K"]])
    transposed = weight.stride(0) == 1
    shape = [TILE["BLOCK_K"], TILE["BLOCK_N"]]
    weights = TensorDescriptor.from_tensor(weight.T if transposed else weight, shape[::-1] if transposed else shape)
    grid = (triton.cdiv(tokens, TILE["BLOCK_M"]) * triton.cdiv(hidden, TILE["BLOCK_N"]),)
    _geglu_product_kernel[grid](
        tiles, weights, bias, out, tokens, DEPTH=depth, HIDDEN=hidden, GROUP=GROUP, TRANSPOSED=transposed, **TILE
    )
    return out
