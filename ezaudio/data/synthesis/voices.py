"""Human voices: speech without words, laughter, cries, coughs."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound

# First three formants of a man's vowels, Hz (after Peterson and Barney 1952).
VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
    (640, 1190, 2390),
    (490, 1350, 1690),
)
UPPER = (3400, 4500)


def speech(rng: Generator, n: int, pitch_hz: float, tract: float) -> Audio:
    """Four syllables a second: a consonant of noise now and then, a vowel that glides, pauses between phrases."""
    audio = np.zeros(n, np.float32)
    place, left, fall = int(rng.integers(0, p.samples(0.4))), int(rng.integers(4, 9)), 1.0
    while place < n:
        if left == 0:
            place, left, fall = place + p.samples(rng.uniform(0.3, 0.8)), int(rng.integers(4, 10)), 1.0
            continue
        if rng.random() < 0.55:
            length = p.samples(rng.uniform(0.03, 0.11))
            centre = float(rng.choice([1800, 3500, 6000]))
            fricative = p.noise(rng, length, [(centre / 3, -30), (centre, 0), (min(2 * centre, 11000), -4)])
            p.add(audio, p.normalize(fricative, 0.16) * p.envelope(length, 0.008, 0.02), place)
            place += int(0.8 * length)
        length = p.samples(rng.uniform(0.1, 0.24))
        accent = fall * rng.uniform(0.92, 1.2)
        f0 = pitch_hz * accent * p.curve(length, [(0, 0.97), (0.4, 1.06), (1, 0.92)])
        glide = [[f * tract for f in (*VOWELS[int(k)], *UPPER)] for k in rng.integers(0, len(VOWELS), 2)]
        syllable = p.voice(rng, f0, glide, 0.03, 0.008, 0.6)
        p.add(audio, p.normalize(syllable, rng.uniform(0.6, 1)) * p.envelope(length, 0.02, 0.04), place)
        place += int(0.93 * length)
        left, fall = left - 1, fall * 0.97
    return audio


@sound(
    "man speaking",
    "people",
    "a man|a male speaker",
    "speak|talk",
    "male speech|a man's voice",
    texture=True,
    weight=1.3,
)
def man(rng: Generator, n: int) -> Audio:
    return speech(rng, n, rng.uniform(90, 135), rng.uniform(0.95, 1.05))


@sound(
    "woman speaking",
    "people",
    "a woman|a female speaker",
    "speak|talk",
    "female speech|a woman's voice",
    texture=True,
    weight=1.3,
)
def woman(rng: Generator, n: int) -> Audio:
    return speech(rng, n, rng.uniform(185, 245), rng.uniform(1.14, 1.22))


@sound(
    "crowd",
    "people",
    "a crowd;people|many people",
    "chatter|murmur;talk at once|chatter",
    "the chatter of a crowd|crowd noise|a babble of voices",
    texture=True,
)
def crowd(rng: Generator, n: int) -> Audio:
    """A dozen voices made of three that are shifted in time, with the mumble of those farther off."""
    audio = np.zeros(n, np.float32)
    for pitch_hz, tract in ((105.0, 1.0), (205.0, 1.17), (145.0, 1.06)):
        near = np.resize(speech(rng, n // 3 + 1, pitch_hz * rng.uniform(0.9, 1.1), tract), n)
        several = sum(np.roll(near, int(rng.integers(n))) * np.float32(rng.uniform(0.5, 1)) for _ in range(4))
        audio += p.low_pass(np.asarray(several, np.float32), rng.uniform(1200, 3500))
    return audio + 0.05 * p.noise(rng, n, [(100, -10), (350, 0), (900, -6), (3000, -22)])


@sound(
    "laughter",
    "people",
    "a man|a woman|someone",
    "laugh|laugh out loud|chuckle",
    "laughter|a burst of laughter",
    max_count=3,
    gap_s=(0.2, 0.9),
    counted=False,
)
def laughter(rng: Generator, n: int) -> Audio:
    """ "ha-ha-ha": five calls a second, each begun with breath, falling in pitch and level."""
    high = rng.random() < 0.5
    pitch, tract = (rng.uniform(260, 380), 1.17) if high else (rng.uniform(150, 220), 1.0)
    vowel = [f * tract for f in (*VOWELS[int(rng.choice([0, 3, 5]))], *UPPER)]
    calls = []
    step = rng.uniform(0.17, 0.23)
    for k in range(int(rng.integers(4, 10))):
        breath = p.noise(rng, p.samples(0.06), [(400, -8), (1500, 0), (6000, -12)]) * p.envelope(
            p.samples(0.06), 0.02, 0.03
        )
        length = p.samples(0.55 * step)
        f0 = pitch * 0.965**k * p.curve(length, [(0, 1.0), (0.3, 1.1), (1, 0.85)])
        ha = p.voice(rng, f0, [vowel], 0.15, 0.012, 0.65)
        calls += [
            (k * step, breath, 0.06),
            (k * step + 0.045, p.normalize(ha, 1.0) * p.envelope(length, 0.015, 0.04), 0.95**k),
        ]
    return p.join(calls)


@sound(
    "coughing",
    "people",
    "someone|a man|a person",
    "cough|cough loudly",
    "a cough|coughs|a coughing fit",
    max_count=5,
    gap_s=(0.05, 0.5),
    counted=False,
)
def cough(rng: Generator, n: int) -> Audio:
    """The folds burst open (noise at once, all frequencies), then a hoarse short voice."""
    bursts, start = [], 0.0
    for k in range(int(rng.integers(1, 4))):
        count = p.samples(rng.uniform(0.18, 0.3))
        air = p.noise(rng, count, [(150, -10), (600, 0), (1700, -2), (4000, -8), (10000, -16)])
        air = p.resonate(air, [(700, 300), (1500, 400)]) * p.decay(count, 0.06, 0.003)
        f0 = rng.uniform(120, 220) * p.curve(count, [(0, 1.3), (0.4, 1), (1, 0.7)])
        groan = p.voice(rng, f0, [(650, 1200, 2500)], 0.6, 0.08, 0.5) * p.envelope(count, 0.03, 0.1)
        bursts.append((start, p.normalize(air, 1.0) + p.normalize(groan, 0.35), 0.85**k))
        start += rng.uniform(0.28, 0.4)
    return p.join(bursts)


@sound("sneezing", "people", "someone|a person|a man", "sneeze", "a sneeze|achoo", max_count=3, gap_s=(0.4, 1.0))
def sneeze(rng: Generator, n: int) -> Audio:
    """A breath drawn in with rising pitch, then a burst of hiss."""
    draw = p.samples(rng.uniform(0.3, 0.5))
    f0 = p.curve(draw, [(0, 180), (1, 330)])
    ah = p.voice(rng, f0, [(700, 1250, 2600), (800, 1500, 2800)], 0.7, 0.02, 0.8) * p.curve(
        draw, [(0, 0), (0.8, 0.6), (1, 0.1)]
    )
    count = p.samples(rng.uniform(0.3, 0.45))
    choo = p.noise(rng, count, [(300, -22), (1500, -6), (3500, 0), (7000, -2), (12000, -8)]) * p.decay(
        count, 0.1, 0.012
    )
    oo = p.voice(rng, p.curve(count, [(0, 330), (1, 170)]), [(350, 900, 2300)], 0.3, 0.02) * p.envelope(
        count, 0.03, 0.2
    )
    return p.join(
        [
            (0, p.normalize(ah, 0.35), 1),
            (draw / p.SAMPLE_RATE + 0.04, p.normalize(choo, 1.0) + p.normalize(oo, 0.35), 1),
        ]
    )


@sound("snoring", "people", "someone|a man|a sleeper", "snore|snore loudly", "a snore|snores", texture=True)
def snore(rng: Generator, n: int) -> Audio:
    """The palate flaps some 45 times a second while air is drawn in; a soft hiss going out."""
    period = rng.uniform(2.6, 3.6)
    part = (p.times(n) / np.float32(period) + np.float32(rng.random())) % 1.0
    drawn = np.clip(np.sin(np.pi * part / 0.42), 0, 1) * (part < 0.42)
    blown = np.clip(np.sin(np.pi * (part - 0.5) / 0.35), 0, 1) * ((part > 0.5) & (part < 0.85))
    f0 = rng.uniform(38, 55) * (0.9 + 0.3 * drawn) * (1 + 0.06 * p.noise(rng, n, [(3, 0), (40, -10)]))
    flap = p.resonate(
        p.pulses(f0, n, 12) * (1 + 0.6 * p.noise(rng, n, [(200, 0), (3000, -8)])), [(280, 120), (750, 200), (1900, 400)]
    )
    hiss = p.noise(rng, n, [(300, -8), (1200, 0), (4000, -8), (10000, -20)])
    return (p.normalize(flap, 1.0) * drawn + 0.06 * hiss * blown).astype(np.float32)


@sound(
    "crying baby",
    "people",
    "a baby|an infant",
    "cry|wail",
    "a baby's cry|a crying infant",
    gap_s=(0.15, 0.5),
    max_count=6,
)
def baby(rng: Generator, n: int) -> Audio:
    """An arch of pitch near 450 Hz for a second, harsh at its height, then a quick breath in."""
    count = p.samples(rng.uniform(0.7, 1.3))
    f0 = rng.uniform(390, 500) * p.curve(count, [(0, 0.8), (0.15, 1.05), (0.6, 1.1), (1, 0.8)])
    f0 *= 1 + 0.02 * np.sin(2 * np.pi * 6 * p.times(count))
    cry = p.voice(
        rng, f0, [(900, 1700, 3400, 5000), (1200, 2100, 3700, 5200), (900, 1700, 3400, 5000)], 0.08, 0.014, 0.4
    )
    gasp_length = p.samples(0.18)
    gasp = p.noise(rng, gasp_length, [(500, -12), (1800, 0), (6000, -8)]) * p.envelope(gasp_length, 0.06, 0.06)
    return p.join(
        [(0, p.normalize(cry, 1.0) * p.envelope(count, 0.06, 0.12, 0.9), 1), (count / p.SAMPLE_RATE + 0.06, gasp, 0.08)]
    )


@sound(
    "screaming",
    "people",
    "a woman|someone",
    "scream|shriek in fear",
    "a scream|a shriek of terror",
    max_count=3,
    gap_s=(0.3, 0.9),
)
def scream(rng: Generator, n: int) -> Audio:
    """A high held cry, so loud that it is rough: level shaken at 60 Hz."""
    count = p.samples(rng.uniform(0.8, 1.6))
    f0 = rng.uniform(950, 1300) * p.curve(count, [(0, 0.75), (0.12, 1.0), (0.75, 1.02), (1, 0.8)])
    cry = p.voice(rng, f0, [(1250, 2000, 3300, 4600)], 0.15, 0.02, 0.45)
    rough = 1 + 0.35 * np.sin(2 * np.pi * p.phase(rng.uniform(45, 75), count))
    return (np.tanh(2 * p.normalize(cry, 1.0)) * rough * p.envelope(count, 0.05, 0.2)).astype(np.float32)
