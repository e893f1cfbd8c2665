"""Tools: blows ring what they hit, blades are teeth at a rate, motors wind up and sink under load."""

from __future__ import annotations

import numpy as np
from scipy.signal import oaconvolve

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


def motor(rng: Generator, f0: np.ndarray | float, n: int, brightness: float) -> Audio:
    """An electric motor: harmonics of its turns, those of the slots strong, and gear whine above."""
    gains = [brightness**k * rng.uniform(0.4, 1) for k in range(16)]
    return p.tone(f0, n, gains) + 0.4 * p.tone(np.asarray(f0) * rng.integers(9, 14), n, (1, 0.4, 0.2))


@sound(
    "drill",
    "tools",
    "an electric drill|a power drill;someone|a worker",
    "whine|bore into a wall;drill into a wall|drill a hole",
    "drilling|the whine of a drill",
    max_count=4,
    gap_s=(0.2, 0.7),
)
def drill(rng: Generator, n: int) -> Audio:
    """The motor winds up to a whine, sinks under load, and winds down; grit of the wall on top."""
    count = min(n, p.samples(rng.uniform(1.3, 2.6)))
    speed = p.curve(count, [(0, 0.1), (0.12, 1.0), (0.25, 0.78), (0.8, 0.74), (0.9, 0.95), (1, 0.25)])
    f0 = rng.uniform(260, 360) * speed * (0.98 + 0.04 * p.wander(rng, count, 0.1))
    whine = np.tanh(motor(rng, f0, count, 0.85))
    load = p.curve(count, [(0, 0), (0.2, 0), (0.27, 1), (0.8, 1), (0.88, 0), (1, 0)])
    grit = p.noise(rng, count, [(300, -8), (1500, 0), (4500, 0), (9000, -8)]) * np.maximum(
        0, p.pulses(f0 / 6, count, 3) + 0.5
    )
    return ((0.5 * whine + 0.35 * grit * load) * p.envelope(count, 0.04, 0.15)).astype(np.float32)


@sound(
    "chainsaw",
    "tools",
    "a chainsaw|a power saw",
    "rev|cut wood|roar in the forest",
    "the roar of a chainsaw",
    texture=True,
    outdoors=True,
)
def chainsaw(rng: Generator, n: int) -> Audio:
    """A two-stroke that goes between a rattling idle and a scream at full throttle."""
    throttle = np.clip(2.2 * (p.wander(rng, n, 1.0) - 0.2), 0, 1)
    throttle = p.low_pass(throttle.astype(np.float32), 2)
    f0 = 45 + rng.uniform(85, 120) * throttle
    fire = p.pulses(f0 * (1 + 0.02 * p.noise(rng, n, [(5, 0), (60, -20)])), n, 5)
    exhaust = p.resonate(np.tanh(4 * fire), [(300, 180), (900, 350), (2100, 700)])
    chain = p.noise(rng, n, [(700, -16), (2500, 0), (6000, -2), (12000, -10)]) * (0.4 + np.maximum(0, fire))
    return ((p.normalize(exhaust, 1.0) + 0.22 * chain * throttle) * (0.35 + 0.65 * throttle)).astype(np.float32)


@sound(
    "hammering",
    "tools",
    "someone|a carpenter;a hammer",
    "hammer a nail|hammer on wood|pound a nail;pound a nail|strike a nail",
    "hammering|hammer blows",
    texture=True,
)
def hammering(rng: Generator, n: int) -> Audio:
    """A nail rings at 2 to 5 kHz, the board below it thuds; higher as the nail goes in."""
    blows = []
    for index in range(5):
        up = 1 + 0.06 * index
        parts = [(2400 * up, 0.03, 0.7), (4300 * up, 0.02, 0.6), (6100, 0.012, 0.3), (230, 0.03, 1.2), (520, 0.02, 0.8)]
        blows.append(
            p.normalize(p.modes(p.samples(0.25), parts, p.burst(rng, 0.005, 0.0015, [(100, 0), (10000, 0)])), 1.0)
        )
    return p.repeat(rng, n, blows, rng.uniform(0.42, 0.7), 0.2, 0.02)


@sound(
    "sawing",
    "tools",
    "someone|a carpenter",
    "saw wood|saw through a board|saw a plank",
    "sawing|a hand saw",
    texture=True,
)
def sawing(rng: Generator, n: int) -> Audio:
    """To and fro: teeth at some 150 a second scrape the board, the push louder and lower than the pull."""
    stroke = rng.uniform(0.75, 1.1)
    cycle = p.phase(1 / stroke, n) % 1.0
    speed = np.abs(np.sin(2 * np.pi * cycle)) ** 0.7
    push = cycle < 0.5
    teeth = 0.3 + np.maximum(0, p.pulses(180 * (0.35 + speed), n, 4))
    scrape = p.noise(rng, n, [(200, -18), (700, -4), (1500, 0), (3500, -2), (8000, -12)])
    bright = p.noise(rng, n, [(600, -22), (2500, -2), (5000, 0), (11000, -6)])
    return (np.where(push, scrape, 0.55 * bright) * teeth * speed).astype(np.float32)


@sound(
    "jackhammer",
    "tools",
    "a jackhammer|a pneumatic drill",
    "pound|break concrete|hammer the pavement",
    "the pounding of a jackhammer",
    texture=True,
    outdoors=True,
)
def jackhammer(rng: Generator, n: int) -> Audio:
    """Twenty blows a second of steel on stone with puffs of compressed air."""
    rate = rng.uniform(16, 23)
    work = np.clip(5 * (p.wander(rng, n, 1.3) - 0.15), 0, 1)
    hit = p.modes(
        p.samples(0.06),
        [(420, 0.012, 1), (1100, 0.012, 0.8), (2300, 0.01, 0.8), (3900, 0.006, 0.5)],
        p.burst(rng, 0.012, 0.004, [(80, 0), (9000, 0)]),
    )
    cycle = np.floor(p.phase(rate * (0.97 + 0.06 * p.wander(rng, n, 0.2)), n))
    hits = np.flatnonzero(np.diff(cycle, prepend=0) > 0)
    train = np.zeros(n, np.float32)
    train[hits] = rng.uniform(0.6, 1, len(hits))
    blows = oaconvolve(train, p.normalize(hit, 1.0))[:n]
    air = p.noise(rng, n, [(300, -10), (1500, 0), (6000, -2), (12000, -8)]) * (
        0.4 + np.maximum(0, p.pulses(rate, n, 5))
    )
    return ((blows + 0.18 * air) * work).astype(np.float32)


@sound(
    "chopping wood",
    "tools",
    "someone|a woodcutter;an axe",
    "chop wood|split logs;chop wood|split a log",
    "wood chopping|axe blows",
    gap_s=(0.4, 1.0),
    outdoors=True,
)
def chopping(rng: Generator, n: int) -> Audio:
    """A dull thump, the crack of the fibres, and pieces that fall."""
    thump = p.burst(rng, 0.2, 0.035, [(50, 0), (150, 0), (600, -8), (3000, -22)])
    crack = p.modes(
        p.samples(0.15),
        [(rng.uniform(500, 800), 0.014, 1), (1350, 0.01, 0.9), (2400, 0.006, 0.7)],
        p.burst(rng, 0.03, 0.008, [(300, 0), (6000, -3)]),
    )
    pieces = [
        (
            rng.uniform(0.25, 0.45),
            p.normalize(p.modes(p.samples(0.1), [(rng.uniform(500, 1100), 0.015, 1), (1900, 0.008, 0.5)]), 0.25),
            1.0,
        )
        for _ in range(2)
    ]
    return p.join([(0, p.normalize(thump, 0.8), 1), (0.004, p.normalize(crack, 0.9), 1), *pieces])


@sound(
    "scissors",
    "tools",
    "scissors;someone|a barber",
    "snip|cut paper;snip through paper|cut with scissors",
    "the snip of scissors",
    gap_s=(0.1, 0.4),
    max_count=6,
)
def scissors(rng: Generator, n: int) -> Audio:
    """Blades slide along each other with a rising hiss and meet with a click."""
    count = p.samples(rng.uniform(0.16, 0.28))
    slide = p.noise(rng, count, [(1500, -25), (4000, -6), (7000, 0), (12000, -2)]) * p.curve(
        count, [(0, 0.1), (0.8, 1), (1, 0.4)]
    )
    click = p.modes(p.samples(0.07), [(3300, 0.012, 1), (5600, 0.01, 0.9), (8300, 0.006, 0.6)])
    return p.join(
        [(0, slide * p.envelope(count, 0.03, 0.02), 0.25), (count / p.SAMPLE_RATE, p.normalize(click, 1.0), 1)]
    )
