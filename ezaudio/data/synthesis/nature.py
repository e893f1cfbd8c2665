"""Weather, water and fire: noise with the colour, the grains and the swell of each."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


def _drops(rng: Generator, low_hz: float, high_hz: float, kinds: int = 6) -> list[Audio]:
    """Impacts on leaves and stone: clicks of a few milliseconds, coloured."""
    return [
        p.burst(rng, 0.02, rng.uniform(0.001, 0.003), [(low_hz / 3, -25), (low_hz, 0), (high_hz, 0), (12000, -15)])
        for _ in range(kinds)
    ]


def _bubbles(rng: Generator, low_hz: float, high_hz: float, kinds: int = 10, rise: float = 0.25) -> list[Audio]:
    """Air in water rings like a damped sine whose pitch rises as it nears the surface (Minnaert, van den Doel)."""
    bubbles = []
    for pitch in np.exp(rng.uniform(np.log(low_hz), np.log(high_hz), kinds)):
        count = p.samples(min(0.12, 25 / pitch))
        f0 = pitch * p.curve(count, [(0, 1), (1, 1 + rise * rng.random())])
        bubbles.append(p.tone(f0, count) * p.decay(count, count / p.SAMPLE_RATE / 5, 0.001))
    return bubbles


@sound(
    "rain",
    "weather",
    "rain|light rain|a drizzle",
    "fall|patter|fall softly",
    "rainfall|the patter of rain|gentle rain",
    texture=True,
    outdoors=True,
    weight=1.5,
)
def rain(rng: Generator, n: int) -> Audio:
    """Single drops over a soft bed."""
    bed = p.noise(rng, n, [(60, -25), (400, -14), (1500, -2), (4000, 0), (8000, -5), (12000, -14)])
    return 0.1 * bed + p.scatter(rng, n, _drops(rng, 1800, 6000), rng.uniform(150, 400), 0.8)


@sound(
    "heavy rain",
    "weather",
    "heavy rain|a downpour|pouring rain",
    "pour down|beat down|hammer on the ground",
    "a heavy downpour|torrential rain",
    texture=True,
    outdoors=True,
)
def heavy_rain(rng: Generator, n: int) -> Audio:
    bed = p.noise(rng, n, [(60, -10), (250, -5), (900, 0), (4000, -2), (8000, -6), (12000, -12)])
    gust = 0.85 + 0.3 * p.wander(rng, n, 1.5)
    return bed * gust + p.scatter(rng, n, _drops(rng, 900, 5000), 1800, 0.7)


@sound(
    "hail",
    "weather",
    "hail|hailstones",
    "rattle on a roof|clatter on metal",
    "a hailstorm|hailstones on a tin roof",
    texture=True,
    outdoors=True,
)
def hail(rng: Generator, n: int) -> Audio:
    """Hard hits that ring in sheet metal."""
    hits = []
    for _ in range(8):
        plate = [(rng.uniform(900, 6000), rng.uniform(0.008, 0.025), rng.uniform(0.4, 1)) for _ in range(5)]
        hits.append(
            p.normalize(p.modes(p.samples(0.1), plate, p.burst(rng, 0.004, 0.001, [(500, 0), (12000, 0)])), 1.0)
        )
    return p.scatter(rng, n, hits, rng.uniform(40, 110), 0.7) + 0.02 * p.noise(rng, n, [(300, 0), (8000, -6)])


@sound(
    "wind",
    "weather",
    "the wind|wind|a breeze",
    "blow|blow gently",
    "a gentle breeze|wind in the trees",
    texture=True,
    outdoors=True,
)
def wind(rng: Generator, n: int) -> Audio:
    gust = 0.15 + 0.85 * p.wander(rng, n, rng.uniform(1.2, 2.5))
    low = p.noise(rng, n, [(30, -8), (120, 0), (300, -6), (900, -26), (4000, -55)])
    leaves = p.noise(rng, n, [(300, -30), (900, -8), (2500, 0), (6000, -8), (12000, -25)])
    return low * gust + rng.uniform(0.03, 0.2) * leaves * gust**2


@sound(
    "storm wind",
    "weather",
    "a strong wind|a gale|a storm",
    "howl|rage|howl around the house",
    "howling wind|the whistle of a storm",
    texture=True,
    outdoors=True,
)
def storm(rng: Generator, n: int) -> Audio:
    """Edges and wires sing: narrow bands of noise whose pitch follows the gusts."""
    gust = p.wander(rng, n, rng.uniform(0.9, 1.8))
    audio = 0.5 * p.noise(rng, n, [(30, -4), (150, 0), (600, -8), (3000, -24), (12000, -45)]) * (0.3 + 0.7 * gust)
    for base in (rng.uniform(300, 450), rng.uniform(550, 800)):
        # Noise moved up to a wandering pitch by multiplication: cheaper than a filter that moves.
        slow = p.low_pass(p.noise(rng, n, [(1, 0), (18, 0), (60, -50)]), 30)
        carrier = np.sin(2 * np.pi * p.phase(base * (0.7 + 0.8 * gust), n)).astype(np.float32)
        audio += 0.9 * carrier * slow * gust**1.5
    return audio


@sound(
    "thunder",
    "weather",
    "thunder",
    "rumble|roll|crack",
    "a clap of thunder|a thunderclap|rolling thunder",
    max_count=3,
    gap_s=(0.5, 2),
    outdoors=True,
)
def thunder(rng: Generator, n: int) -> Audio:
    """A crack of many near strokes, then echoes that get lower and slower for seconds."""
    count = min(n, p.samples(rng.uniform(3.0, 5.0)))
    t = p.times(count)
    rumble = p.noise(rng, count, [(20, -6), (50, 0), (110, -3), (300, -18), (1500, -48)])
    rolls = np.zeros(count, np.float32)
    for start in np.sort(rng.uniform(0, 0.5 * count / p.SAMPLE_RATE, int(rng.integers(4, 8)))):
        rolls += np.where(t > start, np.exp(-(t - np.float32(start)) / np.float32(rng.uniform(0.4, 0.9))), 0)
    crack = p.noise(rng, count, [(60, -4), (300, 0), (1200, -4), (5000, -14), (12000, -30)])
    strokes = p.scatter(rng, count, [p.decay(p.samples(0.25), rng.uniform(0.02, 0.06))], 25, 0.6, np.exp(-t / 0.12))
    audio = 0.5 * rumble * rolls + rng.uniform(0.2, 0.9) * crack * strokes
    return audio * p.envelope(count, 0.005, 1.0)


@sound(
    "stream",
    "water",
    "a stream|a brook|a creek",
    "babble|flow|trickle over stones",
    "a babbling brook|the murmur of a stream",
    texture=True,
    outdoors=True,
)
def stream(rng: Generator, n: int) -> Audio:
    """Bubbles by the hundred over a faint rush."""
    flow = 0.5 + 0.5 * p.wander(rng, n, 0.7)
    gurgle = p.scatter(rng, n, _bubbles(rng, 350, 2200, 14), rng.uniform(90, 180), 0.7, flow)
    return gurgle + 0.12 * p.noise(rng, n, [(150, -20), (600, 0), (2000, -4), (6000, -14), (12000, -26)])


@sound(
    "ocean",
    "water",
    "ocean waves|waves|the sea",
    "crash on the shore|break on the beach|roll in",
    "surf|sea waves|waves on a beach",
    texture=True,
    outdoors=True,
)
def ocean(rng: Generator, n: int) -> Audio:
    """Each wave gathers, breaks within half a second, and drains away with hiss."""
    position = p.times(n) / np.float32(rng.uniform(4.0, 6.5)) + np.float32(rng.random())
    part = position % 1.0
    swell = np.where(part < 0.35, (part / 0.35) ** 3, np.exp(-3.5 * (part - 0.35)))
    deep = p.noise(rng, n, [(40, -8), (200, 0), (800, -8), (3000, -24), (12000, -40)])
    foam = p.noise(rng, n, [(200, -20), (1000, -4), (3000, 0), (8000, -8), (12000, -16)])
    hiss = np.roll(swell, p.samples(0.25))
    return (deep * (0.12 + 0.9 * swell) + foam * (0.03 + 0.8 * hiss**1.2)).astype(np.float32)


@sound(
    "waterfall",
    "water",
    "a waterfall;water",
    "roar|plunge over the rocks;rush down a waterfall|crash down from a height",
    "the roar of a waterfall",
    texture=True,
    outdoors=True,
)
def waterfall(rng: Generator, n: int) -> Audio:
    """Steady and broad, full in the bass: pink more than white."""
    fall = p.noise(rng, n, [(30, -4), (100, 0), (400, -2), (1500, -9), (5000, -17), (12000, -28)])
    return fall * (0.92 + 0.16 * p.wander(rng, n, 0.25)) + 0.15 * p.scatter(rng, n, _bubbles(rng, 150, 700), 250, 0.6)


@sound(
    "dripping",
    "water",
    "water;a tap|a leaking faucet",
    "drip|drip into a sink;drip",
    "drops of water|a water drip",
    texture=True,
)
def dripping(rng: Generator, n: int) -> Audio:
    """ "plink": a click, then a bubble that rises by a third."""
    drops = []
    for _ in range(3):
        pitch = rng.uniform(700, 1500)
        count = p.samples(0.14)
        f0 = pitch * p.curve(count, [(0, 0.85), (0.25, 1.0), (1, 1.5)])
        ring = p.tone(f0, count) * p.decay(count, 0.025, 0.002)
        drops.append(
            p.join([(0, p.burst(rng, 0.01, 0.002, [(800, -10), (4000, 0), (12000, -6)]), 0.12), (0.012, ring, 1)])
        )
    return p.repeat(rng, n, drops, rng.uniform(0.35, 1.1), 0.3, 0.03) + 0.001 * p.noise(rng, n, [(50, 0), (8000, -20)])


@sound(
    "pouring",
    "water",
    "someone|a waiter;water|a drink",
    "pour water into a glass|fill a glass;pour into a glass|fill a glass",
    "water being poured|a glass being filled",
    max_count=2,
    gap_s=(0.5, 1.5),
)
def pouring(rng: Generator, n: int) -> Audio:
    """The air left in the glass rings higher as it fills."""
    count = min(n, p.samples(rng.uniform(2.0, 3.5)))
    full = p.curve(count, [(0, 0), (1, 1)])
    rush = p.scatter(rng, count, _bubbles(rng, 500, 2500, 14), 350, 0.6)
    rush += 0.35 * p.noise(rng, count, [(200, -16), (900, -2), (2500, 0), (7000, -8), (12000, -18)])
    pitch = rng.uniform(450, 650) / (1.05 - 0.72 * full)
    sway = p.low_pass(p.noise(rng, count, [(2, 0), (60, 0), (200, -40)]), 80)
    glass = np.sin(2 * np.pi * p.phase(pitch, count)).astype(np.float32) * sway
    return (p.normalize(rush, 0.6) + 0.9 * p.normalize(glass, 1.0)) * p.envelope(count, 0.1, 0.25)


@sound(
    "boiling",
    "water",
    "water;a pot|a kettle",
    "boil|bubble on the stove;boil|simmer",
    "bubbling water|bubbles in a pot",
    texture=True,
)
def boiling(rng: Generator, n: int) -> Audio:
    """Larger, lower bubbles in bursts, with a low roll of the pot."""
    roll = 0.2 * p.noise(rng, n, [(40, -6), (120, 0), (350, -6), (1200, -30), (5000, -45)])
    return (
        p.scatter(rng, n, _bubbles(rng, 180, 750, 14, 0.8), rng.uniform(25, 60), 0.6, p.wander(rng, n, 0.4) ** 2) + roll
    )


@sound(
    "splash",
    "water",
    "a stone|a frog;someone|a swimmer",
    "splash into water|drop into a pond;jump into a pool|plunge into the water",
    "a splash|a splash of water",
    gap_s=(0.4, 1.2),
    max_count=4,
)
def splash(rng: Generator, n: int) -> Audio:
    """A slap, a burst of spray, and the bubbles that come up."""
    count = p.samples(rng.uniform(0.9, 1.4))
    t = p.times(count)
    slap = p.burst(rng, 0.12, 0.025, [(60, 0), (250, -3), (1500, -10), (6000, -16)])
    spray = p.noise(rng, count, [(300, -14), (1200, 0), (5000, -3), (12000, -12)]) * (t / 0.08) * np.exp(1 - t / 0.08)
    rise = p.scatter(rng, count, _bubbles(rng, 250, 1100), 90, 0.6, np.exp(-((t - 0.45) ** 2) / 0.05))
    return p.join([(0, p.normalize(slap, 0.9), 1), (0, p.normalize(spray, 0.8), 1), (0, p.normalize(rise, 0.5), 1)])


@sound(
    "flushing toilet",
    "water",
    "a toilet;someone",
    "flush;flush the toilet",
    "a toilet flush|a flushing toilet",
    max_count=1,
)
def flush(rng: Generator, n: int) -> Audio:
    """A rush that swells, swirls and drains with gurgles."""
    count = min(n, p.samples(rng.uniform(4.0, 6.0)))
    force = p.curve(count, [(0, 0), (0.06, 0.9), (0.3, 1), (0.65, 0.55), (1, 0.05)])
    rush = p.noise(rng, count, [(60, -8), (250, 0), (900, -3), (3000, -10), (9000, -20)])
    swirl = 0.75 + 0.25 * np.sin(2 * np.pi * p.phase(p.curve(count, [(0, 2), (1, 5)]), count))
    gurgle = p.scatter(
        rng, count, _bubbles(rng, 120, 500), 90, 0.5, p.curve(count, [(0, 0.02), (0.5, 0.3), (0.8, 1), (1, 0.2)])
    )
    clank = p.modes(p.samples(0.15), [(900, 0.02, 1), (2300, 0.015, 0.6)])
    body = (rush * swirl * force * 0.5 + p.normalize(gurgle, 0.8)).astype(np.float32)
    return p.join([(0, p.normalize(clank, 0.5), 1), (0.08, body, 1)])[:n]


@sound(
    "fire",
    "weather",
    "a fire|a campfire;wood|fire",
    "crackle|burn;burn with a crackle|crackle in a fireplace",
    "a crackling fire|the crackle of flames|fire crackling",
    texture=True,
)
def fire(rng: Generator, n: int) -> Audio:
    """Snaps at random, in clusters, over a low soft roar."""
    snaps = [
        p.burst(
            rng, 0.03, rng.uniform(0.0008, 0.005), [(500, -20), (rng.uniform(1500, 4000), 0), (9000, -3), (12000, -10)]
        )
        for _ in range(8)
    ]
    clusters = p.wander(rng, n, 0.15) ** 4
    roar = p.noise(rng, n, [(30, -4), (90, 0), (250, -8), (900, -24), (4000, -40)]) * (
        0.6 + 0.4 * p.wander(rng, n, 0.3)
    )
    return p.scatter(rng, n, snaps, rng.uniform(15, 35), 1.1, clusters) + np.float32(0.12) * roar
