"""The GPU that kernels are launched on, for what differs between generations: tile sizes, and copies of whole tiles."""

from __future__ import annotations

from functools import cache

import torch


def capability() -> int:
    """Major compute capability of the present device; 0 without one."""
    return _capability(torch.cuda.current_device()) if torch.cuda.is_available() else 0


@cache
def _capability(device: int) -> int:
    return torch.cuda.get_device_capability(device)[0]


def is_hopper() -> bool:
    """Whether products are those of warpgroups, with the right operand in shared memory."""
    return capability() == 9


def multiprocessors() -> int:
    """Of the present device."""
    return _multiprocessors(torch.cuda.current_device())


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
