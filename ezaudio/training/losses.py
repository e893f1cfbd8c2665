"""Training objectives as plain functions of tensors: diffusion, the autoencoder's, and its discriminators'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-7


def add_noise(clean: Tensor, noise: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latent √ᾱ·x₀ + √(1 − ᾱ)·ε and its velocity √ᾱ·ε − √(1 − ᾱ)·x₀ (Salimans & Ho 2022).

    Args:
        clean, noise: (B, C, L).
        alphas: (B,) ᾱ of each row's timestep.
    """
    signal, spread = alphas.sqrt()[:, None, None], (1 - alphas).sqrt()[:, None, None]
    return signal * clean + spread * noise, signal * noise - spread * clean


def min_snr_weights(alphas: Tensor, gamma: float) -> Tensor:
    """min(SNR, γ) / (SNR + 1) with SNR = ᾱ / (1 − ᾱ): (B,) → (B,) (Hang et al. 2023, for a predicted velocity).

    Written without the SNR itself, which is infinite at ᾱ = 1: ᾱ where SNR <= γ, else γ·(1 − ᾱ).
    """
    return torch.minimum(alphas, gamma * (1 - alphas))


def velocity_loss(predicted: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the rows of each row's mean squared error in the frames to generate, in float32.

    Args:
        predicted, target: (B, C, L).
        mask: (B, L) True where a frame is to be generated; at least one a row.
        weights: (B,) of the rows; None weighs all alike.
    """
    error = (predicted.float() - target.float()).square().mean(dim=1)
    rows = (error * mask).sum(dim=1) / mask.sum(dim=1)
    return (rows if weights is None else rows * weights).mean()


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """Of N(mean, std²) from N(0, 1), summed over channels, mean over rows and frames; (B, C, L) each."""
    mean, std = mean.float(), std.float()
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(dim=1).mean()


def a_weighting(frequencies: Tensor) -> Tensor:
    """Gain (not in dB) of the A curve, IEC 61672-1, 1 at 1 kHz: Hz → factor."""
    square = frequencies.double().square()
    shape = (
        12194.0**2
        * square.square()
        / ((square + 20.6**2) * ((square + 107.7**2) * (square + 737.9**2)).sqrt() * (square + 12194.0**2))
    )
    return shape * 10 ** (2.0 / 20)


class SpectralLoss(nn.Module):
    """Spectral convergence plus log-magnitude L1, mean over several windows, of perceptually weighted sound.

    Each magnitude is multiplied by the A curve of its frequency, which is what filtering the waveform with it does.
    """

    def __init__(self, windows: Sequence[int], sample_rate: int) -> None:
        super().__init__()
        self.sizes = tuple(windows)
        for size in self.sizes:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
            frequencies = torch.fft.rfftfreq(size, 1 / sample_rate)
            self.register_buffer(f"gain_{size}", a_weighting(frequencies).float()[:, None], persistent=False)

    def magnitudes(self, audio: Tensor, size: int) -> Tensor:
        """(B, T) → (B, F, N)."""
        spectrum = torch.stft(
            audio, size, max(1, size // 4), window=self.get_buffer(f"window_{size}"), return_complex=True
        )
        # The square root's slope at zero is infinite.
        return self.get_buffer(f"gain_{size}") * (spectrum.abs().square() + EPSILON).sqrt()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(B, T) each, float32."""
        total = output.new_zeros(())
        for size in self.sizes:
            got, expected = self.magnitudes(output, size), self.magnitudes(target, size)
            distance = torch.linalg.vector_norm(got - expected, dim=(1, 2))
            total = total + (distance / (torch.linalg.vector_norm(expected, dim=(1, 2)) + EPSILON)).mean()
            total = total + F.l1_loss((got + EPSILON).log(), (expected + EPSILON).log())
        return total / len(self.sizes)


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge: mean over the discriminators of relu(1 − D(real)) + relu(1 + D(fake))."""
    parts = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(parts).mean()


def adversarial_loss(fake: Sequence[Tensor]) -> Tensor:
    """What the generator minimises: mean over the discriminators of relu(1 − D(fake))."""
    return torch.stack([F.relu(1 - f).mean() for f in fake]).mean()


def feature_matching_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """L1 between the discriminators' inner layers, relative to the mean size of the real ones (EnCodec, eq. 5)."""
    parts = [
        F.l1_loss(f, r.detach()) / (r.detach().abs().mean() + EPSILON)
        for layers_real, layers_fake in zip(real, fake, strict=True)
        for r, f in zip(layers_real, layers_fake, strict=True)
    ]
    return torch.stack(parts).mean()
