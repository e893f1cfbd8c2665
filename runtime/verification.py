"""Measuring a bundle again, anywhere, against the reference data it carries and the tolerances of its precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ezaudio.runtime.certificate import TOLERANCES, Certificate
from ezaudio.runtime.emulation import EmulatedSessions
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.measures import level_distance_db, measure
from ezaudio.runtime.noise import PhiloxNoise
from ezaudio.runtime.reference_data import read_reference
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.teacher_forcing import MODES, Point, TeacherForced

if TYPE_CHECKING:
    from ezaudio.runtime.teacher_forcing import Float32

PROMPTS = ("music, speech", "", "rain", "犬が吠えている", "a dog barks while rain falls on a tin roof, " * 8)
PLAIN_TIMESTEPS = (999, 500, 9)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was checked: what, what came out, what was stored or allowed, and whether it holds."""

    what: str
    found: str
    expected: str
    holds: bool


def verify_certificate(
    folder: Path, manifest: Manifest, certificate: Certificate, threads: int | None, progress: Progress
) -> list[Row]:
    """Every reference velocity once more, through all graphs from the prompt on, and the reference clip."""
    config, tolerance = manifest.config, TOLERANCES[manifest.precision]
    data = read_reference(folder, certificate.reference, config.vae)
    points = certificate.reference.points
    sessions = EmulatedSessions(folder, manifest, threads, "onnxruntime")
    system = TeacherForced(sessions, folder, manifest, certificate.corpus)
    walked = (row for row in certificate.velocities if (row.graph, row.mode) == ("denoiser", MODES[0]))
    stored = {(row.timestep, row.frames): row.cosine for row in walked}
    rows = []
    for index, point in enumerate(points):
        progress("velocities", index, len(points) + 1)
        latents = data.latents[index : index + 1].astype(np.float32)
        got = system.velocity(Point(latents, point.timestep, point.prompt))
        cosine, relative_l2 = measure(got, data.velocities[index : index + 1])
        at_export = stored.get((point.timestep, certificate.reference.frames))
        rows.append(
            Row(
                f"velocity at timestep {point.timestep}",
                f"cosine {cosine:.6f}, L2 {relative_l2:.1e}",
                f"{tolerance.cosine}, {tolerance.relative_l2:.1e}"
                + ("" if at_export is None else f" (at export {at_export:.6f})"),
                cosine >= tolerance.cosine and relative_l2 <= tolerance.relative_l2,
            )
        )
    progress("clip", len(points), len(points) + 1)
    samples = sessions.run("decoder", latents=data.clip.astype(np.float32))["audio"]
    distance = level_distance_db(samples[0], data.levels, config.vae.sample_rate)
    at_export = next((r.distance_db for r in certificate.levels if r.frames == certificate.reference.frames), None)
    said = f"{tolerance.level_db} dB" + ("" if at_export is None else f" (at export {at_export:.3f})")
    rows.append(Row("mel levels of the decoded clip", f"{distance:.3f} dB", said, distance <= tolerance.level_db))
    return rows


def verify_plain(folder: Path, manifest: Manifest, threads: int | None, progress: Progress) -> list[Row]:
    """A bundle without a certificate: every graph opens, and prompts, short and long, give finite numbers."""
    config = manifest.config
    sessions = GraphSessions(folder, manifest, threads, "onnxruntime")
    system = TeacherForced(sessions, folder, manifest, PROMPTS)
    rows, total = [], len(manifest.graphs) + len(PROMPTS)
    for index, name in enumerate(manifest.graphs):
        progress(f"opening {name}", index, total)
        try:
            sessions.open(name)
            rows.append(Row(f"graph {name}", "opens", "opens", True))
        except BundleError as error:
            rows.append(Row(f"graph {name}", str(error), "opens", False))
    if not all(row.holds for row in rows):
        return rows
    frames = max(2, round(config.vae.latent_rate))
    latents: Float32 = PhiloxNoise(0).draw(0, (1, config.vae.latent_channels, frames))
    for index, prompt in enumerate(PROMPTS):
        progress("prompts", len(manifest.graphs) + index, total)
        finite = all(
            np.isfinite(system.velocity(Point(latents, timestep, prompt, mode, graph))).all()
            for graph in ("denoiser", "denoiser_shallow")
            for mode in MODES
            for timestep in PLAIN_TIMESTEPS
        )
        what = f"prompt of {len(prompt)} characters"
        rows.append(Row(what, "finite" if finite else "not finite", "finite", finite))
    audio = sessions.run("decoder", latents=latents)["audio"]
    finite = bool(np.isfinite(audio).all())
    rows.append(Row("decoded clip", "finite" if finite else "not finite", "finite", finite))
    return rows
