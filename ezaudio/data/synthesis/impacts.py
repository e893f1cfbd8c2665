"""Impacts: what hits what decides the modes, how hard decides their excitation."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


@sound(
    "knocking",
    "impacts",
    "someone|a visitor",
    "knock on a door|knock|rap at the door",
    "a knock at the door|knocking on wood",
    max_count=3,
    gap_s=(0.4, 1.0),
    counted=False,
)
def knocking(rng: Generator, n: int) -> Audio:
    """Two to five knuckles on a hollow door."""
    door = [
        (rng.uniform(130, 190), 0.035, 1.2),
        (rng.uniform(280, 380), 0.028, 1),
        (rng.uniform(560, 750), 0.016, 0.7),
        (1400, 0.007, 0.35),
    ]
    step = rng.uniform(0.17, 0.3)
    knocks = []
    for k in range(int(rng.integers(2, 6))):
        knock = p.modes(p.samples(0.25), door, p.burst(rng, 0.006, 0.002, [(100, 0), (1500, -3), (6000, -14)]))
        knocks.append((k * step * rng.uniform(0.96, 1.04), p.normalize(knock, 1.0), rng.uniform(0.7, 1)))
    return p.join(knocks)


@sound(
    "door slam",
    "impacts",
    "a door|a heavy door",
    "slam|slam shut|bang shut",
    "a door slam|a slamming door",
    max_count=4,
    gap_s=(0.3, 1.0),
)
def door_slam(rng: Generator, n: int) -> Audio:
    """A thump of the leaf and the air, the latch, and a rattle of the frame."""
    thump = p.burst(rng, 0.5, 0.07, [(35, 0), (80, 0), (250, -5), (900, -14), (4000, -26)], 0.002)
    panel = p.modes(p.samples(0.5), [(68, 0.09, 1), (118, 0.07, 0.8), (215, 0.05, 0.6), (440, 0.03, 0.3)])
    latch = p.modes(
        p.samples(0.1), [(1700, 0.012, 1), (3300, 0.008, 0.7)], p.burst(rng, 0.006, 0.002, [(500, 0), (9000, 0)])
    )
    rattle = p.scatter(rng, p.samples(0.3), [p.normalize(latch, 1.0)], 45, 0.5, p.decay(p.samples(0.3), 0.07))
    return p.join(
        [
            (0, p.normalize(latch, 0.3), 1),
            (0.03, p.normalize(thump, 0.8), 1),
            (0.03, p.normalize(panel, 0.7), 1),
            (0.05, p.normalize(rattle, 0.2), 1),
        ]
    )


@sound(
    "creaking door",
    "impacts",
    "a door|an old door;a rusty hinge",
    "creak|creak open;squeak|creak",
    "a creaking door|the creak of a hinge",
    max_count=3,
    gap_s=(0.3, 1.0),
)
def creak(rng: Generator, n: int) -> Audio:
    """Stick and slip: pulses from 20 to 90 a second ring in the wood."""
    count = min(n, p.samples(rng.uniform(1.0, 2.2)))
    rate = 25 + 75 * p.wander(rng, count, 0.35)
    train = p.pulses(rate * (1 + 0.08 * p.noise(rng, count, [(5, 0), (60, -10)])), count, 40)
    wood = [(f * rng.uniform(0.9, 1.1), 90) for f in (620, 1150, 1900, 2900)]
    rung = sum(p.normalize(p.resonate(train, [w]), 1.0) * g for w, g in zip(wood, (0.8, 1, 0.9, 0.5), strict=True))
    return (np.asarray(rung, np.float32) * (0.3 + 0.7 * p.wander(rng, count, 0.25))) * p.envelope(count, 0.08, 0.2)


@sound(
    "breaking glass",
    "impacts",
    "glass|a window|a bottle",
    "break|shatter|smash",
    "breaking glass|a crash of glass",
    max_count=3,
    gap_s=(0.3, 1.2),
)
def glass(rng: Generator, n: int) -> Audio:
    """A crack, then shards that ring at 2 to 11 kHz as they fall, ever fewer."""
    shards = []
    for _ in range(14):
        base = rng.uniform(2200, 6500)
        shard = p.modes(p.samples(0.3), [(base * r, rng.uniform(0.02, 0.06), 1 / r) for r in (1, 1.6, 2.3)])
        shards.append(p.normalize(shard, 1.0))
    count = p.samples(rng.uniform(0.9, 1.5))
    fall = p.scatter(rng, count, shards, 70, 0.8, np.exp(-p.times(count) / 0.22) + 0.03)
    crack = p.burst(rng, 0.15, 0.025, [(300, -16), (1500, -4), (5000, 0), (12000, -2)])
    return p.join([(0, p.normalize(crack, 0.9), 1), (0.01, p.normalize(fall, 0.9), 1)])


@sound(
    "gunshot",
    "impacts",
    "a gun|a rifle;someone|a hunter",
    "fire|go off with a bang;fire a shot|shoot a gun",
    "a gunshot|gunshots|a rifle shot",
    max_count=6,
    gap_s=(0.0, 0.8),
    outdoors=True,
)
def gunshot(rng: Generator, n: int) -> Audio:
    """A shock of a millisecond, a muzzle blast, and the echo of the landscape."""
    blast = p.burst(rng, 0.3, 0.025, [(40, -4), (150, 0), (900, -1), (4000, -6), (12000, -12)], 0.0002)
    boom = p.modes(p.samples(0.4), [(62, 0.06, 1), (105, 0.05, 0.8)])
    echo = p.burst(rng, 1.4, 0.28, [(60, -4), (250, 0), (1000, -8), (4000, -26)], 0.05)
    return p.join(
        [
            (0, np.tanh(3 * p.normalize(blast, 1.0)), 1),
            (0, p.normalize(boom, 0.6), 1),
            (0.06, p.normalize(echo, 0.25), 1),
        ]
    )


@sound(
    "explosion",
    "impacts",
    "a bomb|dynamite;a building",
    "explode|detonate|go off;blow up",
    "an explosion|a huge explosion|a big bang",
    max_count=2,
    gap_s=(0.3, 1.5),
    outdoors=True,
)
def explosion(rng: Generator, n: int) -> Audio:
    """All at once, then a deep roll of seconds with falling debris."""
    count = min(n, p.samples(rng.uniform(2.8, 4.2)))
    blast = p.noise(rng, count, [(20, 0), (60, 0), (250, -6), (1200, -18), (6000, -34)]) * p.decay(count, 0.7, 0.004)
    shock = p.noise(rng, count, [(60, 0), (800, 0), (4000, -6), (12000, -14)]) * p.decay(count, 0.09, 0.001)
    stones = [p.burst(rng, 0.06, 0.01, [(150, 0), (900, -3), (5000, -14)]) for _ in range(5)]
    t = p.times(count)
    debris = p.scatter(rng, count, stones, 22, 0.7, np.exp(-((t - 1.1) ** 2) / 0.4))
    return np.tanh(1.6 * (blast + 0.5 * shock)) * p.envelope(count, 0, 0.8) + 0.08 * debris


@sound(
    "fireworks",
    "impacts",
    "fireworks|a firework",
    "explode overhead|burst in the sky|crackle overhead",
    "a fireworks display|a firework bursting",
    max_count=4,
    gap_s=(-0.6, 0.4),
    outdoors=True,
)
def fireworks(rng: Generator, n: int) -> Audio:
    """A whistle that climbs, a far boom, then a crackle that rains down."""
    rise = p.samples(rng.uniform(0.6, 1.0))
    f0 = p.curve(rise, [(0, 1300), (0.7, 2400), (1, 1900)]) * (1 + 0.01 * p.noise(rng, rise, [(20, 0), (200, -20)]))
    whistle = p.tone(f0, rise, (1, 0.2)) * p.curve(rise, [(0, 0), (0.2, 0.8), (0.9, 1), (1, 0)])
    boom = p.burst(rng, 0.9, 0.16, [(40, 0), (110, 0), (450, -9), (2500, -24)], 0.002)
    count = p.samples(1.4)
    snaps = [p.burst(rng, 0.02, 0.002, [(600, -8), (3000, 0), (12000, -4)]) for _ in range(5)]
    crackle = p.scatter(rng, count, snaps, 110, 0.6, p.curve(count, [(0, 0), (0.15, 1), (1, 0.1)]))
    end = rise / p.SAMPLE_RATE
    return p.join([(0, whistle, 0.22), (end, p.normalize(boom, 1.0), 1), (end + 0.15, p.normalize(crackle, 0.45), 1)])


@sound(
    "bouncing ball",
    "impacts",
    "a ball|a basketball|a rubber ball",
    "bounce|bounce on the floor",
    "a bouncing ball|bounces of a ball",
    max_count=1,
)
def ball(rng: Generator, n: int) -> Audio:
    """Each bounce is a constant share lower and shorter than the last, in level and in time."""
    keep = rng.uniform(0.78, 0.88)
    gap, start, level = rng.uniform(0.55, 0.8), 0.0, 1.0
    skin = [
        (rng.uniform(85, 130), 0.05, 1),
        (rng.uniform(200, 300), 0.03, 0.7),
        (520, 0.02, 0.4),
        (rng.uniform(900, 1200), 0.05, 0.15),
    ]
    bounces: list[tuple[float, Audio, float]] = []
    while gap > 0.04 and len(bounces) < 25 and (start + 0.3) * p.SAMPLE_RATE < n:
        hit = p.modes(p.samples(0.3), skin, p.burst(rng, 0.008, 0.003, [(60, 0), (800, 0), (5000, -14)]))
        bounces.append((start, p.normalize(hit, 1.0), level))
        start, gap, level = start + gap, gap * keep, level * keep
    return p.join(bounces)


@sound(
    "dishes",
    "impacts",
    "dishes|plates;someone|a waiter",
    "clatter|clink|clatter in a sink;wash the dishes|stack plates",
    "the clatter of dishes|clinking plates|cutlery on plates",
    texture=True,
)
def dishes(rng: Generator, n: int) -> Audio:
    """Porcelain and steel, a few hits a second in clusters."""
    hits = []
    for k in range(9):
        base = rng.uniform(900, 1900) if k % 2 else rng.uniform(2500, 4500)
        ring = rng.uniform(0.03, 0.12)
        hit = p.modes(
            p.samples(0.4),
            [(base * r, ring / r**0.5, 1 / r**0.5) for r in (1, 1.9, 2.75, 3.9)],
            p.burst(rng, 0.004, 0.001, [(500, 0), (12000, 0)]),
        )
        hits.append(p.normalize(hit, 1.0))
    return p.scatter(rng, n, hits, rng.uniform(3, 7), 0.7, p.wander(rng, n, 0.5) ** 3 + 0.01)


@sound(
    "coins",
    "impacts",
    "coins;a coin",
    "jingle|clink;drop on a table|spin on a table",
    "the clink of coins|a handful of coins",
    max_count=4,
    gap_s=(0.2, 0.8),
)
def coins(rng: Generator, n: int) -> Audio:
    """A coin falls, hops, and spins down: rings near 5 kHz, faster and faster."""
    base = rng.uniform(3800, 5600)
    coin = p.normalize(
        p.modes(
            p.samples(0.35),
            [(base, 0.05, 1), (base * 1.53, 0.04, 0.8), (base * 2.05, 0.025, 0.5)],
            p.burst(rng, 0.003, 0.001, [(800, 0), (12000, 0)]),
        ),
        1.0,
    )
    hits: list[tuple[float, Audio, float]] = []
    start, gap, level = 0.0, rng.uniform(0.16, 0.26), 1.0
    while gap > 0.02 and len(hits) < 30:
        hits.append((start, coin, level * rng.uniform(0.8, 1)))
        start, gap, level = start + gap, gap * 0.85, level * 0.9
    return p.join(hits)


@sound(
    "falling object",
    "impacts",
    "something heavy|a box|a heavy object",
    "fall to the floor|hit the ground|thud",
    "a thud|a heavy thud|a dull thump",
    max_count=4,
    gap_s=(0.3, 1.2),
)
def thud(rng: Generator, n: int) -> Audio:
    """Low modes of a floor, a slap, and one or two smaller bounces."""
    hits, start, level = [], 0.0, 1.0
    for _ in range(int(rng.integers(1, 4))):
        floor = p.modes(
            p.samples(0.4),
            [(rng.uniform(45, 65), 0.07, 1.2), (rng.uniform(85, 115), 0.05, 1), (rng.uniform(160, 240), 0.03, 0.5)],
            p.burst(rng, 0.02, 0.006, [(40, 0), (400, -6), (3000, -20)]),
        )
        hits.append((start, p.normalize(floor, 1.0), level))
        start, level = start + rng.uniform(0.12, 0.22), level * 0.35
    return p.join(hits)


@sound(
    "balloon pop",
    "impacts",
    "a balloon",
    "pop|burst",
    "a popping balloon|the pop of a balloon",
    max_count=4,
    gap_s=(0.2, 1.0),
)
def balloon(rng: Generator, n: int) -> Audio:
    """One sharp edge, over within thirty milliseconds."""
    count = p.samples(0.16)
    edge = p.noise(rng, count, [(200, -6), (1200, 0), (5000, 0), (12000, -5)]) * p.decay(count, 0.007, 0.0002)
    body = p.modes(count, [(rng.uniform(280, 420), 0.012, 1), (rng.uniform(700, 950), 0.008, 0.7)])
    return p.normalize(edge, 1.0) + p.normalize(body, 0.6)


@sound(
    "crumpling paper",
    "impacts",
    "someone;paper",
    "crumple paper|rustle a newspaper;crumple|rustle",
    "crumpling paper|the rustle of paper",
    texture=True,
)
def paper(rng: Generator, n: int) -> Audio:
    """Creases that snap, hundreds a second, in handfuls."""
    creases = [
        p.burst(rng, 0.012, rng.uniform(0.0006, 0.003), [(500, -24), (2000, -6), (5000, 0), (12000, -3)])
        for _ in range(8)
    ]
    grip = p.wander(rng, n, 0.22) ** 3
    rustle = 0.05 * p.noise(rng, n, [(800, -20), (4000, 0), (12000, -4)]) * grip
    return p.scatter(rng, n, creases, 260, 1.0, grip + 0.002) + rustle
