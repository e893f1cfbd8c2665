"""The synthesised sounds: each a name, its captions, and a function that renders it from a random generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ezaudio.data import primitives as p
from ezaudio.data.primitives import Audio

Render = Callable[[np.random.Generator, int], Audio]


@dataclass(frozen=True, slots=True)
class Sound:
    """A kind of sound: `phrases` are interchangeable captions, the plain form first; `weight` its share of clips."""

    name: str
    phrases: tuple[str, ...]
    render: Render
    weight: float = 1.0


SOUNDS: dict[str, Sound] = {}


def sound(name: str, *phrases: str, weight: float = 1.0) -> Callable[[Render], Render]:
    """Register a render function (generator, number of samples) → mono audio of any level."""

    def register(render: Render) -> Render:
        SOUNDS[name] = Sound(name, phrases, render, weight)
        return render

    return register


@sound(
    "white noise",
    "white noise",
    "static noise",
    "radio static",
    "hissing noise",
    "a steady hiss",
    "tv static",
    weight=0.5,
)
def white_noise(rng: np.random.Generator, n: int) -> Audio:
    return p.band_noise(rng, n, [(50, 0), (12000, 0)])


@sound(
    "rain",
    "rain falling",
    "rain",
    "the sound of rain",
    "heavy rain",
    "rain is falling",
    "rain pouring down",
    "rainfall",
    weight=0.8,
)
def rain(rng: np.random.Generator, n: int) -> Audio:
    drops = [p.burst(rng, 0.02, 0.003, [(800, -20), (2500, 0), (6000, 0), (12000, -12)]) for _ in range(6)]
    bed = p.band_noise(rng, n, [(60, -18), (400, -10), (1500, 0), (5000, -3), (12000, -14)])
    return bed + 0.5 * p.scatter(rng, n, drops, rng.uniform(40, 120), 0.5)


@sound(
    "wind",
    "wind blowing",
    "the wind is blowing",
    "wind",
    "strong wind",
    "howling wind",
    "a gust of wind",
    "gusty wind",
    weight=0.6,
)
def wind(rng: np.random.Generator, n: int) -> Audio:
    gust = 0.15 + 0.85 * p.slow_curve(rng, n, rng.uniform(1.2, 2.5))
    low = p.band_noise(rng, n, [(30, -6), (120, 0), (300, -10), (900, -34), (4000, -60)])
    howl = p.band_noise(rng, n, [(150, -30), (350, -4), (500, 0), (700, -6), (1500, -40)])
    return low * gust + 0.5 * howl * gust**2


@sound(
    "ocean",
    "ocean waves",
    "waves crashing on the shore",
    "sea waves",
    "waves on a beach",
    "the sound of the sea",
    "surf",
    weight=0.8,
)
def ocean(rng: np.random.Generator, n: int) -> Audio:
    position = np.arange(n) / p.SAMPLE_RATE / rng.uniform(4.0, 6.0) + rng.random()
    swell = (np.sin(np.pi * (position % 1.0) ** 0.6) ** 2).astype(np.float32)
    deep = p.band_noise(rng, n, [(40, -8), (200, 0), (800, -8), (3000, -24), (12000, -40)])
    foam = p.band_noise(rng, n, [(200, -20), (1000, -4), (3000, 0), (8000, -8), (12000, -16)])
    return deep * (0.2 + 0.8 * swell) + foam * (0.04 + swell**2)


@sound(
    "thunder",
    "thunder",
    "thunder rumbling",
    "a clap of thunder",
    "rolling thunder",
    "distant thunder",
    "thunder is rolling",
    weight=0.8,
)
def thunder(rng: np.random.Generator, n: int) -> Audio:
    rumble = p.band_noise(rng, n, [(20, -10), (60, 0), (150, -6), (400, -22), (2000, -50)])
    envelope = np.full(n, 0.02, np.float32)
    start = int(rng.integers(0, 40)) * p.TICK
    while start < n:
        for place in start + np.sort(rng.integers(0, 50, 4)) * p.TICK:
            p.add(
                envelope,
                np.exp(-p.seconds(4.0) / rng.uniform(0.5, 1.2)).astype(np.float32),
                int(place),
                rng.uniform(0.3, 1),
            )
        start += int(rng.integers(100, 160)) * p.TICK
    return rumble * np.convolve(envelope, np.ones(480, np.float32) / 480, "same").astype(np.float32)


@sound(
    "fire",
    "fire crackling",
    "a crackling fire",
    "a campfire",
    "a fire is burning",
    "fire crackles and pops",
    "fireplace",
    weight=0.8,
)
def fire(rng: np.random.Generator, n: int) -> Audio:
    snaps = [
        p.burst(rng, 0.03, rng.uniform(0.001, 0.004), [(400, -10), (1500, 0), (5000, -3), (12000, -10)])
        for _ in range(8)
    ]
    roar = p.band_noise(rng, n, [(40, -6), (120, 0), (500, -14), (3000, -34)])
    return 0.25 * roar + 1.2 * p.scatter(rng, n, snaps, rng.uniform(20, 40), 0.5)


@sound(
    "applause",
    "applause",
    "people clapping",
    "an audience clapping",
    "a crowd applauds",
    "clapping",
    "people are clapping",
    weight=0.8,
)
def applause(rng: np.random.Generator, n: int) -> Audio:
    claps = [
        p.burst(rng, 0.05, rng.uniform(0.004, 0.01), [(300, -24), (f / 1.6, -6), (f, 0), (1.8 * f, -8), (12000, -26)])
        for f in rng.uniform(900, 2200, 10)
    ]
    return p.scatter(rng, n, claps, rng.uniform(120, 300), 0.5)


@sound(
    "engine",
    "an engine running",
    "engine",
    "a motor running",
    "a car engine idling",
    "an engine is running",
    "motor noise",
    weight=0.5,
)
def engine(rng: np.random.Generator, n: int) -> Audio:
    t = np.arange(n) / p.SAMPLE_RATE
    f0 = float(rng.choice([50, 75, 100]))
    levels = 0.75 ** np.arange(12) * np.random.default_rng(int(f0)).uniform(0.4, 1, 12)
    hum = sum(level * np.sin(2 * np.pi * f0 * (k + 1) * t + k * k) for k, level in enumerate(levels))
    throb = 1 + 0.3 * np.sin(2 * np.pi * 12.5 * t)
    noise = p.band_noise(rng, n, [(40, 0), (200, -4), (1000, -14), (4000, -30)])
    return (hum * throb + 0.4 * noise).astype(np.float32)


@sound(
    "low beep",
    "a low beep",
    "low beeping",
    "a low pitched beep",
    "low pitched beeping",
    "a deep tone beeping",
    weight=0.5,
)
def low_beep(rng: np.random.Generator, n: int) -> Audio:
    return _beep(rng, n, 400)


@sound("beep", "beeping", "a beep", "electronic beeping", "a machine beeping", "beep beep beep", "a beeping sound")
def beep(rng: np.random.Generator, n: int) -> Audio:
    return _beep(rng, n, 1000)


@sound("high beep", "a high beep", "high beeping", "a high pitched beep", "high pitched beeping", weight=0.5)
def high_beep(rng: np.random.Generator, n: int) -> Audio:
    return _beep(rng, n, 2000)


def _beep(rng: np.random.Generator, n: int, frequency_hz: float) -> Audio:
    on = int(rng.integers(4, 7))
    return p.repeat(rng, n, [p.tone(frequency_hz, on * p.TICK / p.SAMPLE_RATE)], (2 * on, 2 * on + 2), vary=0)


@sound(
    "alarm",
    "an alarm",
    "alarm ringing",
    "a fire alarm",
    "an alarm is sounding",
    "an alarm goes off",
    "alarm clock buzzing",
    weight=0.8,
)
def alarm(rng: np.random.Generator, n: int) -> Audio:
    ticks = int(rng.integers(3, 5))
    buzz = (1.0, 0.0, 0.33, 0.0, 0.2)
    tones = [p.tone(f, ticks * p.TICK / p.SAMPLE_RATE, buzz) for f in (800, 600)]
    return p.repeat(rng, n, tones, (ticks, ticks), vary=0)


@sound(
    "siren",
    "a siren",
    "an ambulance siren",
    "a police siren",
    "a siren wailing",
    "siren",
    "an emergency vehicle siren",
    weight=0.8,
)
def siren(rng: np.random.Generator, n: int) -> Audio:
    ticks = int(rng.integers(14, 18))
    horn = (1.0, 0.5, 0.3)
    tones = [p.tone(f, ticks * p.TICK / p.SAMPLE_RATE, horn, 0.02) for f in (450, 600)]
    return p.repeat(rng, n, tones, (ticks, ticks), vary=0)


@sound("bell", "a bell ringing", "church bell", "bell", "a church bell rings", "bells tolling", "the ringing of a bell")
def bell(rng: np.random.Generator, n: int) -> Audio:
    f0 = float(rng.choice([400, 500]))
    strike = np.zeros(p.TICK * 100, np.float32)
    for ratio, gain, decay_s in (
        (0.5, 0.5, 1.6),
        (1, 0.8, 1.1),
        (1.2, 0.6, 0.9),
        (1.5, 0.3, 0.6),
        (2, 1, 0.7),
        (3, 0.4, 0.3),
        (4, 0.3, 0.2),
    ):
        frequency = round(ratio * f0 / p.TONE_GRID_HZ) * p.TONE_GRID_HZ
        p.add(strike, p.damped(frequency, 4.0, decay_s), 0, gain)
    return p.repeat(rng, n, [strike], (35, 60))


@sound(
    "phone",
    "a phone ringing",
    "telephone ringing",
    "a telephone rings",
    "a phone is ringing",
    "phone",
    "an old phone ringing",
)
def phone(rng: np.random.Generator, n: int) -> Audio:
    t = p.seconds(1.0)
    hammer = 0.55 + 0.45 * np.sign(np.sin(2 * np.pi * 25 * t))
    ring = p.fade(np.asarray((p.tone(1300, 1.0) + 0.7 * p.tone(1700, 1.0)) * hammer, dtype=np.float32), 0.01)
    return p.repeat(rng, n, [ring], (45, 55), vary=0)


@sound(
    "clock",
    "a clock ticking",
    "clock ticking",
    "a ticking clock",
    "tick tock",
    "the ticking of a clock",
    "a clock is ticking",
)
def clock(rng: np.random.Generator, n: int) -> Audio:
    shape = [(800, -20), (2500, 0), (7000, -4), (12000, -12)]
    fixed = np.random.default_rng(int(rng.integers(2)))
    ticks = [p.burst(fixed, 0.06, 0.006, shape) + 1.5 * p.damped(f, 0.06, 0.015) for f in (3000, 2200)]
    return p.repeat(rng, n, ticks, (12, 13), vary=0.05) + 0.002 * p.band_noise(rng, n, [(50, 0), (6000, -20)])


@sound(
    "drums", "a drum beat", "drums", "drums playing", "a drummer playing", "drum beat", "someone is playing the drums"
)
def drums(rng: np.random.Generator, n: int) -> Audio:
    fixed = np.random.default_rng(0)
    kick = p.damped(90, 0.3, 0.08, -0.6)
    snare = 0.35 * p.burst(fixed, 0.25, 0.05, [(150, -10), (1000, 0), (5000, -2), (12000, -10)]) + 0.5 * p.damped(
        200, 0.25, 0.05
    )
    hat = 0.15 * p.burst(fixed, 0.08, 0.015, [(3000, -30), (7000, 0), (12000, 0)])
    steps = [kick, hat, snare, hat] if rng.random() < 0.5 else [kick, hat, snare, kick]
    return p.repeat(rng, n, steps, (6, 7))


@sound(
    "heartbeat",
    "a heartbeat",
    "heart beating",
    "a heart is beating",
    "heartbeat",
    "the beating of a heart",
    "a beating heart",
)
def heartbeat(rng: np.random.Generator, n: int) -> Audio:
    beat = np.zeros(p.TICK * 16, np.float32)
    p.add(beat, p.fade(p.damped(60, 0.25, 0.05), 0.005), 0)
    p.add(beat, p.fade(p.damped(75, 0.2, 0.04), 0.005), 8 * p.TICK, 0.7)
    return p.repeat(rng, n, [beat], (20, 25)) + 0.003 * p.band_noise(rng, n, [(40, 0), (1000, -30)])


@sound(
    "crickets", "crickets chirping", "crickets", "crickets at night", "a cricket chirps", "insects chirping at night"
)
def crickets(rng: np.random.Generator, n: int) -> Audio:
    pulse = p.fade(p.tone(4500, 0.025), 0.008)
    chirp = np.zeros(p.TICK * 4, np.float32)
    for index in range(4):
        p.add(chirp, pulse, index * p.TICK, 0.6 + 0.1 * index)
    near = p.repeat(rng, n, [chirp], (9, 12))
    return near + 0.4 * p.repeat(rng, n, [chirp], (10, 14)) + 0.01 * p.band_noise(rng, n, [(50, 0), (8000, -20)])


@sound("birds", "birds chirping", "birds singing", "a bird chirps", "birdsong", "a bird is singing", "birds tweeting")
def birds(rng: np.random.Generator, n: int) -> Audio:
    notes = [(3200, 0.10, -0.3), (2600, 0.12, 0.4), (3800, 0.07, -0.4), (3000, 0.15, 0.0)]
    songs = []
    for order in ((0, 0, 0), (1, 2, 2), (3, 1), (2, 2, 2, 2)):
        song = np.zeros(p.TICK * 20, np.float32)
        for index, note in enumerate(order):
            frequency, duration_s, slide = notes[note]
            p.add(song, p.fade(p.damped(frequency, duration_s, 1.0, slide), 0.02), index * 4 * p.TICK)
        songs.append(song)
    audio = 0.005 * p.band_noise(rng, n, [(50, 0), (8000, -12)])
    place = int(rng.integers(0, 10)) * p.TICK
    while place < n:
        p.add(audio, songs[rng.integers(len(songs))], place, float(rng.uniform(0.5, 1)))
        place += int(rng.integers(14, 26)) * p.TICK
    return audio
