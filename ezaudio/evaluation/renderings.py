"""Renderings that no training has seen: other seeds than its own, and the recorded events that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ezaudio.data.synthesis import Sound
from ezaudio.data.synthesis.primitives import Audio, normalize, samples
from ezaudio.data.synthesis.scenes import render_scene, solo
from ezaudio.training.nano.vocabulary import style_of

# Training draws from seeds below PROMPT_SEED. What the judge learns, what it is checked on, and what models are
# compared with must not meet either.
LEARNT_SEED, CHECKED_SEED, COMPARED_SEED = 1_000_000, 2_000_000, 3_000_000
CLIP_S = 5.0


@dataclass(frozen=True, slots=True)
class Rendering:
    """A clip to be rendered: the numbers of its kinds of sound, and its seed.

    Attributes:
        alone: one sound, near by and repeated over the whole clip; otherwise a scene as in training.
    """

    kinds: tuple[int, ...]
    seed: tuple[int, ...]
    alone: bool = False

    def render(self, sounds: Sequence[Sound], duration_s: float = CLIP_S) -> Audio:
        """(T,) at 24 kHz with a peak between 0.5 and 0.9; `sounds` are all kinds."""
        rng, count = np.random.default_rng(self.seed), samples(duration_s)
        chosen = [sounds[kind] for kind in self.kinds]
        if self.alone:
            return normalize(solo(rng, chosen[0], count), float(rng.uniform(0.5, 0.9)))
        return render_scene(rng, chosen, count, style_of(float(len(chosen) == 2)))[0]


def singles(num_kinds: int, count: int, seed: int, alone: bool = False) -> list[Rendering]:
    """`count` clips of each kind, kind by kind."""
    return [Rendering((k,), (seed, int(alone), k, n), alone) for k in range(num_kinds) for n in range(count)]


def pairs(num_kinds: int, count: int, seed: int) -> list[Rendering]:
    """`count` scenes of two different kinds in all; every kind comes equally often, as far as the number goes."""
    rng = np.random.default_rng((seed, 2))
    drawn: list[Rendering] = []
    while len(drawn) < count:
        order = rng.permutation(num_kinds)
        chosen = zip(order[0::2], order[1::2], strict=False)
        drawn += [Rendering((int(a), int(b)), (seed, 2, len(drawn) + n)) for n, (a, b) in enumerate(chosen)]
    return drawn[:count]
