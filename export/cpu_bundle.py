"""fp32 bundle → bundle in a precision that is measured against it: int8, w8, w4. Needs no model.

Graphs that run once a step are judged by their velocity, teacher-forced and after guidance, at points of sampling and
with prompts that the scan of `sensitivity` did not see; all others by their outputs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ezaudio.export import cpu_fusions, lint, onnx_writer, precision, sensitivity
from ezaudio.export.certificate import CORPUS, Scope, compare_graphs
from ezaudio.runtime import manifest as manifests
from ezaudio.runtime.emulation import load_graph, open_session
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import Check, Manifest
from ezaudio.runtime.measures import measure
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.teacher_forcing import MODES, Point, TeacherForced

if TYPE_CHECKING:
    from ezaudio.runtime.teacher_forcing import Array, Float32

DERIVED = ("int8", "w8", "w4")
SCAN_PROMPTS = CORPUS[2::4]
# No clip is made for an empty prompt: as the conditional one it would be compared with itself, where guidance
# multiplies nothing but errors.
PROMPTS = tuple(prompt for prompt in CORPUS[1::4] + CORPUS[3::4] if prompt)
SCAN_TIMESTEPS, TIMESTEPS = 3, 4
SCAN_KEY = "ezaudio.int8"  # of the denoiser graph's metadata: what the scan found, as JSON

# 1 − cosine of the worst velocity. int8 aims at 1e-3 and says what it reached.
# Measured on nano, whose guidance of 5 multiplies errors: int8 3.9e-3; w8 2.5e-2 and w4 1.8e-1, which are refused.
MAX_TURN = {"int8": 5e-3, "w8": 5e-3, "w4": 1e-1}
# Relative error of the graphs beside the denoiser.
MAX_ERROR = {"int8": 2e-2, "w8": 1e-1, "w4": 1e-1}
MAX_TEXT_ERROR = 5e-3  # int8: a graph of text that is further off gets the next level, in twice the memory
TEXT_LEVELS = (precision.WIDE, precision.BOTH_WIDE, precision.FP32)

Progress = Callable[[str, int, int], None]


def write_cpu_bundle(
    reference: Path, folder: Path, precision_name: str, progress: Progress = lambda *_: None, threads: int | None = None
) -> Manifest:
    """Write the fp32 bundle at `reference` in another precision into an empty `folder`.

    Raises BundleError, naming graphs and outputs, when they are further from fp32 than the precision may be.
    """
    given = manifests.read_manifest(reference, verify=False)
    assert given.precision == "fp32", given.precision
    system = _system(reference, given, threads)
    latents = sensitivity.clean_latents(system, PROMPTS, seed=1)
    choice = None
    if precision_name == "int8":
        seen = sensitivity.clean_latents(system, SCAN_PROMPTS, seed=0)
        asked = sensitivity.ask(system, sensitivity.points(system, seen, SCAN_PROMPTS, SCAN_TIMESTEPS, seed=0))
        system.sessions.release()
        choice = sensitivity.scan(reference / given.graphs["denoiser"].file, asked, MAX_TURN["int8"], progress)
    _write_graphs(system, reference, folder, precision_name, choice)
    manifests.copy_texts(reference, given, folder)
    lint.refuse(lint.lint_bundle(folder, given.graphs, precision_name, typed=False))
    derived = replace(given, precision=precision_name)
    checks = _compare(system, _system(folder, derived, threads), latents, precision_name, progress)
    _refuse(checks, precision_name)
    files = {path.name: manifests.describe_file(path) for path in sorted(folder.iterdir())}
    replace(derived, files=files, checks=tuple(checks)).write(folder)
    return manifests.read_manifest(folder, verify=False)


def _system(folder: Path, manifest: Manifest, threads: int | None) -> TeacherForced:
    sessions = GraphSessions(folder, manifest, threads, "onnxruntime")
    return TeacherForced(sessions, folder, manifest, (*SCAN_PROMPTS, *PROMPTS))


def _write_graphs(
    system: TeacherForced, reference: Path, folder: Path, precision_name: str, choice: sensitivity.Choice | None
) -> None:
    """Rewrite every graph, with its weights in a file of the name that they have in the reference."""
    writers: dict[str, onnx_writer.WeightFile] = {}
    for name, entry in system.manifest.graphs.items():
        with tempfile.TemporaryDirectory(dir=folder) as trial:
            model, file = _rewritten(system, reference, name, precision_name, choice, Path(trial))
            if choice is not None and name == "denoiser":
                model.metadata_props[SCAN_KEY] = json.dumps(choice.to_dict())
            if file not in writers:
                writers[file] = onnx_writer.WeightFile(folder / file)
            onnx_writer.write(model, folder / entry.file, writers[file])
    for writer in writers.values():
        writer.close()
        if writer.path.stat().st_size == 0:
            writer.path.unlink()


def _rewritten(
    system: TeacherForced,
    reference: Path,
    name: str,
    precision_name: str,
    choice: sensitivity.Choice | None,
    trial: Path,
) -> tuple[ir.Model, str]:
    """A graph in the precision, and the name of its weights' file. Of text, the first of TEXT_LEVELS that fits; what
    was tried lies in the folder `trial`, for weights in memory may not be more than 2 GB."""
    for level in TEXT_LEVELS:
        model = ir.load(reference / system.manifest.graphs[name].file)
        file = onnx_writer.weights_file(model, name)
        cpu_fusions.apply(model)
        levels = {} if choice is None else _of_parts(model, choice.levels)
        precision.apply(model, name, precision_name, levels, level)
        of_text = name == "text_encoder" or name.endswith("conditioner")
        if precision_name != "int8" or not of_text or level == TEXT_LEVELS[-1]:
            break
        weights = onnx_writer.WeightFile(trial / f"{level}.weights")
        onnx_writer.write(model, trial / f"{level}.onnx", weights)
        weights.close()
        if _fits(system, name, trial / f"{level}.onnx"):
            break
    return model, file


def _of_parts(model: ir.Model, levels: dict[str, str]) -> dict[str, str]:
    """Levels of the weights of a fused graph, where the scan knew a whole that `cpu_fusions` cut."""
    names = [str(weight.name) for _, weight in precision.products(model)]
    found = {name: levels.get(name, levels.get(cpu_fusions.whole_of(name))) for name in names}
    return {name: level for name, level in found.items() if level is not None}


def _fits(system: TeacherForced, name: str, path: Path) -> bool:
    """Whether a graph of text, its products of integers, is close enough to fp32 on every prompt.

    Attention of a T5 does not scale its scores, so that on some prompts a small error picks another token.
    """
    session = open_session(load_graph(path), path.parent, None)
    for text in (*SCAN_PROMPTS, *PROMPTS):
        ids = np.array([system.conditioning.tokenizer.encode(text).ids], np.int64)
        inputs: dict[str, Array] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if name != "text_encoder":
            inputs = {"text_states": system.conditioning.text(text).states}
        expected = system.sessions.run(name, **inputs)
        got = session.run(list(expected), inputs)
        if not all(measure(a, b)[1] <= MAX_TEXT_ERROR for a, b in zip(got, expected.values(), strict=True)):
            return False
    return True


def _compare(
    reference: TeacherForced, derived: TeacherForced, latents: Float32, precision_name: str, progress: Progress
) -> list[Check]:
    """Errors of every graph, each fed with the reference's inputs; those of a step's graphs also as a whole."""
    config, limit = reference.config, MAX_ERROR[precision_name]
    progress("checking", 0, 1)
    audio = reference.sessions.run("decoder", latents=latents)["audio"]
    decoded = measure(derived.sessions.run("decoder", latents=latents)["audio"], audio)[1]
    rows = compare_graphs(reference, derived, Scope(prompts=PROMPTS), audio, config.vae.hop)
    checks = [Check(row.graph, row.output, row.relative_error, limit) for row in rows]
    checks.append(Check("decoder", "audio", decoded, limit))
    # From here on everything that the derived graphs are fed with is their own: a velocity is off by all that is.
    every = sensitivity.points(reference, latents, PROMPTS, TIMESTEPS, seed=1)
    cases = {("denoiser", MODES[0]): every}
    for name in (graph for graph in reference.manifest.graphs if graph.startswith("denoiser")):
        for mode in MODES:
            few = [Point(p.latents, p.timestep, p.prompt, mode, name) for p in (every[0], every[-1])]
            cases.setdefault((name, mode), few)
    for done, ((name, mode), asked) in enumerate(cases.items()):
        progress(f"checking {name}, {mode}", done, len(cases))
        expected = [reference.velocity(point) for point in asked]
        reference.sessions.release()
        measured = [measure(derived.velocity(p), velocity) for p, velocity in zip(asked, expected, strict=True)]
        derived.sessions.release()
        limit = MAX_TURN[precision_name]
        turn = 1 - min(cosine for cosine, _ in measured)
        checks.append(Check(name, f"velocity, {mode}, 1 − cosine", turn, limit))
        # A relative error of e turns a vector by e²/2 at most; half of it may be length.
        checks.append(Check(name, f"velocity, {mode}", max(l2 for _, l2 in measured), 2 * limit**0.5))
    return checks


def _refuse(checks: list[Check], precision_name: str) -> None:
    bad = [check for check in checks if not check.relative_error <= check.tolerance]
    if bad:
        rows = "; ".join(f"{c.graph}.{c.output} {c.relative_error:.1e} > {c.tolerance:.0e}" for c in bad)
        raise BundleError(
            f"the {precision_name} graphs differ from fp32 by more than the tolerance, nothing was written: {rows}; "
            "use another --precision"
        )
