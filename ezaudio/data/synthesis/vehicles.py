"""Vehicles: engines fire pulses into an exhaust, propellers slap, horns are chords of reeds."""

from __future__ import annotations

import numpy as np
from scipy.signal import oaconvolve

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound


def engine(
    rng: Generator, firing_hz: np.ndarray, cylinders: int, pipes: list[tuple[float, float]], dirt: float
) -> Audio:
    """Exhaust of an engine: a pulse for each firing, cylinders unlike each other, mechanical noise in step."""
    n = len(firing_hz)
    unlike = 1 + 0.25 * rng.standard_normal(cylinders)
    index = np.floor(p.phase(firing_hz, n)).astype(np.int64) % cylinders
    fire = p.pulses(firing_hz, n, 6) * unlike[index]
    dry = np.tanh(2 * fire).astype(np.float32)
    exhaust = p.normalize(p.resonate(dry, pipes), 1.0) + 0.2 * dry
    clatter = p.noise(rng, n, [(100, -6), (500, 0), (2500, -6), (8000, -22)]) * (0.4 + np.maximum(0, fire))
    return (exhaust + np.float32(dirt) * clatter).astype(np.float32)


@sound(
    "idling car",
    "vehicles",
    "a car engine|a car|an engine",
    "idle|run|hum steadily",
    "an idling engine|the hum of a car engine",
    texture=True,
    outdoors=True,
)
def idling(rng: Generator, n: int) -> Audio:
    firing = rng.uniform(22, 34) * (0.98 + 0.04 * p.wander(rng, n, 0.8))
    return engine(rng, firing.astype(np.float64), 4, [(75, 60), (190, 120), (420, 260)], 0.1)


@sound(
    "revving engine",
    "vehicles",
    "an engine|a sports car|a race car",
    "rev|accelerate|rev up",
    "a revving engine|the roar of an engine",
    max_count=4,
    gap_s=(0.1, 0.6),
    outdoors=True,
)
def revving(rng: Generator, n: int) -> Audio:
    """Up within half a second, down in one."""
    count = min(n, p.samples(rng.uniform(1.4, 2.4)))
    throttle = p.curve(count, [(0, 0), (0.3, 1), (0.42, 1), (1, 0.08)])
    firing = rng.uniform(38, 50) + rng.uniform(160, 240) * throttle
    audio = engine(rng, firing, 6, [(180, 110), (430, 220), (1000, 420)], 0.14)
    return (audio * (0.35 + 0.65 * throttle) * p.envelope(count, 0.05, 0.15)).astype(np.float32)


@sound(
    "motorcycle",
    "vehicles",
    "a motorcycle|a motorbike",
    "drive past|rumble|speed away",
    "a motorcycle engine|a passing motorcycle",
    max_count=1,
    outdoors=True,
)
def motorcycle(rng: Generator, n: int) -> Audio:
    """Comes, passes and goes through two gears; the pitch falls as it passes (Doppler)."""
    count = min(n, p.samples(rng.uniform(4.0, 6.0)))
    x = p.curve(count, [(0, -1), (1, 1)]) * 3
    nearness = 1 / np.sqrt(1 + 4 * x**2)
    doppler = 1 - 0.09 * x / np.sqrt(1 + x**2)
    gears = p.curve(count, [(0, 0.75), (0.42, 1.25), (0.45, 0.85), (1, 1.35)])
    audio = engine(rng, rng.uniform(75, 100) * gears * doppler, 2, [(160, 90), (480, 220), (1300, 500)], 0.12)
    return (audio * nearness * p.envelope(count, 0.4, 0.6)).astype(np.float32)


@sound(
    "passing car",
    "vehicles",
    "a car|a vehicle;traffic",
    "pass by|drive by|rush past;pass by|go by",
    "a passing car|traffic passing",
    max_count=2,
    gap_s=(0.2, 1),
    outdoors=True,
)
def passing(rng: Generator, n: int) -> Audio:
    """Tyre noise swells and fades, brightest when near."""
    count = min(n, p.samples(rng.uniform(3.0, 4.5)))
    x = p.curve(count, [(0, -1), (1, 1)]) * 3.5
    near = 1 / (1 + 3 * x**2)
    dull = p.noise(rng, count, [(40, -6), (120, 0), (500, -6), (1200, -12), (4000, -34)])
    tyres = p.noise(rng, count, [(150, -14), (700, -2), (1200, 0), (3000, -9), (9000, -26)])
    hum = p.tone(rng.uniform(80, 110) * (1 - 0.08 * x / np.sqrt(1 + x**2)), count, (1, 0.6, 0.4, 0.2))
    return ((dull * near**0.6 + 0.9 * tyres * near + 0.3 * hum * near) * p.envelope(count, 0.4, 0.5)).astype(np.float32)


@sound(
    "truck",
    "vehicles",
    "a truck|a diesel truck|a bus",
    "rumble|idle with a rattle|pull away",
    "a diesel engine|the rumble of a truck",
    texture=True,
    outdoors=True,
)
def truck(rng: Generator, n: int) -> Audio:
    """A diesel's knock over a slow deep engine; now and then its brakes let off air."""
    firing = rng.uniform(26, 36) * (0.95 + 0.1 * p.wander(rng, n, 1.2))
    audio = engine(rng, firing.astype(np.float64), 6, [(48, 40), (130, 80), (300, 160)], 0.12)
    knock = p.resonate(p.pulses(firing, n, 30), [(1100, 250), (1900, 350)])
    audio += 0.5 * p.normalize(knock, 1.0)
    if rng.random() < 0.4:
        hiss = p.noise(rng, p.samples(0.7), [(800, -20), (3500, 0), (12000, 0)]) * p.envelope(p.samples(0.7), 0.01, 0.5)
        p.add(audio, hiss, int(rng.integers(0, max(1, n - len(hiss)))), 0.5)
    return audio


@sound(
    "train",
    "vehicles",
    "a train|a railway train",
    "pass|clatter along the tracks|roll over the rails",
    "a passing train|wheels on the rails|clickety-clack of a train",
    texture=True,
    outdoors=True,
)
def train(rng: Generator, n: int) -> Audio:
    """Pairs of wheels over rail joints, twice a carriage, over a heavy rolling noise."""
    clacks = []
    for _ in range(2):
        rail = [(rng.uniform(500, 700), 0.03, 1), (1250, 0.02, 0.7), (2700, 0.012, 0.4), (110, 0.05, 1.2)]
        clack = p.modes(p.samples(0.25), rail, p.burst(rng, 0.02, 0.006, [(60, 0), (700, 0), (5000, -10)]))
        clacks.append(p.normalize(clack, 1.0))
    joint = rng.uniform(0.6, 0.95)
    bogie = p.join([(0, clacks[0], 1), (0.13, clacks[1], 0.9)])
    roll = p.noise(rng, n, [(30, -4), (80, 0), (400, -3), (1500, -10), (6000, -26)]) * (
        0.8 + 0.4 * p.wander(rng, n, 0.5)
    )
    return np.asarray(p.repeat(rng, n, [bogie], joint, 0.15) + 0.2 * roll, np.float32)


@sound(
    "train horn",
    "vehicles",
    "a train horn|a train whistle;a locomotive",
    "blow|sound|blare at a crossing;blow the horn",
    "a blast of a train horn",
    max_count=4,
    gap_s=(0.15, 0.6),
    outdoors=True,
)
def train_horn(rng: Generator, n: int) -> Audio:
    """Three to five reeds in a chord (near 311, 370, 415, 494, 622 Hz), all blown at once."""
    count = min(n, p.samples(float(rng.choice([0.6, 1.3, 2.2]))))
    detune = rng.uniform(0.94, 1.06)
    blown = np.zeros(count, np.float32)
    for reed in (311, 370, 415, 494, 622)[: int(rng.integers(3, 6))]:
        f0 = reed * detune * p.curve(count, [(0, 0.96), (min(0.9, 0.1 / (count / p.SAMPLE_RATE)), 1), (1, 0.985)])
        blown += p.tone(f0, count, (1, 0.9, 0.8, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12)) * rng.uniform(0.7, 1)
    air = 0.2 * p.noise(rng, count, [(500, -10), (2500, 0), (9000, -10)])
    return (blown + air) * p.envelope(count, 0.06, 0.12)


@sound(
    "car horn",
    "vehicles",
    "a car horn;a driver|a car",
    "honk|blare|beep;honk|blow the horn",
    "a honk|honking traffic|a horn honking",
    max_count=5,
    gap_s=(0.08, 0.4),
    outdoors=True,
)
def car_horn(rng: Generator, n: int) -> Audio:
    """Two discs a third apart, 400 and 500 Hz, rich in harmonics to 6 kHz."""
    count = p.samples(float(rng.choice([0.16, 0.28, 0.6, 1.1])))
    base = p.TONE_GRID_HZ * int(rng.integers(7, 10))
    gains = [0.9**k for k in range(14)]
    honk = p.tone(base, count, gains) + p.tone(base * 1.25, count, gains)
    return p.resonate(honk, [(1800, 900), (3200, 1200)]) * p.envelope(count, 0.012, 0.03)


@sound(
    "ship horn",
    "vehicles",
    "a ship|a foghorn|a ferry",
    "blow the horn|sound the horn",
    "a ship's horn|the blast of a foghorn",
    max_count=2,
    gap_s=(0.6, 1.5),
    outdoors=True,
)
def ship_horn(rng: Generator, n: int) -> Audio:
    count = min(n, p.samples(rng.uniform(2.5, 4.0)))
    f0 = rng.uniform(75, 120) * p.curve(count, [(0, 0.97), (0.08, 1), (1, 0.99)])
    blast = p.tone(f0, count, [0.85**k * (1 if k % 2 == 0 else 0.7) for k in range(18)]) + 0.4 * p.tone(
        1.5 * f0, count, [0.8**k for k in range(8)]
    )
    return (p.resonate(blast, [(260, 200)]) + 0.1 * p.noise(rng, count, [(60, 0), (800, -12)])) * p.envelope(
        count, 0.25, 0.6
    )


@sound(
    "propeller plane",
    "vehicles",
    "a propeller plane|a small airplane|an airplane",
    "fly overhead|drone across the sky|fly past",
    "a propeller aircraft|the drone of a small plane",
    texture=True,
    outdoors=True,
)
def propeller(rng: Generator, n: int) -> Audio:
    """Blades at some 80 a second, a second engine slightly apart so that they beat; drifts slowly in pitch."""
    drift = 1.05 - 0.1 * p.curve(n, [(0, 0), (1, 1)])
    base = rng.uniform(72, 95)
    audio = np.zeros(n, np.float32)
    for detune in (1.0, 1 + rng.uniform(0.006, 0.02)):
        audio += p.resonate(p.pulses(base * detune * drift, n, 5), [(240, 160), (600, 320)])
    wash = p.noise(rng, n, [(50, -6), (200, 0), (800, -6), (3000, -20)]) * (0.8 + 0.4 * p.wander(rng, n, 0.7))
    return np.asarray(p.normalize(audio, 1.0) + 0.12 * wash, np.float32)


@sound(
    "jet plane",
    "vehicles",
    "a jet|a jet plane|a passenger jet",
    "fly over|roar overhead|take off",
    "a jet engine|the roar of a jet",
    texture=True,
    outdoors=True,
)
def jet(rng: Generator, n: int) -> Audio:
    """Roar that swells and sinks, with the thin whine of the compressor falling in pitch."""
    x = p.curve(n, [(0, -1), (1, 1)]) * 2 + np.float32(rng.uniform(-1, 1))
    near = 1 / (1 + x**2)
    roar = p.noise(rng, n, [(30, -4), (150, 0), (500, -3), (1500, -10), (5000, -22), (12000, -40)])
    f0 = rng.uniform(2300, 3200) * (1 - 0.12 * x / np.sqrt(1 + x**2))
    whine = p.tone(f0, n, (1, 0, 0.2)) * (0.6 + 0.4 * p.wander(rng, n, 0.05))
    return (roar * near * (0.8 + 0.4 * p.wander(rng, n, 0.2)) + 0.25 * whine * near**2).astype(np.float32)


@sound(
    "helicopter",
    "vehicles",
    "a helicopter|a chopper",
    "fly overhead|hover|circle above",
    "helicopter rotors|the chop of a helicopter",
    texture=True,
    outdoors=True,
)
def helicopter(rng: Generator, n: int) -> Audio:
    """Some twelve slaps a second, low and hard, with the turbine and the tail rotor behind them."""
    rate = rng.uniform(9.5, 14)
    slap = p.pulses(rate, n, 9)
    thud = p.noise(rng, n, [(30, -2), (70, 0), (200, -4), (700, -14), (3000, -30)]) * np.maximum(0, slap + 0.12) ** 1.2
    chop = p.noise(rng, n, [(200, -16), (700, 0), (2000, -5), (7000, -20)]) * np.maximum(0, slap) ** 2
    tail = p.tone(rate * 6.1, n, (1, 0.7, 0.4, 0.3))
    sway = 0.6 + 0.4 * p.wander(rng, n, 2.0)
    return ((thud + 0.5 * chop + 0.05 * tail) * sway).astype(np.float32)


@sound(
    "bicycle",
    "vehicles",
    "a bicycle;a cyclist",
    "click along|coast downhill;freewheel|coast downhill on a bicycle",
    "the clicking of a bicycle wheel",
    texture=True,
    outdoors=True,
)
def bicycle(rng: Generator, n: int) -> Audio:
    """The ratchet of the hub: bright clicks that slow down as it coasts."""
    rate = rng.uniform(18, 30) * p.curve(n, [(0, 1.2), (1, 0.6)])
    cycle = np.floor(p.phase(rate, n))
    train_ = (np.diff(cycle, prepend=0) > 0).astype(np.float32) * (0.8 + 0.2 * p.wander(rng, n, 0.1))
    click = p.modes(p.samples(0.03), [(2800, 0.004, 1), (5200, 0.003, 0.8), (8100, 0.002, 0.5)])
    tyre = p.noise(rng, n, [(200, -12), (900, 0), (3500, -8), (9000, -20)])
    return (oaconvolve(train_, p.normalize(click, 1.0))[:n] + 0.04 * tyre).astype(np.float32)
