"""What a kind of sound is, and the list of them. Each family's module registers its kinds when it is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.wording import Wording

Render = Callable[[Generator, int], Audio]

FAMILIES = (
    "animals",
    "weather",
    "water",
    "machines",
    "vehicles",
    "alarms",
    "bells",
    "impacts",
    "tools",
    "people",
    "instruments",
    "electronics",
)


@dataclass(frozen=True, slots=True)
class Sound:
    """A kind of sound.

    `render` takes a generator and a number of samples. A texture (rain) fills all of them; otherwise it returns one
    event (a bark) of its own length. The level is free.

    `gap_s` is the silence between repeated events, `max_count` how often one may follow another,
    `counted` whether a caption may count them (an event of knocking is several knocks), `outdoors` that no
    room is put around it, `weight` its share of clips, `recorded` that recordings are among its events.
    """

    name: str
    family: str
    wording: Wording
    render: Render
    texture: bool = False
    gap_s: tuple[float, float] = (0.2, 1.0)
    max_count: int = 5
    counted: bool = True
    outdoors: bool = False
    weight: float = 1.0
    recorded: bool = False

    @property
    def phrases(self) -> tuple[str, ...]:
        """Interchangeable captions without count, distance or place, the plain form first."""
        return self.wording.phrases


SOUNDS: dict[str, Sound] = {}


def sound(
    name: str,
    family: str,
    nouns: str,
    verbs: str,
    labels: str = "",
    *,
    texture: bool = False,
    gap_s: tuple[float, float] = (0.2, 1.0),
    max_count: int = 5,
    counted: bool = True,
    outdoors: bool = False,
    weight: float = 1.0,
) -> Callable[[Render], Render]:
    """Registers the function below it. `nouns`, `verbs` and `labels` are as in `Wording.parse`."""

    def register(render: Render) -> Render:
        assert name not in SOUNDS, name
        assert family in FAMILIES, family
        wording = Wording.parse(nouns, verbs, labels)
        SOUNDS[name] = Sound(name, family, wording, render, texture, gap_s, max_count, counted, outdoors, weight)
        return render

    return register
