"""Training clips: a random sound with a random caption at a random level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ezaudio.data import primitives as p
from ezaudio.data.primitives import Audio
from ezaudio.data.recordings import recorded_sounds
from ezaudio.data.sounds import SOUNDS, Sound

FRAMES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "the sound of {}",
    "sound of {}",
    "a recording of {}",
    "{} sound effect",
    "{} in the distance",
)


def all_sounds(recordings: Path | None) -> list[Sound]:
    """The synthesised sounds and, when their folder is given, the recorded ones."""
    return [*SOUNDS.values(), *(recorded_sounds(recordings) if recordings else [])]


def captions(sound: Sound) -> list[str]:
    """Every caption of a sound in lower case, the plain form first."""
    return list(dict.fromkeys(frame.format(phrase) for frame in FRAMES for phrase in sound.phrases))


def draw_caption(rng: np.random.Generator, sound: Sound) -> str:
    """A random caption: half the time a bare phrase, sometimes capitalised or ended with a full stop."""
    caption = FRAMES[rng.integers(len(FRAMES))].format(sound.phrases[rng.integers(len(sound.phrases))])
    if rng.random() < 0.25:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.15 else caption


def draw_sound(rng: np.random.Generator, sounds: Sequence[Sound]) -> int:
    """Index of a sound, drawn by weight."""
    weights = np.array([sound.weight for sound in sounds])
    return int(rng.choice(len(sounds), p=weights / weights.sum()))


def render(rng: np.random.Generator, sound: Sound, num_samples: int) -> Audio:
    """A clip with its peak between 0.5 and 0.9."""
    return p.normalize(sound.render(rng, num_samples), float(rng.uniform(0.5, 0.9)))
