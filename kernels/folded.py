"""The operators in the form that an exported graph gives them, for inference alone.

Modulation arrives folded with the norms (weight = w·(1 + scale), bias = b·(1 + scale) + shift, one vector for every
row), keys arrive normalised, and the norm of the queries holds the softmax scale. The residual stream is float32, what
a norm hands to a product is in the type of that product.

The kernels are those of training; here they are launched without autograd and without registration.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ezaudio.kernels.adaln import _residual_norm_fwd_kernel
from ezaudio.kernels.attention import attend_packed
from ezaudio.kernels.head_norm import pack
from ezaudio.kernels.norm_tiles import forward_tile
from ezaudio.kernels.reference import NORM_EPS
from ezaudio.kernels.skip_norm import _skip_norm_fwd_kernel

# Rows and warps, the fastest in a row of launches on an H200, one clip's first: a tile that changed with the number of
# clips would change an item's last bits with the company it is computed in.
NORM_TILE = {"whole": (1, 4), "padded": (1, 8)}
SKIP_TILE = {"whole": (2, 8), "padded": (1, 4)}


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    second: Tensor | None = None,
    constant: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x' = x + (1 − gate)·update + second and h = LN(x').

    Args:
        x, update: (R, L, D) contiguous. With nothing to add x' is x.
        weight, bias: (D,) float32, contiguous.
        dtype: of h.
        gate: (D,) float32, contiguous; None adds the update whole.
        second: (P, L, D) contiguous: of the first rows.
        constant: (R − P, D) contiguous: what is added to every token of the last rows instead.

    Returns:
        x', h: (R, L, D), x' in float32 where something was added.
    """
    added = update is not None or second is not None
    total = torch.empty_like(x, dtype=torch.float32) if added else x
    return total, _norm(x, weight, bias, dtype, update, gate, second, constant, total if added else None)


def norm_alone(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, update: Tensor, gate: Tensor | None = None
) -> Tensor:
    """h of `norm` where x' is needed later and made again there: reading its terms twice moves fewer bytes."""
    return _norm(x, weight, bias, dtype, update, gate, None, None, None)


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    update: Tensor | None,
    gate: Tensor | None,
    second: Tensor | None,
    constant: Tensor | None,
    total: Tensor | None,
) -> Tensor:
    rows, length, width = x.shape
    tile = forward_tile(width, **NORM_TILE)
    out = torch.empty_like(x, dtype=dtype)
    varied = rows if second is None else len(second)
    assert varied + (0 if constant is None else len(constant)) == rows
    _residual_norm_fwd_kernel[(triton.cdiv(length, tile["ROWS"]), rows)](
        x, update, second, constant, gate, weight, bias, None, None, total, out, None, length, varied, 0, 0,
        WIDTH=width, EPS=NORM_EPS, HAS_UPDATE=update is not None, HAS_GATE=gate is not None,
        HAS_SECOND=second is not None, HAS_CONSTANT=varied < rows, KEPT=total is not None,
        MODULATED=False, TRAINED=False, **tile,
    )  # fmt: skip
    return out


def skip_norm(
    x: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    update: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """LN([x + (1 − gate)·update, skip]): (R, L, D) each → (R, L, 2D) in dtype; weight, bias (2D,), gate (D,)."""
    assert (update is None) == (gate is None)
    rows, length, width = x.shape
    tile = forward_tile(width, **SKIP_TILE)
    out = x.new_empty((rows, length, 2 * width), dtype=dtype)
    _skip_norm_fwd_kernel[(triton.cdiv(length, tile["ROWS"]), rows)](
        x, update, gate, skip, weight, bias, out, None, length, 0,
        WIDTH=width, EPS=NORM_EPS, HAS_UPDATE=update is not None, TRAINED=False, **tile,
    )  # fmt: skip
    return out


def pack_keys(k: Tensor, norm_k: tuple[Tensor, Tensor], rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """rope(LN(k)) of (R, H, S, E), last stride 1, in the layout that `attend` reads."""
    return pack(k, *norm_k, *((None, None) if rope is None else rope))


def attend(
    q: Tensor,
    packed_k: Tensor,
    v: Tensor,
    norm_q: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor] | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """softmax(rope(LN(q))·k̂ᵀ)·v.

    Args:
        q: (R, H, L, E), last stride 1. Its norm holds the softmax scale.
        packed_k: of `pack_keys`.
        v: (R, H, S, E), last stride 1, in the type of q.
        rope: cos and sin (L, E/2) float32, contiguous.
        key_mask: (R, S) True where the key is valid.

    Returns:
        (R, L, H·E) in the type of q.
    """
    cos, sin = (None, None) if rope is None else rope
    out, _ = attend_packed(q, packed_k, v, *norm_q, cos, sin, key_mask, 1.0)
    return out.flatten(2)
