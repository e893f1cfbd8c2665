"""Discriminators on complex spectrograms of several resolutions (EnCodec, Défossez et al. 2022, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.2


class Verdict(NamedTuple):
    """Of one discriminator: logits (B, 1, N, F) and what its inner layers made."""

    logits: Tensor
    layers: list[Tensor]


class SpectrogramDiscriminator(nn.Module):
    """2-D convolutions over real and imaginary part of one spectrogram; time dilations 1, 2, 4 see far with few layers.

    Args:
        window: in samples; the hop is a quarter.
        filters: channels of the inner layers.
    """

    def __init__(self, window: int, filters: int) -> None:
        super().__init__()
        self.size = window
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        shape = [(2, 1, 1), (filters, 2, 1), (filters, 2, 2), (filters, 2, 4)]
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv2d(channels, filters, (3, 9), stride=(1, stride), dilation=(dilation, 1), padding=(dilation, 4))
            )
            for channels, stride, dilation in shape
        )
        self.layers.append(weight_norm(nn.Conv2d(filters, filters, (3, 3), padding=(1, 1))))
        self.last = weight_norm(nn.Conv2d(filters, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: Tensor) -> Verdict:
        """audio (B, T)."""
        spectrum = torch.stft(
            audio.float(),
            self.size,
            self.size // 4,
            window=self.get_buffer("window"),
            normalized=True,
            center=False,
            return_complex=True,
        )
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (B, 2, N, F)
        layers = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            layers.append(x)
        return Verdict(self.last(x), layers)


class Discriminators(nn.Module):
    """One a window."""

    def __init__(self, windows: Sequence[int], filters: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(SpectrogramDiscriminator(window, filters) for window in windows)

    def forward(self, audio: Tensor) -> list[Verdict]:
        """audio (B, T), T at least the longest window."""
        return [one(audio) for one in self.each]
