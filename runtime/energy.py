"""Loudness contour of a sound, the condition of the energy ControlNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ezaudio.runtime import exact_math

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_HOPS = 8
FLOOR = 1e-6  # −60 dB
DB_PER_NEPER = 10.0 / 2.302585092994046


def energy_contour(audio: NDArray[np.float32], hop: int) -> NDArray[np.float32]:
    """Mean square over windows of 8 hops, one a hop, in dB above −60 and scaled by the clip's maximum.

    Sums run in a fixed order, so that every language gets the same bits.

    Args:
        audio: (T,) samples, T a multiple of `hop` and at least 4 hops.
        hop: samples; 240 (10 ms) for the official ControlNet.

    Returns: (1, 1, T / hop) in 0…1. Source: the official code's energy extraction; as `ezaudio.controlnet`.
    """
    pad = (WINDOW_HOPS - 1) * hop // 2
    power = np.square(np.pad(audio, pad, mode="reflect").astype(np.float64)).reshape(-1, hop)
    hops = np.zeros(len(power))
    for column in power.T:
        hops += column
    count = len(hops) - WINDOW_HOPS + 1
    windows = np.zeros(count)
    for first in range(WINDOW_HOPS):
        windows += hops[first : first + count]
    above = DB_PER_NEPER * exact_math.log(np.maximum(windows / (WINDOW_HOPS * hop) / FLOOR, 1.0))
    return (above / (above.max() + 1e-8)).astype(np.float32)[None, None]
