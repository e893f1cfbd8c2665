"""Runs every kernel with each tensor beside memory that may not be touched: `python tests/kernel_bounds.py end norms`.

What compute-sanitizer watches on a GPU, for Triton's interpreter: kernels there read and write through addresses, so an
access outside of a tensor, before its start or after its end, is a fault of this process (SIGSEGV). Linux alone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import kernel_compile
import torch
import triton
import triton.language as tl
from torch import Tensor

PAGE = mmap.PAGESIZE
PRIVATE_ANONYMOUS, READ_WRITE, NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE, 0
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(shape: tuple[int, ...], dtype: torch.dtype, side: str) -> Tensor:
    """Ones that begin where a forbidden page ends (`start`), or end where one begins (`end`). Never freed."""
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.zeros(shape, dtype=dtype)
    size = count * dtype.itemsize
    room = -(-size // PAGE) * PAGE
    base = LIBC.mmap(None, room + 2 * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0)
    assert base not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
    for forbidden in (base, base + PAGE + room):
        assert LIBC.mprotect(forbidden, PAGE, NOTHING) == 0
    first = base + PAGE + (room - size if side == "end" else 0)
    memory = (ctypes.c_char * size).from_address(first)
    return torch.frombuffer(memory, dtype=dtype).view(shape).fill_(1)


def guard_allocations(side: str) -> None:
    """Whatever operators and their callers allocate from here on."""

    def empty(*shape: Any, dtype: torch.dtype = torch.float32, requires_grad: bool = False, **_: Any) -> Tensor:
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return guarded(sizes, dtype, side).requires_grad_(requires_grad)

    def new_empty(self: Tensor, *shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return empty(*shape, dtype=dtype or self.dtype)

    def empty_like(x: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return empty(x.shape, dtype=dtype or x.dtype)

    def contiguous(self: Tensor) -> Tensor:
        return self if self.is_contiguous() else empty(self.shape, dtype=self.dtype).copy_(self)

    torch.empty, torch.empty_like = empty, empty_like
    torch.Tensor.new_empty, torch.Tensor.contiguous = new_empty, contiguous  # type: ignore[method-assign]


@triton.jit
def _shifted_kernel(
    x_ptr: tl.pointer_type, out_ptr: tl.pointer_type, count: int, shift: int, BLOCK: tl.constexpr
) -> None:
    index = tl.arange(0, BLOCK)
    tl.store(out_ptr + index, tl.load(x_ptr + index + shift, mask=index < count, other=0.0), mask=index < count)


def run_wrong(side: str) -> None:
    """What must be caught: one value is read before the first or after the last."""
    _shifted_kernel[(1,)](torch.empty(100), torch.empty(100), 100, -1 if side == "start" else 1, BLOCK=128)


def run(part: str) -> None:
    kernel_compile.BATCH, kernel_compile.FRAMES, kernel_compile.TOKENS, kernel_compile.HEADS = 2, 37, 21, 2
    if part == "norms":
        # Rows in pieces, padded, and whole.
        for width, dtype in ((35, torch.bfloat16), (20, torch.float16), (32, torch.float32)):
            kernel_compile.run_norms(width, dtype)
    elif part == "attention":
        for head, dtype in ((64, torch.bfloat16), (72, torch.bfloat16), (72, torch.float32), (20, torch.float16)):
            kernel_compile.run_attention(kernel_compile.HEADS * head, dtype, 37, 21)
    elif part == "folded":
        kernel_compile.run_folded(kernel_compile.HEADS * 72, torch.bfloat16)
        kernel_compile.run_folded(kernel_compile.HEADS * 64, torch.float16)
    else:
        kernel_compile.use_target(90)  # the product with GEGLU is Hopper's
        kernel_compile.run_rest()


if __name__ == "__main__":
    side, part = sys.argv[1:]
    guard_allocations(side)
    run_wrong(side) if part == "wrong" else run(part)
