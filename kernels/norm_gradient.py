"""The gradient of a row that was normalised, in the steps that the backward kernels of norms share.

With ẑ = (z − μ)·r, r = 1/√(σ² + ε), g = dh·slope and means over the width:

    dz = r·(g − mean(g) − ẑ·mean(g·ẑ))           S = Σ dh          A = Σ dh·ẑ          (sums over rows)
"""

from __future__ import annotations

import triton
import triton.language as tl


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
