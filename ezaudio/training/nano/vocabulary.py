"""What the packaged model is taught: its kinds of sound, the scenes they are in, and the wordings it is not taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ezaudio.data.recordings import with_recordings
from ezaudio.data.synthesis import SOUNDS, Sound
from ezaudio.data.synthesis.captions import caption, pick
from ezaudio.data.synthesis.scenes import SceneStyle, render_scene
from ezaudio.data.synthesis.wording import Wording, bare, participle, present, progressive

KINDS = (
    "dog", "cat", "cow", "sheep", "pig", "horse", "rooster", "duck", "crow", "owl", "songbird", "frog", "crickets",
    "rain", "wind", "thunder", "fire", "stream", "ocean", "dripping", "vacuum cleaner", "clock", "idling car",
    "motorcycle", "train horn", "car horn", "helicopter", "police siren", "smoke alarm", "church bell", "doorbell",
    "knocking", "gunshot", "breaking glass", "hammering", "drill", "whistling", "heartbeat", "footsteps", "applause",
    "typing", "laughter", "crying baby", "piano", "guitar", "drum kit", "beep", "telephone", "static",
)  # fmt: skip
PROMPT_SEED = 1000  # prompts to be judged are drawn from here on, what is trained on before
# Sounds that go on, near and not in a room: what a small model has to learn is the sounds.
STYLE = SceneStyle((1.0, 0.0, 0.0), distances=(1.0, 0.0, 0.0), in_turn=0.3, rooms=(1.0, 0.0, 0.0, 0.0), filled=0.9)
# Sentences that no training caption has, to be filled with a participle ("a dog barking").
UNSEEN_FORMS = ("I hear {}", "noise of {}", "audio of {}", "{} can be heard", "listen to {}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A caption and the kinds of sound that it names."""

    text: str
    kinds: tuple[str, ...]


def known_sounds(recordings: Path | None, held_out: bool = False) -> list[Sound]:
    """The kinds, with every wording; see `with_recordings` for what is held out."""
    sounds = [replace(SOUNDS[name], weight=1.0) for name in KINDS]
    return with_recordings(sounds, recordings, held_out) if recordings else sounds


def taught_sounds(recordings: Path | None) -> list[Sound]:
    """The kinds as they are taught: without the pairs of noun and verb that are held out."""
    return [replace(sound, wording=without_held_out(sound.wording)) for sound in known_sounds(recordings)]


def held_out_pairs(wording: Wording) -> list[tuple[str, str]]:
    """Of each group with a choice of nouns and of verbs the last noun with the first verb: "a puppy", "bark".

    Both words are taught, in other company.
    """
    return [(nouns[-1], verbs[0]) for nouns, verbs in wording.groups if len(nouns) > 1 and len(verbs) > 1]


def without_held_out(wording: Wording) -> Wording:
    """The wording without its held-out pairs; labels stay."""
    groups: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for nouns, verbs in wording.groups:
        if len(nouns) > 1 and len(verbs) > 1:
            groups += [(nouns[:-1], verbs), (nouns[-1:], verbs[1:])]
        else:
            groups.append((nouns, verbs))
    return replace(wording, groups=tuple(groups))


def seen_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` captions of each kind alone, as in training."""
    return _captions([(name,) for name in KINDS for _ in range(count)], seed)


def pair_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` captions of two different kinds, as in training."""
    rng = np.random.default_rng((seed, 2))
    pairs = [tuple(KINDS[int(i)] for i in rng.choice(len(KINDS), 2, replace=False)) for _ in range(count)]
    return _captions(pairs, seed)


def unseen_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` captions of each kind that training cannot have had: held-out pairs, and sentences of `UNSEEN_FORMS`."""
    rng = np.random.default_rng((seed, 1))
    prompts = []
    for name in KINDS:
        pairs = held_out_pairs(SOUNDS[name].wording)
        for index in range(count):
            if pairs and index % 2 == 0:
                form = pick(rng, (bare, participle, present, progressive))
                text = form(*pick(rng, pairs))
            else:
                nouns, verbs = pick(rng, without_held_out(SOUNDS[name].wording).groups)
                text = pick(rng, UNSEEN_FORMS).format(participle(pick(rng, nouns), pick(rng, verbs)))
            prompts.append(Prompt(text, (name,)))
    return prompts


def style_of(pairs: float) -> SceneStyle:
    """STYLE for scenes of one sound, or, in this share of them, of two."""
    return replace(STYLE, parts=(1.0 - pairs, pairs, 0.0))


def _captions(kinds: Sequence[tuple[str, ...]], seed: int) -> list[Prompt]:
    sounds = {sound.name: sound for sound in taught_sounds(None)}
    prompts = []
    for number, names in enumerate(kinds):
        rng = np.random.default_rng((seed, 3, number))
        _, scene = render_scene(rng, [sounds[name] for name in names], 24_000, style_of(float(len(names) == 2)))
        prompts.append(Prompt(caption(rng, scene), names))
    return prompts
