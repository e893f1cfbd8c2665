"""Where a sound is heard: how far away, and in which room."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import oaconvolve

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio

VARIANTS = 8


@dataclass(frozen=True, slots=True)
class Distance:
    """Level in dB, cutoff of what air and obstacles swallow, and share of reverberation added to that of the room."""

    level_db: float
    cutoff_hz: float
    wet: float


@dataclass(frozen=True, slots=True)
class Room:
    """T60 is the time until the reverberation is 60 dB down; `wet` its level against the direct sound, both near."""

    t60_s: float
    first_s: float
    wet: float


DISTANCES = {
    "near": Distance(0, 12000, 0.0),
    "middle": Distance(-6, 6000, 0.1),
    "far": Distance(-14, 1600, 0.35),
}
ROOMS = {
    "outdoors": Room(0.5, 0.03, 0.05),
    "small room": Room(0.35, 0.004, 0.35),
    "hall": Room(1.8, 0.018, 0.6),
    "tunnel": Room(3.0, 0.03, 0.9),
}


@lru_cache(maxsize=len(ROOMS) * VARIANTS)
def impulse_response(room: str, variant: int) -> Audio:
    """Ten early reflections, then noise that decays, its highs four times as fast as its lows; unit energy."""
    settings = ROOMS[room]
    rng = np.random.default_rng((len(room), variant))
    count = p.samples(settings.first_s * 4 + settings.t60_s)
    t = p.times(count)
    tail = np.zeros(count, np.float32)
    for low, high, speed in ((60, 500, 1.0), (500, 2500, 1.5), (2500, 10000, 4.0)):
        band = p.noise(rng, count, [(low / 2, -30), (low, 0), (high, 0), (min(2 * high, 11900), -30)])
        tail += band * np.exp(-6.9 * np.float32(speed / settings.t60_s) * t)
    tail *= np.minimum(1, t / np.float32(4 * settings.first_s))
    tail /= np.sqrt((tail**2).sum())
    for place, level in zip(np.sort(rng.uniform(1, 6, 10)), np.linspace(0.35, 0.1, 10), strict=True):
        tail[p.samples(settings.first_s * place)] += np.float32(level * rng.choice([-1, 1]))
    return tail / np.sqrt((tail**2).sum())


def heard(audio: Audio, distance: str, room: str, variant: int) -> Audio:
    """The sound as it reaches the listener: (T,) → (T,), level relative to the same sound near by.

    Args:
        distance: a key of DISTANCES.
        room: a key of ROOMS.
        variant: 0…VARIANTS - 1, which of the rooms of that kind; the sounds of a scene share one.
    """
    far, place = DISTANCES[distance], ROOMS[room]
    direct = audio if far.cutoff_hz >= 12000 else p.low_pass(audio, far.cutoff_hz, 2)
    wet = place.wet + far.wet
    echo = oaconvolve(direct, impulse_response(room, variant))[: len(audio)].astype(np.float32)
    return (direct + np.float32(wet) * echo) * np.float32(10 ** (far.level_db / 20))
