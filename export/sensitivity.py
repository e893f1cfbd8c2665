"""Which products of the denoiser int8 damages too much, found by trying.

A group is one kind of product (the MLP's second one, say) in one part of the blocks. With only that group in int8, and
everything else in fp32, the graph answers at a few points of sampling; how far its velocity is off, after guidance, is
the group's damage. Errors of different groups are as good as independent, so their squares add up: `choose` takes the
cheapest levels whose sum is small enough, and the result is measured as a whole before it is believed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
FIRST_SHARE = 0.6  # of the error that MIN_COSINE allows, on the prompts of the scan: others are a little worse
TRIES = 4
DURATION_S = 2.0
STEPS = 8  # of the loop that makes a clean latent
LEVELS = (INT8, WIDE, FP32)
SPLIT, NEGLIGIBLE = 0.1, 1e-2  # of the squared error that MIN_COSINE allows: worth trying in parts, in more bits
PARTS = 5
# Fed by a gated activation and by a norm over two tensors: a prompt that was not tried may reach outliers that one
# scale in 8 bits cannot hold. Of nano, block 1's second MLP product was off by 1e-2 on six prompts, by 5e-2 on others.
HEAVY_TAILED = ("mlp.down", "skip_linear")

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

    @property
    def lowest(self) -> str:
        """The level to start from."""
        return WIDE if self.name.startswith(HEAVY_TAILED) else INT8


@dataclass(frozen=True, slots=True)
class Choice:
    """What a scan found.

    Attributes:
        levels: name of a weight → WIDE or FP32; INT8 where it is not named.
        damage: group → worst relative L2 of the velocity with only that group at its lowest level, the largest first.
        growth: of the time of all products, by the levels.
        before: worst cosine with every product in int8.
        after: with the levels, on the same inputs.
    """

    levels: dict[str, str]
    damage: dict[str, float]
    growth: float
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def clean_latents(system: TeacherForced, prompts: tuple[str, ...], seed: int) -> Float32:
    """(1, C, L): the end of a short loop, with another prompt at every step."""
    config, noise = system.config, PhiloxNoise(seed)
    plan = solver_plan(config.defaults.solver, STEPS, config.defaults.eta, config.diffusion)
    shape = (1, config.dit.latent_channels, max(2, round(DURATION_S * config.vae.latent_rate)))
    latents = noise.draw(0, shape)
    clean = np.zeros_like(latents)
    for step, (timestep, row) in enumerate(zip(plan.timesteps, plan.rows, strict=True)):
        velocity = system.velocity(Point(latents, int(timestep), prompts[step % len(prompts)]))
        drawn = noise.draw(step + 1, shape) if plan.draws_noise else np.zeros_like(latents)
        following = row[0] * latents + row[1] * velocity + row[2] * clean + row[3] * drawn
        latents, clean = following, row[4] * latents + row[5] * velocity
    return latents


def points(
    system: TeacherForced, latents: Float32, prompts: tuple[str, ...], num_timesteps: int, seed: int
) -> list[Point]:
    """Every prompt at one timestep of the usual plan; spread evenly, its first and last among them.

    Clean latents are noised anew for each: a short loop never comes near timestep 0, where int8 is furthest off.
    """
    config, noise = system.config, PhiloxNoise(seed)
    usual = solver_plan(config.defaults.solver, config.defaults.num_steps, config.defaults.eta, config.diffusion)
    chosen = usual.timesteps[np.unique(np.linspace(0, usual.num_steps - 1, num_timesteps).round().astype(int))].tolist()
    squared = alphas_cumprod(config.diffusion)
    found: list[Point] = []
    for index, timestep in enumerate(chosen):
        signal, deviation = (np.float32(np.sqrt(share)) for share in (squared[timestep], 1 - squared[timestep]))
        for prompt in prompts[index::num_timesteps]:
            drawn = noise.draw(STEPS + 1 + len(found), latents.shape)
            found.append(Point(signal * latents + deviation * drawn, timestep, prompt))
    return found


def ask(system: TeacherForced, asked: list[Point]) -> list[Question]:
    """What the graphs of an fp32 bundle answer."""
    found = []
    for point in asked:
        inputs = system.inputs(point)
        velocity = system.sessions.run(point.graph, **inputs)["next_latents"]
        found.append(Question(inputs, velocity))  # type: ignore[arg-type]
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


def groups(path: Path, parts: int = 1) -> list[Group]:
    """The products of the graph at `path` by kind, each kind cut into so many parts of the depth."""
    found: dict[str, dict[str, int]] = {}
    named = [(str(w.name), int(np.prod(w.shape.numpy()))) for _, w in precision.products(ir.load(path)) if w.shape]
    matches = {name: re.match(r"blocks\.(\d+)\.(.+?)\.weight", name) for name, _ in named}
    num_blocks = 1 + max((int(match[1]) for match in matches.values() if match), default=0)
    for name, size in named:
        match = matches[name]
        kind, part = (match[2], 1 + int(match[1]) * parts // num_blocks) if match else ("others", 1)
        found.setdefault(f"{kind} {part}/{parts}", {})[name] = size
    total = sum(size for _, size in named)
    return [Group(name, tuple(sizes), sum(sizes.values()) / total) for name, sizes in found.items()]


def scan(path: Path, asked: list[Question], max_turn: float, progress: Progress = lambda *_: None) -> Choice:
    """Levels for the products of an fp32 denoiser, so that int8's worst velocity has a cosine of MIN_COSINE.

    Whole kinds are tried first, and only those that matter in parts. At most MAX_GROWTH of the products' time is spent,
    and where that would be refused as much as it takes; what was reached is in the result.

    Args:
        path: the fp32 graph.
        asked: its answers, at the points that the levels are chosen for.
        max_turn: 1 − cosine from which on a bundle is refused.
    """
    allowed = 2 * (1 - MIN_COSINE)  # of the relative L2, squared
    kinds = groups(path)
    all_fp32 = {name: FP32 for group in kinds for name in group.weights}
    damage: dict[tuple[str, str], np.ndarray] = {}

    def squared(group: Group, level: str) -> np.ndarray:
        progress(f"int8: {group.name}, {level}", len(damage), 4 * len(kinds))
        alone = all_fp32 | dict.fromkeys(group.weights, level)
        return np.array([l2 for _, l2 in errors(path, alone, asked)]) ** 2

    every: list[Group] = []
    parts = groups(path, PARTS)
    for kind in kinds:
        damage[kind.name, kind.lowest] = squared(kind, kind.lowest)
        split = [part for part in parts if part.weights[0] in kind.weights]
        if len(split) > 1 and damage[kind.name, kind.lowest].max() > SPLIT * allowed:
            damage |= {(part.name, part.lowest): squared(part, part.lowest) for part in split}
            every += split
        else:
            every.append(kind)
    for group in every:
        lowest = damage[group.name, group.lowest]
        if group.lowest == INT8:
            damage[group.name, WIDE] = lowest if lowest.max() < NEGLIGIBLE * allowed else squared(group, WIDE)
        damage[group.name, FP32] = np.zeros_like(lowest)
    before = _worst(errors(path, {}, asked))
    worst = {group.name: float(np.sqrt(damage[group.name, group.lowest].max())) for group in every}
    worst = dict(sorted(worst.items(), key=lambda item: -item[1]))
    best: Choice | None = None
    for turn, most in ((1 - MIN_COSINE, MAX_GROWTH), (max_turn, math.inf)):
        limit = 2 * turn * FIRST_SHARE
        for _ in range(TRIES):
            levels, growth = choose(every, damage, limit, most)
            by_weight = {w: levels[g.name] for g in every for w in g.weights if levels[g.name] != INT8}
            after = _worst(errors(path, by_weight, asked))
            if best is None or after > best.after:
                best = Choice(by_weight, worst, growth, before, after)
            if 1 - after <= turn * FIRST_SHARE:
                break
            limit *= 0.7
        if best is not None and 1 - best.after <= max_turn * FIRST_SHARE:
            break
    assert best is not None
    return best


def _worst(measured: list[tuple[float, float]]) -> float:
    return min(cosine for cosine, _ in measured)


def choose(
    every: list[Group], damage: Mapping[tuple[str, str], np.ndarray], limit: float, most: float
) -> tuple[dict[str, str], float]:
    """Level of every group, and the growth of the products' time, such that the squared errors sum up to `limit`.

    Starts with the lowest levels and always takes the change that does the most at the worst point for its cost, as
    long as the growth is at most `most`.

    Args:
        damage: (group, level) → squared relative L2 at every point.
    """
    levels = {group.name: group.lowest for group in every}
    growth = sum(group.share * (COST[group.lowest] - COST[INT8]) for group in every)
    while True:
        total = np.sum([damage[name, level] for name, level in levels.items()], axis=0)
        if total.max() <= limit:
            return levels, growth
        worst, steps = int(total.argmax()), []
        for group in every:
            now = levels[group.name]
            for level in LEVELS[LEVELS.index(now) + 1 :]:
                cost = group.share * (COST[level] - COST[now])
                gain = damage[group.name, now][worst] - damage[group.name, level][worst]
                if gain > 0 and growth + cost <= most:
                    steps.append((gain / cost, group.name, level, cost))
        if not steps:
            return levels, growth
        _, name, level, cost = max(steps)
        levels[name] = level
        growth += cost
