"""People: what bodies, feet and hands do."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


@sound(
    "whistling",
    "people",
    "someone|a man",
    "whistle|whistle a tune",
    "a whistled tune|human whistling",
    max_count=2,
    gap_s=(0.3, 0.8),
)
def whistle(rng: Generator, n: int) -> Audio:
    """Near-pure tones of 1 to 2.5 kHz that slide from note to note with a breath of air."""
    scale = 1100 * rng.uniform(0.9, 1.3) * 2 ** (np.array([0, 2, 4, 5, 7, 9, 12]) / 12)
    notes = rng.choice(scale, int(rng.integers(4, 8)))
    held = np.repeat(notes, [p.samples(float(t)) for t in rng.choice([0.2, 0.3, 0.5], len(notes))])
    f0 = p.low_pass(np.concatenate([np.full(2000, held[0]), held]).astype(np.float32), 12)[2000:]
    f0 = f0 * (1 + 0.006 * np.sin(2 * np.pi * 5.5 * p.times(len(f0))))
    tone = p.tone(f0, len(f0), (1, 0.03)) + 0.03 * p.noise(rng, len(f0), [(800, -12), (2000, 0), (6000, -10)])
    return tone * p.envelope(len(f0), 0.04, 0.1)


@sound("heartbeat", "people", "a heart", "beat|pound", "a heartbeat|heartbeats|the beating of a heart", texture=True)
def heartbeat(rng: Generator, n: int) -> Audio:
    """Lub-dub: two valve closures, a third of a second apart."""
    lub = p.modes(p.samples(0.25), [(48, 0.035, 1), (85, 0.02, 0.6)], p.burst(rng, 0.03, 0.01, [(30, 0), (200, -20)]))
    dub = p.modes(p.samples(0.2), [(62, 0.028, 1), (105, 0.016, 0.6)], p.burst(rng, 0.02, 0.008, [(30, 0), (250, -20)]))
    beat = p.join([(0, p.normalize(lub, 1.0), 1), (0.3, p.normalize(dub, 0.7), 1)])
    return p.repeat(rng, n, [beat], rng.uniform(0.7, 1.05), 0.08) + 0.002 * p.noise(rng, n, [(40, 0), (800, -30)])


@sound(
    "footsteps",
    "people",
    "footsteps;someone|a person",
    "echo on a hard floor|approach;walk|walk along a corridor|walk on a hard floor",
    "the steps of a person|steps on a wooden floor",
    texture=True,
    weight=1.3,
)
def footsteps(rng: Generator, n: int) -> Audio:
    """Heel, then sole: a thump and a click of hard shoes, left and right a little unlike."""
    steps = []
    for _ in range(4):
        heel = p.modes(
            p.samples(0.2),
            [
                (rng.uniform(90, 130), 0.02, 1),
                (rng.uniform(240, 340), 0.014, 0.8),
                (rng.uniform(1100, 1700), 0.006, 0.5),
            ],
            p.burst(rng, 0.006, 0.002, [(80, 0), (2000, -2), (9000, -10)]),
        )
        sole = p.burst(rng, 0.08, 0.018, [(150, -8), (600, -2), (2500, 0), (8000, -10)])
        steps.append(p.join([(0, p.normalize(heel, 1.0), 1), (rng.uniform(0.06, 0.1), p.normalize(sole, 1.0), 0.28)]))
    return p.repeat(rng, n, steps, rng.uniform(0.42, 0.65), 0.25, 0.02)


@sound(
    "footsteps on gravel",
    "people",
    "footsteps;a hiker|someone",
    "crunch on gravel|crunch on stones;walk on gravel|walk on a gravel path",
    "steps on gravel|the crunch of gravel",
    texture=True,
    outdoors=True,
)
def gravel(rng: Generator, n: int) -> Audio:
    """Each step is a quarter of a second of stones that grind."""
    stones = [
        p.burst(rng, 0.015, rng.uniform(0.001, 0.004), [(300, -16), (1500, -2), (3500, 0), (9000, -8)])
        for _ in range(8)
    ]
    steps = []
    for _ in range(4):
        count = p.samples(0.3)
        press = p.curve(count, [(0, 0), (0.15, 1), (0.4, 0.5), (0.6, 0.8), (1, 0)])
        steps.append(p.normalize(p.scatter(rng, count, stones, 900, 0.9, press), 1.0))
    return p.repeat(rng, n, steps, rng.uniform(0.5, 0.7), 0.25, 0.02)


@sound(
    "applause",
    "people",
    "an audience|people|a crowd",
    "applaud|clap",
    "applause|a round of applause|clapping hands",
    texture=True,
)
def applause(rng: Generator, n: int) -> Audio:
    """Hundreds of claps: cupped hands ring near 1 kHz, flat ones are brighter."""
    claps = [
        p.burst(
            rng,
            0.04,
            rng.uniform(0.004, 0.01),
            [(250, -16), (float(rng.uniform(800, 2200)), 0), (4500, -6), (12000, -14)],
        )
        for _ in range(10)
    ]
    swell = 0.6 + 0.4 * p.wander(rng, n, 1.5)
    return p.scatter(rng, n, claps, rng.uniform(120, 350), 0.7, swell)


@sound(
    "typing",
    "people",
    "someone|a person",
    "type on a keyboard|type|tap on a keyboard",
    "keyboard typing|the clicks of a keyboard",
    texture=True,
)
def typing(rng: Generator, n: int) -> Audio:
    """Soft plastic clicks, down and up, six to ten a second in bursts; the space bar is lower."""
    keys = []
    for low in (1.0, 1.1, 0.9, 1.05, 0.55):
        case = [(1900 * low, 0.005, 0.8), (3600 * low, 0.004, 1), (380 * low, 0.008, 0.7)]
        press = p.modes(p.samples(0.05), case, p.burst(rng, 0.008, 0.002, [(300, -4), (2500, 0), (10000, -4)]))
        keys.append(p.join([(0, p.normalize(press, 1.0), 1), (rng.uniform(0.05, 0.08), p.normalize(press, 0.35), 1)]))
    bursts = np.clip(4 * (p.wander(rng, n, 0.8) - 0.25), 0, 1) + 0.01
    return p.scatter(rng, n, keys, rng.uniform(7, 12), 0.25, bursts)


@sound(
    "breathing",
    "people",
    "someone|a runner|a diver",
    "breathe heavily|breathe|pant",
    "heavy breathing|panting",
    texture=True,
)
def breathing(rng: Generator, n: int) -> Audio:
    """In: brighter and shorter; out: darker and longer."""
    part = (p.times(n) / np.float32(rng.uniform(1.0, 2.4)) + np.float32(rng.random())) % 1.0
    drawn = np.where(part < 0.4, np.maximum(0, np.sin(np.pi * np.minimum(part, 0.4) / 0.4)) ** 1.5, 0)
    blown = np.where(part >= 0.48, np.clip((part - 0.48) / 0.08, 0, 1) * np.exp(-5.5 * (part - 0.48)), 0)
    high = p.noise(rng, n, [(400, -20), (1500, -4), (3200, 0), (7000, -8), (12000, -18)])
    low = p.noise(rng, n, [(200, -14), (700, 0), (1500, -3), (5000, -16), (12000, -30)])
    return (0.7 * high * drawn + low * blown).astype(np.float32)


@sound(
    "finger snapping",
    "people",
    "someone",
    "snap their fingers|click their fingers",
    "a finger snap|snapping fingers",
    max_count=8,
    gap_s=(0.2, 0.6),
)
def snap(rng: Generator, n: int) -> Audio:
    count = p.samples(0.12)
    flick = p.noise(rng, count, [(500, -24), (1800, 0), (3200, -2), (8000, -16)]) * p.decay(count, 0.009, 0.0004)
    palm = p.modes(count, [(rng.uniform(1500, 2300), 0.01, 1), (rng.uniform(2600, 3400), 0.006, 0.6)])
    return p.normalize(flick, 1.0) + p.normalize(palm, 0.6)
