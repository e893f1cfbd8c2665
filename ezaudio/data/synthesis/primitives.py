"""Building blocks of synthesised sounds: shaped noise, modes, voices, pulses, envelopes, placement in time.

Everything is whole-array NumPy and SciPy at 24 kHz. Events start on whole ticks (40 ms, one latent frame of `nano`) and
steady electronic tones are multiples of 50 Hz, so that a tone has the same phase in every latent frame. A small
diffusion model learns such latents; free phases it does not, and nobody hears the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.signal import lfilter, oaconvolve, sosfilt

Audio = NDArray[np.float32]
Points = Sequence[tuple[float, float]]
Generator = np.random.Generator

SAMPLE_RATE = 24000
TICK = 960
TONE_GRID_HZ = 50
MANY_GRAINS = 8000


def samples(duration_s: float) -> int:
    return round(duration_s * SAMPLE_RATE)


def times(num_samples: int) -> Audio:
    """Seconds of each sample."""
    return np.arange(num_samples, dtype=np.float32) / np.float32(SAMPLE_RATE)


def noise(rng: Generator, num_samples: int, points: Points) -> Audio:
    """Gaussian noise of unit RMS; `points` are (frequency in Hz, level in dB), straight over log frequency between."""
    size = scipy.fft.next_fast_len(max(num_samples, 16), real=True)
    gains = _gains(size, tuple(points))
    spectrum = rng.standard_normal((len(gains), 2), np.float32).view(np.complex64)[:, 0]
    spectrum *= gains
    shaped = scipy.fft.irfft(spectrum, size)[:num_samples]
    return np.asarray(shaped / (shaped.std() + 1e-9), np.float32)


@lru_cache(maxsize=64)
def _gains(size: int, points: tuple[tuple[float, float], ...]) -> Audio:
    """Gain of each bin of a real FFT of `size` samples."""
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1.0)
    levels = np.interp(np.log(frequencies), np.log([f for f, _ in points]), [level for _, level in points])
    gains = (10 ** (levels / 20)).astype(np.float32)
    gains[0] = 0
    return gains


def curve(num_samples: int, points: Points) -> Audio:
    """Straight lines between (share of the length 0…1, value)."""
    places = np.linspace(0, 1, num_samples)
    return np.interp(places, [place for place, _ in points], [value for _, value in points]).astype(np.float32)


def wander(rng: Generator, num_samples: int, period_s: float) -> Audio:
    """Random curve in 0…1 that turns about once a period, smooth (cosine between random knots)."""
    knots = rng.random(int(num_samples / SAMPLE_RATE / period_s) + 3).astype(np.float32)
    position = np.arange(num_samples, dtype=np.float32) / np.float32(SAMPLE_RATE * period_s) + rng.random(
        dtype=np.float32
    )
    index = position.astype(np.int64)
    blend = 0.5 - 0.5 * np.cos(np.pi * (position - index))
    return np.asarray(knots[index] * (1 - blend) + knots[index + 1] * blend, np.float32)


def phase(frequency_hz: NDArray[np.floating] | float, num_samples: int) -> NDArray[np.float64]:
    """Cycles since the start; the frequency may move."""
    return np.cumsum(np.broadcast_to(np.asarray(frequency_hz, np.float64), num_samples)) / SAMPLE_RATE


def tone(frequency_hz: NDArray[np.floating] | float, num_samples: int, harmonics: Sequence[float] = (1.0,)) -> Audio:
    """Sum of harmonics 1, 2, … with the given amplitudes; what would lie above half the sample rate is left out."""
    angle = (2 * np.pi * (phase(frequency_hz, num_samples) % 1.0)).astype(np.float32)
    top = float(np.max(frequency_hz))
    twice_cos, before, sine = 2 * np.cos(angle), np.zeros(num_samples, np.float32), np.sin(angle)
    wave = np.zeros(num_samples, np.float32)
    for order, amplitude in enumerate(harmonics, 1):
        if order * top >= 0.48 * SAMPLE_RATE:
            break
        if amplitude:
            wave += np.float32(amplitude) * sine
        before, sine = sine, twice_cos * sine - before  # sin((k + 1)x) = 2 cos x sin kx - sin((k - 1)x)
    return wave


def envelope(num_samples: int, attack_s: float, release_s: float, sustain: float = 1.0) -> Audio:
    """Rises over `attack_s`, falls to `sustain` until `release_s` before the end, then to 0 (squared: soft ends)."""
    attack = min(samples(attack_s), num_samples // 2)
    release = min(samples(release_s), num_samples - attack)
    shape = curve(num_samples, [(0, 1), (1, sustain)])
    shape[:attack] *= np.sin(np.linspace(0, np.pi / 2, attack, dtype=np.float32)) ** 2
    shape[num_samples - release :] *= np.cos(np.linspace(0, np.pi / 2, release, dtype=np.float32)) ** 2
    return shape


def decay(num_samples: int, decay_s: float, attack_s: float = 0.0005) -> Audio:
    """exp(-t / decay_s) with a straight attack."""
    t = times(num_samples)
    return np.asarray(np.exp(-t / np.float32(decay_s)) * np.minimum(1, t / np.float32(attack_s)), np.float32)


def burst(rng: Generator, duration_s: float, decay_s: float, points: Points, attack_s: float = 0.0005) -> Audio:
    """Decaying shaped noise: a click, a drop, a hit of something without a pitch."""
    count = samples(duration_s)
    return noise(rng, count, points) * decay(count, decay_s, attack_s)


def modes(num_samples: int, partials: Sequence[tuple[float, float, float]], excitation: Audio | None = None) -> Audio:
    """Free vibration of a struck body: resonators (frequency in Hz, decay in s, gain), rung by a click or `excitation`.

    A decay is the time to 1/e; after 7 of them the mode is 60 dB down.
    """
    struck = np.zeros(num_samples, np.float64)
    push = np.ones(1) if excitation is None else excitation[:num_samples]
    struck[: len(push)] = push
    total = np.zeros(num_samples, np.float64)
    for frequency_hz, decay_s, gain in partials:
        if frequency_hz < 0.48 * SAMPLE_RATE:
            radius, angle = np.exp(-1 / (decay_s * SAMPLE_RATE)), 2 * np.pi * frequency_hz / SAMPLE_RATE
            count = min(num_samples, len(push) + samples(7 * decay_s))
            ring = lfilter([gain * np.sin(angle)], [1, -2 * radius * np.cos(angle), radius**2], struck[:count])
            total[:count] += ring
    return total.astype(np.float32)


def resonate(audio: Audio, formants: Sequence[tuple[float, float]]) -> Audio:
    """Through resonances (frequency, bandwidth in Hz) in a row; each has gain 1 at 0 Hz and falls beyond its peak."""
    sections = np.zeros((len(formants), 6))
    for section, (frequency_hz, bandwidth_hz) in zip(sections, formants, strict=True):
        radius, angle = np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE), 2 * np.pi * frequency_hz / SAMPLE_RATE
        section[3:] = 1, -2 * radius * np.cos(angle), radius**2
        section[0] = section[3:].sum()
    return sosfilt(sections, audio).astype(np.float32)


def tract(vowel: Sequence[float], width: float) -> list[tuple[float, float]]:
    """Formants of a vowel with their bandwidths, and the higher ones of a tube, evenly spaced up to 11 kHz.

    Without the higher ones a voice would end at 4 kHz. Their bandwidths grow, as losses do.
    """
    formants = list(vowel)
    spacing = max(700.0, (formants[-1] - formants[0]) / max(1, len(formants) - 1))
    while formants[-1] + spacing < 11000:
        formants.append(formants[-1] + spacing)
    return [(f, max(60.0, width * f * (1 + f / 8000))) for f in formants]


def low_pass(audio: Audio, cutoff_hz: float, order: int = 1) -> Audio:
    """Gentle slope: `order` one-pole filters in a row."""
    keep = np.exp(-2 * np.pi * cutoff_hz / SAMPLE_RATE)
    for _ in range(order):
        audio = lfilter([1 - keep], [1, -keep], audio).astype(np.float32)
    return audio


def high_pass(audio: Audio, cutoff_hz: float) -> Audio:
    return audio - low_pass(audio, cutoff_hz)


def glottis(f0: Audio, open_share: float = 0.55) -> Audio:
    """Flow of vocal folds, differentiated (what a mouth radiates): rises, closes at once, rests. f0 in Hz a sample."""
    cycle = phase(f0, len(f0)) % 1.0
    rise = 0.7 * open_share
    flow = np.where(
        cycle < rise,
        0.5 - 0.5 * np.cos(np.pi * cycle / rise),
        np.cos(0.5 * np.pi * np.minimum(1, (cycle - rise) / (open_share - rise))),
    )
    return np.diff(np.where(cycle < open_share, flow, 0.0), prepend=0.0).astype(np.float32) * np.float32(20)


def voice(
    rng: Generator,
    f0: Audio,
    vowels: Sequence[Sequence[float]],
    breath: float = 0.05,
    rough: float = 0.01,
    open_share: float = 0.55,
    width: float = 0.08,
) -> Audio:
    """Vocal folds through a tract that moves from vowel to vowel (formants in Hz) over the length of f0 (Hz a sample).

    Args:
        breath: share of noise, pulsed with the folds.
        rough: deviation of the pitch from period to period, relative.
        width: bandwidth of a formant relative to its frequency, 60 Hz at least.
    """
    count = len(f0)
    shake = noise(rng, count, [(20, 0), (120, 0), (300, -40)])
    source = glottis(f0 * (1 + np.float32(rough) * shake), open_share)
    hiss = noise(rng, count, [(200, -12), (1500, 0), (12000, 0)])
    source = source + np.float32(breath) * hiss * (0.4 + np.abs(source))
    spoken = np.zeros(count, np.float32)
    for index, vowel in enumerate(vowels):
        shaped = resonate(source, tract(vowel, width))
        if len(vowels) > 1:
            knots = [(k / (len(vowels) - 1), float(k == index)) for k in range(len(vowels))]
            shaped = shaped * curve(count, knots)
        spoken += shaped
    return high_pass(spoken, 60)


def pulses(frequency_hz: NDArray[np.floating] | float, num_samples: int, sharpness: float) -> Audio:
    """A decaying pulse each cycle: how a cylinder fires or a blade passes. Mean near 0."""
    cycle = phase(frequency_hz, num_samples) % 1.0
    train = np.exp(-sharpness * cycle) * np.minimum(1, 12 * cycle)
    return np.asarray(train - train.mean(), np.float32)


def fade(audio: Audio, fade_s: float) -> Audio:
    """Straight fades of `fade_s` at both ends, at most half the length each."""
    count = min(samples(fade_s), len(audio) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    shaped = audio.copy()
    shaped[:count] *= ramp
    shaped[len(audio) - count :] *= ramp[::-1]
    return shaped


def add(target: Audio, event: Audio, start: int, gain: float = 1.0) -> None:
    """Mix an event into `target` in place, cut at its end."""
    stop = min(len(target), start + len(event))
    if stop > start:
        target[start:stop] += np.float32(gain) * event[: stop - start]


def join(events: Sequence[tuple[float, Audio, float]], tail_s: float = 0.0) -> Audio:
    """Events (start in s, audio, gain) in one piece that ends with the last of them."""
    end = max(samples(start) + len(audio) for start, audio, _ in events) + samples(tail_s)
    whole = np.zeros(end, np.float32)
    for start, audio, gain in events:
        add(whole, audio, samples(start), gain)
    return whole


def scatter(
    rng: Generator,
    num_samples: int,
    grains: Sequence[Audio],
    rate_hz: float,
    spread: float,
    density: Audio | None = None,
) -> Audio:
    """Grains at random places, `rate_hz` a second (or so on average, following `density`), with log-normal gains.

    Few are placed one by one, thousands by a convolution for each kind of grain, which is then the faster way.
    `spread` is the deviation of the logarithm of the gain.
    """
    count = int(rng.poisson(rate_hz * num_samples / SAMPLE_RATE))
    if density is None:
        places = rng.integers(0, num_samples, count)
    else:
        total = np.cumsum(density, dtype=np.float64)
        places = np.minimum(np.searchsorted(total, rng.random(count) * total[-1]), num_samples - 1)
    gains = np.exp(spread * rng.standard_normal(count)).astype(np.float32)
    kinds = rng.integers(len(grains), size=count)
    audio = np.zeros(num_samples, np.float32)
    if count < MANY_GRAINS:
        for place, gain, kind in zip(places.tolist(), gains, kinds.tolist(), strict=True):
            grain = grains[kind][: num_samples - place]
            audio[place : place + len(grain)] += gain * grain
        return audio
    for kind, grain in enumerate(grains):
        train = np.zeros(num_samples, np.float32)
        np.add.at(train, places[kinds == kind], gains[kinds == kind])
        audio += oaconvolve(train, grain)[:num_samples].astype(np.float32)
    return audio


def repeat(
    rng: Generator, num_samples: int, events: Sequence[Audio], step_s: float, vary: float = 0.1, late_s: float = 0.0
) -> Audio:
    """Events in turn, `step_s` apart in whole ticks, up to `late_s` late, `vary` in level, from a random first tick."""
    step = max(1, round(step_s * SAMPLE_RATE / TICK)) * TICK
    audio = np.zeros(num_samples, np.float32)
    first = int(rng.integers(0, step // TICK)) * TICK
    for index, place in enumerate(range(first, num_samples, step)):
        late = int(rng.random() * late_s * SAMPLE_RATE)
        add(audio, events[index % len(events)], place + late, 1 + vary * float(rng.uniform(-1, 1)))
    return audio


def normalize(audio: Audio, peak: float) -> Audio:
    """Scaled so that the largest sample is `peak`; silence stays silence."""
    largest = float(np.abs(audio).max(initial=0.0))
    return audio * np.float32(peak / largest) if largest > 1e-6 else audio
