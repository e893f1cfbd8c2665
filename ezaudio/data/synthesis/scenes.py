"""Scenes: up to three sounds with their timing, level, distance and room, rendered from a seed with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import Sound
from ezaudio.data.synthesis.rooms import DISTANCES, ROOMS, VARIANTS, heard

TEXTURE_S = 8.0
SILENT = 0.1  # peaks of audible textures measure at least 0.2, of silent stretches at most 0.05
CUT_FADE_S = 0.1
FLOOR = 2e-4  # recordings are never digitally silent


@dataclass(frozen=True, slots=True)
class SceneStyle:
    """How scenes are drawn.

    Attributes:
        parts: shares of scenes of one, two and three sounds.
        distances: shares of near, middle and far.
        in_turn: share of scenes of several sounds in which they follow each other.
        rooms: share of each of `ROOMS`, where no sound of the scene belongs outdoors.
        filled: share of sounds of events that go on to the end of their stretch, however often.
    """

    parts: tuple[float, float, float] = (0.5, 0.35, 0.15)
    distances: tuple[float, float, float] = (0.62, 0.16, 0.22)
    in_turn: float = 0.4
    rooms: tuple[float, ...] = (0.4, 0.35, 0.17, 0.08)
    filled: float = 0.0


VARIED = SceneStyle()


@dataclass(frozen=True, slots=True)
class Part:
    """One sound of a scene: `count` events (0 for a texture) from start_s to end_s; level_db is that of its peak."""

    sound: Sound
    count: int
    start_s: float
    end_s: float
    level_db: float
    distance: str


@dataclass(frozen=True, slots=True)
class Scene:
    """`in_turn`: the parts follow each other. Otherwise they sound together, the first one in front."""

    parts: tuple[Part, ...]
    in_turn: bool
    room: str

    def labels(self) -> list[dict[str, Any]]:
        """What sounds when, for a manifest: name, start_s, end_s, count, level_db, distance."""
        return [
            {
                "name": part.sound.name,
                "start_s": round(part.start_s, 3),
                "end_s": round(part.end_s, 3),
                "count": part.count,
                "level_db": round(part.level_db, 1),
                "distance": part.distance,
            }
            for part in self.parts
        ]


def repeated(rng: Generator, sound: Sound, num_samples: int, count: int | None) -> tuple[Audio, int, int, int]:
    """Up to `count` events on whole ticks, the first one at a random place; a last one that does not fit is left out.

    Args:
        count: None for as many as fit.

    Returns:
        audio (T,), how many events there are (at least 1), the samples where the first begins and the last ends.
    """
    events = [event(rng, sound, num_samples)]
    places = [0]
    varies = rng.random() < 0.6  # the same dog three times is alike, but not the same recording
    while count is None or len(events) < count:
        following = event(rng, sound, num_samples) if varies else events[0]
        after = places[-1] + len(events[-1]) + p.samples(rng.uniform(*sound.gap_s))
        place = max(places[-1] + p.TICK, -(-after // p.TICK) * p.TICK)
        if place + len(following) > num_samples:
            break
        events.append(following)
        places.append(place)
    end = max(place + len(each) for place, each in zip(places, events, strict=True))
    first = int(rng.integers(0, max(0, num_samples - end) // p.TICK + 1)) * p.TICK
    audio = np.zeros(num_samples, np.float32)
    for place, each in zip(places, events, strict=True):
        p.add(audio, p.normalize(each, float(rng.uniform(0.75, 1.0))), first + place)
    return audio, len(events), first, min(num_samples, first + end)


def event(rng: Generator, sound: Sound, num_samples: int) -> Audio:
    """One event, a longer one faded out at `num_samples`."""
    audio = sound.render(rng, num_samples)
    if len(audio) <= num_samples:
        return audio
    audio = audio[:num_samples].copy()
    count = min(num_samples, p.samples(CUT_FADE_S))
    audio[num_samples - count :] *= np.linspace(1, 0, count, dtype=np.float32)
    return audio


def texture(rng: Generator, sound: Sound, num_samples: int) -> Audio:
    """A stretch of a texture in which it can be heard.

    A second of a clock can fall between two ticks, and a caption must not name what is not there: then the loudest of a
    few stretches of a longer rendering is taken.
    """
    audio = sound.render(rng, num_samples)
    whole = p.samples(TEXTURE_S)
    if num_samples >= whole or float(np.abs(audio).max()) > SILENT:
        return audio
    audio = sound.render(rng, whole)
    starts = rng.integers(0, (whole - num_samples) // p.TICK + 1, 8) * p.TICK
    stretches = [audio[start : start + num_samples] for start in starts]
    return max(stretches, key=lambda stretch: float(np.square(stretch).sum()))


def solo(rng: Generator, sound: Sound, num_samples: int) -> Audio:
    """A clip of one near sound without a room, events repeated over the whole of it; the level is free."""
    if sound.texture:
        return texture(rng, sound, num_samples)
    audio = np.zeros(num_samples, np.float32)
    place = int(rng.integers(0, 15)) * p.TICK
    while place < num_samples:
        each = p.normalize(sound.render(rng, num_samples), float(rng.uniform(0.7, 1.0)))
        p.add(audio, each, place)
        step = len(each) + p.samples(rng.uniform(*sound.gap_s))
        place += max(1, -(-step // p.TICK)) * p.TICK
    return audio


def draw_sounds(rng: Generator, sounds: Sequence[Sound], count: int) -> list[Sound]:
    """Different sounds, drawn by weight."""
    weights = np.array([sound.weight for sound in sounds])
    chosen = rng.choice(len(sounds), min(count, len(sounds)), replace=False, p=weights / weights.sum())
    return [sounds[int(index)] for index in chosen]


def render_scene(
    rng: Generator, sounds: Sequence[Sound], num_samples: int, style: SceneStyle = VARIED
) -> tuple[Audio, Scene]:
    """A random scene of one to three of `sounds`: float32 (T,) with a peak between 0.5 and 0.9, and what is in it."""
    chosen = draw_sounds(rng, sounds, 1 + int(rng.choice(3, p=style.parts)))
    in_turn = len(chosen) > 1 and rng.random() < style.in_turn
    if not in_turn:  # events in front, textures behind them
        chosen.sort(key=lambda sound: sound.texture)
    outdoors = any(sound.outdoors for sound in chosen)
    room = "outdoors" if outdoors else str(rng.choice(list(ROOMS), p=style.rooms))
    variant = int(rng.integers(VARIANTS))
    cuts = np.linspace(0, num_samples, len(chosen) + 1).astype(int) // p.TICK * p.TICK
    cuts[-1] = num_samples

    mix = (FLOOR * p.noise(rng, num_samples, [(50, 0), (8000, -20)])).astype(np.float32)
    parts = []
    for index, sound in enumerate(chosen):
        start, stop = (int(cuts[index]), int(cuts[index + 1])) if in_turn else (0, num_samples)
        if sound.texture:
            audio, count, first, end = texture(rng, sound, stop - start), 0, 0, stop - start
            if in_turn:
                audio = p.fade(audio, 0.15)
        else:
            wanted: int | None = min(1 + int(rng.geometric(0.45) - 1), sound.max_count)
            if style.filled and rng.random() < style.filled:
                wanted = None
            audio, count, first, end = repeated(rng, sound, stop - start, wanted)
        distance = str(rng.choice(list(DISTANCES), p=style.distances))
        behind = index > 0 and not in_turn
        if index == 0 and len(chosen) > 1:
            distance = "near" if not in_turn else distance
        level_db = float(rng.uniform(-12, -4) if behind and sound.texture else rng.uniform(-6, 0))
        whole = np.zeros(num_samples, np.float32)
        whole[start:stop] = p.normalize(audio, 1.0) * np.float32(10 ** (level_db / 20))
        mix += heard(whole, distance, room, variant)
        level_db += DISTANCES[distance].level_db
        parts.append(
            Part(sound, count, (start + first) / p.SAMPLE_RATE, (start + end) / p.SAMPLE_RATE, level_db, distance)
        )
    return p.normalize(mix, float(rng.uniform(0.5, 0.9))), Scene(tuple(parts), in_turn, room)
