"""Which sampling plan costs least fidelity at a given cost: searched on a bundle, measured on other clips.

A clip's reference starts from the same noise and takes the steps of REFERENCE, each guided and with every block. A
plan is judged by the latents it ends with. It is chosen on one half of the clips and measured on the other, so that
what the manifest says was not fitted to what it is said of.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ezaudio.config import EzAudioConfig
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.measures import level_distance_db, levels_db, measure
from ezaudio.runtime.presets import Fidelity, Preset
from ezaudio.runtime.settings import resolve
from ezaudio.runtime.solvers import guided_steps, solver_plan
from ezaudio.runtime.text_to_audio import TextToAudio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

# Of second order and denser where clips are decided: an even grid of as many steps is a tenth of the norm off it.
REFERENCE = Preset("dpmpp_2m", 100, 0.0, 2.0)
BUDGETS = {"fast": 8.0, "balanced": 20.0, "best": 50.0}
"""Preset → evaluations of the network a clip; the official plan has 200."""

SOLVER = "dpmpp_2m"
SPACINGS = (1.0, 1.6, 2.0, 2.5)
LOWEST_GUIDED = (0.0, 0.4, 0.6, 0.8)
FEWEST_STEPS = 4
SCREENED_CLIPS = 4  # of those to choose on, for every plan
FINALISTS = 8  # go on to the others
PROMPTS = (
    "dog barking",
    "rain falling",
    "ocean waves",
    "a bell ringing",
    "an engine running",
    "birds chirping",
    "a clock ticking",
    "a siren",
    "wind blowing",
    "a drum beat",
    "a phone ringing",
    "fire crackling",
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Clip:
    """What is made both ways."""

    prompt: str
    seed: int
    latents: Float32  # (1, C, L) of the reference


def num_evaluations(preset: Preset, config: EzAudioConfig) -> float:
    """Of the network, for a clip: a guided step counts two, one that reuses the inner blocks its share of them."""
    plan = solver_plan(preset.solver, preset.num_steps, preset.eta, config.diffusion, preset.spacing)
    shallow = 2 * config.dit.num_outer_blocks / config.dit.num_blocks
    guided = guided_steps(plan, preset.guidance_interval)
    return sum((2 if guided[n] else 1) * (shallow if n in preset.reuse else 1.0) for n in range(plan.num_steps))


def candidates(budget: float, config: EzAudioConfig) -> list[Preset]:
    """Plans that spend from nine tenths of the budget to all of it."""
    found = []
    for spacing, low, steps in itertools.product(SPACINGS, LOWEST_GUIDED, _step_counts(budget)):
        for reuse in _reuse_patterns(steps):
            preset = Preset(SOLVER, steps, 0.0, spacing, (low, 1.0), reuse)
            if 0.9 * budget <= num_evaluations(preset, config) <= budget and _is_possible(preset, config):
                found.append(preset)
    return found


def _step_counts(budget: float) -> Iterator[int]:
    """Every number while it is small, then steps of a tenth."""
    steps = FEWEST_STEPS
    while steps <= 2 * budget:
        yield steps
        steps += max(1, steps // 10)


def _reuse_patterns(steps: int) -> list[tuple[int, ...]]:
    """None, every other step, or two of three, from the start, after a third or after a half of the steps."""
    patterns: list[tuple[int, ...]] = [()]
    for period, first in itertools.product((2, 3), (1, steps // 3, steps // 2)):
        patterns.append(tuple(n for n in range(max(first, 1), steps) if (n - first) % period))
    return list(dict.fromkeys(patterns))


def _is_possible(preset: Preset, config: EzAudioConfig) -> bool:
    try:
        resolve(config, "any", {"this": preset}, preset="this", seed=0)
    except InputError:
        return False
    return True


def make_latents(model: TextToAudio, preset: Preset, prompt: str, seed: int, duration_s: float) -> Float32:
    """(1, C, L) after the last step."""
    settings = model.settings(
        prompt,
        duration_s=duration_s,
        seed=seed,
        solver=preset.solver,
        num_steps=preset.num_steps,
        eta=preset.eta,
        spacing=preset.spacing,
        guidance_interval=preset.guidance_interval,
        reuse=list(preset.reuse),
    )
    return model.latents(settings)


def calibrate(
    model: TextToAudio,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (1, 2),
    duration_s: float = 5.0,
    budgets: dict[str, float] | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Preset]:
    """The best plan found for every budget, each with what it was measured to cost.

    Args:
        prompts: at least two; plans are chosen on every other one and measured on the rest.
        progress: told what is being done, how many evaluations of clips are done and how many there are.
    """
    if len(prompts) < 2:
        raise InputError(f"calibration needs at least two prompts, got {len(prompts)}")
    clips = []
    pairs = list(itertools.product(prompts, seeds))
    for number, (prompt, seed) in enumerate(pairs):
        progress("reference", number, len(pairs))
        clips.append(Clip(prompt, seed, make_latents(model, REFERENCE, prompt, seed, duration_s)))
    chosen_on = [clip for clip in clips if prompts.index(clip.prompt) % 2 == 0]
    measured_on = [clip for clip in clips if prompts.index(clip.prompt) % 2 == 1]
    presets = {}
    for name, budget in (budgets or BUDGETS).items():
        plans = candidates(budget, model.config)
        screened = chosen_on[:: max(1, len(chosen_on) // SCREENED_CLIPS)][:SCREENED_CLIPS]
        errors = []
        for number, plan in enumerate(plans):
            progress(f"{name}: trying plans", number, len(plans))
            errors.append(latent_error(model, plan, screened, duration_s))
        finalists = [plans[index] for index in np.argsort(errors)[:FINALISTS]]
        errors = []
        for number, plan in enumerate(finalists):
            progress(f"{name}: comparing the best", number, len(finalists))
            errors.append(latent_error(model, plan, chosen_on, duration_s))
        best = finalists[int(np.argmin(errors))]
        progress(f"{name}: measuring", 0, 1)
        presets[name] = replace(best, fidelity=fidelity(model, best, measured_on, duration_s))
    return presets


def latent_error(model: TextToAudio, plan: Preset, clips: Sequence[Clip], duration_s: float) -> float:
    """Mean ‖latents − reference‖ / ‖reference‖."""
    errors = [measure(make_latents(model, plan, clip.prompt, clip.seed, duration_s), clip.latents)[1] for clip in clips]
    return float(np.mean(errors))


def fidelity(model: TextToAudio, plan: Preset, clips: Sequence[Clip], duration_s: float) -> Fidelity:
    """What the plan costs on these clips."""
    errors, distances = [], []
    for clip in clips:
        latents = make_latents(model, plan, clip.prompt, clip.seed, duration_s)
        errors.append(measure(latents, clip.latents)[1])
        levels = levels_db(model.decode(clip.latents)[0], model.sample_rate)
        distances.append(level_distance_db(model.decode(latents)[0], levels, model.sample_rate))
    return Fidelity(
        reference_steps=REFERENCE.num_steps,
        num_clips=len(clips),
        latent_error=round(float(np.median(errors)), 4),
        level_distance_db=round(float(np.median(distances)), 3),
        evaluations=round(num_evaluations(plan, model.config), 2),
    )
