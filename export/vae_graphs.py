"""The exported VAE: weight-norm and snake folded in float64, transposed convolutions as short ones and a shuffle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio.config import EzAudioConfig
from ezaudio.export.graphs import Axes, Graph
from ezaudio.runtime.tensor_spec import TensorSpec
from ezaudio.vae import AutoencoderOobleck, ResidualUnit, SnakeBeta, WeightNormConv, posterior


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.float().contiguous(), requires_grad=False)


class FoldedSnake(nn.Module):
    """x + magnitude·sin²(frequency·x), with e^α and 1/(e^β + 1e-9) from float64: 1e-9 underflows in half precision."""

    def __init__(self, snake: SnakeBeta) -> None:
        super().__init__()
        self.frequency = _constant(snake.alpha.detach().double().exp()[:, None])
        self.magnitude = _constant(1 / (snake.beta.detach().double().exp()[:, None] + 1e-9))

    def forward(self, x: Tensor) -> Tensor:
        sine = torch.sin(self.frequency * x)
        return x + self.magnitude * (sine * sine)


class FoldedConv(nn.Module):
    def __init__(self, conv: WeightNormConv) -> None:
        super().__init__()
        self.weight = _constant(conv.kernel().detach())
        self.bias = None if conv.bias is None else _constant(conv.bias.detach())
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x.to(self.weight.dtype), self.weight, self.bias, self.stride, self.padding, self.dilation)


class ShuffledUpsampling(nn.Module):
    """A transposed convolution with kernel 2s, stride s, padding s/2 as Conv1d(k = 2) and a shuffle, exactly.

    Uncropped, output sample s·m + r is x[m]·w[r] + x[m − 1]·w[s + r]: a convolution of two taps that makes s phases at
    once. The phases are interleaved and s/2 samples cut from each end.
    """

    def __init__(self, conv: WeightNormConv) -> None:
        super().__init__()
        kernel = conv.kernel().detach()  # (in, out, 2s)
        in_channels, out_channels, length = kernel.shape
        self.stride, self.crop = conv.stride, conv.padding
        if length != 2 * self.stride or 2 * self.crop != self.stride:
            raise ValueError(f"kernel {length}, padding {self.crop} do not fit stride {self.stride}")
        taps = kernel.unflatten(2, (2, self.stride)).flip(2)  # tap 0 reads x[m − 1]
        self.weight = _constant(taps.permute(1, 3, 0, 2).reshape(out_channels * self.stride, in_channels, 2))
        assert conv.bias is not None
        self.bias = _constant(conv.bias.detach().repeat_interleave(self.stride))

    def forward(self, x: Tensor) -> Tensor:
        phases = F.conv1d(x.to(self.weight.dtype), self.weight, self.bias, padding=1)  # (B, out·s, L + 1)
        samples = phases.unflatten(1, (-1, self.stride)).transpose(2, 3).flatten(2)
        return samples[:, :, self.crop : -self.crop]


class FoldedResidual(nn.Module):
    def __init__(self, unit: ResidualUnit) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(fold(layer) for layer in unit.layers))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() + self.layers(x)


def fold(module: nn.Module) -> nn.Module:
    """The inference form of a part of the VAE."""
    if isinstance(module, SnakeBeta):
        return FoldedSnake(module)
    if isinstance(module, WeightNormConv):
        return ShuffledUpsampling(module) if module.transposed else FoldedConv(module)
    if isinstance(module, ResidualUnit):
        return FoldedResidual(module)
    return nn.Sequential(*(fold(layer) for layer in module.layers))  # type: ignore[union-attr]


class DecoderGraph(Graph):
    """Latents → samples, not clipped: (B, C, L) → (B, L·hop)."""

    def __init__(self, vae: AutoencoderOobleck, config: EzAudioConfig) -> None:
        axes = Axes.of(config)
        super().__init__(
            "decoder",
            [TensorSpec("latents", "float32", (axes.batch, config.vae.latent_channels, axes.frames))],
            [TensorSpec("audio", "float32", (axes.batch, axes.frames * config.vae.hop))],
        )
        self.layers = fold(vae.decoder)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)[:, 0]


class EncoderGraph(Graph):
    """Samples → posterior mean and standard deviation: (B, L·hop) → (B, C, L) twice."""

    def __init__(self, vae: AutoencoderOobleck, config: EzAudioConfig) -> None:
        axes = Axes.of(config)
        latent = (axes.batch, config.vae.latent_channels, axes.frames)
        super().__init__(
            "encoder",
            [TensorSpec("audio", "float32", (axes.batch, axes.frames * config.vae.hop))],
            [TensorSpec("mean", "float32", latent), TensorSpec("std", "float32", latent)],
        )
        self.layers = fold(vae.encoder)
        self.companding = config.vae.companding

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        return posterior(self.layers(audio[:, None]), self.companding)
