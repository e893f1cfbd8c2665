"""Models → bundle: graphs written part by part, each checked against PyTorch, then the manifest, then one rename.

The text encoder, the DiT and the VAE are loaded, traced and freed one after the other, so that the largest part alone
sets the memory.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from ezaudio.checkpoints import ModelSource
from ezaudio.export import graphs, lint, onnx_writer, precision, vae_graphs
from ezaudio.export.certificate import Scope
from ezaudio.export.cpu_bundle import DERIVED, write_cpu_bundle
from ezaudio.export.graphs import Graph
from ezaudio.export.samples import Sample, Sampler
from ezaudio.export.text_graph import TextEncoderGraph
from ezaudio.export.typed_bundle import SCOPE, write_typed_bundle
from ezaudio.runtime import manifest
from ezaudio.runtime.bundle_store import GPU_PRECISIONS, TARGETS
from ezaudio.runtime.engines.store import FOLDER as ENGINES
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.manifest import Check, GraphEntry, Manifest

# Largest relative error of any output. Measured on L with random weights: fp32 3e-6.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of the graphs are done, and how many there are."""

Parts = Iterator[tuple[Graph, list[Sample]]]


@dataclass(slots=True)
class _Build:
    """A bundle under construction."""

    folder: Path
    precision: str
    progress: Progress
    total: int
    graphs: dict[str, GraphEntry] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def add(self, weights_name: str, parts: Parts) -> None:
        """Write the graphs of one part with a common weights file; once its models are freed, check them."""
        weights = onnx_writer.WeightFile(self.folder / f"{weights_name}.weights")
        samples: dict[str, list[Sample]] = {}
        for graph, cases in parts:
            self.progress(f"exporting {graph.name}", len(self.graphs), self.total)
            model = onnx_writer.to_onnx(graph)
            precision.apply(model, graph.name, self.precision)
            file = f"{graph.name}.onnx"
            onnx_writer.write(model, self.folder / file, weights)
            self.graphs[graph.name] = GraphEntry(file, tuple(graph.inputs), tuple(graph.outputs))
            samples[graph.name] = cases
            del graph, model
        weights.close()
        del parts
        gc.collect()
        for name, cases in samples.items():
            self.progress(f"checking {name}", len(self.graphs), self.total)
            self.checks += check_graph(self.folder / f"{name}.onnx", name, cases, self.precision)
        _refuse_errors(self.checks)  # now: the parts that remain take minutes


def check_graph(path: Path, name: str, cases: list[Sample], precision_name: str) -> list[Check]:
    """Run a graph in ONNX Runtime and compare every output with the expected one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    checks = []
    for sample in cases:
        results = session.run(list(sample.expected), sample.inputs)
        for output, got in zip(sample.expected, results, strict=True):
            error = relative_error(got, sample.expected[output])
            told = f"{output}, {sample.case}" if sample.case else output
            checks.append(Check(name, told, error, TOLERANCES[precision_name]))
    return checks


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """‖got − expected‖ / ‖expected‖ in float64; infinite when anything is not finite."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    difference, norm = (np.linalg.norm(x.astype(np.float64)) for x in (got - expected, expected))
    return float(difference / max(norm, 1e-30))


def _text_parts(source: ModelSource, sampler: Sampler) -> Parts:
    encoder = source.text_encoder()
    graph = TextEncoderGraph(encoder.state_dict(), source.config)
    yield graph, [sampler.text_encoder(graph, encoder)]


def _dit_parts(source: ModelSource, sampler: Sampler) -> Parts:
    config, dit = source.config, source.dit()
    blocks = dit.model.all_blocks()
    conditioner = graphs.ConditionerGraph(dit.model, blocks, config, "conditioner")
    modulation = graphs.ModulationGraph(dit.model, blocks, config, "modulation")
    frame_bias = graphs.FrameBiasGraph(dit, config)
    yield conditioner, [sampler.conditioner(conditioner)]
    yield modulation, [sampler.modulation(modulation)]
    yield frame_bias, [sampler.frame_bias(frame_bias)]
    for form in ("denoiser", "denoiser_shallow"):
        graph = graphs.DenoiserGraph(dit, config, form)
        yield graph, sampler.denoiser(graph, dit, conditioner, modulation, frame_bias)
    controlnet = source.controlnet()
    if controlnet is not None:
        graph = graphs.DenoiserGraph(dit, config, "denoiser_controlled")
        yield graph, sampler.denoiser(graph, dit, conditioner, modulation, frame_bias, controlnet)


def _controlnet_parts(source: ModelSource, sampler: Sampler) -> Parts:
    controlnet = source.controlnet()
    assert controlnet is not None
    config, dit = source.config, source.dit()
    blocks = list(controlnet.in_blocks)
    conditioner = graphs.ConditionerGraph(controlnet, blocks, config, "controlnet_conditioner")  # type: ignore[arg-type]
    modulation = graphs.ModulationGraph(controlnet, blocks, config, "controlnet_modulation")  # type: ignore[arg-type]
    frame_bias = graphs.FrameBiasGraph(dit, config, controlnet)
    yield conditioner, [sampler.conditioner(conditioner)]
    yield modulation, [sampler.modulation(modulation)]
    yield frame_bias, [sampler.frame_bias(frame_bias)]
    graph = graphs.ControlNetGraph(controlnet, config)
    yield graph, sampler.controlnet(graph, dit, controlnet, conditioner, modulation, frame_bias)


def _vae_parts(source: ModelSource, sampler: Sampler) -> Parts:
    vae = source.vae()
    decoder = vae_graphs.DecoderGraph(vae, source.config)
    yield decoder, [sampler.decoder(decoder, vae)]
    encoder = vae_graphs.EncoderGraph(vae, source.config)
    yield encoder, [sampler.encoder(encoder, vae)]


def export_bundle(
    source: ModelSource,
    output: Path,
    precision_name: str = "fp32",
    progress: Progress = lambda *_: None,
    target: str = "cpu",
    scope: Scope = SCOPE,
) -> Manifest:
    """Write a bundle to the folder `output`, replacing a bundle that is there.

    Nothing that looks like a bundle exists until every graph is written and within its tolerance: the work happens in a
    hidden folder beside `output`, which is removed on any failure and renamed at the end.

    Args:
        target: `cpu`, or the builder that the graphs are typed for; those are made from an fp32 bundle, and certified
            against it.
        scope: how much the certificate measures.

    Raises:
        InputError: unknown precision or target, or `output` is something else than a bundle or an empty folder.
        BundleError: a graph differs from its PyTorch module by more than the tolerance, every such output is listed; or
            it breaks a rule, or is not certified.
    """
    if target not in TARGETS:
        raise InputError(f"unknown target {target!r}: expected one of {', '.join(TARGETS)}")
    if precision_name not in precision.PRECISIONS:
        raise InputError(f"unknown precision {precision_name!r}: expected one of {', '.join(precision.PRECISIONS)}")
    _check_pair(precision_name, target)
    with _replaced_folder(output) as folder:
        if target == "cpu" and precision_name not in DERIVED:
            _write_bundle(source, folder, precision_name, progress)
        else:
            reference = folder / "reference"
            reference.mkdir()
            _write_bundle(source, reference, "fp32", progress)
            derived = folder / "derived"
            derived.mkdir()
            if target == "cpu":
                write_cpu_bundle(reference, derived, precision_name, progress)
            else:
                write_typed_bundle(reference, derived, precision_name, target, scope, progress)
            shutil.rmtree(reference)
            for path in derived.iterdir():
                path.rename(folder / path.name)
            derived.rmdir()
    return manifest.read_manifest(output, verify=False)


def retype_bundle(
    reference: Path,
    output: Path,
    precision_name: str,
    target: str,
    progress: Progress = lambda *_: None,
    scope: Scope = SCOPE,
) -> Manifest:
    """A bundle for CPUs → one of typed graphs at `output`; needs no model. Raises as `export_bundle`.

    What the bundle computes is the reference: weights that it stores in half precision are what they are.
    """
    _check_pair(precision_name, target)
    with _replaced_folder(output) as folder:
        given = manifest.read_manifest(reference, verify=False)
        if given.precision in DERIVED:
            raise InputError(f"'{reference}' is a bundle in {given.precision}: types are put into one in fp32 or fp16")
        lint.refuse(lint.lint_bundle(reference, given.graphs, given.precision, typed=False))
        write_typed_bundle(reference, folder, precision_name, target, scope, progress)
    return manifest.read_manifest(output, verify=False)


def _check_pair(precision_name: str, target: str) -> None:
    if target != "cpu" and precision_name in ("w8", "w4"):
        raise InputError(
            f"--precision {precision_name} is for CPUs: use fp16, bf16, int8 or fp8 with --target {target}"
        )
    if target == "cpu" and precision_name in GPU_PRECISIONS:
        raise InputError(
            f"--precision {precision_name} is for GPUs: add --target tensorrt or tensorrt-rtx, or use int8"
        )


def _write_bundle(source: ModelSource, folder: Path, precision_name: str, progress: Progress) -> None:
    controlled = "controlnet" in source.fills
    build = _Build(folder, precision_name, progress, total=8 + (5 if controlled else 0))
    progress("loading", 0, build.total)
    source.check_parts()  # before minutes of tracing: a checkpoint whose keys do not fit
    build.add("denoiser", _dit_parts(source, Sampler(source.config)))
    if controlled:
        build.add("controlnet", _controlnet_parts(source, Sampler(source.config)))
    build.add("text_encoder", _text_parts(source, Sampler(source.config)))
    build.add("vae", _vae_parts(source, Sampler(source.config)))
    for name, path in source.tokenizer_files().items():
        shutil.copyfile(path, folder / name)
    if source.card is not None:
        shutil.copyfile(source.card, folder / manifest.CARD_FILE)
    lint.refuse(lint.lint_bundle(folder, build.graphs, precision_name, typed=False))
    progress("hashing", build.total, build.total)
    Manifest(
        config=source.config,
        precision=precision_name,
        origin=source.origin,
        licence=source.licence,
        graphs=build.graphs,
        files={path.name: manifest.describe_file(path) for path in sorted(folder.iterdir())},
        checks=tuple(build.checks),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
    ).write(folder)


def _refuse_errors(checks: list[Check]) -> None:
    bad = [check for check in checks if not check.relative_error <= check.tolerance]
    if bad:
        rows = "; ".join(f"{c.graph}.{c.output} {c.relative_error:.1e} > {c.tolerance:.0e}" for c in bad)
        raise BundleError(
            f"the exported graphs differ from PyTorch by more than the tolerance, nothing was written: {rows}"
        )


def _check_replaceable(output: Path) -> None:
    """Raises InputError unless this is nothing, an empty folder, or a bundle without any file of somebody else's."""
    if not os.path.lexists(output):
        return
    if os.path.ismount(output):
        raise InputError(f"'{output}' is a mount point, which cannot be replaced whole: name a folder in it")
    names = {path.name for path in output.iterdir()} if output.is_dir() else {""}
    if not names:
        return
    listed = manifest.listed_files(output)
    if not listed:
        raise InputError(f"'{output}' exists and is no bundle: name a new folder for --output")
    if foreign := names - listed - {manifest.FILE_NAME, ENGINES}:
        raise InputError(
            f"'{output}' holds '{min(foreign)}', which is not of the bundle there and would be lost: move it, or name "
            "a new folder for --output"
        )


@contextmanager
def _replaced_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output` that takes its place when the block succeeds and vanishes when it fails."""
    output = output.resolve()  # what a link points to is replaced, not the link
    _check_replaceable(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise InputError(f"cannot write to '{output.parent}' ({error.strerror}): name another --output") from error
    try:
        partial.chmod(0o755)
        yield partial
        _check_replaceable(output)  # again: somebody may have put a file there in the meantime
        if output.exists():
            old = partial.with_suffix(".old")
            output.rename(old)
            try:
                partial.rename(output)
            except BaseException:
                old.rename(output)
                raise
            shutil.rmtree(old)
        else:
            partial.rename(output)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot write to '{output.parent}' ({reason}): free space or name another --output"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
