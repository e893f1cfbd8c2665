"""Electronics: beeps, telephones, static and the small noises of devices."""

from __future__ import annotations

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import sound
from ezaudio.data.synthesis.signals import SQUARE, beep, on_grid

TOUCH_TONES = [(low, high) for low in (697, 770, 852, 941) for high in (1209, 1336, 1477)]


@sound(
    "low beep",
    "electronics",
    "a machine|a device",
    "give a low beep|beep in a low tone",
    "a low beep|low beeps|a low tone",
    max_count=6,
    gap_s=(0.12, 0.6),
    weight=0.6,
)
def low_beep(rng: Generator, n: int) -> Audio:
    return beep(on_grid(rng, 200, 450), float(rng.choice([0.16, 0.32, 0.64])), (1, 0.3, 0.15))


@sound(
    "beep",
    "electronics",
    "a machine|a computer|a device",
    "beep|bleep",
    "a beep|beeping|electronic beeps",
    max_count=8,
    gap_s=(0.08, 0.5),
)
def middle_beep(rng: Generator, n: int) -> Audio:
    return beep(on_grid(rng, 800, 1100), float(rng.choice([0.08, 0.16, 0.32])), (1, 0.1, 0.1))


@sound(
    "high beep",
    "electronics",
    "a machine|a device",
    "give a high beep|beep in a high tone",
    "a high beep|high-pitched beeps|a shrill tone",
    max_count=8,
    gap_s=(0.06, 0.4),
    weight=0.6,
)
def high_beep(rng: Generator, n: int) -> Audio:
    return beep(on_grid(rng, 4000, 6000), float(rng.choice([0.08, 0.16, 0.32])))


@sound(
    "telephone",
    "electronics",
    "a telephone|an old phone|a landline phone",
    "ring",
    "a phone ringing in an office|the ring of an old telephone",
    max_count=4,
    gap_s=(0.4, 1.2),
)
def telephone(rng: Generator, n: int) -> Audio:
    """Two small gongs hit in turn twenty-odd times a second, for one or two seconds."""
    rate = rng.uniform(20, 26)
    pitch = rng.uniform(1150, 1450)
    gongs = [
        p.normalize(p.modes(p.samples(0.5), [(f, 0.14, 1), (2.7 * f, 0.08, 0.6), (5.1 * f, 0.04, 0.3)]), 1.0)
        for f in (pitch, 1.19 * pitch)
    ]
    return p.join([(k / rate, gongs[k % 2], rng.uniform(0.85, 1)) for k in range(int(rate * rng.uniform(1.0, 1.8)))])


@sound(
    "mobile phone",
    "electronics",
    "a mobile phone|a cell phone|a smartphone",
    "ring|play a ringtone",
    "a ringtone|an electronic ringtone",
    max_count=3,
    gap_s=(0.3, 0.9),
)
def mobile_phone(rng: Generator, n: int) -> Audio:
    """A short tune of marimba-like tones, played twice."""
    scale = (800, 900, 1000, 1200, 1350, 1600)
    tune = rng.choice(scale, 6)
    notes = []
    for k in range(12):
        f = float(tune[k % 6])
        note = p.tone(f, p.samples(0.3), (1, 0.15, 0, 0.25)) * p.decay(p.samples(0.3), 0.07, 0.002)
        notes.append((0.12 * k + 0.12 * (k >= 6), note, 1.0))
    return p.join(notes)


@sound(
    "dial tone",
    "electronics",
    "a dial tone|a phone line",
    "hum|hum steadily in a receiver",
    "the dial tone of a phone",
    texture=True,
    weight=0.6,
)
def dial_tone(rng: Generator, n: int) -> Audio:
    """350 and 440 Hz together (North America), or 425 Hz alone (Europe)."""
    pair = (350, 440) if rng.random() < 0.7 else (425, 425)
    line = 0.01 * p.noise(rng, n, [(250, -20), (400, 0), (3300, 0), (4500, -40)])
    return p.tone(pair[0], n) + np.float32(rng.uniform(0.7, 1.3)) * p.tone(pair[1], n) + line


@sound(
    "dialling",
    "electronics",
    "someone|a caller;a phone",
    "dial a number|dial on a keypad;dial",
    "touch tones|keypad tones of a phone",
    max_count=2,
    gap_s=(0.3, 0.8),
)
def dialling(rng: Generator, n: int) -> Audio:
    """DTMF: each key is two tones at once (ITU-T Q.23)."""
    keys = [TOUCH_TONES[int(k)] for k in rng.integers(0, 12, int(rng.integers(5, 10)))]
    step = rng.uniform(0.2, 0.3)
    return p.join([(k * step, beep(low, 0.12) + beep(high, 0.12), 1) for k, (low, high) in enumerate(keys)])


@sound(
    "static",
    "electronics",
    "a radio|a television;static",
    "hiss|crackle with static;hiss|crackle",
    "radio static|white noise|tv static",
    texture=True,
)
def static(rng: Generator, n: int) -> Audio:
    """White noise with now and then a crackle."""
    hiss = p.noise(rng, n, [(50, -3), (300, 0), (12000, 0)])
    return hiss + p.scatter(rng, n, [p.burst(rng, 0.01, 0.001, [(500, 0), (12000, 0)])], 6, 0.5) * np.float32(2)


@sound(
    "mains hum",
    "electronics",
    "a transformer|a power line|a refrigerator",
    "hum|buzz quietly",
    "an electric hum|mains hum",
    texture=True,
    weight=0.7,
)
def mains_hum(rng: Generator, n: int) -> Audio:
    """Twice the mains frequency and its even company, with a little buzz."""
    base = float(rng.choice([50, 60]))
    gains = [0.3, 1.0, 0.15, 0.6, 0.1, 0.35, 0.05, 0.2, 0, 0.12, 0, 0.08]
    return p.tone(base, n, [g * rng.uniform(0.6, 1.4) for g in gains]) + 0.02 * p.noise(rng, n, [(100, 0), (2000, -10)])


@sound(
    "camera",
    "electronics",
    "a camera;a photographer",
    "click;take a picture|take photographs",
    "a camera shutter|the click of a camera",
    max_count=6,
    gap_s=(0.25, 0.8),
)
def camera(rng: Generator, n: int) -> Audio:
    """Mirror up, curtain, mirror down: three clicks within a sixth of a second, then a small motor."""

    def click(level: float) -> Audio:
        case = [(rng.uniform(1500, 2300), 0.006, 1), (rng.uniform(3500, 5000), 0.004, 0.9), (420, 0.012, 0.8)]
        return p.normalize(p.modes(p.samples(0.06), case, p.burst(rng, 0.008, 0.002, [(400, 0), (12000, 0)])), level)

    motor = p.tone(rng.uniform(380, 520), p.samples(0.12), [0.8**k for k in range(10)]) * p.envelope(
        p.samples(0.12), 0.02, 0.05
    )
    return p.join(
        [(0, click(0.8), 1), (0.06, click(1.0), 1), (0.13, click(0.7), 1), (0.17, p.normalize(motor, 0.15), 1)]
    )


@sound(
    "laser",
    "electronics",
    "a laser gun|a ray gun|a toy gun",
    "zap|fire",
    "a laser blast|a sci-fi zap",
    max_count=8,
    gap_s=(0.05, 0.4),
)
def laser(rng: Generator, n: int) -> Audio:
    """A square wave that falls three octaves in a quarter of a second."""
    count = p.samples(rng.uniform(0.18, 0.35))
    f0 = rng.uniform(2200, 3600) * np.exp(-p.curve(count, [(0, 0), (1, 2.3)]))
    return p.tone(f0, count, (1, 0.2, 0.4, 0.1, 0.2)) * p.envelope(count, 0.003, 0.1, 0.6)


@sound(
    "video game",
    "electronics",
    "a video game|an arcade game|a game console",
    "play music|bleep",
    "8-bit music|chiptune|arcade sounds",
    texture=True,
)
def video_game(rng: Generator, n: int) -> Audio:
    """Square-wave arpeggios, eight notes a second, over a triangle bass."""
    audio = np.zeros(n, np.float32)
    step = 3 * p.TICK
    roots = p.TONE_GRID_HZ * rng.integers(8, 16, 4)
    for index, place in enumerate(range(0, n, step)):
        root = float(roots[index // 8 % 4])
        ratio = (1, 1.25, 1.5, 2)[index % 4]
        note = beep(p.TONE_GRID_HZ * round(root * ratio / p.TONE_GRID_HZ), 0.11, SQUARE)
        p.add(audio, note, place, 0.7)
        if index % 4 == 0:
            p.add(audio, beep(max(100.0, root / 4), 0.4, (1, 0, 0.11, 0, 0.04)), place, 0.8)
    return audio


@sound(
    "notification",
    "electronics",
    "a phone|a computer",
    "chime with a notification|ping",
    "a notification|a message alert|an electronic chime",
    max_count=3,
    gap_s=(0.4, 1.0),
)
def notification(rng: Generator, n: int) -> Audio:
    """Two soft bell-like tones going up."""
    low = on_grid(rng, 900, 1250)
    tones = []
    for f in (low, p.TONE_GRID_HZ * round(low * 1.5 / p.TONE_GRID_HZ)):
        tones.append(p.tone(f, p.samples(0.7), (1, 0.1, 0.05)) * p.decay(p.samples(0.7), 0.14, 0.004))
    return p.join([(0, tones[0], 1), (0.12, tones[1], 0.9)])
