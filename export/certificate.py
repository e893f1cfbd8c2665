"""Measuring a typed bundle against the fp32 bundle it was made from.

A walk is one sampling loop for each length, with another prompt of the corpus at every step: the latents are those of a
real loop, all prompts meet all parts of the plan, and a loop costs no more than one clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ezaudio.config import EzAudioConfig
from ezaudio.export.probes import ProbedSessions
from ezaudio.runtime.certificate import GraphError, LevelError, VelocityError
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.measures import level_distance_db, levels_db, measure
from ezaudio.runtime.noise import PhiloxNoise
from ezaudio.runtime.reference_data import ReferenceData, point_count
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.teacher_forcing import MODES, Point, TeacherForced

if TYPE_CHECKING:
    from ezaudio.runtime.teacher_forcing import Array, Float32

CORPUS = (
    "music, speech",
    "",
    "rain",
    "dog barking",
    "a dog barks in the distance while rain falls on a tin roof",
    "an engine idles, revs twice and dies away",
    "church bells ringing over a quiet village",
    "white noise",
    "silence",
    "a man speaks, followed by applause and laughter",
    "thunder!!! very LOUD, very close",
    "a 440 Hz sine tone, then 880 Hz, then nothing",
    "ocean waves; gulls; wind; a bell buoy; a distant foghorn",
    "un chien aboie près d'une fontaine",
    "Ein Zug fährt über eine Brücke, Möwen schreien",
    "колокола звонят",
    "犬が吠えている",
    "雨落在屋顶上",
    "كلب ينبح",
    "🔔🔔🔔 🐦",
    "ﬁre cra\u0301ckling Ⅳ",
    "a\tb\nc    d",
    "x" * 60,
    "a crowded railway station with announcements, rolling suitcases, a whistle, " * 12,
)
REFERENCE_POINTS = 16

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Scope:
    """How much a certificate measures.

    Attributes:
        lengths: (seconds, steps) of each walk; steps None takes every step of the model's default plan.
        mode_steps: steps at which the other denoisers (shallow, with ControlNet) and other forms of guidance are
            compared, too.
    """

    prompts: tuple[str, ...] = CORPUS
    lengths: tuple[tuple[float, int | None], ...] = ()
    mode_steps: int = 5

    def walks(self, config: EzAudioConfig) -> list[tuple[int, int]]:
        """(frames, steps) of every walk: without `lengths` one second and the usual length at every step of the default
        plan, and the longest at ten."""
        usual = config.defaults
        lengths = self.lengths or ((1.0, None), (usual.duration_s, None), (config.max_duration_s, 10))
        return [
            (max(2, round(seconds * config.vae.latent_rate)), min(steps or usual.num_steps, usual.num_steps))
            for seconds, steps in lengths
        ]


@dataclass(slots=True)
class Walked:
    """What the reference bundle answered.

    Attributes:
        velocities: point → (1, C, L), in the order of the walks.
        clips: last latents of each walk → samples.
    """

    velocities: list[tuple[Point, Float32]] = field(default_factory=list)
    clips: list[tuple[Float32, Array]] = field(default_factory=list)

    def points_of(self, graph: str) -> list[tuple[Point, Float32]]:
        return [(point, velocity) for point, velocity in self.velocities if point.graph == graph]


def walk(system: TeacherForced, manifest: Manifest, scope: Scope, progress: Progress) -> Walked:
    """Run the reference bundle. What its tensors reach is in the probes of the system's sessions."""
    config, result = manifest.config, Walked()
    walks = scope.walks(config)
    total, done = sum(steps for _, steps in walks), 0
    for index, (frames, steps) in enumerate(walks):
        plan = solver_plan(config.defaults.solver, steps, config.defaults.eta, config.diffusion)
        shape = (1, config.dit.latent_channels, frames)
        noise = PhiloxNoise(index)
        latents, clean = noise.draw(0, shape), np.zeros(shape, np.float32)
        for step, (timestep, row) in enumerate(zip(plan.timesteps, plan.rows, strict=True)):
            progress(f"reference, {frames} frames", done, total)
            # float16 numbers, so that the file of reference data holds exactly what was asked
            latents = latents.astype(np.float16).astype(np.float32)
            point = Point(latents, int(timestep), scope.prompts[(step + index) % len(scope.prompts)])
            velocity = system.velocity(point)
            if not np.isfinite(velocity).all():
                where = f"at timestep {timestep} over {frames} frames"
                raise BundleError(f"{point.graph} gives numbers that are not finite in fp32 {where}: check the weights")
            result.velocities.append((point, velocity))
            drawn = noise.draw(step + 1, shape) if plan.draws_noise else np.zeros(shape, np.float32)
            following = row[0] * latents + row[1] * velocity + row[2] * clean + row[3] * drawn
            latents, clean = following, row[4] * latents + row[5] * velocity
            done += 1
        last = latents.astype(np.float16).astype(np.float32)
        result.clips.append((last, system.sessions.run("decoder", latents=last)["audio"]))
        if index == 0:
            result.velocities += _other_modes(system, manifest, scope, result.velocities)
        progress(f"watching, {frames} frames", done, total)
        if isinstance(system.sessions, ProbedSessions):
            system.sessions.watch_pending()
    return result


def _other_modes(
    system: TeacherForced, manifest: Manifest, scope: Scope, walked: list[tuple[Point, Float32]]
) -> list[tuple[Point, Float32]]:
    chosen = np.unique(np.linspace(0, len(walked) - 1, scope.mode_steps).round().astype(int))
    results = []
    for graph in (name for name in manifest.graphs if name.startswith("denoiser")):
        for mode in MODES:
            if (graph, mode) == ("denoiser", MODES[0]):
                continue  # walked already
            for index in chosen:
                point = walked[index][0]
                other = Point(point.latents, point.timestep, point.prompt, mode, graph)
                results.append((other, system.velocity(other)))
        system.sessions.release(graph)
    return results


def compare_velocities(system: TeacherForced, walked: Walked, progress: Progress) -> list[tuple[Point, VelocityError]]:
    """The typed bundle's velocities at the reference's points, one denoiser after the other."""
    rows: list[tuple[Point, VelocityError]] = []
    total = len(walked.velocities)
    for graph in dict.fromkeys(point.graph for point, _ in walked.velocities):
        for point, expected in walked.points_of(graph):
            progress(f"comparing {graph}", len(rows), total)
            cosine, relative_l2 = measure(system.velocity(point), expected)
            frames = point.latents.shape[2]
            rows.append((point, VelocityError(graph, point.mode, frames, point.timestep, cosine, relative_l2)))
        system.sessions.release(graph)
    return rows


def compare_graphs(
    reference: TeacherForced, typed: TeacherForced, scope: Scope, clip: Array, hop: int
) -> dict[GraphError, dict[str, Array]]:
    """Errors of the graphs that run before and after the loop, each fed with the reference's inputs → worst inputs.

    Args:
        clip: (1, T) samples for the encoder.
    """
    conditioning = reference.conditioning
    ids = [np.array([conditioning.tokenizer.encode(text).ids], np.int64) for text in scope.prompts]
    cases: dict[str, list[dict[str, Array]]] = {
        "text_encoder": [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids],
        "encoder": [{"audio": np.ascontiguousarray(clip[:, : clip.shape[1] // hop * hop])}],
    }
    for name in reference.manifest.graphs:
        if name.endswith("conditioner"):
            cases[name] = [{"text_states": conditioning.text(text).states} for text in scope.prompts]
        elif name.endswith("modulation"):
            cases[name] = [{"timesteps": np.array([999, 500, 0], np.int64)}]
        elif name.endswith("frame_bias"):  # as an edit feeds it: no velocity is asked for with a given latent
            frames = clip.shape[1] // hop
            cases[name] = [
                {
                    "given": PhiloxNoise(0).draw(0, (1, reference.config.vae.latent_channels, frames)),
                    "mask": np.arange(frames)[None] % 2 == 0,
                }
            ]
            if name.startswith("controlnet"):
                cases[name][0]["energy"] = np.linspace(0, 1, 2 * frames, dtype=np.float32)[None, None]
    rows: dict[GraphError, dict[str, Array]] = {}
    for name, all_inputs in cases.items():
        worst: dict[str, tuple[float, dict[str, Array]]] = {}
        for inputs in all_inputs:
            expected, got = (system.sessions.run(name, **inputs) for system in (reference, typed))
            for output, value in expected.items():
                error = measure(got[output], value)[1]
                if output not in worst or not error <= worst[output][0]:
                    worst[output] = (error, inputs)
        rows |= {GraphError(name, output, error): inputs for output, (error, inputs) in worst.items()}
        reference.sessions.release(name)
        typed.sessions.release(name)
    return rows


def compare_clips(typed: TeacherForced, walked: Walked) -> list[LevelError]:
    """Distance of every decoded clip's mel levels, both decoders given the same latents."""
    sample_rate, rows = typed.config.vae.sample_rate, []
    for latents, samples in walked.clips:
        got = typed.sessions.run("decoder", latents=latents)["audio"]
        distance = level_distance_db(got[0], levels_db(samples[0], sample_rate), sample_rate)
        rows.append(LevelError(latents.shape[2], distance))
    return rows


def reference_data(walked: Walked, config: EzAudioConfig) -> tuple[ReferenceData, list[Point]]:
    """Points of the first walk, evenly over its steps, and its clip."""
    latents, samples = walked.clips[0]
    frames = latents.shape[2]
    points = walked.points_of("denoiser")
    walked_here = [(p, v) for p, v in points if p.latents.shape[2] == frames and p.mode == MODES[0]]
    count = point_count(config.vae, frames, min(REFERENCE_POINTS, len(walked_here)))
    chosen = [walked_here[i] for i in np.unique(np.linspace(0, len(walked_here) - 1, count).round().astype(int))]
    data = ReferenceData(
        np.concatenate([point.latents for point, _ in chosen]).astype(np.float16),
        np.concatenate([velocity for _, velocity in chosen]).astype(np.float16),
        latents.astype(np.float16),
        levels_db(samples[0], config.vae.sample_rate).astype(np.float16),
    )
    return data, [point for point, _ in chosen]
