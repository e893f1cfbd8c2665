"""How far two velocities, or two clips, are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ezaudio.runtime.spectrogram import mel_spectrogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

LEVEL_RANGE_DB = 80.0  # cells further below the loudest are silence


def measure(got: Array, expected: Array) -> tuple[float, float]:
    """Cosine and relative L2 distance in float64; −1 and infinity when anything is not finite or of another shape."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return -1.0, float("inf")
    a, b = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    cosine = float(a @ b) / max(norm_a * norm_b, 1e-30)
    return cosine, float(np.linalg.norm(a - b)) / max(norm_b, 1e-30)


def levels_db(samples: Array, sample_rate: int) -> NDArray[np.float64]:
    """Mel levels (bands, columns) in dB below a full-scale cell, from the loudest down to LEVEL_RANGE_DB below it."""
    power = mel_spectrogram(samples.astype(np.float64), sample_rate)
    level = 10 * np.log10(np.maximum(power, 1e-20))
    return np.maximum(level, level.max() - LEVEL_RANGE_DB)


def level_distance_db(samples: Array, levels: Array, sample_rate: int) -> float:
    """Mean |difference| of the samples' mel levels to given ones; infinite when a sample is not finite."""
    if not np.isfinite(samples).all():
        return float("inf")
    got = levels_db(samples, sample_rate)
    if got.shape != levels.shape:
        return float("inf")
    floor = float(levels.max()) - LEVEL_RANGE_DB
    return float(np.mean(np.abs(np.maximum(got, floor) - np.maximum(levels.astype(np.float64), floor))))
