"""Which frames a clip is to be completed in: random stretches of at least a given length."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Even draws on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def span_mask(ratios: Tensor, num_frames: int, span: int, generator: torch.Generator) -> Tensor:
    """Stretches of `span` frames at random places, which never overlap but may touch.

    The free frames are split at random into the gaps around them, so a clip's masked share is its ratio to within one
    span, and every stretch is at least a span long (or the whole clip, where that is shorter).

    Args:
        ratios: (B,) share of the frames to mask, 0 to 1.

    Returns:
        (B, L) bool on the generator's device, at least one stretch a row.
    """
    device = generator.device
    span = min(span, num_frames)
    most = num_frames // span
    wanted = ratios.to(device) * num_frames / span
    # Rounded up or down by chance, so that the mean share is the ratio's.
    count = (wanted + torch.rand(len(ratios), generator=generator, device=device)).floor().long().clamp(1, most)
    free = num_frames - count * span  # (B,)
    # Where in the free frames each stretch stands: sorted draws. Those beyond a row's count are put past the end.
    places = torch.rand((len(ratios), most), generator=generator, device=device) * (free[:, None] + 1)
    order = torch.arange(most, device=device)
    places = torch.where(order < count[:, None], places.floor(), float("inf")).sort(dim=1).values
    starts = places + order * span
    frames = torch.arange(num_frames, device=device)
    inside = (frames >= starts[:, :, None]) & (frames < starts[:, :, None] + span)  # (B, most, L)
    # A ratio of 1 is the whole clip, whatever the span leaves over.
    return inside.any(1) | (ratios.to(device) >= 1)[:, None]


def generation_mask(
    batch: int, num_frames: int, share: float, ratio: tuple[float, float], span: int, generator: torch.Generator
) -> Tensor:
    """(B, L), True where a frame is to be generated: in a `share` of the clips some frames, in the others all."""
    mask = span_mask(uniform((batch,), *ratio, generator), num_frames, span, generator)
    partly = torch.rand(batch, generator=generator, device=generator.device) < share
    return mask | ~partly[:, None]
