"""Mammals: vocal folds through a tract, with the pitch, the vowels and the roughness of each."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


@sound(
    "dog",
    "animals",
    "a dog|a hound|a puppy",
    "bark|woof",
    "a dog's bark|barks of a dog",
    gap_s=(0.08, 0.5),
    max_count=8,
    weight=2.0,
)
def dog(rng: Generator, n: int) -> Audio:
    """A breath, a cry that opens from "u" to "a" and breaks: pitch up and down within a quarter of a second."""
    size = rng.uniform(0.75, 1.5)  # large dogs are below 1
    count = p.samples(rng.uniform(0.16, 0.28) / size**0.5)
    top = 520 * size * rng.uniform(0.9, 1.1)
    f0 = p.curve(count, [(0, 0.55 * top), (0.25, top), (0.5, 0.95 * top), (1, 0.45 * top)])
    mouth = [(350 * size, 800 * size, 2300, 3300), (780 * size, 1350 * size, 2500, 3500), (450 * size, 900, 2300, 3300)]
    bark = p.voice(rng, f0, mouth, breath=0.5, rough=0.03, open_share=0.5, width=0.13)
    bark = np.tanh(2.5 * p.normalize(bark, 1.0)) * p.envelope(count, 0.015, 0.6 * count / p.SAMPLE_RATE, 0.8)
    pant = 0.05 * p.burst(rng, 0.06, 0.02, [(400, -10), (1500, 0), (6000, -12)])
    return p.join([(0, pant, 1), (0.02, bark.astype(np.float32), 1)])


@sound("cat", "animals", "a cat|a kitten|a kitty", "meow|mew", "a cat's meow|meows of a cat", gap_s=(0.3, 1.2))
def cat(rng: Generator, n: int) -> Audio:
    """m-i-a-u: the mouth opens and closes again over one arch of pitch."""
    size = rng.uniform(0.9, 1.35)
    count = p.samples(rng.uniform(0.55, 1.0))
    f0 = 620 * size * p.curve(count, [(0, 0.75), (0.2, 1), (0.55, 1.08), (1, 0.68)])
    f0 *= 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(5, 7) * p.times(count))
    vowels = [(300, 1500, 3200), (500, 2600, 3600), (1050, 1900, 3500), (650, 1150, 3200)]
    meow = p.voice(rng, f0, [[f * size**0.5 for f in v] for v in vowels], breath=0.03, rough=0.004, open_share=0.7)
    return meow * p.envelope(count, 0.09, 0.22, 0.8)


@sound(
    "purring cat", "animals", "a cat|a contented cat", "purr|purr softly", "a cat's purr|purrs of a cat", texture=True
)
def purring(rng: Generator, n: int) -> Audio:
    """About 26 pulses a second, in and out with the breath."""
    breath = 0.5 + 0.5 * np.sin(2 * np.pi * p.times(n) / rng.uniform(1.3, 2.0) + rng.uniform(0, 6))
    rate = 25 * (0.95 + 0.15 * (breath > 0.5)) * (1 + 0.05 * p.wander(rng, n, 0.2))
    pulse = p.pulses(p.low_pass(rate.astype(np.float32), 3), n, 9)
    throat = p.resonate(pulse * (1 + 0.5 * p.noise(rng, n, [(100, 0), (1500, -10)])), [(160, 90), (420, 150)])
    hiss = 0.15 * p.noise(rng, n, [(150, -6), (500, 0), (1500, -10), (5000, -30)]) * np.maximum(pulse, 0)
    return ((p.normalize(throat, 1.0) + hiss) * (0.35 + 0.65 * breath)).astype(np.float32)


@sound(
    "cow",
    "animals",
    "a cow|a calf;cattle",
    "moo;low|moo",
    "a cow's moo|the lowing of cattle",
    gap_s=(0.5, 1.5),
    max_count=4,
)
def cow(rng: Generator, n: int) -> Audio:
    count = p.samples(rng.uniform(1.1, 2.0))
    f0 = rng.uniform(120, 170) * p.curve(count, [(0, 0.7), (0.2, 0.95), (0.7, 1.1), (1, 0.75)])
    vowels = [(220, 600, 2000), (300, 750, 2100), (480, 950, 2300), (350, 800, 2100)]
    moo = p.voice(rng, f0, vowels, breath=0.03, rough=0.012, open_share=0.5)
    return moo * p.envelope(count, 0.15, 0.3, 0.9)


@sound(
    "sheep", "animals", "a sheep|a lamb|a goat", "bleat|baa", "a sheep's bleat|the bleating of sheep", gap_s=(0.4, 1.2)
)
def sheep(rng: Generator, n: int) -> Audio:
    """A nasal "e" whose pitch and level tremble eight times a second."""
    count = p.samples(rng.uniform(0.6, 1.1))
    shake = np.sin(2 * np.pi * rng.uniform(7, 9.5) * p.times(count))
    f0 = rng.uniform(210, 330) * p.curve(count, [(0, 0.95), (0.3, 1.05), (1, 0.85)]) * (1 + 0.05 * shake)
    bleat = p.voice(rng, f0.astype(np.float32), [(620, 1650, 2700, 3700)], breath=0.05, rough=0.02, open_share=0.45)
    return (bleat * (0.65 + 0.35 * shake) * p.envelope(count, 0.03, 0.15, 0.9)).astype(np.float32)


@sound(
    "pig",
    "animals",
    "a pig|a hog|a piglet",
    "oink|grunt",
    "a pig's grunt|oinks of a pig",
    gap_s=(0.05, 0.4),
    max_count=8,
)
def pig(rng: Generator, n: int) -> Audio:
    """A short creak of the folds with much air through the snout."""
    count = p.samples(rng.uniform(0.14, 0.32))
    f0 = rng.uniform(55, 95) * p.curve(count, [(0, 0.9), (0.4, 1.2), (1, 0.8)])
    snout = [(320, 1050, 2100), (500, 1350, 2500), (360, 1100, 2200)]
    grunt = p.voice(rng, f0, snout, breath=0.6, rough=0.09, open_share=0.35, width=0.12)
    return grunt * p.envelope(count, 0.02, 0.09, 0.9)


@sound(
    "horse",
    "animals",
    "a horse|a stallion|a pony",
    "neigh|whinny",
    "a horse's neigh|the whinny of a horse",
    max_count=3,
)
def horse(rng: Generator, n: int) -> Audio:
    """A scream that falls over a second and a half while it trembles ever wider."""
    count = p.samples(rng.uniform(1.2, 1.9))
    place = p.curve(count, [(0, 0), (1, 1)])
    shake = np.sin(2 * np.pi * np.cumsum(p.curve(count, [(0, 13), (1, 9)])) / p.SAMPLE_RATE)
    f0 = rng.uniform(750, 1000) * p.curve(count, [(0, 0.8), (0.15, 1.2), (0.5, 0.9), (1, 0.4)])
    f0 = f0 * (1 + 0.13 * place * shake)
    neigh = p.voice(rng, f0.astype(np.float32), [(900, 1900, 3300), (700, 1500, 2900)], breath=0.25, rough=0.03)
    snort = 0.04 * p.noise(rng, count, [(300, -6), (1200, 0), (5000, -12)]) * place**2
    return ((p.normalize(neigh, 1.0) * (0.75 + 0.25 * place * shake) + snort) * p.envelope(count, 0.06, 0.25)).astype(
        np.float32
    )


@sound(
    "galloping horse",
    "animals",
    "a horse|a pony;hooves",
    "gallop|trot on a road;clatter|pound the ground",
    "a horse galloping|a horse trotting on a road|clip-clop of hooves",
    texture=True,
    outdoors=True,
)
def hooves(rng: Generator, n: int) -> Audio:
    """Four hollow knocks in a group, in the rhythm of a gallop or evenly in a trot."""
    clops = []
    for _ in range(4):
        body = [
            (rng.uniform(420, 700), 0.012, 1.0),
            (rng.uniform(950, 1500), 0.008, 0.7),
            (rng.uniform(2000, 2800), 0.004, 0.4),
        ]
        clop = p.modes(p.samples(0.12), body, p.burst(rng, 0.008, 0.002, [(300, -6), (2500, 0), (8000, -12)]))
        thud = p.burst(rng, 0.09, 0.02, [(40, 0), (160, 0), (500, -25)])
        clops.append(p.join([(0, p.normalize(clop, 1.0), 1), (0, p.normalize(thud, 1.0), 0.4)]))
    gallop = rng.random() < 0.5
    step = rng.uniform(0.44, 0.6)
    offsets = (0.0, 0.11, 0.2) if gallop else (0.0, 0.5 * step)
    group = p.join([(offset, clops[k], rng.uniform(0.7, 1)) for k, offset in enumerate(offsets)])
    return p.repeat(rng, n, [group], step, 0.15, 0.015)


@sound(
    "wolf",
    "animals",
    "a wolf|a coyote",
    "howl|howl at the moon",
    "a wolf's howl",
    outdoors=True,
    max_count=3,
    gap_s=(0.4, 1.0),
)
def wolf(rng: Generator, n: int) -> Audio:
    """Slides up a fifth, holds for seconds, sinks; little but the first harmonics."""
    count = p.samples(rng.uniform(2.2, 3.6))
    f0 = rng.uniform(430, 560) * p.curve(count, [(0, 0.6), (0.12, 0.95), (0.25, 1.0), (0.7, 1.03), (1, 0.62)])
    f0 *= 1 + 0.008 * np.sin(2 * np.pi * 5 * p.times(count))
    howl = p.voice(rng, f0, [(380, 800, 2500), (560, 950, 2600), (380, 800, 2500)], 0.02, 0.002, 0.85)
    return howl * p.envelope(count, 0.25, 0.7)


@sound(
    "lion",
    "animals",
    "a lion|a tiger",
    "roar|growl",
    "a lion's roar|the roar of a big cat",
    max_count=3,
    gap_s=(0.3, 0.9),
)
def lion(rng: Generator, n: int) -> Audio:
    count = p.samples(rng.uniform(1.2, 2.2))
    f0 = rng.uniform(70, 110) * p.curve(count, [(0, 0.9), (0.25, 1.4), (0.6, 1.1), (1, 0.6)])
    roar = p.voice(rng, f0, [(300, 800, 1900), (620, 1200, 2400), (350, 800, 2000)], 0.45, 0.14, 0.4, 0.15)
    air = 0.25 * p.noise(rng, count, [(80, -4), (350, 0), (1200, -8), (5000, -24)])
    growl = (0.6 + 0.4 * p.wander(rng, count, 0.04)) * (np.tanh(2 * p.normalize(roar, 1.0)) + air)
    return (growl * p.envelope(count, 0.15, 0.5)).astype(np.float32)


@sound(
    "mouse", "animals", "a mouse|a rat", "squeak", "squeaks of a mouse|squeaking mice", gap_s=(0.04, 0.4), max_count=9
)
def mouse(rng: Generator, n: int) -> Audio:
    count = p.samples(rng.uniform(0.05, 0.12))
    f0 = rng.uniform(4200, 6000) * p.curve(count, [(0, 0.8), (0.4, 1.15), (1, 0.9)])
    return p.tone(f0, count, (1, 0.25)) * p.envelope(count, 0.01, 0.03)


@sound("monkey", "animals", "a monkey|a chimpanzee", "hoot|screech", "monkey calls|a monkey's screech", max_count=3)
def monkey(rng: Generator, n: int) -> Audio:
    """ "u-a u-a", faster and higher each time."""
    calls, start = [], 0.0
    for index in range(int(rng.integers(4, 8))):
        count = p.samples(0.2 - 0.012 * index)
        top = 480 * 1.09**index
        f0 = top * p.curve(count, [(0, 0.7), (0.45, 0.75), (0.6, 1.3), (1, 1.0)])
        call = p.voice(rng, f0, [(350, 800, 2600), (950, 1500, 2900)], 0.12, 0.015, 0.6)
        calls.append((start, call * p.envelope(count, 0.02, 0.06), 0.5 + 0.08 * index))
        start += count / p.SAMPLE_RATE + 0.05
    return p.join(calls)
