"""Distances between sounds, and between sets of sounds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezaudio.evaluation.mels import MelPower
from ezaudio.runtime.errors import InputError
from ezaudio.training.losses import SpectralLoss

STFT_WINDOWS = (2048, 1024, 512)
MEL_FLOOR = 1e-5
LIMIT_DB = 100.0  # an exact copy has no error at all


def si_sdr_db(output: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio: 10 log₁₀(‖αs‖² / ‖αs − ŝ‖²) with α = ŝᵀs / ‖s‖²
    (Le Roux et al. 2019, eq. 5), from −100 to 100 dB.

    Args:
        output, target: ŝ and s, (B, T). A silent one gives −100 dB.

    Returns: (B,)
    """
    output, target = output.double(), target.double()
    scale = (output * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True).clamp_min(1e-20)
    projected = scale * target
    signal, error = projected.square().sum(1), (projected - output).square().sum(1)
    ratio = 10 * torch.log10(signal.clamp_min(1e-20) / error.clamp_min(1e-30))
    return torch.where(signal > 1e-20, ratio, -LIMIT_DB).clamp(-LIMIT_DB, LIMIT_DB).float()


def log_mel_distance(output: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Mean |ln a − ln b| over 64 mel bands and all columns, a and b magnitudes (roots of the bands' powers) of at least
    1e-5: the mel-spectrogram distance of HiFi-GAN (Kong et al. 2020, eq. 4). (B, T) each → (B,).
    """
    mels = MelPower(sample_rate).to(output.device)
    levels = [mels(audio).sqrt().clamp_min(MEL_FLOOR).log() for audio in (output, target)]
    return (levels[0] - levels[1]).abs().mean(dim=(1, 2))


def stft_distance(output: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Spectral convergence ‖|S| − |Ŝ|‖ / ‖|S|‖ plus mean |ln |S| − ln |Ŝ||, mean over windows of 2048, 1024 and 512
    samples (Yamamoto et al. 2020, eqs. 5 to 7), each frequency weighted by the A curve. (B, T) each → (B,).
    """
    loss = SpectralLoss(STFT_WINDOWS, sample_rate).to(output.device)
    return torch.stack([loss(a[None], b[None]) for a, b in zip(output, target, strict=True)])


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Between Gaussians fitted to two sets: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) (Dowson & Landau 1982; of
    embeddings of sounds, Kilgour et al. 2019).

    The trace of the root is the sum of the square roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric: no
    complex rounding, and fewer rows than columns are no special case. They do make the value larger, so compare it
    only with one of sets of the same size.

    Args:
        first, second: (N, D) and (M, D), at least two rows each.

    Raises:
        InputError: fewer rows, other widths, or values that are not finite.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"expected two sets of at least 2 embeddings of one width, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("embeddings hold NaN or infinity: the clips they are of are no sound")
    covariances = [np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    between = np.square(a.mean(0) - b.mean(0)).sum()
    distance = between + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(np.maximum(product, 0)).sum()
    return max(0.0, float(distance))


def kl_divergence(reference: NDArray[np.floating], made: NDArray[np.floating]) -> float:
    """Mean over rows of Σ p ln(p / q): p and q are the softmax of a classifier's logits for a recorded clip and for one
    that was made of its caption (Yang et al. 2023, Diffsound). Logits (N, classes) each.
    """
    p, q = _log_softmax(reference), _log_softmax(made)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def inception_score(logits: NDArray[np.floating]) -> float:
    """exp of the mean over rows of Σ p ln(p / p̄), p̄ the mean of all p = softmax(logits): 1 where all clips sound
    alike, the number of classes where each is as often heard and without doubt (Salimans et al. 2016). (N, classes).
    """
    p = _log_softmax(logits)
    mean = np.log(np.maximum(np.exp(p).mean(0), np.finfo(np.float64).tiny))
    return float(np.exp((np.exp(p) * (p - mean)).sum(1).mean()))


def _log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    values = np.asarray(logits, np.float64)
    if not np.isfinite(values).all():
        raise InputError("a classifier's logits hold NaN or infinity: the clips they are of are no sound")
    values = values - values.max(1, keepdims=True)
    return values - np.log(np.exp(values).sum(1, keepdims=True))
