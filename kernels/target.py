"""The GPU that kernels are launched on, for what differs between generations: tile sizes, and copies of whole tiles."""

from __future__ import annotations

from functools import cache

import torch


@cache
def capability() -> int:
    """Major compute capability of the device; 0 without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0


def is_hopper() -> bool:
    """Whether products are those of warpgroups, with the right operand in shared memory."""
    return capability() == 9


@cache
def multiprocessors() -> int:
    """Of the device."""
    return torch.cuda.get_device_properties().multi_processor_count
