"""Instruments: strings are delay lines and partials, pipes are harmonics with breath, skins and bars are modes."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound

MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11, 12), (0, 2, 3, 5, 7, 8, 10, 12)


def melody(
    rng: Generator, n: int, low_hz: float, high_hz: float, lengths_s: tuple[float, ...]
) -> list[tuple[float, float, float]]:
    """A walk over a scale that fills n samples: (start in s, frequency in Hz, length in s) of each note."""
    root = rng.uniform(low_hz, high_hz / 2)
    scale = MAJOR if rng.random() < 0.6 else MINOR
    notes, start, degree = [], 0.0, int(rng.integers(0, 8))
    while start < n / p.SAMPLE_RATE:
        length = float(rng.choice(lengths_s))
        notes.append((start, root * 2 ** (scale[degree] / 12), length))
        start += length
        degree = int(np.clip(degree + rng.integers(-2, 3), 0, 7))
    return notes


def pluck(rng: Generator, frequency_hz: float, duration_s: float, bright: float, keep: float) -> Audio:
    """Karplus and Strong (1983): a burst of noise runs around a delay line that loses its highs at every turn."""
    count, period = p.samples(duration_s), p.SAMPLE_RATE / frequency_hz
    delay = int(period - 0.5)
    part = period - 0.5 - delay
    start = np.zeros(count)
    push = p.low_pass(rng.standard_normal(delay + 1).astype(np.float32), bright)
    start[: delay + 1] = push - push.mean()  # a line rings at 0 Hz, too
    line = np.zeros(delay + 3)
    line[0] = 1
    line[delay : delay + 3] -= keep * np.array([0.5 * (1 - part), 0.5, 0.5 * part])
    return lfilter([1.0], line, start).astype(np.float32)


class Strings(dict[float, Audio]):
    """Plucked strings of one instrument by frequency in Hz; each is made when it is first asked for."""

    def __init__(self, rng: Generator, duration_s: float, bright: float, keep: float) -> None:
        super().__init__()
        self.settings = (duration_s, bright, keep)
        self.rng = rng

    def __missing__(self, frequency_hz: float) -> Audio:
        self[frequency_hz] = pluck(self.rng, frequency_hz, *self.settings)
        return self[frequency_hz]


def played(n: int, notes: list[tuple[float, Audio, float]]) -> Audio:
    """Notes (start in s, audio, gain) in a clip of n samples."""
    audio = np.zeros(n, np.float32)
    for start, note, gain in notes:
        p.add(audio, note, p.samples(start), gain)
    return audio


@sound(
    "piano",
    "instruments",
    "a piano;a pianist|someone",
    "play|play softly;play the piano|play a melody on the piano",
    "piano music|a piano melody|piano notes",
    texture=True,
)
def piano(rng: Generator, n: int) -> Audio:
    """Stretched partials that decay in two stages, a hammer's knock, now and then a chord."""
    knock = p.burst(rng, 0.04, 0.008, [(100, 0), (400, -3), (2000, -18)])
    count = p.samples(1.8)
    t = p.times(count)
    struck: dict[float, Audio] = {}
    notes = []
    for start, f, length in melody(rng, n, 180, 720, (0.25, 0.25, 0.5, 0.75)):
        for key in (f, 1.25 * f, 1.5 * f) if rng.random() < 0.2 else (f,):
            if key not in struck:
                tone = np.zeros(count, np.float32)
                for k in range(1, 11):
                    partial = key * k * (1 + 0.0004 * k * k) ** 0.5
                    if partial < 11000:
                        fall = 0.7 * np.exp(-(2.2 + 0.9 * k) * t) + 0.3 * np.exp(-(0.6 + 0.25 * k) * t)
                        tone += np.sin(np.float32(2 * np.pi * partial) * t) * fall * np.float32(k**-1.1)
                p.add(tone, knock, 0, 0.06)
                struck[key] = tone
            release = p.envelope(count, 0.003, max(0.1, 1.8 - 1.6 * length))
            notes.append((start, struck[key] * release, rng.uniform(0.6, 1)))
    return played(n, notes)


@sound(
    "guitar",
    "instruments",
    "a guitar|an acoustic guitar;a guitarist",
    "play|strum;play a tune|strum a guitar",
    "guitar music|a strummed guitar|plucked guitar strings",
    texture=True,
)
def guitar(rng: Generator, n: int) -> Audio:
    """Chords strummed string by string, or single plucked notes, in a wooden body."""
    root = rng.uniform(82, 130)
    strings = Strings(rng, 1.2, 4500, 0.996)
    notes = []
    if rng.random() < 0.6:
        step = rng.uniform(0.4, 0.7)
        for index in range(int(n / p.SAMPLE_RATE / step) + 1):
            shift = 2 ** (float((0, 0, 5, 5, 7, 7, 0, 0)[index // 2 % 8]) / 12)
            for k, ratio in enumerate((1, 1.5, 2, 2.52, 3, 4)):
                string = strings[root * shift * ratio]
                notes.append((index * step + 0.014 * k, string, rng.uniform(0.6, 1)))
    else:
        for start, f, _ in melody(rng, n, 160, 640, (0.25, 0.5, 0.5)):
            notes.append((start, strings[f], rng.uniform(0.7, 1)))
    dry = played(n, notes)
    return dry + 0.6 * p.normalize(p.resonate(dry, [(105, 40), (210, 60)]), float(np.abs(dry).max()))


@sound(
    "violin",
    "instruments",
    "a violin|a fiddle;a violinist",
    "play|sing out;play a slow melody",
    "violin music|a violin solo",
    texture=True,
)
def violin(rng: Generator, n: int) -> Audio:
    """A sawtooth of the bowed string with vibrato, through the body's resonances; bow noise at each start."""
    notes = []
    for start, f, length in melody(rng, n, 260, 1000, (0.5, 0.75, 1.0, 1.5)):
        count = p.samples(length + 0.05)
        deep = p.curve(count, [(0, 0), (0.35, 1), (1, 1)]) * 0.008
        f0 = f * (1 + deep * np.sin(2 * np.pi * 5.8 * p.times(count)))
        string = p.tone(f0, count, [1 / k for k in range(1, 22)])
        bow = 0.05 * p.noise(rng, count, [(500, -10), (2500, 0), (9000, -6)]) * (1 + 3 * p.decay(count, 0.04))
        notes.append((start, (string + bow) * p.envelope(count, 0.09, 0.1), rng.uniform(0.7, 1)))
    dry = played(n, notes)
    return 0.3 * dry + p.resonate(dry, [(460, 160), (1150, 450), (2600, 700)])


@sound(
    "flute",
    "instruments",
    "a flute;a flutist",
    "play|play softly;play a melody on the flute",
    "flute music|a flute solo",
    texture=True,
)
def flute(rng: Generator, n: int) -> Audio:
    """Two or three harmonics, a chiff of breath, level that trembles."""
    notes = []
    for start, f, length in melody(rng, n, 520, 1800, (0.25, 0.5, 0.75)):
        count = p.samples(length)
        shake = np.sin(2 * np.pi * 5 * p.times(count)).astype(np.float32)
        tone = p.tone(f * (1 + 0.003 * shake), count, (1, 0.25, 0.1, 0.03)) * (1 + 0.12 * shake)
        breath = p.noise(rng, count, [(f * 0.7, -14), (f, 0), (3 * f if 3 * f < 11000 else 11000, -8)]) * (
            0.05 + 0.25 * p.decay(count, 0.04)
        )
        notes.append((start, (tone + breath) * p.envelope(count, 0.05, 0.06), rng.uniform(0.8, 1)))
    return played(n, notes)


@sound(
    "trumpet",
    "instruments",
    "a trumpet|a bugle;a trumpeter",
    "play|blare;play a fanfare",
    "trumpet music|a fanfare of trumpets",
    texture=True,
)
def trumpet(rng: Generator, n: int) -> Audio:
    """Brass: the louder the note, the more its upper harmonics; each starts with a small slide."""
    notes = []
    for start, f, length in melody(rng, n, 240, 900, (0.2, 0.2, 0.4, 0.8)):
        count = p.samples(length * 0.95)
        rise = 1 - np.exp(-p.times(count) / 0.035)
        f0 = f * (0.975 + 0.025 * rise) * (1 + 0.004 * np.sin(2 * np.pi * 5.5 * p.times(count)) * rise)
        soft = p.tone(f0, count, (1, 0.6, 0.25, 0.1))
        hard = p.tone(f0, count, (0.6, 0.9, 1, 0.9, 0.75, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12))
        notes.append(
            (
                start,
                ((1 - rise) * soft + rise * hard).astype(np.float32) * p.envelope(count, 0.03, 0.05),
                rng.uniform(0.8, 1),
            )
        )
    return p.resonate(played(n, notes), [(1300, 800)])


@sound(
    "organ",
    "instruments",
    "an organ|a church organ;an organist",
    "play|sound;play a hymn",
    "organ music|chords of a church organ",
    texture=True,
)
def organ(rng: Generator, n: int) -> Audio:
    """Chords held for a second or two on ranks at 1, 2, 3, 4, 6 and 8 times the note."""
    notes = []
    root = rng.uniform(110, 175)
    start = 0.0
    while start < n / p.SAMPLE_RATE:
        length = float(rng.choice([1.0, 1.5, 2.0]))
        shift = 2 ** (float(rng.choice([0, 5, 7, -3, 2])) / 12)
        chord = np.zeros(p.samples(length), np.float32)
        for ratio in (0.5, 1, 1.26, 1.5, 2):
            chord += p.tone(root * shift * ratio, len(chord), (1, 0.8, 0.4, 0.6, 0, 0.3, 0, 0.35))
        notes.append((start, chord * p.envelope(len(chord), 0.06, 0.06), 1.0))
        start += length
    return played(n, notes)


@sound(
    "xylophone",
    "instruments",
    "a xylophone|a marimba",
    "play|play a tune",
    "xylophone music|mallets on wooden bars",
    texture=True,
)
def xylophone(rng: Generator, n: int) -> Audio:
    """Wooden bars tuned 1 : 4 (marimba) or 1 : 3 (xylophone), dead within a third of a second."""
    second = 3.0 if rng.random() < 0.5 else 4.0
    notes = []
    for start, f, _ in melody(rng, n, 500, 1900, (0.15, 0.15, 0.3, 0.45)):
        bar = p.modes(
            p.samples(0.5),
            [(f, 0.11, 1), (second * f, 0.035, 0.4), (9.2 * f, 0.01, 0.2)],
            p.burst(rng, 0.003, 0.001, [(200, 0), (8000, -8)]),
        )
        notes.append((start, p.normalize(bar, 1.0), rng.uniform(0.6, 1)))
    return played(n, notes)


@sound(
    "drum kit",
    "instruments",
    "drums;a drummer",
    "play a beat;play the drums|play a beat",
    "a drum beat|drum music|a drum solo",
    texture=True,
)
def drum_kit(rng: Generator, n: int) -> Audio:
    """Kick on 1 and 3, snare on 2 and 4, hi-hat on the eighths, at 80 to 140 beats a minute, a fill at times."""
    kick_n = p.samples(0.35)
    kick = p.tone(48 + 75 * np.exp(-p.times(kick_n) / 0.03), kick_n) * p.decay(kick_n, 0.1, 0.002)
    snare = p.join(
        [
            (0, p.normalize(p.burst(rng, 0.25, 0.06, [(200, -12), (1500, -2), (5000, 0), (12000, -6)]), 0.8), 1),
            (0, p.normalize(p.modes(p.samples(0.2), [(185, 0.04, 1), (330, 0.03, 0.7)]), 0.7), 1),
        ]
    )
    hat = p.burst(rng, 0.09, 0.02, [(2500, -40), (6500, -4), (9000, 0), (12000, 0)])
    eighth = max(5, round(30 / rng.uniform(80, 140) * p.SAMPLE_RATE / p.TICK)) * p.TICK / p.SAMPLE_RATE
    notes = []
    for k in range(int(n / p.SAMPLE_RATE / eighth) + 1):
        notes.append((k * eighth, p.normalize(hat, 1.0), rng.uniform(0.14, 0.25)))
        if k % 4 == 2 or (k % 32 > 27 and rng.random() < 0.7):
            notes.append((k * eighth, snare, rng.uniform(0.7, 0.9)))
        elif k % 4 == 0 or rng.random() < 0.15:
            notes.append((k * eighth, kick, 1.0))
    return played(n, notes)


@sound(
    "cymbal",
    "instruments",
    "a cymbal|cymbals",
    "crash|ring",
    "a cymbal crash|a crash of cymbals",
    max_count=4,
    gap_s=(-1.0, 0.3),
)
def cymbal(rng: Generator, n: int) -> Audio:
    count = min(n, p.samples(rng.uniform(1.8, 2.6)))
    wash = p.noise(rng, count, [(250, -20), (900, -8), (3500, -1), (7000, 0), (12000, -3)]) * p.decay(
        count, 0.55, 0.003
    )
    metal = p.modes(count, [(f, rng.uniform(0.2, 0.8), 1) for f in rng.uniform(350, 9000, 20)])
    return (wash + p.normalize(metal, 0.8) * p.decay(count, 1.0)) * p.envelope(count, 0, 0.5)


@sound(
    "bass guitar",
    "instruments",
    "a bass guitar;a bassist",
    "play|thump;play a groove on the bass",
    "a bass line|a bass riff",
    texture=True,
)
def bass(rng: Generator, n: int) -> Audio:
    strings = Strings(rng, 0.6, 1400, 0.994)
    notes = []
    for start, f, length in melody(rng, n, 41, 130, (0.25, 0.25, 0.5)):
        string = strings[f][: p.samples(length + 0.1)]
        notes.append((start, string * p.envelope(len(string), 0.003, 0.08), rng.uniform(0.8, 1)))
    return p.low_pass(played(n, notes), 1500, 2)


@sound(
    "harp",
    "instruments",
    "a harp;a harpist",
    "play;play an arpeggio|play the harp",
    "harp music|a harp glissando",
    texture=True,
)
def harp(rng: Generator, n: int) -> Audio:
    """Runs up and down over three octaves, a dozen strings a second, left to ring."""
    root = rng.uniform(130, 220)
    strings = Strings(rng, 1.2, 2500, 0.997)
    degrees = [12 * octave + step for octave in range(3) for step in (0, 2, 4, 7, 9)]
    notes, start, position, way = [], 0.0, 0, 1
    speed = rng.uniform(0.07, 0.13)
    while start < n / p.SAMPLE_RATE:
        f = root * 2 ** (degrees[position] / 12)
        notes.append((start, strings[f], rng.uniform(0.6, 1)))
        start += speed if rng.random() > 0.04 else 0.6
        way = way if 0 <= position + way < len(degrees) else -way
        position += way
    return played(n, notes)
