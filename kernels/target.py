"""The GPU that kernels are launched on, for what differs between generations: tile sizes."""

from __future__ import annotations

from functools import cache

import torch


@cache
def is_hopper() -> bool:
    """Whether products are those of warpgroups (compute capability 9), with the right operand in shared memory."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
