"""What the backward passes of norms share: how rows are laid out over programs and threads, and the gradient of a row.

With ẑ = (z − μ)·r, r = 1/√(σ² + ε), g = dh·slope and means over the width:

    dz = r·(g − mean(g) − ẑ·mean(g·ẑ))           S = Σ dh          A = Σ dh·ẑ          (sums over rows)

A row of 1152 is held in pieces of 1024 and 128: padded to 2048, nearly half of all instructions would compute nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PROGRAMS = 256  # of a backward kernel: two for each multiprocessor, while what they write stays a few percent of all


def pieces(width: int) -> tuple[int, int]:
    """Powers of two that hold a row: one, or a second that is an eighth of the first at most."""
    whole = triton.next_power_of_2(width)
    block = whole // 2
    tail = triton.next_power_of_2(width - block)
    return (block, tail) if 8 * tail <= block else (whole, 0)


def backward_tile(width: int, dtype: torch.dtype, halves: int = 1) -> dict[str, int]:
    """Of a backward program: its warps span a row, 16 bytes a thread, so that rows add up inside of threads.

    Args:
        width: of a row, or of each of its `halves`.
    """
    (block, tail), size = pieces(width), dtype.itemsize
    warps = min(2 * size, max(1, block * size // 512))
    tile = {"BLOCK": block, "TAIL": tail, "num_warps": warps}
    if dtype == torch.float32:
        return tile | {"ROWS": 4, "STAGES": 2}
    return tile | {"ROWS": 1 if block * halves > 2048 else 2, "STAGES": 3}


def rows_per_program(batch: int, length: int, tile: dict[str, int]) -> int:
    """Rows that each backward program adds up: whole tiles, from the shape alone so that every GPU sums alike."""
    wanted = triton.cdiv(batch * length, PROGRAMS)
    return triton.cdiv(min(wanted, length), tile["ROWS"]) * tile["ROWS"]


@triton.jit
def added(total: tl.tensor, x: tl.tensor) -> tl.tensor:
    """total (BLOCK,), or (ROWS, BLOCK) where rows lie in different warps, with the rows of x."""
    if len(total.shape) == 1:
        x = tl.sum(x, axis=0)
    return total + x


@triton.jit
def slanted(
    z: tl.tensor,  # (ROWS, BLOCK)
    dout: tl.tensor,  # (ROWS, BLOCK) dh
    mean: tl.tensor,  # (ROWS,)
    inverse: tl.tensor,  # (ROWS,) r
    slope: tl.tensor,  # (BLOCK,)
    s: tl.tensor,  # of `added`
    a: tl.tensor,
) -> tl.tensor:
    """ẑ and g of some rows, and S and A with these rows."""
    normal = (z - mean[:, None]) * inverse[:, None]
    return normal, dout * slope[None, :], added(s, dout), added(a, dout * normal)


@triton.jit
def sum_pair(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Sums of two (ROWS, BLOCK) tensors over their last dimension, which wait for each other once, not twice."""
    return tl.split(tl.sum(tl.join(a, b), axis=1))


@triton.jit
def sum_pieces(a: tl.tensor, b: tl.tensor, end_a: tl.tensor, end_b: tl.tensor) -> tl.tensor:
    """`sum_pair` of rows in two pieces: a thread's neighbours of the long one first, so that all wait once."""
    ROWS: tl.constexpr = a.shape[0]
    TAIL: tl.constexpr = end_a.shape[1]
    pair = tl.sum(tl.reshape(tl.join(a, b), (ROWS, TAIL, a.shape[1] // TAIL, 2)), axis=2)
    return tl.split(tl.sum(pair + tl.join(end_a, end_b), axis=1))


@triton.jit
def levelled(normal: tl.tensor, slant: tl.tensor, inverse: tl.tensor, level: tl.tensor, tilt: tl.tensor) -> tl.tensor:
    """dz (ROWS, BLOCK) of ẑ, g, r, mean(g) and mean(g·ẑ)."""
    return inverse[:, None] * (slant - level[:, None] - normal * tilt[:, None])
