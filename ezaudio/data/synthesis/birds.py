"""Birds, frogs and insects: whistles, rattles and pulses more than voices."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


@sound(
    "rooster",
    "animals",
    "a rooster|a cockerel",
    "crow",
    "cock-a-doodle-doo|a rooster's crow",
    max_count=3,
    gap_s=(0.4, 1.5),
)
def rooster(rng: Generator, n: int) -> Audio:
    """Four notes, the third the highest, the last held and falling."""
    base = rng.uniform(480, 600)
    notes = ((0.0, 0.16, 0.85, 0.95), (0.2, 0.14, 1.05, 1.1), (0.36, 0.34, 1.25, 1.5), (0.76, 0.85, 1.45, 0.9))
    calls = []
    for start, length, low, high in notes:
        count = p.samples(length)
        f0 = base * p.curve(count, [(0, low * 0.9), (0.2, max(low, high) * 0.98), (0.6, high), (1, high * 0.78)])
        crow = p.voice(rng, f0, [(900, 1900, 3300), (1150, 2200, 3500), (800, 1700, 3200)], 0.08, 0.012, 0.5)
        calls.append((start, p.normalize(crow, 1.0) * p.envelope(count, 0.03, 0.08), 0.7 + 0.3 * (length > 0.3)))
    return p.join(calls)


@sound(
    "hen",
    "animals",
    "a hen|a chicken",
    "cluck|cackle",
    "clucks of a hen|the clucking of chickens",
    gap_s=(0.1, 0.6),
    counted=False,
)
def hen(rng: Generator, n: int) -> Audio:
    """A run of short clucks; now and then the last one is drawn out."""
    calls, start = [], 0.0
    for index in range(int(rng.integers(3, 7))):
        long = index > 2 and rng.random() < 0.3
        count = p.samples(0.28 if long else rng.uniform(0.045, 0.075))
        f0 = rng.uniform(380, 470) * p.curve(count, [(0, 0.8), (0.3, 1.9 if long else 1.25), (1, 0.9)])
        cluck = p.voice(rng, f0, [(700, 1350, 2800), (1000, 1700, 3000)], 0.1, 0.02, 0.45)
        calls.append((start, p.normalize(cluck, 1.0) * p.envelope(count, 0.008, 0.03), rng.uniform(0.6, 1)))
        start += rng.uniform(0.17, 0.34) + (0.3 if long else 0)
    return p.join(calls)


@sound(
    "duck",
    "animals",
    "a duck|a mallard",
    "quack",
    "quacks of a duck|the quacking of ducks",
    gap_s=(0.1, 0.6),
    counted=False,
)
def duck(rng: Generator, n: int) -> Audio:
    """Nasal and harsh; a series loses level and pitch."""
    calls, start = [], 0.0
    base = rng.uniform(210, 290)
    for index in range(int(rng.integers(1, 5))):
        count = p.samples(rng.uniform(0.15, 0.24))
        f0 = base * 0.95**index * p.curve(count, [(0, 1.1), (0.3, 1.15), (1, 0.85)])
        quack = p.voice(rng, f0, [(950, 1250, 2300, 3300), (1150, 1500, 2500, 3400)], 0.15, 0.05, 0.3, 0.06)
        calls.append((start, p.normalize(quack, 1.0) * p.envelope(count, 0.012, 0.06), 0.85**index))
        start += rng.uniform(0.24, 0.34)
    return p.join(calls)


@sound(
    "crow",
    "animals",
    "a crow|a raven",
    "caw|croak hoarsely",
    "caws of a crow|the cawing of crows",
    gap_s=(0.15, 0.7),
    outdoors=True,
)
def crow(rng: Generator, n: int) -> Audio:
    """Hoarse: the pitch jitters by a tenth, the tract rings at 1.4 kHz."""
    count = p.samples(rng.uniform(0.28, 0.45))
    f0 = rng.uniform(310, 400) * p.curve(count, [(0, 0.85), (0.2, 1.05), (1, 0.85)])
    caw = p.voice(rng, f0, [(1250, 1750, 2900), (1500, 1900, 3200), (1150, 1650, 2900)], 0.5, 0.1, 0.4, 0.11)
    return p.normalize(caw, 1.0) * p.envelope(count, 0.02, 0.08)


@sound(
    "owl",
    "animals",
    "an owl|a tawny owl",
    "hoot|hoot at night",
    "an owl's hoot|hoots of an owl",
    max_count=3,
    gap_s=(0.6, 1.5),
)
def owl(rng: Generator, n: int) -> Audio:
    """One long note, a pause, then a wavering one: almost pure tones with breath."""
    base = rng.uniform(430, 760)
    calls = []
    for start, length, shake in ((0.0, 0.45, 0.0), (0.85, 0.12, 0.0), (1.05, 0.9, 0.035)):
        count = p.samples(length)
        wave = np.sin(2 * np.pi * 11 * p.times(count))
        f0 = base * p.curve(count, [(0, 0.88), (0.25, 1.0), (0.75, 1.0), (1, 0.9)]) * (1 + shake * wave)
        hoot = p.tone(f0, count, (1, 0.3, 0.14, 0.07, 0.03, 0.015)) + 0.02 * p.noise(
            rng, count, [(300, 0), (1500, -20)]
        )
        calls.append(
            (
                start,
                (hoot * (1 - 0.3 * (shake > 0) * (1 + wave) / 2)).astype(np.float32) * p.envelope(count, 0.07, 0.15),
                1.0,
            )
        )
    return p.join(calls)


@sound(
    "songbird",
    "animals",
    "a bird|birds|a songbird",
    "chirp|sing|tweet",
    "birdsong|bird calls|twittering birds",
    gap_s=(0.1, 0.7),
    outdoors=True,
    counted=False,
)
def songbird(rng: Generator, n: int) -> Audio:
    """A phrase of whistled syllables, each repeated a few times, from 2 to 6 kHz."""
    song, start = [], 0.0
    for _ in range(int(rng.integers(1, 4))):
        low, ratio = rng.uniform(2300, 4200), rng.uniform(0.6, 1.6)
        length, rest = rng.uniform(0.05, 0.16), rng.uniform(0.02, 0.07)
        count = p.samples(length)
        bend = rng.uniform(0.8, 1.3)
        f0 = np.minimum(low * p.curve(count, [(0, 1), (0.5, bend), (1, ratio)]), 8000)
        syllable = p.tone(f0.astype(np.float32), count, (1, 0.06)) * p.envelope(count, 0.012, 0.03)
        for _ in range(int(rng.integers(1, 6))):
            song.append((start, syllable, rng.uniform(0.7, 1)))
            start += length + rest
        start += 0.05
    return p.join(song)


@sound(
    "pigeon", "animals", "a pigeon|a dove", "coo", "coos of a pigeon|the cooing of doves", gap_s=(0.2, 0.8), max_count=4
)
def pigeon(rng: Generator, n: int) -> Audio:
    """Low "coo-roo-coo": near 400 Hz, rolled at 25 Hz in the middle."""
    base = rng.uniform(330, 430)
    calls = []
    for start, length, pitch, roll in ((0.0, 0.22, 0.9, 0.0), (0.28, 0.5, 1.1, 0.8), (0.86, 0.3, 0.92, 0.3)):
        count = p.samples(length)
        f0 = base * pitch * p.curve(count, [(0, 0.92), (0.4, 1.05), (1, 0.92)])
        purr = 1 - roll * (0.5 + 0.5 * np.sin(2 * np.pi * 26 * p.times(count)))
        coo = p.tone(f0, count, (1, 0.3, 0.05)) * purr.astype(np.float32) * p.envelope(count, 0.06, 0.1)
        calls.append((start, coo, 1.0))
    return p.join(calls)


@sound(
    "frog",
    "animals",
    "a frog|a toad",
    "croak|ribbit",
    "a frog's croak|croaks of a frog",
    gap_s=(0.15, 0.6),
    max_count=8,
    outdoors=True,
)
def frog(rng: Generator, n: int) -> Audio:
    """Two trains of damped pulses, "rib" and a rising "bit"."""
    body = rng.uniform(0.8, 1.2)
    parts = []
    for start, length, slow, fast, gain in ((0.0, 0.11, 60, 75, 0.7), (0.15, 0.2, 70, 120, 1.0)):
        count = p.samples(length)
        train = p.pulses(p.curve(count, [(0, slow), (1, fast)]), count, 14)
        rung = p.resonate(train, [(650 * body, 110), (1400 * body, 160), (2500 * body, 400)]) + 0.15 * train
        parts.append((start, p.normalize(rung, 1.0) * p.envelope(count, 0.01, 0.05), gain))
    return p.join(parts)


@sound(
    "crickets",
    "animals",
    "crickets|a cricket|night insects",
    "chirp|chirp in the grass",
    "the chirping of crickets|crickets at night",
    texture=True,
    outdoors=True,
)
def crickets(rng: Generator, n: int) -> Audio:
    """Three or four pulses near 4.5 kHz to a chirp, two chirps a second; one near and one or two further off."""
    audio = 0.01 * p.noise(rng, n, [(50, 0), (8000, -20)])
    for gain in (1.0, 0.4, 0.25)[: int(rng.integers(1, 4))]:
        pitch = float(rng.choice([4200, 4400, 4600, 4900]))
        pulse = p.tone(pitch, p.samples(0.02), (1,)) * p.envelope(p.samples(0.02), 0.007, 0.009)
        chirp = p.join([(0.035 * k, pulse, 0.6 + 0.13 * k) for k in range(int(rng.integers(3, 5)))])
        audio += np.float32(gain) * p.repeat(rng, n, [chirp], rng.uniform(0.32, 0.6), 0.1, 0.02)
    return audio


@sound(
    "cicadas",
    "animals",
    "cicadas|a cicada",
    "buzz in the trees|drone in the heat",
    "the shrill buzz of cicadas|a chorus of cicadas",
    texture=True,
    outdoors=True,
)
def cicadas(rng: Generator, n: int) -> Audio:
    """A shrill band at 5 to 8 kHz, chopped some 150 times a second, that swells over seconds."""
    band = p.noise(rng, n, [(2500, -50), (4800, -8), (5600, 0), (7500, 0), (9000, -20), (12000, -40)])
    chop = 0.35 + 0.65 * np.maximum(0, np.sin(2 * np.pi * p.phase(rng.uniform(110, 180), n)))
    swell = 0.35 + 0.65 * p.wander(rng, n, rng.uniform(1.5, 3))
    return (band * chop * swell).astype(np.float32)


@sound(
    "bee",
    "animals",
    "a bee|bees|a bumblebee",
    "buzz|buzz around",
    "the buzz of a bee|a buzzing insect",
    texture=True,
    outdoors=True,
)
def bee(rng: Generator, n: int) -> Audio:
    """Wings at some 200 beats a second; pitch and level wander as it flies past."""
    f0 = (
        rng.uniform(170, 240)
        * (0.92 + 0.16 * p.wander(rng, n, 0.6))
        * (1 + 0.01 * p.noise(rng, n, [(5, 0), (30, -20)]))
    )
    wings = p.tone(f0, n, (1, 0.9, 0.7, 0.55, 0.4, 0.3, 0.22, 0.16, 0.12, 0.08))
    near = 0.12 + 0.88 * p.wander(rng, n, 0.9) ** 2
    return (p.resonate(wings, [(500, 500)]) * near).astype(np.float32)


@sound(
    "woodpecker",
    "animals",
    "a woodpecker",
    "drum on a tree|peck at a trunk",
    "a woodpecker's drumming",
    gap_s=(0.5, 1.5),
    outdoors=True,
    max_count=4,
)
def woodpecker(rng: Generator, n: int) -> Audio:
    """Some fifteen blows on a trunk within a second, the last ones weaker."""
    wood = [(rng.uniform(700, 1000), 0.012, 1.0), (rng.uniform(1500, 2100), 0.007, 0.8), (3100, 0.004, 0.4)]
    knock = p.normalize(p.modes(p.samples(0.08), wood, p.burst(rng, 0.004, 0.001, [(300, 0), (8000, 0)])), 1.0)
    rate = rng.uniform(15, 20)
    count = int(rng.integers(10, 20))
    return p.join([(k / rate, knock, float(np.sin(np.pi * (k + 2) / (count + 3))) ** 0.5) for k in range(count)])
