"""What the judge's training clips are put through, so that it hears sounds and not the way they were made.

Everything works on mel powers: powers of sounds that know nothing of each other add up, and a filter is a factor.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ezaudio.data.synthesis.primitives import SAMPLE_RATE
from ezaudio.evaluation.judge import decibels
from ezaudio.evaluation.mels import BANDS, MelPower

MIX_SHARE, IN_TURN_SHARE = 0.4, 0.4
MIX_DB = (-12.0, 3.0)
TILT_DB = 8.0
# Below the loudest cell of a clip: steady noise, and noise that rises and falls with the sound, which is what an
# autoencoder makes of the detail that it does not keep.
STEADY_DB, FOLLOWING_DB = (-80.0, -28.0), (-60.0, -15.0)
BLUR = 0.5
NOISE_CLIPS = 8


def noise_power(rng: np.random.Generator, num_samples: int) -> Tensor:
    """Mel powers of some clips of white noise, mean 1: (NOISE_CLIPS, BANDS, N)."""
    power: Tensor = MelPower(SAMPLE_RATE)(torch.from_numpy(rng.standard_normal((NOISE_CLIPS, num_samples), np.float32)))
    return power / power.mean()


def draw_batch(
    rng: np.random.Generator, power: Tensor, labels: Tensor, noise: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    """Levels (B, BANDS, N) and labels (B, K) of random clips, some of them mixed from two, all of them `worn`.

    Args:
        power: (M, BANDS, N) of all clips. labels: (M, K), 1 for what is in a clip. noise: of `noise_power`.
    """
    rows, others = (torch.from_numpy(rng.integers(len(power), size=batch)) for _ in range(2))
    mixed, wanted = power[rows], labels[rows]
    for row, other in enumerate(others.tolist()):
        mixed[row] = _shifted(rng, mixed[row])
        alone = bool(wanted[row].sum() == 1) and bool(labels[other].sum() == 1)
        if rng.random() < MIX_SHARE and alone and not torch.equal(labels[other], wanted[row]):
            mixed[row] = _together(rng, mixed[row], _shifted(rng, power[other]))
            wanted[row] += labels[other]
    return decibels(worn(rng, mixed, noise)), wanted


def _shifted(rng: np.random.Generator, power: Tensor) -> Tensor:
    """Rotated in time, (BANDS, N)."""
    return power.roll(int(rng.integers(power.shape[1])), 1)


def _together(rng: np.random.Generator, first: Tensor, second: Tensor) -> Tensor:
    """Two clips (BANDS, N) at the same time or one after the other, of about equal loudness or equal peaks."""
    if rng.random() < 0.5:
        second = second * (first.mean() / second.mean().clamp_min(1e-20))
    if rng.random() < IN_TURN_SHARE:
        middle = first.shape[1] // 2
        first, second = F.pad(first[:, :middle], (0, first.shape[1] - middle)), F.pad(second[:, middle:], (middle, 0))
    return first + second * 10 ** (float(rng.uniform(*MIX_DB)) / 10)


def worn(rng: np.random.Generator, power: Tensor, noise: Tensor) -> Tensor:
    """Clips (B, BANDS, N) blurred, filtered and in noise, each by chance a little or a lot."""
    batch = len(power)

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, 1, 1))).float()

    def slopes() -> Tensor:
        points = rng.uniform(-TILT_DB, TILT_DB, (batch, 3))
        levels = np.stack([np.interp(np.linspace(0, 1, BANDS), [0, 0.5, 1], row) for row in points])
        return torch.from_numpy(10 ** (levels / 10)).float()[:, :, None]

    power = torch.lerp(power, F.avg_pool2d(power[:, None], 3, 1, 1)[:, 0], uniform(0, BLUR)) * slopes()
    envelope = power.amax(dim=1, keepdim=True)
    added = noise[torch.from_numpy(rng.integers(len(noise), size=batch))] * slopes()
    steady, following = (10 ** (uniform(*span) / 10) for span in (STEADY_DB, FOLLOWING_DB))
    return power + added * (steady * envelope.amax(dim=2, keepdim=True) + following * envelope)
