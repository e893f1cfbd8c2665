"""Captions of scenes: templates and synonyms, counts, order, distance and place, in grammatical English."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import Sound
from ezaudio.data.synthesis.scenes import VARIED, Part, Scene, SceneStyle, render_scene
from ezaudio.data.synthesis.wording import bare, is_plural, participle, plural, present, progressive

COUNTS = {
    1: ("once",),
    2: ("twice", "two times"),
    3: ("three times",),
}
MANY = ("several times", "repeatedly", "again and again", "over and over")
FAR = ("in the distance", "far away", "from afar")
NEAR = ("nearby", "close by", "up close")
PLACES = {
    "small room": ("in a small room", "indoors", "in a room"),
    "hall": ("in a large hall", "in a church", "with echo"),
    "tunnel": ("in a tunnel", "with a long echo"),
    "outdoors": ("outdoors", "outside"),
}
# How often a caption says what it could leave out.
COUNT_SHARE, DISTANCE_SHARE, NEAR_SHARE, PLACE_SHARE, PLURAL_SHARE = 0.6, 0.8, 0.12, 0.3, 0.3

T = TypeVar("T")
Say = Callable[[str, str], str]


def pick(rng: Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def caption(rng: Generator, scene: Scene) -> str:
    """One of many captions of a scene. Half of them begin with a capital and end with a full stop."""
    place = ""
    if rng.random() < PLACE_SHARE and all(part.distance != "far" for part in scene.parts):
        place = pick(rng, PLACES[scene.room])
    if len(scene.parts) == 1:
        text = f"{single(rng, scene.parts[0])} {place}".rstrip()
    else:
        text = (in_turn if scene.in_turn else together)(rng, scene.parts)
        text = f"{place}, {text}" if place else text
    return text[0].upper() + text[1:] + "." if rng.random() < 0.5 else text


def single(rng: Generator, part: Part) -> str:
    """ "a dog barks twice", "the sound of a bell tolling in the distance", "birdsong"."""
    forms = [
        lambda: clause(rng, part, present),
        lambda: clause(rng, part, present),
        lambda: clause(rng, part, progressive),
        lambda: clause(rng, part, participle),
        lambda: f"the sound of {clause(rng, part, participle)}",
        lambda: clause(rng, part, bare),
        lambda: named(rng, part),
        lambda: named(rng, part),
    ]
    return pick(rng, forms)()


def together(rng: Generator, parts: Sequence[Part]) -> str:
    """Sounds at once: "a dog barks twice while rain falls", "rain with a dog barking in the distance"."""
    front, back = parts[0], parts[1]
    if len(parts) == 2:
        forms = [
            lambda: f"{_sentence(rng, front)} and {_sentence(rng, back)}",
            lambda: f"{_noun(rng, front)} and {_noun(rng, back)}",
            lambda: f"{_noun(rng, back)} with {_noun(rng, front)}",
        ]
        if back.sound.texture:  # two events are rarely heard at once
            forms += [
                lambda: f"{_sentence(rng, front)} while {_sentence(rng, back)}",
                lambda: f"{_sentence(rng, front)} as {_sentence(rng, back)}",
                lambda: f"{_noun(rng, front)} over {_noun(rng, back)}",
                lambda: f"{_noun(rng, front)} with {_noun(rng, back, False)} in the background",
            ]
        return pick(rng, forms)()
    last = parts[2]
    forms = [
        lambda: f"{_sentence(rng, front)}, {_sentence(rng, back)} and {_sentence(rng, last)}",
        lambda: f"{_noun(rng, front)}, {_noun(rng, back)} and {_noun(rng, last)}",
    ]
    if last.sound.texture:
        forms += [
            lambda: f"{_sentence(rng, front)} and {_sentence(rng, back)} while {_sentence(rng, last)}",
            lambda: f"{_noun(rng, front)} and {_noun(rng, back)} with {_noun(rng, last, False)} in the background",
        ]
    return pick(rng, forms)()


def in_turn(rng: Generator, parts: Sequence[Part]) -> str:
    """Sounds one after another: "a dog barks twice, followed by thunder", "a bell tolls, then rain falls"."""
    says = [clause(rng, part, present) for part in parts]
    if len(parts) == 2:
        forms = [
            f"{says[0]}, followed by {_noun(rng, parts[1])}",
            f"{_noun(rng, parts[0])} followed by {_noun(rng, parts[1])}",
            f"{says[0]} and then {says[1]}",
            f"{says[0]}, then {says[1]}",
            f"first {says[0]}, then {says[1]}",
            f"{says[1]} after {_noun(rng, parts[0])}",
            f"{says[0]} before {says[1]}",
        ]
    else:
        forms = [
            f"{says[0]}, then {says[1]}, and finally {says[2]}",
            f"{says[0]}, followed by {_noun(rng, parts[1])} and then {_noun(rng, parts[2])}",
            f"first {says[0]}, then {says[1]} and at last {says[2]}",
        ]
    return pick(rng, forms)


def clause(rng: Generator, part: Part, form: Say, with_distance: bool = True) -> str:
    """Noun and verb in a form, with count and distance where the caption says them: "dogs bark in the distance"."""
    nouns, verbs = pick(rng, part.sound.wording.groups)
    noun, verb = pick(rng, nouns), pick(rng, verbs)
    many = plural(noun)
    if many and part.count > 1 and rng.random() < PLURAL_SHARE:
        text = form(many, verb)
    else:
        text = form(noun, verb)
        # One event goes without saying, but for a caption that counts now and then.
        says_count = rng.random() < (COUNT_SHARE if part.count > 1 else 0.2 * COUNT_SHARE)
        if part.count and part.sound.counted and says_count and not is_plural(noun):
            text += f" {pick(rng, COUNTS.get(part.count, MANY))}"
    return text + (_distance(rng, part) if with_distance else "")


def named(rng: Generator, part: Part, with_distance: bool = True) -> str:
    """A name of the sound itself: "birdsong", "the patter of rain in the distance"; the bare form where it has none."""
    labels = part.sound.wording.labels
    if not labels:
        return clause(rng, part, bare, with_distance)
    return pick(rng, labels) + (_distance(rng, part) if with_distance else "")


def _noun(rng: Generator, part: Part, with_distance: bool = True) -> str:
    if rng.random() < 0.4:
        return named(rng, part, with_distance)
    return clause(rng, part, participle, with_distance)


def _sentence(rng: Generator, part: Part) -> str:
    return clause(rng, part, present if rng.random() < 0.7 else progressive)


def _distance(rng: Generator, part: Part) -> str:
    if part.distance == "far" and rng.random() < DISTANCE_SHARE:
        return f" {pick(rng, FAR)}"
    if part.distance == "near" and not part.sound.texture and rng.random() < NEAR_SHARE:
        return f" {pick(rng, NEAR)}"
    return ""


def scene_clip(
    seed: int, index: int, sounds: Sequence[Sound], num_samples: int, style: SceneStyle = VARIED
) -> tuple[Audio, Scene, str]:
    """Scene number `index` of a seed, with its caption: the same whatever was rendered before."""
    rng = np.random.default_rng((seed, index))
    audio, scene = render_scene(rng, sounds, num_samples, style)
    return audio, scene, caption(rng, scene)
