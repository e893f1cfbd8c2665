"""How the rows of a norm are laid out over programs, warps and registers.

Backward holds a row of 1152 in pieces of 1024 and 128: padded to 2048, nearly half of all instructions would compute
nothing.
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


def forward_tile(width: int, whole: tuple[int, int], padded: tuple[int, int]) -> dict[str, int]:
    """Of a forward program: rows and warps where rows of `width` fill a power of two, and where they do not.

    With fewer warps what is padded are whole registers, which the compiler leaves out. No more warps share a row than
    have 8 values each, so that the rows of a program lie in the same threads. Of the narrowest it takes more rows.
    """
    block = triton.next_power_of_2(width)
    rows, warps = whole if block == width else padded
    warps = min(warps, max(1, block // 256))
    return {"BLOCK": block, "ROWS": min(16, max(rows, 512 * warps // block)), "num_warps": warps}


def backward_tile(width: int, dtype: torch.dtype, halves: int = 1) -> dict[str, int]:
    """Of a backward program: its warps span a row, 16 bytes a thread, so that rows add up inside of threads.

    Args:
        width: of a row, or of each of its `halves`.
    """
    (block, tail), size = pieces(width), dtype.itemsize
    warps = min(2 * size, max(1, block * size // 512))
    rows, stages = (1 if block * halves > 2048 else 2), (2 if dtype == torch.float32 else 3)
    return {"BLOCK": block, "TAIL": tail, "ROWS": rows, "num_warps": warps, "STAGES": stages}


def rows_per_program(batch: int, length: int, tile: dict[str, int]) -> int:
    """Rows that each backward program adds up: whole tiles, from the shape alone so that every GPU sums alike."""
    wanted = triton.cdiv(batch * length, PROGRAMS)
    return triton.cdiv(min(wanted, length), tile["ROWS"]) * tile["ROWS"]


@triton.jit
def columns(
    pointer: tl.pointer_type,  # of the widest type among the tiles of a program
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """0 to BLOCK − 1, of which a thread takes as many in a row as 16 bytes hold of that type.

    Left to itself a thread takes 8 of what it reads, for the halves, and 4 of float32 that it writes: between the two
    orders every value would go through shared memory, at two barriers for each part of it.
    """
    return tl.max_contiguous(tl.arange(0, BLOCK), 128 // pointer.dtype.element_ty.primitive_bitwidth)


@triton.jit
def vector(
    pointer: tl.pointer_type,  # (BLOCK,)
    column: tl.tensor,  # (BLOCK,)
    valid: tl.tensor,  # (BLOCK,)
    ROWS: tl.constexpr,
) -> tl.tensor:
    """A vector (BLOCK,) in float32, where the threads hold it that hold its columns of a tile (ROWS, BLOCK).

    Loaded by itself it would lie in the order that suits its own type, and go through shared memory, at two barriers.
    """
    first = tl.arange(0, ROWS)[:, None] == 0
    tile = tl.load(pointer + column[None, :] + tl.zeros([ROWS, 1], tl.int32), mask=first & valid[None, :], other=0.0)
    return tl.sum(tile.to(tl.float32), axis=0)
