"""Rewrites for ONNX Runtime's CPU provider: the same numbers, and the operators that they promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from ezaudio.checkpoints import open_source
from ezaudio.export import bundle, cpu_fusions, graphs, onnx_writer, precision
from ezaudio.export.lint import Subject, lint_graph
from ezaudio.export.onnx_writer import example_input
from ezaudio.export.samples import Sample, Sampler
from ezaudio.runtime.manifest import GraphEntry

Traced = tuple[Path, list[Sample], GraphEntry]
"""The denoiser as traced, what PyTorch answers in every mode of guidance, and what it takes and gives."""

BLOCKS = 3  # of the debug model
ROWS = {"guided": (1, 1), "negative": (2, 0), "unguided": (1, 0)}  # that attend to a prompt, and that add a constant


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    source = open_source("debug", random_weights=True)
    dit, config = source.dit(), source.config
    blocks = dit.model.all_blocks()
    conditioner = graphs.ConditionerGraph(dit.model, blocks, config, "conditioner")
    modulation = graphs.ModulationGraph(dit.model, blocks, config, "modulation")
    frame_bias = graphs.FrameBiasGraph(dit, config)
    folder = tmp_path_factory.mktemp("traced")
    weights = onnx_writer.WeightFile(folder / "denoiser.weights")
    graph = graphs.DenoiserGraph(dit, config)
    samples = Sampler(config).denoiser(graph, dit, conditioner, modulation, frame_bias)
    path = folder / f"{graph.name}.onnx"
    onnx_writer.write(onnx_writer.to_onnx(graph), path, weights)
    weights.close()
    return path, samples, GraphEntry(path.name, tuple(graph.inputs), tuple(graph.outputs))


def fused(path: Path, folder: Path, precision_name: str = "fp32") -> Path:
    model = ir.load(path)
    cpu_fusions.apply(model)
    precision.apply(model, "denoiser", precision_name)
    weights = onnx_writer.WeightFile(folder / "denoiser.weights")
    onnx_writer.write(model, folder / path.name, weights)
    weights.close()
    return folder / path.name


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def test_fused_graphs_agree_with_pytorch(traced: Traced, tmp_path: Path) -> None:
    path, samples, _ = traced
    checks = bundle.check_graph(fused(path, tmp_path), "denoiser", samples, "fp32")
    assert len(checks) == 3 * 3
    assert max(check.relative_error for check in checks) < 1e-5  # 1.1e-6, and 1.2e-6 as traced


@pytest.mark.parametrize("frames", [1, 2, 77])
@pytest.mark.parametrize("mode", ROWS)
def test_fused_graphs_agree_with_traced_ones_at_other_sizes(
    traced: Traced, mode: str, frames: int, tmp_path: Path
) -> None:
    path, _, entry = traced
    generator = torch.Generator().manual_seed(frames)
    prompt_rows, constant_rows = ROWS[mode]
    rows = {"prompt_rows": prompt_rows, "constant_rows": constant_rows}
    sizes = {"batch": 1, "frames": frames, "tokens": 4, **rows}
    inputs = {spec.name: example_input(spec, sizes, generator).numpy() for spec in entry.inputs}
    expected, got = (
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, inputs)
        for file in (path, fused(path, tmp_path))
    )
    for a, b in zip(got, expected, strict=True):
        assert bundle.relative_error(a, b) < 2e-6  # 2.7e-7


def test_every_block_gets_the_fused_operators(traced: Traced, tmp_path: Path) -> None:
    path, _, _ = traced
    before, after = ir.load(path), ir.load(fused(path, tmp_path))
    count = operators(after)
    assert count["MultiHeadAttention"] == BLOCKS
    assert count["RotaryEmbedding"] == 2 * BLOCKS
    assert count["Softmax"] == BLOCKS  # of cross-attention, over few keys
    # Three products for one and two for one; two of attention are gone.
    assert count["MatMul"] == operators(before)["MatMul"] + BLOCKS * (2 + 1 - 2)
    added = {node.op_type for node in after.graph if node.domain}
    assert added == cpu_fusions.OPERATORS
    assert after.opset_imports == {"": onnx_writer.OPSET, cpu_fusions.DOMAIN: 1}
    assert weight_bytes(after) == pytest.approx(weight_bytes(before), abs=256)


@pytest.mark.parametrize(("precision_name", "rules"), [("int8", set()), ("fp32", {"opset"})])
def test_the_linter_lets_them_pass_in_int8_alone(
    traced: Traced, precision_name: str, rules: set[str], tmp_path: Path
) -> None:
    path, _, entry = traced
    model = ir.load(fused(path, tmp_path))
    findings = lint_graph(Subject(path.stem, model, entry, precision_name, typed=False))
    assert {finding.rule for finding in findings} == rules


def test_onnx_runtime_runs_what_was_chosen(traced: Traced, tmp_path: Path) -> None:
    """Its own optimiser undoes nothing, and adds none of the fused operators that take longer."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(fused(traced[0], tmp_path)), options, providers=["CPUExecutionProvider"])
    count = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert count["MultiHeadAttention"] == BLOCKS
    assert count["BiasGelu"] == count["SkipLayerNormalization"] == 0


def test_applying_twice_changes_nothing(traced: Traced) -> None:
    model = ir.load(traced[0])
    cpu_fusions.apply(model)
    before = operators(model)
    cpu_fusions.apply(model)
    assert operators(model) == before


def test_int8_multiplies_the_parts_as_integers(traced: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MIN_INT8_INPUTS", 8)
    path, samples, _ = traced
    quantized = fused(path, tmp_path, "int8")
    session = onnxruntime.InferenceSession(str(quantized), providers=["CPUExecutionProvider"])
    for sample in samples:
        (got,) = session.run(["next_latents"], sample.inputs)
        assert bundle.relative_error(got, sample.expected["next_latents"]) < 1.5e-1  # 6.7e-2, also without fusions
    count = operators(ir.load(quantized))
    # An input is quantised once for all its products: q, k and v, value and gate.
    assert count["MatMulInteger"] - count["DynamicQuantizeLinear"] == 3 * BLOCKS


def _swap_rope_halves(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Concat" and str(node.inputs[0].name).startswith("sub"))
    first, second = node.inputs
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)


def _later_positions(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Slice" and "embedding" in str(node.inputs[0].name))
    start = ir.Value(name="start", const_value=ir.tensor(np.array([1]), name="start"), shape=ir.Shape([1]))
    model.graph.register_initializer(start)
    node.replace_input_with(1, start)


def _masked(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Softmax")
    masked = ir.node("Relu", [node.inputs[0]])
    model.graph.insert_before(node, masked)
    node.replace_input_with(0, masked.outputs[0])


@pytest.mark.parametrize(("change", "kept"), [(_swap_rope_halves, 1), (_later_positions, BLOCKS), (_masked, 1)])
def test_what_looks_similar_stays(traced: Traced, change: Callable[[ir.Model], None], kept: int) -> None:
    model = ir.load(traced[0])
    change(model)
    cpu_fusions.apply(model)
    assert operators(model)["MultiHeadAttention"] == BLOCKS - kept
