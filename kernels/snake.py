"""Fused snake: x + m·sin²(f·x) in float32, rounded once, for inference: the VAE's activation (BigVGAN's snake-beta).

f = e^α and m = 1/(e^β + 1e-9) of each channel arrive computed (`export/vae_graphs.py`). Plain PyTorch reads and writes
the signal five times; here it is once, and the result is in the type of the convolution that follows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.rounding import narrow

BLOCK = 1024


@triton.jit
def _snake_fwd_kernel(
    x_ptr: tl.pointer_type,  # (B, C, L), last stride 1
    frequency_ptr: tl.pointer_type,  # (C,) float32
    magnitude_ptr: tl.pointer_type,  # (C,) float32
    out_ptr: tl.pointer_type,  # (B, C, L)
    length: int,
    channels: int,
    batch_stride: int,
    channel_stride: int,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(1).to(tl.int64)
    batch, channel = row // channels, row % channels
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < length
    source = x_ptr + batch * batch_stride + channel * channel_stride + index
    x = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    sine = tl.sin(tl.load(frequency_ptr + channel) * x)
    out = x + tl.load(magnitude_ptr + channel) * (sine * sine)
    tl.store(out_ptr + row * length + index, narrow(out, out_ptr.dtype.element_ty), mask=mask)


def snake(x: Tensor, frequency: Tensor, magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """x + magnitude·sin²(frequency·x).

    Args:
        x: (B, C, L).
        frequency, magnitude: (C,) float32, contiguous.

    Returns:
        (B, C, L) in dtype.
    """
    x = x if x.stride(2) == 1 else x.contiguous()
    batch, channels, length = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    _snake_fwd_kernel[(triton.cdiv(length, BLOCK), batch * channels)](
        x, frequency, magnitude, out, length, channels, x.stride(0), x.stride(1), BLOCK=BLOCK, num_warps=4
    )
    return out
