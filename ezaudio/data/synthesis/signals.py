"""Alarms, bells and electronics: tones with exact pitch and timing, and metal that rings."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound

SQUARE = tuple(1 / k if k % 2 else 0.0 for k in range(1, 16))


def beep(frequency_hz: float, duration_s: float, harmonics: tuple[float, ...] = (1.0,)) -> Audio:
    return p.fade(p.tone(frequency_hz, p.samples(duration_s), harmonics), 0.004)


def on_grid(rng: Generator, low_hz: float, high_hz: float) -> float:
    return float(p.TONE_GRID_HZ * rng.integers(int(low_hz) // p.TONE_GRID_HZ, int(high_hz) // p.TONE_GRID_HZ + 1))


@sound(
    "police siren",
    "alarms",
    "a police siren;a police car",
    "wail|wail in the street;pass with its siren wailing",
    "a wailing siren|a police car with its siren on",
    texture=True,
    outdoors=True,
)
def wail(rng: Generator, n: int) -> Audio:
    """600 to 1,400 Hz and back in about four seconds."""
    position = p.times(n) / np.float32(rng.uniform(3.0, 5.0)) + np.float32(rng.random())
    f0 = 620 + 780 * (0.5 - 0.5 * np.cos(2 * np.pi * position))
    return p.resonate(p.tone(f0, n, (1, 0.7, 0.5, 0.35, 0.25, 0.15)), [(1500, 1200)])


@sound(
    "ambulance",
    "alarms",
    "an ambulance|a fire engine;an ambulance siren",
    "sound its siren|race past with its siren on;sound|blare",
    "a two-tone siren|an emergency vehicle's siren",
    texture=True,
    outdoors=True,
)
def two_tone(rng: Generator, n: int) -> Audio:
    """Two notes a fourth apart, about half a second each."""
    low = on_grid(rng, 400, 500)
    ticks = int(rng.integers(12, 19))
    notes = [
        beep(f, ticks * p.TICK / p.SAMPLE_RATE, (1, 0.6, 0.5, 0.3, 0.2))
        for f in (low, p.TONE_GRID_HZ * round(low * 4 / 3 / p.TONE_GRID_HZ))
    ]
    return p.repeat(rng, n, notes, ticks * p.TICK / p.SAMPLE_RATE, 0)


@sound(
    "smoke alarm",
    "alarms",
    "a smoke alarm|a smoke detector|a fire alarm",
    "beep|go off|shriek",
    "the piercing beeps of a smoke alarm",
    texture=True,
)
def smoke_alarm(rng: Generator, n: int) -> Audio:
    """Three beeps of half a second at 3.1 kHz, then a pause (ISO 8201)."""
    pitch = on_grid(rng, 2900, 3300)
    group = p.join([(k * 0.96, beep(pitch, 0.48, (1, 0.1, 0.15)), 1) for k in range(3)])
    return p.repeat(rng, n, [group], 3.84, 0)


@sound(
    "alarm clock",
    "alarms",
    "an alarm clock|a digital alarm",
    "beep|ring|go off",
    "the beeping of an alarm clock",
    texture=True,
)
def alarm_clock(rng: Generator, n: int) -> Audio:
    """Four short beeps of 2 kHz, a pause, again."""
    pitch = on_grid(rng, 1900, 2200)
    group = p.join([(k * 0.12, beep(pitch, 0.06, SQUARE[:5]), 1) for k in range(4)])
    return p.repeat(rng, n, [group], 0.96, 0)


@sound(
    "burglar alarm",
    "alarms",
    "a car alarm|a burglar alarm",
    "go off|blare in the street|yelp",
    "the yelp of a car alarm",
    texture=True,
    outdoors=True,
)
def burglar_alarm(rng: Generator, n: int) -> Audio:
    """Sweeps up from 700 to 1,600 Hz several times a second."""
    rate = rng.uniform(3.0, 5.0)
    part = p.phase(rate, n) % 1.0
    f0 = 700 + 950 * part
    return p.tone(f0.astype(np.float32), n, (1, 0.6, 0.6, 0.4, 0.3, 0.2)) * np.float32(0.7)


@sound(
    "reversing truck",
    "alarms",
    "a reversing truck",
    "beep|beep slowly",
    "a backup beeper|the beeps of a reversing truck",
    texture=True,
    outdoors=True,
)
def reversing(rng: Generator, n: int) -> Audio:
    """A beep of half a second each second at 1.2 kHz over an idling diesel."""
    beeps = p.repeat(rng, n, [beep(on_grid(rng, 1100, 1350), 0.48, (1, 0.1, 0.4, 0, 0.15))], 0.96, 0)
    motor = p.resonate(p.pulses(rng.uniform(26, 34), n, 7), [(60, 50), (170, 100)])
    return beeps + p.normalize(motor, 0.35)


@sound(
    "buzzer",
    "alarms",
    "a buzzer|a door buzzer",
    "buzz|go off",
    "a loud buzzer|a buzzer going off",
    max_count=4,
    gap_s=(0.15, 0.6),
)
def buzzer(rng: Generator, n: int) -> Audio:
    """Mains at 100 Hz through a rattling plate."""
    count = p.samples(float(rng.choice([0.4, 0.8, 1.4])))
    rough = np.tanh(3 * p.tone(100, count, SQUARE))
    return p.resonate(rough, [(900, 500), (2400, 900)]) * p.envelope(count, 0.005, 0.02)


def bell_partials(rng: Generator, strike_hz: float, length_s: float) -> list[tuple[float, float, float]]:
    """Partials of a tuned bell: hum, prime, minor third, fifth, nominal and above; high ones die first."""
    ratios = (
        (0.5, 0.5, 1.0),
        (1, 0.7, 0.75),
        (1.19, 0.8, 0.6),
        (1.5, 0.3, 0.4),
        (2, 1, 0.45),
        (2.51, 0.5, 0.25),
        (3.0, 0.4, 0.2),
        (4.17, 0.35, 0.14),
        (5.43, 0.25, 0.1),
    )
    return [(strike_hz * r * rng.uniform(0.997, 1.003), length_s * d, g) for r, g, d in ratios]


@sound(
    "church bell",
    "bells",
    "a church bell|church bells|a bell",
    "toll|ring|chime",
    "the tolling of a bell|bells of a church",
    max_count=5,
    gap_s=(-2.2, -1.2),
    outdoors=True,
)
def church_bell(rng: Generator, n: int) -> Audio:
    strike_hz = rng.uniform(320, 560)
    count = min(n, p.samples(4.0))
    clapper = p.burst(rng, 0.01, 0.002, [(200, 0), (6000, -6), (12000, -20)])
    ring = p.modes(count, bell_partials(rng, strike_hz, 1.6), clapper)
    beat = 1 + 0.15 * np.sin(2 * np.pi * rng.uniform(1, 3) * p.times(count))
    return (ring * beat).astype(np.float32) * p.envelope(count, 0, 0.6)


@sound(
    "doorbell",
    "bells",
    "a doorbell",
    "ring|chime|go ding-dong",
    "ding-dong|a doorbell chime",
    max_count=2,
    gap_s=(0.3, 1.0),
)
def doorbell(rng: Generator, n: int) -> Audio:
    """Two bars, a major third down."""
    high = on_grid(rng, 600, 750)
    notes = []
    for f in (high, p.TONE_GRID_HZ * round(high * 0.8 / p.TONE_GRID_HZ)):
        notes.append(p.modes(p.samples(1.6), [(f, 0.4, 1), (2.0 * f, 0.12, 0.2), (3.93 * f, 0.1, 0.25)]))
    return p.join([(0, notes[0], 1), (0.6, notes[1], 1)])


@sound(
    "bicycle bell",
    "bells",
    "a bicycle bell",
    "ring|go ring-ring",
    "the ring of a bicycle bell",
    max_count=3,
    gap_s=(0.2, 0.6),
)
def bicycle_bell(rng: Generator, n: int) -> Audio:
    """A small bowl hit some ten times by a spun hammer."""
    pitch = rng.uniform(2300, 3100)
    bowl = [(pitch, 0.16, 1), (pitch * 1.006, 0.16, 0.8), (pitch * 2.3, 0.07, 0.5), (pitch * 3.4, 0.04, 0.3)]
    hit = p.normalize(p.modes(p.samples(0.7), bowl), 1.0)
    return p.join([(group * 0.42 + 0.05 * k, hit, 0.5 + 0.1 * k) for group in range(2) for k in range(5)])


@sound(
    "wind chimes",
    "bells",
    "wind chimes",
    "tinkle|chime in the breeze|jingle",
    "a wind chime|tinkling chimes",
    texture=True,
)
def wind_chimes(rng: Generator, n: int) -> Audio:
    """Five tubes of a pentatonic scale, free at both ends (1 : 2.76 : 5.4), hit by chance as the wind has it."""
    base = rng.uniform(700, 1100)
    tubes = []
    for ratio in (1, 1.125, 1.25, 1.5, 1.667):
        f = base * ratio
        tubes.append(
            p.normalize(p.modes(p.samples(2.2), [(f, 0.5, 1), (2.76 * f, 0.25, 0.45), (5.4 * f, 0.1, 0.2)]), 1.0)
        )
    return p.scatter(rng, n, tubes, rng.uniform(1.5, 4), 0.6, p.wander(rng, n, 1.0) ** 2 + 0.02)


@sound(
    "school bell",
    "bells",
    "a school bell|an electric bell",
    "ring|ring loudly|clang",
    "a fire bell|the clang of a school bell",
    max_count=2,
    gap_s=(0.4, 1.0),
)
def school_bell(rng: Generator, n: int) -> Audio:
    """A gong hit twenty times a second by an electric hammer: the hits blur into a roll."""
    count = min(n, p.samples(rng.uniform(1.8, 3.0)))
    base = rng.uniform(650, 900)
    gong = [
        (base * r, d, g)
        for r, d, g in ((1, 0.3, 0.6), (2.4, 0.25, 1), (3.9, 0.2, 0.9), (5.6, 0.12, 0.6), (7.4, 0.08, 0.4))
    ]
    hit = p.normalize(p.modes(p.samples(0.8), gong, p.burst(rng, 0.003, 0.001, [(500, 0), (12000, 0)])), 1.0)
    step = 1 / rng.uniform(17, 23)
    hits = [(k * step, hit, rng.uniform(0.8, 1)) for k in range(int(count / p.SAMPLE_RATE / step))]
    return p.join(hits)


@sound(
    "gong",
    "bells",
    "a gong|a large gong",
    "crash|resound|ring out",
    "the stroke of a gong",
    max_count=2,
    gap_s=(0.5, 1.5),
)
def gong(rng: Generator, n: int) -> Audio:
    """Low modes at once; high ones build up over a third of a second and shimmer."""
    count = min(n, p.samples(4.5))
    base = rng.uniform(85, 130)
    low = p.modes(count, [(base * r, 1.6 / r**0.4, 1 / r**0.5) for r in (1, 1.48, 2.02, 2.6, 3.37)])
    high = p.modes(count, [(base * r, 0.9 / (r / 5) ** 0.5, 1.0) for r in rng.uniform(4, 28, 24)])
    build = 1 - np.exp(-p.times(count) / 0.25)
    return ((p.normalize(low, 1.0) + 0.7 * p.normalize(high, 1.0) * build) * p.envelope(count, 0, 1.0)).astype(
        np.float32
    )


@sound("sleigh bells", "bells", "sleigh bells|jingle bells", "jingle|ring", "the jingle of small bells", texture=True)
def sleigh_bells(rng: Generator, n: int) -> Audio:
    """A handful of tiny spheres, shaken on the beat."""
    spheres = [
        p.modes(
            p.samples(0.25),
            [(rng.uniform(4200, 9500), rng.uniform(0.02, 0.05), 1), (rng.uniform(6000, 11000), 0.02, 0.6)],
        )
        for _ in range(8)
    ]
    rate = rng.uniform(2.5, 4.5)
    shake = np.exp(-9 * (p.phase(rate, n) % 1.0)) + 0.02
    return p.scatter(rng, n, [p.normalize(s, 1.0) for s in spheres], 170, 0.5, shake.astype(np.float32))
