"""Training clips of the packaged model: one sound of a kind, with a random caption, at a random level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ezaudio.data.recordings import with_recordings
from ezaudio.data.synthesis import SOUNDS, Sound, scenes
from ezaudio.data.synthesis.primitives import Audio, normalize

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
    """Every kind of sound; with their folder, recordings take the place of most synthesised events of their kinds."""
    sounds = list(SOUNDS.values())
    return with_recordings(sounds, recordings) if recordings else sounds


def captions(sound: Sound) -> list[str]:
    """Every caption of a sound in lower case, the plain form first."""
    return list(dict.fromkeys(frame.format(phrase) for frame in FRAMES for phrase in sound.phrases))


def draw_caption(rng: np.random.Generator, sound: Sound) -> str:
    """A random caption: half the time a bare phrase, sometimes capitalised or ended with a full stop."""
    phrases = sound.phrases
    caption = FRAMES[rng.integers(len(FRAMES))].format(phrases[rng.integers(len(phrases))])
    if rng.random() < 0.25:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.15 else caption


def draw_sound(rng: np.random.Generator, sounds: Sequence[Sound]) -> int:
    """Index of a sound, drawn by weight."""
    weights = np.array([sound.weight for sound in sounds])
    return int(rng.choice(len(sounds), p=weights / weights.sum()))


def render(rng: np.random.Generator, sound: Sound, num_samples: int) -> Audio:
    """A clip with its peak between 0.5 and 0.9."""
    return normalize(scenes.solo(rng, sound, num_samples), float(rng.uniform(0.5, 0.9)))
