"""Machines: motors are harmonics with brush noise, fans chop air, clockwork clicks."""

from __future__ import annotations

import numpy as np
from scipy.signal import oaconvolve

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


@sound(
    "vacuum cleaner",
    "machines",
    "a vacuum cleaner|a hoover;someone",
    "run|hum loudly|whir;vacuum the carpet",
    "vacuuming|the drone of a vacuum cleaner",
    texture=True,
)
def vacuum(rng: Generator, n: int) -> Audio:
    """A whine near 400 Hz and its harmonics in a strong rush of air; the pitch gives when the nozzle meets a carpet."""
    f0 = rng.uniform(330, 520) * (0.97 + 0.06 * p.wander(rng, n, 0.8))
    whine = p.tone(f0, n, [rng.uniform(0.4, 1) * 0.72**k for k in range(14)])
    air = p.noise(rng, n, [(60, -16), (250, -4), (700, 0), (2500, -2), (6000, -10), (12000, -22)])
    return (0.3 * whine + 0.35 * air * (0.85 + 0.3 * p.wander(rng, n, 0.5))).astype(np.float32)


@sound(
    "fan",
    "machines",
    "a fan|an electric fan|an air conditioner",
    "whir|blow air|hum quietly",
    "the hum of a fan|fan noise",
    texture=True,
)
def fan(rng: Generator, n: int) -> Audio:
    """Low-passed air, chopped by the blades, over mains hum."""
    chop = 1 + 0.35 * np.sin(2 * np.pi * p.phase(rng.uniform(14, 26), n))
    air = p.noise(rng, n, [(40, -4), (150, 0), (500, -5), (1500, -15), (5000, -32), (12000, -50)])
    hum = p.tone(100, n, (1, 0.5, 0.3, 0.15))
    return (air * chop + rng.uniform(0.1, 0.35) * hum).astype(np.float32)


@sound(
    "hair dryer",
    "machines",
    "a hair dryer|a blow dryer",
    "blow|blow hot air|run in the bathroom",
    "the noise of a hair dryer",
    texture=True,
)
def hair_dryer(rng: Generator, n: int) -> Audio:
    """Mostly hiss, with one thin whine above 1 kHz."""
    start = 1 - np.exp(-p.times(n) / 0.25) if rng.random() < 0.4 else np.ones(n, np.float32)
    whine = p.tone(rng.uniform(1100, 1700) * (0.6 + 0.4 * start), n, (1, 0.3, 0.15))
    air = p.noise(rng, n, [(100, -24), (600, -10), (2000, -2), (4500, 0), (9000, -4), (12000, -10)])
    return ((0.12 * whine + 0.35 * air) * start).astype(np.float32)


@sound(
    "washing machine",
    "machines",
    "a washing machine|a washer",
    "spin|churn|tumble clothes",
    "laundry being washed|the spin cycle of a washing machine",
    texture=True,
)
def washing_machine(rng: Generator, n: int) -> Audio:
    """The drum turns twice a second with slosh and thump; the motor reverses with a rising hum."""
    turn = rng.uniform(0.9, 1.3)
    cycle = p.phase(1 / turn, n) % 1.0
    slosh = p.noise(rng, n, [(100, -10), (500, 0), (1600, -5), (6000, -22)]) * np.sin(np.pi * cycle) ** 4
    hum = p.tone(120 * (1 + 0.1 * np.sin(2 * np.pi * cycle)), n, (1, 0.7, 0.5, 0.25, 0.2, 0.1))
    thump = p.repeat(rng, n, [p.burst(rng, 0.25, 0.06, [(30, -3), (70, 0), (250, -16), (1500, -45)])], turn, 0.2)
    return (0.5 * slosh + 0.25 * hum + 0.9 * thump).astype(np.float32)


@sound(
    "blender", "machines", "a blender|a food processor", "grind|whir|blend fruit", "the whir of a blender", texture=True
)
def blender(rng: Generator, n: int) -> Audio:
    """A harsh buzz near 230 Hz with ice that hits the blades; the speed goes up at the start and wavers."""
    f0 = rng.uniform(190, 280) * (1 - 0.5 * np.exp(-p.times(n) / 0.3)) * (0.94 + 0.12 * p.wander(rng, n, 0.25))
    buzz = np.tanh(2.5 * p.tone(f0, n, [0.9**k for k in range(20)]) / 2)
    chunks = p.scatter(
        rng, n, [p.burst(rng, 0.04, 0.008, [(300, -6), (1500, 0), (6000, -4)]) for _ in range(4)], 30, 0.7
    )
    return (0.5 * buzz + 0.25 * chunks + 0.15 * p.noise(rng, n, [(500, -6), (3000, 0), (9000, -6)])).astype(np.float32)


@sound(
    "sewing machine",
    "machines",
    "a sewing machine",
    "stitch|run|clatter",
    "the rattle of a sewing machine",
    texture=True,
)
def sewing_machine(rng: Generator, n: int) -> Audio:
    """Ten to fourteen stitches a second, in bursts, over a small motor."""
    run = np.clip(4 * (p.wander(rng, n, 1.2) - 0.3), 0, 1)
    rate = rng.uniform(10, 14) * (0.4 + 0.6 * run)
    cycle = np.floor(p.phase(rate, n))
    hits = np.flatnonzero(np.diff(cycle, prepend=0) > 0)
    click = p.modes(
        p.samples(0.05),
        [(1300, 0.006, 1), (2900, 0.005, 0.8), (4800, 0.003, 0.5), (350, 0.012, 0.9)],
        p.burst(rng, 0.006, 0.002, [(200, 0), (9000, 0)]),
    )
    train = np.zeros(n, np.float32)
    train[hits] = rng.uniform(0.7, 1, len(hits))
    stitches = oaconvolve(train, p.normalize(click, 1.0))[:n]
    return (stitches * run + 0.12 * p.tone(9 * rate, n, (1, 0.8, 0.6, 0.4, 0.3)) * run).astype(np.float32)


@sound(
    "lawn mower",
    "machines",
    "a lawn mower|a mower",
    "cut the grass|run outside|mow a lawn",
    "the engine of a lawn mower",
    texture=True,
    outdoors=True,
)
def lawn_mower(rng: Generator, n: int) -> Audio:
    """One cylinder at some 45 strokes a second, its exhaust open, and the blade's rush."""
    f0 = rng.uniform(40, 52) * (0.96 + 0.08 * p.wander(rng, n, 0.6))
    fire = p.pulses(f0, n, 7)
    exhaust = p.resonate(np.tanh(3 * fire), [(140, 100), (420, 200), (950, 400)])
    blade = p.noise(rng, n, [(200, -14), (900, 0), (3000, -4), (9000, -16)]) * (0.6 + 0.8 * np.maximum(0, fire))
    return (p.normalize(exhaust, 1.0) + 0.16 * blade).astype(np.float32)


@sound(
    "clock",
    "machines",
    "a clock|a wall clock|a watch",
    "tick|tick on the wall",
    "tick tock|the ticking of a clock",
    texture=True,
)
def clock(rng: Generator, n: int) -> Audio:
    ticks = []
    for pitch in (1.0, 0.78):
        case = [(2600 * pitch, 0.012, 1), (4100 * pitch, 0.007, 0.7), (1200 * pitch, 0.02, 0.5)]
        ticks.append(
            p.normalize(p.modes(p.samples(0.1), case, p.burst(rng, 0.004, 0.001, [(500, 0), (12000, 0)])), 1.0)
        )
    step = float(rng.choice([0.24, 0.48, 0.52, 1.0]))
    return p.repeat(rng, n, ticks, step, 0.05) + 0.002 * p.noise(rng, n, [(50, 0), (6000, -20)])


@sound(
    "typewriter",
    "machines",
    "a typewriter;someone|a typist",
    "clack|clatter;type on a typewriter",
    "a typewriter's keys",
    texture=True,
)
def typewriter(rng: Generator, n: int) -> Audio:
    """Metal strikes with a low thud of the frame; a bell and the carriage at the end of a line."""
    strikes = []
    for _ in range(5):
        arm = [(rng.uniform(1500, 2600), 0.014, 1), (rng.uniform(3200, 5200), 0.009, 0.7), (240, 0.02, 1.2)]
        strikes.append(
            p.normalize(p.modes(p.samples(0.12), arm, p.burst(rng, 0.008, 0.003, [(200, 0), (9000, 0)])), 1.0)
        )
    audio = np.zeros(n, np.float32)
    place = int(rng.integers(0, 6000))
    line = 0
    while place < n:
        p.add(audio, strikes[int(rng.integers(5))], place, float(rng.uniform(0.6, 1)))
        place += p.samples(rng.uniform(0.09, 0.2) if rng.random() < 0.9 else 0.4)
        line += 1
        if line % 24 == 0:
            bell = p.modes(p.samples(0.9), [(2900, 0.3, 1), (5400, 0.15, 0.4)])
            p.add(audio, p.normalize(bell, 0.5), place)
            zip_ = p.scatter(rng, p.samples(0.35), strikes[:1], 45, 0.2)
            p.add(audio, p.normalize(zip_, 0.5), place + p.samples(0.3))
            place += p.samples(0.9)
    return audio
