"""The linter: clean on what the exporter writes, and one seeded fault for each of its rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ezaudio.export import lint, typed_graphs
from ezaudio.export.lint import Subject, lint_bundle, lint_graph
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import read_manifest


@pytest.mark.parametrize("which", ["debug", "packaged", "typed"])
def test_bundles_keep_every_rule(which: str, debug_bundle: Path, typed_debug_bundle: Path) -> None:
    folder = {"debug": debug_bundle, "packaged": PACKAGED, "typed": typed_debug_bundle}[which]
    manifest = read_manifest(folder)
    assert lint_bundle(folder, manifest.graphs, manifest.precision, typed=manifest.target != "cpu") == []


def subject(folder: Path, name: str) -> Subject:
    """A graph typed in memory, before a fault is put into it."""
    model = ir.load(folder / f"{name}.onnx")
    typed_graphs.apply_types(model, typed_graphs.half_nodes(model, name, "fp16"), "fp16")
    return Subject(name, model, read_manifest(folder, verify=False).graphs[name], "fp16", typed=True)


def node_of(model: ir.Model, operator: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == operator)


def older_opset(model: ir.Model) -> None:
    model.opset_imports[""] = 18


def newer_ir(model: ir.Model) -> None:
    model.ir_version = 13


def other_domain(model: ir.Model) -> None:
    node_of(model, "Gelu").domain = "com.microsoft"


def float64(model: ir.Model) -> None:
    node = node_of(model, "LayerNormalization")
    cast = ir.node("Cast", [node.outputs[0]], {"to": int(ir.DataType.DOUBLE)}, name="wide")
    cast.outputs[0].dtype = ir.DataType.DOUBLE
    model.graph.insert_after(node, cast)


def renamed_output(model: ir.Model) -> None:
    model.graph.outputs[0].name = "latents_out"


def half_input(model: ir.Model) -> None:
    model.graph.inputs[0].dtype = ir.DataType.FLOAT16


def fixed_axis(model: ir.Model) -> None:
    value = model.graph.inputs[0]
    assert value.shape is not None
    value.shape = ir.Shape([1, *value.shape[1:]])


def undeclared_axis(model: ir.Model) -> None:
    node_of(model, "LayerNormalization").outputs[0].shape = ir.Shape(["batch", "u0", 32])


def non_zero(model: ir.Model) -> None:
    node = node_of(model, "LayerNormalization")
    model.graph.insert_after(node, ir.node("NonZero", [node.outputs[0]], name="found"))


def size_from_values(model: ir.Model) -> None:
    node = node_of(model, "LayerNormalization")
    size = ir.node("Cast", [model.graph.inputs[-1]], {"to": int(ir.DataType.INT64)}, name="size")
    size.outputs[0].dtype = ir.DataType.INT64
    model.graph.insert_after(node, [size, ir.node("Reshape", [node.outputs[0], size.outputs[0]], name="reshaped")])


def decomposed_norm(model: ir.Model) -> None:
    node = node_of(model, "LayerNormalization")
    x, (weight, bias) = node.inputs[0], node.inputs[1:]
    axes = ir.Value(name="axes", const_value=ir.tensor(np.array([-1]), name="axes"), shape=ir.Shape([1]))
    model.graph.register_initializer(axes)
    mean = ir.node("ReduceMean", [x, axes])
    centred = ir.node("Sub", [x, mean.outputs[0]], name="centred")
    square = ir.node("Mul", [centred.outputs[0]] * 2)
    variance = ir.node("ReduceMean", [square.outputs[0], axes])
    deviation = ir.node("Sqrt", [variance.outputs[0]])
    normed = ir.node("Div", [centred.outputs[0], deviation.outputs[0]])
    scaled = ir.node("Mul", [normed.outputs[0], weight])
    moved = ir.node("Add", [scaled.outputs[0], bias])
    model.graph.insert_before(node, [mean, centred, square, variance, deviation, normed, scaled, moved])
    node.outputs[0].replace_all_uses_with(moved.outputs[0])


def half_statistics(model: ir.Model) -> None:
    node_of(model, "LayerNormalization").attributes["stash_type"] = ir.AttrInt64("stash_type", 10)


def dropped_island(operator: str) -> Callable[[ir.Model], None]:
    """The Casts around an operator are gone: it computes in half precision."""

    def drop(model: ir.Model) -> None:
        node = next(n for n in model.graph if n.op_type == operator and n.inputs[0].producer().op_type == "Cast")
        node.replace_input_with(0, node.inputs[0].producer().inputs[0])
        node.outputs[0].dtype = ir.DataType.FLOAT16

    return drop


def narrowed(operator: str) -> Callable[[ir.Model], None]:
    """An operator is put into half precision."""

    def narrow(model: ir.Model) -> None:
        node = node_of(model, operator)
        cast = ir.node("Cast", [node.inputs[0]], {"to": int(ir.DataType.FLOAT16)})
        cast.outputs[0].dtype = node.outputs[0].dtype = ir.DataType.FLOAT16
        model.graph.insert_before(node, cast)
        node.replace_input_with(0, cast.outputs[0])

    return narrow


def half_residual(model: ir.Model) -> None:
    """The first sum of two tensors that a Cast leads to."""
    for node in model.graph:
        if node.op_type == "Mul" and node.inputs[0].producer() is not None:
            cast = node.inputs[0].producer()
            if cast.op_type == "Cast" and cast.inputs[0].dtype == ir.DataType.FLOAT16:
                (use,) = node.outputs[0].uses()
                if use.node.op_type == "Add":
                    use.node.replace_input_with(use.idx, cast.inputs[0])
                    return
    raise AssertionError("no gate found")


def half_output_layer(model: ir.Model) -> None:
    weight = model.graph.initializers["final_linear.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float16), name=weight.name)
    weight.dtype = ir.DataType.FLOAT16


def constant(value: float) -> Callable[[ir.Model], None]:
    def put(model: ir.Model) -> None:
        name = "blocks.0.attn.proj.weight.fp16"
        old = model.graph.initializers[name].const_value
        assert old is not None
        array = np.full(old.shape.numpy(), value, np.float16)
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)

    return put


FAULTS: list[tuple[str, str, Callable[[ir.Model], None], str]] = [
    ("opset", "opset is {'': 18}", older_opset, "denoiser"),
    ("opset", "IR version is 13", newer_ir, "denoiser"),
    ("opset", "com.microsoft.Gelu is no standard one", other_domain, "denoiser"),
    ("types", "is DOUBLE", float64, "denoiser"),
    ("interface", "expected ['next_latents', 'clean', 'inner']", renamed_output, "denoiser"),
    ("interface", "is FLOAT16, declared as float32", half_input, "denoiser"),
    ("interface", "declared as ['batch', 8, 'frames']", fixed_axis, "denoiser"),
    ("axes", "has size u0, which is no declared axis", undeclared_axis, "denoiser"),
    ("static shapes", "operator NonZero", non_zero, "denoiser"),
    ("static shapes", "computed from the values of 'guidance_rescale'", size_from_values, "denoiser"),
    ("whole norms", "a LayerNorm is decomposed", decomposed_norm, "denoiser"),
    ("whole norms", "stash_type must be 1", half_statistics, "denoiser"),
    ("islands", "Softmax computes in half precision", dropped_island("Softmax"), "denoiser"),
    ("islands", "LayerNormalization computes in half", dropped_island("LayerNormalization"), "denoiser"),
    ("islands", "Pow computes in half precision", narrowed("Pow"), "text_encoder"),
    ("islands", "'sum' computes in half precision", half_residual, "denoiser"),
    ("islands", "'final_linear.weight' computes in half", half_output_layer, "denoiser"),
    ("constants", "holds infinity or NaN", constant(float("-inf")), "denoiser"),
    ("constants", "holds infinity or NaN", constant(float("nan")), "denoiser"),
    ("constants", "is too small for fp16: 1,024 of 1,024", constant(1e-6), "denoiser"),
]


@pytest.mark.parametrize(("rule", "text", "fault", "name"), FAULTS)
def test_a_seeded_fault_is_found(
    debug_bundle: Path, rule: str, text: str, fault: Callable[[ir.Model], None], name: str
) -> None:
    linted = subject(debug_bundle, name)
    assert lint_graph(linted) == []
    fault(linted.model)
    found = [finding for finding in lint_graph(linted) if finding.rule == rule]
    assert found
    assert any(text in finding.text for finding in found), found
    assert {finding.graph for finding in found} == {name}


def test_every_rule_has_a_fault() -> None:
    assert {rule for rule, *_ in FAULTS} == lint.RULES.keys()


def test_findings_are_refused_in_one_line(debug_bundle: Path) -> None:
    linted = subject(debug_bundle, "denoiser")
    older_opset(linted.model)
    with pytest.raises(BundleError, match=r"^the graphs break 1 rules, nothing was written: denoiser, graph: ops"):
        lint.refuse(lint_graph(linted))
    lint.refuse([])
