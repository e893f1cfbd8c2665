"""fp32 bundle → bundle of typed graphs with its certificate, or no bundle at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ezaudio.export import certificate as certification
from ezaudio.export import lint, onnx_writer, policy, typed_graphs
from ezaudio.export.certificate import Scope, Walked
from ezaudio.export.policy import EIGHT_BITS, HALF
from ezaudio.export.probes import ProbedSessions, first_beyond, inner_tensors
from ezaudio.export.quantize import CODES, product_error, quantizable, quantize
from ezaudio.runtime import manifest as manifests
from ezaudio.runtime.certificate import (
    HEADROOM,
    TOLERANCES,
    Certificate,
    GraphError,
    Island,
    LevelError,
    Reference,
    ReferencePoint,
    VelocityError,
)
from ezaudio.runtime.emulation import EmulatedSessions
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import Manifest
from ezaudio.runtime.measures import measure
from ezaudio.runtime.teacher_forcing import TeacherForced

if TYPE_CHECKING:
    from ezaudio.runtime.teacher_forcing import Array

SCOPE = Scope()
MIN_REPAIRABLE_COSINE = 0.9  # below, something is wrong that fewer products of 8 bits would only hide
WIDENED_PART = 16  # one in so many of the products of 8 bits goes back to fp16 at a time

Progress = Callable[[str, int, int], None]


def write_typed_bundle(
    reference: Path,
    folder: Path,
    precision: str,
    target: str,
    scope: Scope = SCOPE,
    progress: Progress = lambda *_: None,
    threads: int | None = None,
) -> Manifest:
    """Write the bundle at `reference`, whose graphs compute in fp32, with typed graphs into an empty `folder`.

    Raises BundleError, naming graph and layer, when a graph breaks a rule or the certificate is beyond a tolerance.
    """
    work = _TypedBundle(reference, folder, precision, scope, progress, threads)
    manifests.copy_texts(reference, work.source, folder)
    walked, largest = work.walk()
    islands = work.write_graphs(largest)
    graphs = work.compare_graphs(walked)
    while (velocities := work.compare_velocities(walked, largest)) is None:
        islands = work.write_graphs(largest)
    levels = work.compare_clips(walked)
    data, points = certification.reference_data(walked, work.source.config)
    certificate = Certificate(
        corpus=scope.prompts,
        limit=typed_graphs.limit(precision),
        largest={
            graph: {name: float(f"{largest[graph][name]:.4g}") for name in names}
            for graph, names in work.half_tensors.items()
            if names
        },
        islands=tuple(islands),
        not_quantized=tuple(sorted(work.not_quantized)),
        graphs=tuple(graphs),
        velocities=tuple(velocities),
        levels=tuple(levels),
        reference=Reference(
            data.write(folder),
            data.clip.shape[2],
            tuple(ReferencePoint(point.prompt, point.timestep) for point in points),
        ),
    )
    replace(
        work.source,
        precision=precision,
        target=target,
        files={path.name: manifests.describe_file(path) for path in sorted(folder.iterdir())},
        certificate=certificate,
    ).write(folder)
    return manifests.read_manifest(folder, verify=False)


@dataclass
class _TypedBundle:
    """A typed bundle under construction."""

    reference: Path
    folder: Path
    precision: str
    scope: Scope
    progress: Progress
    threads: int | None
    watched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    half_tensors: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by graph, as last written
    weight_errors: dict[str, float] = field(default_factory=dict)  # by place in the weights file
    not_quantized: set[str] = field(default_factory=set)  # weights of products that in 8 bits were too far off

    @cached_property
    def source(self) -> Manifest:
        return manifests.read_manifest(self.reference, verify=False)

    @cached_property
    def system(self) -> TeacherForced:
        """The reference bundle; its sessions watch what `watched` names."""
        probed = ProbedSessions(self.reference, self.source, self.threads, self.watched)
        return TeacherForced(probed, self.reference, self.source, self.scope.prompts)

    @cached_property
    def typed(self) -> TeacherForced:
        sessions = EmulatedSessions(self.folder, self.source, self.threads, "onnxruntime")
        return TeacherForced(sessions, self.folder, self.source, self.scope.prompts)

    def model(self, name: str) -> ir.Model:
        """A graph of the reference bundle."""
        model = ir.load(self.reference / self.source.graphs[name].file)
        typed_graphs.fold_widened_weights(model)
        return model

    def half_nodes(self, model: ir.Model, name: str, hot: frozenset[str] = frozenset()) -> dict[ir.Node, str]:
        if self.precision == "fp32":
            return {}
        return typed_graphs.half_nodes(model, name, self.precision, hot, self.weight_errors)

    def quantized_nodes(self, nodes: dict[ir.Node, str]) -> list[ir.Node]:
        chosen = quantizable(node for node, precision in nodes.items() if precision == EIGHT_BITS)
        return [node for node in chosen if policy.weight_name(node) not in self.not_quantized]

    def walk(self) -> tuple[Walked, dict[str, dict[str, float]]]:
        """Run the reference over the corpus. Returns its answers, and of each graph what the tensors that are to be in
        half precision reach."""
        for name in self.source.graphs:
            self.watched[name] = typed_graphs.half_tensors(self.half_nodes(self.model(name), name))
        walked = certification.walk(self.system, self.source, self.scope, self.progress)
        for text in self.scope.prompts:
            self.system.conditioning.prompt(text)
        sessions = self.system.sessions
        assert isinstance(sessions, ProbedSessions)
        sessions.run("encoder", audio=walked.clips[0][1])
        sessions.watch_pending()
        sessions.release()
        return walked, sessions.largest

    def write_graphs(self, largest: dict[str, dict[str, float]]) -> list[Island]:
        """Write every graph and lint it. Returns what was moved to fp32."""
        weights: dict[str, onnx_writer.WeightFile] = {}
        islands: list[Island] = []
        for done, (name, entry) in enumerate(self.source.graphs.items()):
            self.progress(f"writing {name}", done, len(self.source.graphs))
            model = self.model(name)
            hot = frozenset(
                tensor
                for tensor, value in largest[name].items()
                if not value * HEADROOM <= typed_graphs.limit(self.precision)
            )
            nodes = self.half_nodes(model, name, hot)
            self.half_tensors[name] = typed_graphs.half_tensors(nodes)
            islands += self._islands(model, name, nodes, largest[name])
            quantized = self.quantized_nodes(nodes)
            typed_graphs.apply_types(model, nodes, self.precision)
            if quantized:
                quantize(model, quantized, largest[name], self.precision)
            file = onnx_writer.weights_file(ir.load(self.reference / entry.file), name)
            if file not in weights:
                weights[file] = onnx_writer.WeightFile(self.folder / file)
            onnx_writer.write(model, self.folder / entry.file, weights[file])
        for writer in weights.values():
            writer.close()
            if writer.path.stat().st_size == 0:
                writer.path.unlink()
        lint.refuse(lint.lint_bundle(self.folder, self.source.graphs, self.precision, typed=True))
        return islands

    def _islands(
        self, model: ir.Model, name: str, nodes: dict[ir.Node, str], largest: dict[str, float]
    ) -> list[Island]:
        """Layers that the policy wants in half precision and that are not."""
        moved = []
        for node in model.graph:
            rule = policy.decide(name, node, self.precision)
            if self.precision == "fp32" or rule is None or rule.precision not in (EIGHT_BITS, HALF) or node in nodes:
                continue
            reached = [
                largest.get(str(value.name), 0.0) for value in (*node.inputs, *node.outputs) if value is not None
            ]
            constants = [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None]
            reached += [float(np.abs(array).max(initial=0)) for array in constants if array.dtype == np.float32]
            moved.append(Island(name, policy.weight_name(node) or str(node.name), float(f"{max(reached):.4g}")))
        return moved

    def compare_graphs(self, walked: Walked) -> list[GraphError]:
        self.watched.clear()  # from here on the reference runs without probes
        system, tolerance = self.system, TOLERANCES[self.precision].graph
        rows = certification.compare_graphs(
            system, self.typed, self.scope, walked.clips[0][1], self.source.config.vae.hop
        )
        for row, inputs in rows.items():
            if not row.relative_error <= tolerance:
                said = f"{row.graph}.{row.output} is off by {row.relative_error:.1e}, more than {tolerance:.1e}"
                raise self._refusal(said, row.graph, inputs, tolerance)
        return list(rows)

    def compare_velocities(self, walked: Walked, largest: dict[str, dict[str, float]]) -> list[VelocityError] | None:
        """None when products were taken out of 8 bits because of a velocity, and the graphs are to be written again."""
        rows, tolerance = [], TOLERANCES[self.precision]
        for point, row in certification.compare_velocities(self.typed, walked, self.progress):
            if not (row.cosine >= tolerance.cosine and row.relative_l2 <= tolerance.relative_l2):
                said = (
                    f"{row.graph}'s velocity at timestep {row.timestep} over {row.frames} frames has cosine "
                    f"{row.cosine:.6f} (at least {tolerance.cosine}) and relative L2 {row.relative_l2:.1e} (at most "
                    f"{tolerance.relative_l2:.1e})"
                )
                inputs = self.system.inputs(point)
                if row.cosine > MIN_REPAIRABLE_COSINE and self._widen(point.graph, inputs, largest[point.graph]):
                    self.typed.sessions.release()  # their weights are about to be written anew
                    return None
                raise self._refusal(said, point.graph, inputs, tolerance.relative_l2)
            rows.append(row)
        return rows

    def _widen(self, graph: str, inputs: dict[str, Array], largest: dict[str, float]) -> bool:
        """Take the products with the largest error of their own out of 8 bits. False when half of them are out."""
        model = self.model(graph)
        every = quantizable(n for n, precision in self.half_nodes(model, graph).items() if precision == EIGHT_BITS)
        left = self.quantized_nodes(dict.fromkeys(every, EIGHT_BITS))
        if 2 * (len(left) - 1) < len(every):
            return False
        names = [str(node.inputs[0].name) for node in left if node.inputs[0] is not None]
        values = dict(
            inner_tensors(self.reference, self.source.graphs[graph].file, inputs, sorted(set(names)), self.threads)
        )
        code = CODES[self.precision]
        errors = [
            product_error(values[name], node, largest[name], code) for name, node in zip(names, left, strict=True)
        ]
        count = max(1, len(every) // WIDENED_PART)
        for index in np.argsort(errors)[::-1][:count]:
            self.not_quantized.add(policy.weight_name(left[index]))
        return True

    def compare_clips(self, walked: Walked) -> list[LevelError]:
        tolerance = TOLERANCES[self.precision]
        rows = certification.compare_clips(self.typed, walked)
        for row, (latents, _) in zip(rows, walked.clips, strict=True):
            if not row.distance_db <= tolerance.level_db:
                said = f"decoder: mel levels of {row.frames} frames are off by {row.distance_db:.2f} dB"
                said += f", more than {tolerance.level_db} dB"
                raise self._refusal(said, "decoder", {"latents": latents}, tolerance.graph)
        return rows

    def _refusal(self, said: str, graph: str, inputs: dict[str, Array], tolerance: float) -> BundleError:
        file = self.source.graphs[graph].file
        outputs = {value.name for value in self.model(graph).graph.outputs}
        tensors = [
            str(value.name)
            for node in ir.load(self.folder / file).graph
            for value in node.outputs
            if policy.role_of(node)
            in ("product", "gated", "scores", "mix", "conv", "sum", "LayerNormalization", "Softmax")
            or value.name in outputs
        ]
        layer, error = first_beyond(
            (self.reference, file),
            (self.folder, file),
            inputs,
            tensors,
            lambda got, expected: measure(got, expected)[1],
            tolerance,
            self.threads,
        )
        return BundleError(
            f"the {self.precision} graphs are not certified, nothing was written: {said}; layer '{layer}' of {graph} "
            f"is off by {error:.1e}: use another --precision"
        )
