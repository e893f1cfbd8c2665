"""Modulation of every block at once (AdaLN-SOLA, paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def modulation(
    time_state: Tensor,
    shared: Tensor,
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    tables: Sequence[Tensor],
    scaling: float,
) -> Tensor:
    """Modulation of all N blocks: shared + lora_b(lora_a(state))·scaling + table.

    Two products for the whole model, the second batched over the blocks. They are the vendor's: with a few rows of
    state the cost is reading lora_b once, which a batched product does, as do its two products in backward. The sum is
    float32, so that half precision rounds only the low-rank term.

    Args:
        time_state: (B, D).
        shared: (B, 6D).
        lora_a, lora_b: (6r, D) and (6D, 6r) of each block.
        tables: (6, D) of each block.
        scaling: alpha / r.

    Returns:
        (N, B, 6, D) float32: shift, scale, gate of the attention, then of the MLP.
    """
    low = F.linear(time_state, torch.cat(list(lora_a))).unflatten(1, (len(lora_a), -1)).transpose(0, 1)
    high = torch.bmm(low, torch.stack(list(lora_b)).transpose(1, 2))
    total = shared.float() + high.float() * scaling
    return total.unflatten(2, tables[0].shape) + torch.stack(list(tables)).float()[:, None]
