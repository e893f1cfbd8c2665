"""Waveform autoencoder (Oobleck with snake-beta activations and weight-norm): 24 kHz audio ↔ latent frames.

Attribute names follow the official checkpoint. Weight-norm is stored as `weight_g`, `weight_v`; `fold_weight_norm`
removes it for inference.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio.config import VAEConfig


class SnakeBeta(nn.Module):
    """x + sin²(e^α·x) / (e^β + 1e-9), α and β per channel (BigVGAN's snake with its own magnitude)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.alpha.exp()[:, None]
        return x + torch.sin(frequency * x).square() / (self.beta.exp()[:, None] + 1e-9)


class WeightNormConv(nn.Module):
    """Convolution whose kernel is g·v/‖v‖, the norm over all dimensions but the first, until folded into `weight`."""

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        self.kind = type(conv)
        self.stride, self.padding, self.dilation = conv.stride[0], int(conv.padding[0]), conv.dilation[0]
        self.weight_v = nn.Parameter(conv.weight.detach().clone())
        self.weight_g = nn.Parameter(self._norm(conv.weight.detach()))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    @staticmethod
    def _norm(weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)

    @property
    def transposed(self) -> bool:
        return self.kind is nn.ConvTranspose1d

    @torch.no_grad()
    def fold(self) -> None:
        """Replace g and v by one parameter `weight`, computed in float64."""
        if "weight" in self._parameters:
            return
        v = self.weight_v.double()
        folded = (self.weight_g.double() * v / self._norm(v)).to(self.weight_v.dtype)
        del self.weight_g, self.weight_v
        self.weight = nn.Parameter(folded)

    @torch.no_grad()
    def unfold(self) -> None:
        """The inverse: g is the norm of `weight`, v is `weight`."""
        if "weight" in self._parameters:
            weight = self.weight.detach()
            del self.weight
            norm = self._norm(weight)
            # A kernel of zeros has no direction: any will do, its g is 0.
            self.weight_v = nn.Parameter(torch.where(norm == 0, torch.ones_like(weight), weight))
            self.weight_g = nn.Parameter(norm)

    def kernel(self) -> Tensor:
        """(out, in, k), or (in, out, k) when transposed."""
        if "weight" in self._parameters:
            return self.weight
        return self.weight_g * (self.weight_v / self._norm(self.weight_v))

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose1d(x, self.kernel(), self.bias, self.stride, self.padding)
        return F.conv1d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation)


def conv(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, bias: bool = True) -> WeightNormConv:
    padding = dilation * (kernel_size - 1) // 2
    return WeightNormConv(
        nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation, padding=padding, bias=bias)
    )


class ResidualUnit(nn.Module):
    """x + conv₁(snake(conv₇(snake(x)))), the first convolution dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            SnakeBeta(channels), conv(channels, channels, 7, dilation), SnakeBeta(channels), conv(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _residual_units(channels: int) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation) for dilation in (1, 3, 9)]


class EncoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        down = nn.Conv1d(in_channels, out_channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
        self.layers = nn.Sequential(*_residual_units(in_channels), SnakeBeta(in_channels), WeightNormConv(down))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        up = nn.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
        self.layers = nn.Sequential(SnakeBeta(in_channels), WeightNormConv(up), *_residual_units(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OobleckEncoder(nn.Module):
    """(B, 1, T) → (B, 2C, T/hop): mean and raw scale."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in (1, *config.channel_multiples)]
        self.layers = nn.Sequential(
            conv(1, widths[0], 7),
            *(EncoderBlock(widths[i], widths[i + 1], stride) for i, stride in enumerate(config.strides)),
            SnakeBeta(widths[-1]),
            conv(widths[-1], 2 * config.latent_channels, 3),
        )

    def forward(self, audio: Tensor) -> Tensor:
        return self.layers(audio)


class OobleckDecoder(nn.Module):
    """(B, C, L) → (B, 1, L·hop), no final tanh."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in (1, *config.channel_multiples)]
        ups = reversed(list(enumerate(config.strides)))
        self.layers = nn.Sequential(
            conv(config.latent_channels, widths[-1], 7),
            *(DecoderBlock(widths[i + 1], widths[i], stride) for i, stride in ups),
            SnakeBeta(widths[0]),
            conv(widths[0], 1, 7, bias=False),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


LEAST_COMPANDED = 1e-6  # of a latent's size in training


def posterior(raw: Tensor, companding: float) -> tuple[Tensor, Tensor]:
    """The encoder's (B, 2C, L) → mean and standard deviation (B, C, L); see `VAEConfig.companding`."""
    mean, scale = raw.chunk(2, dim=1)
    if companding != 1:
        size = mean.abs()
        if size.requires_grad:  # the slope at silence is infinite, and times the sign's 0 not a number
            size = size.clamp_min(LEAST_COMPANDED)
        mean = mean.sign() * size.pow(companding)
    return mean, F.softplus(scale) + 1e-4


class AutoencoderOobleck(nn.Module):
    """Encoder and decoder. Latents have the scale the diffusion model sees."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = OobleckEncoder(config)
        self.decoder = OobleckDecoder(config)

    def encode_moments(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """audio (B, 1, T), T a multiple of the hop → posterior mean and standard deviation (B, C, L)."""
        return posterior(self.encoder(audio), self.config.companding)

    def encode(self, audio: Tensor, generator: torch.Generator | None = None, sample: bool = False) -> Tensor:
        """Posterior mean, or a sample of the posterior: (B, 1, T) → (B, C, L)."""
        mean, std = self.encode_moments(audio)
        if not sample:
            return mean
        return mean + std * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, C, L) → audio (B, 1, L·hop), not clipped."""
        return self.decoder(latents)

    def forward(self, audio: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction as trained: audio (B, 1, T), noise (B, C, L) → audio, posterior mean, deviation."""
        mean, std = self.encode_moments(audio)
        return self.decode(mean + std * noise), mean, std

    def fold_weight_norm(self) -> AutoencoderOobleck:
        """Fold every g·v/‖v‖ in float64, in place; afterwards the model cannot be trained in its weight-norm form."""
        for module in self.modules():
            if isinstance(module, WeightNormConv):
                module.fold()
        return self

    def unfold_weight_norm(self) -> AutoencoderOobleck:
        """Back to the form that is trained, in place; computes the same."""
        for module in self.modules():
            if isinstance(module, WeightNormConv):
                module.unfold()
        return self
