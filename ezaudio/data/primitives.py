"""Building blocks of synthesised sounds: shaped noise, tones, envelopes, placement in time.

Events start on whole ticks (40 ms, one latent frame of `nano`) and steady tones are multiples of 50 Hz, so that a tone
has the same phase in every latent frame. A small diffusion model learns such latents; free phases it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]

SAMPLE_RATE = 24000
TICK = 960
TONE_GRID_HZ = 50


def band_noise(rng: np.random.Generator, num_samples: int, points: Sequence[tuple[float, float]]) -> Audio:
    """Gaussian noise of unit RMS; `points` are (frequency in Hz, level in dB), straight over log frequency between."""
    frequencies = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    levels = np.interp(
        np.log(np.maximum(frequencies, 1.0)), np.log([f for f, _ in points]), [level for _, level in points]
    )
    spectrum = rng.standard_normal(len(frequencies)) + 1j * rng.standard_normal(len(frequencies))
    spectrum *= 10 ** (levels / 20)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, num_samples)
    return (noise / (noise.std() + 1e-9)).astype(np.float32)


def slow_curve(rng: np.random.Generator, num_samples: int, period_s: float) -> Audio:
    """Random curve in 0…1 that turns about once a period, smooth (cosine between random knots)."""
    knots = rng.random(int(num_samples / SAMPLE_RATE / period_s) + 3)
    position = np.arange(num_samples) / (SAMPLE_RATE * period_s) + rng.random()
    index = position.astype(int)
    blend = 0.5 - 0.5 * np.cos(np.pi * (position - index))
    return (knots[index] * (1 - blend) + knots[index + 1] * blend).astype(np.float32)


def seconds(duration_s: float) -> NDArray[np.float64]:
    """Times of the samples of a stretch."""
    return np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE


def tone(frequency_hz: float, duration_s: float, harmonics: Sequence[float] = (1.0,), fade_s: float = 0.005) -> Audio:
    """Sum of harmonics 1, 2, … with the given amplitudes, faded at both ends."""
    t = seconds(duration_s)
    wave = sum(a * np.sin(2 * np.pi * frequency_hz * (k + 1) * t) for k, a in enumerate(harmonics))
    return fade(np.asarray(wave, dtype=np.float32), fade_s)


def fade(audio: Audio, fade_s: float) -> Audio:
    """Straight fades of `fade_s` at both ends, at most half the length each."""
    count = min(round(fade_s * SAMPLE_RATE), len(audio) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    shaped = audio.copy()
    shaped[:count] *= ramp
    shaped[len(audio) - count :] *= ramp[::-1]
    return shaped


def damped(frequency_hz: float, duration_s: float, decay_s: float, slide: float = 0.0) -> Audio:
    """Sine that decays by 60 dB in about 7 `decay_s`; its pitch moves by the factor 1 + slide over the duration."""
    t = seconds(duration_s)
    phase = 2 * np.pi * frequency_hz * (t + 0.5 * slide * t**2 / duration_s)
    return (np.sin(phase) * np.exp(-t / decay_s)).astype(np.float32)


def burst(rng: np.random.Generator, duration_s: float, decay_s: float, points: Sequence[tuple[float, float]]) -> Audio:
    """Decaying band noise with an attack of half a millisecond."""
    t = seconds(duration_s)
    return (band_noise(rng, len(t), points) * np.exp(-t / decay_s) * np.minimum(1, t / 0.0005)).astype(np.float32)


def add(target: Audio, event: Audio, start: int, gain: float = 1.0) -> None:
    """Mix an event into `target` in place, cut at its end."""
    stop = min(len(target), start + len(event))
    if stop > start:
        target[start:stop] += gain * event[: stop - start]


def scatter(
    rng: np.random.Generator, num_samples: int, events: Sequence[Audio], rate_hz: float, spread: float
) -> Audio:
    """Events at random places, `rate_hz` a second, with log-normal gains; `spread` is the deviation of the log."""
    audio = np.zeros(num_samples, np.float32)
    for start in rng.integers(0, num_samples, rng.poisson(rate_hz * num_samples / SAMPLE_RATE)):
        add(audio, events[int(rng.integers(len(events)))], int(start), float(np.exp(spread * rng.standard_normal())))
    return audio


def repeat(
    rng: np.random.Generator, num_samples: int, events: Sequence[Audio], ticks: tuple[int, int], vary: float = 0.1
) -> Audio:
    """Events in turn, the gap between starts drawn once from `ticks` (both included), from a random first tick."""
    step = int(rng.integers(ticks[0], ticks[1] + 1)) * TICK
    audio = np.zeros(num_samples, np.float32)
    start = int(rng.integers(0, step // TICK)) * TICK
    for index, place in enumerate(range(start, num_samples, step)):
        add(audio, events[index % len(events)], place, 1 + vary * (2 * float(rng.random()) - 1))
    return audio


def normalize(audio: Audio, peak: float) -> Audio:
    """Scaled so that the largest sample is `peak`; silence stays silence."""
    largest = float(np.abs(audio).max(initial=0.0))
    return audio * np.float32(peak / largest) if largest > 1e-6 else audio
