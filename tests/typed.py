"""Typed bundles of small models, and bundles with a fault put into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from ezaudio.export import onnx_writer
from ezaudio.export.bundle import retype_bundle
from ezaudio.export.certificate import CORPUS, Scope
from ezaudio.export.typed_graphs import fold_widened_weights
from ezaudio.runtime import manifest as manifests
from ezaudio.runtime.manifest import Manifest

# Every step of the plan at a short length, and two at a longer one: a few seconds.
SHORT = Scope(prompts=(*CORPUS[:6], *CORPUS[-5:]), lengths=((0.4, None), (1.0, 2)), mode_steps=2)


def retyped(reference: Path, output: Path, precision: str) -> Manifest:
    return retype_bundle(reference, output, precision, "tensorrt", scope=SHORT)


def changed(bundle: Path, output: Path, change: Callable[[ir.Model, str], None]) -> Path:
    """A copy of a bundle, without ControlNet, whose graphs `change` has altered, its manifest telling of the altered
    files."""
    output.mkdir()
    manifest = manifests.read_manifest(bundle)
    weights = onnx_writer.WeightFile(output / "all.weights")
    graphs = {name: entry for name, entry in manifest.graphs.items() if "control" not in name}
    for name, entry in graphs.items():
        model = ir.load(bundle / entry.file)
        fold_widened_weights(model)
        change(model, name)
        onnx_writer.write(model, output / entry.file, weights)
    weights.close()
    for path in bundle.iterdir():
        if path.suffix not in (".onnx", ".weights", ".json") or path.name == "tokenizer.json":
            (output / path.name).write_bytes(path.read_bytes())
    files = {path.name: manifests.describe_file(path) for path in sorted(output.iterdir())}
    replace(manifest, graphs=graphs, files=files).write(output)
    return output


def scaled(model: ir.Model, name: str, factor: float, columns: slice = slice(None)) -> None:
    """Multiply the columns of an initializer, where the graph has it."""
    value = model.graph.initializers.get(name)
    if value is not None:
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[..., columns] *= factor
        value.const_value = ir.tensor(array, name=name)
