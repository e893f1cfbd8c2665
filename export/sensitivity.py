"""Which products of the denoiser int8 damages too much, found by trying.

A group is one kind of product (the MLP's second one, say) in one third of the blocks. With only that group in int8, and
everything else in fp32, the graph answers at a few points of sampling; how far its velocity is off, after guidance, is
the group's damage. Errors of different groups are as good as independent, so their squares add up: `choose` takes the
cheapest levels whose sum is small enough, and the result is measured as a whole before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ezaudio.export import precision
from ezaudio.export.precision import COST, FP32, INT8, WIDE
from ezaudio.runtime.emulation import load_graph, open_session
from ezaudio.runtime.measures import measure
from ezaudio.runtime.noise import PhiloxNoise
from ezaudio.runtime.solvers import alphas_cumprod, solver_plan
from ezaudio.runtime.teacher_forcing import Point, TeacherForced

if TYPE_CHECKING:
    from ezaudio.runtime.teacher_forcing import Array, Float32

MIN_COSINE = 0.999
MAX_GROWTH = 0.5  # of the time of all products, for the sake of MIN_COSINE
FIRST_SHARE = 0.7  # of the error that MIN_COSINE allows, on the scan's own prompts: others are a little worse
TRIES = 4
DURATION_S = 2.0
STEPS = 8  # of the loop that makes a clean latent
THIRDS = 3

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Inputs of the denoiser and the velocity (1, C, L) that the fp32 graph answers."""

    inputs: dict[str, Array]
    velocity: Float32


@dataclass(frozen=True, slots=True)
class Group:
    """Products that are decided together, and their share of all products' multiplications."""

    name: str
    weights: tuple[str, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What a scan found.

    Attributes:
        levels: name of a weight → WIDE or FP32; INT8 where it is not named.
        damage: group → worst relative L2 of the velocity with only that group in int8, the largest first.
        growth: of the time of all products, by the levels.
        before: worst cosine with every product in int8.
        after: with the levels, on the same inputs.
    """

    levels: dict[str, str]
    damage: dict[str, float]
    growth: float
    before: float
    after: float


def questions(system: TeacherForced, prompts: tuple[str, ...], seed: int) -> list[Question]:
    """One question for each prompt and each of four timesteps, the plan's first and last among them.

    The latents are noised anew from the end of a short loop, because a short plan never comes near timestep 0.
    """
    config = system.config
    plan = solver_plan(config.defaults.solver, STEPS, config.defaults.eta, config.diffusion)
    usual = solver_plan(config.defaults.solver, config.defaults.num_steps, config.defaults.eta, config.diffusion)
    noise = PhiloxNoise(seed)
    shape = (1, config.dit.latent_channels, max(2, round(DURATION_S * config.vae.latent_rate)))
    latents = noise.draw(0, shape)
    clean = np.zeros_like(latents)
    for step, (timestep, row) in enumerate(zip(plan.timesteps, plan.rows, strict=True)):
        velocity = system.velocity(Point(latents, int(timestep), prompts[step % len(prompts)]))
        drawn = noise.draw(step + 1, shape) if plan.draws_noise else np.zeros_like(latents)
        following = row[0] * latents + row[1] * velocity + row[2] * clean + row[3] * drawn
        latents, clean = following, row[4] * latents + row[5] * velocity
    signal = np.sqrt(alphas_cumprod(config.diffusion)).astype(np.float32)
    chosen = usual.timesteps[np.unique(np.linspace(0, usual.num_steps - 1, 4).round().astype(int))]
    found = []
    for index, timestep in enumerate(chosen.tolist()):
        for prompt in prompts:
            drawn = noise.draw(STEPS + 1 + index, shape)
            noisy = signal[timestep] * latents + np.sqrt(1 - signal[timestep] ** 2) * drawn
            point = Point(noisy, timestep, prompt)
            inputs = system.inputs(point)
            found.append(Question(inputs, system.sessions.run(point.graph, **inputs)["next_latents"]))  # type: ignore[arg-type]
    return found


def errors(path: Path, levels: Mapping[str, str] | None, asked: list[Question]) -> list[tuple[float, float]]:
    """Cosine and relative L2 of the answers of the fp32 graph at `path` with its products rewritten for int8.

    Args:
        levels: see `precision.apply`; None asks the graph as it is.
    """
    with _opened(path, levels) as session:
        return [measure(session.run(["next_latents"], q.inputs)[0], q.velocity) for q in asked]


@contextmanager
def _opened(path: Path, levels: Mapping[str, str] | None) -> Iterator[ort.InferenceSession]:
    if levels is None:
        yield open_session(load_graph(path), path.parent, None)
        return
    model = ir.load(path)
    precision.quantize_products(model, levels)
    yield open_session(ir.to_proto(model), path.parent, None)  # what stays fp32 is read from the weights file


def groups(path: Path) -> list[Group]:
    """The products of the graph at `path`, by kind and third of the blocks."""
    found: dict[str, dict[str, int]] = {}
    named = [(str(w.name), int(np.prod(w.shape.numpy()))) for _, w in precision.products(ir.load(path)) if w.shape]
    blocks = [int(match[1]) for name, _ in named if (match := re.match(r"blocks\.(\d+)\.", name))]
    for name, size in named:
        match = re.match(r"blocks\.(\d+)\.(.+?)\.weight", name)
        third = 1 + int(match[1]) * THIRDS // (max(blocks) + 1) if match else 0
        group = f"{match[2]} {third}/{THIRDS}" if match else "others"
        found.setdefault(group, {})[name] = size
    total = sum(size for _, size in named)
    return [Group(name, tuple(sizes), sum(sizes.values()) / total) for name, sizes in found.items()]


def scan(path: Path, asked: list[Question], progress: Progress = lambda *_: None) -> Choice:
    """Levels for the products of an fp32 denoiser, so that int8's worst velocity has a cosine of MIN_COSINE.

    At most MAX_GROWTH of the products' time is spent on it; what was reached is in the result.

    Args:
        path: the fp32 graph.
        asked: its answers, at the points that the levels are chosen for.
    """
    every = groups(path)
    all_fp32 = {name: FP32 for group in every for name in group.weights}
    damage: dict[tuple[str, str], np.ndarray] = {}
    trials = [(group, level) for level in (INT8, WIDE) for group in every]
    for done, (group, level) in enumerate(trials):
        progress(f"int8: {group.name}", done, len(trials))
        if level == WIDE and damage[group.name, INT8].max() < 1e-2 * 2 * (1 - MIN_COSINE):
            damage[group.name, WIDE] = damage[group.name, INT8]  # too little to be worth asking
            continue
        alone = all_fp32 | dict.fromkeys(group.weights, level)
        damage[group.name, level] = np.array([l2 for _, l2 in errors(path, alone, asked)]) ** 2
        damage[group.name, FP32] = np.zeros(len(asked))
    before = _worst(errors(path, {}, asked))
    ranked = sorted(every, key=lambda group: -damage[group.name, INT8].max())
    limit = 2 * (1 - MIN_COSINE) * FIRST_SHARE
    best: Choice | None = None
    for _ in range(TRIES):
        levels, growth = choose(every, damage, limit)
        progress("int8: all together", len(trials), len(trials))
        by_weight = {w: levels[g.name] for g in every for w in g.weights if levels[g.name] != INT8}
        after = before if not by_weight else _worst(errors(path, by_weight, asked))
        found = {group.name: float(np.sqrt(damage[group.name, INT8].max())) for group in ranked}
        if best is None or after > best.after:
            best = Choice(by_weight, found, growth, before, after)
        if 1 - after <= (1 - MIN_COSINE) * FIRST_SHARE or growth >= MAX_GROWTH:
            break
        limit *= 0.7
    assert best is not None
    return best


def _worst(measured: list[tuple[float, float]]) -> float:
    return min(cosine for cosine, _ in measured)


def choose(
    every: list[Group], damage: Mapping[tuple[str, str], np.ndarray], limit: float
) -> tuple[dict[str, str], float]:
    """Level of every group, and the growth of the products' time, such that the squared errors sum up to `limit`.

    Starts with INT8 everywhere and always takes the change that does the most at the worst point for its cost, as long
    as MAX_GROWTH allows.

    Args:
        damage: (group, level) → squared relative L2 at every point.
    """
    levels = {group.name: INT8 for group in every}
    growth = 0.0
    while True:
        total = np.sum([damage[name, level] for name, level in levels.items()], axis=0)
        if total.max() <= limit:
            return levels, growth
        worst, steps = int(total.argmax()), []
        for group in every:
            now = levels[group.name]
            for level in (WIDE, FP32):
                cost = group.share * (COST[level] - COST[now])
                gain = damage[group.name, now][worst] - damage[group.name, level][worst]
                if cost > 0 and gain > 0 and growth + cost <= MAX_GROWTH:
                    steps.append((gain / cost, group.name, level, cost))
        if not steps:
            return levels, growth
        _, name, level, cost = max(steps)
        levels[name] = level
        growth += cost
