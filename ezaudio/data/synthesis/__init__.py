"""Synthesised sounds with captions: kinds in families, rooms, scenes, and the words for all of them."""

from ezaudio.data.synthesis import (  # noqa: F401  imported so that they register their kinds
    animals,
    birds,
    electronics,
    impacts,
    instruments,
    machines,
    nature,
    people,
    signals,
    tools,
    vehicles,
    voices,
)
from ezaudio.data.synthesis.registry import FAMILIES, SOUNDS, Sound

__all__ = ["FAMILIES", "SOUNDS", "Sound"]
