"""Graphs whose types say what computes in half precision, and their emulation where there is none."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from golden import relative_error
from onnx import TensorProto, helper

from ezaudio.export import onnx_writer, policy, quantize, typed_graphs
from ezaudio.export.policy import EIGHT_BITS, FP32, POLICY
from ezaudio.runtime import session
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.emulation import EmulatedSessions, emulated
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.session import GraphSessions

SIZES = {"batch": 2, "frames": 40, "tokens": 7, "steps": 3, "prompt_rows": 2, "constant_rows": 2, "rows": 4}


def typed(folder: Path, name: str, precision: str) -> ir.Model:
    model = ir.load(folder / f"{name}.onnx")
    typed_graphs.fold_widened_weights(model)
    typed_graphs.apply_types(model, typed_graphs.half_nodes(model, name, precision), precision)
    return model


def random_inputs(folder: Path, name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in read_manifest(folder, verify=False).graphs[name].inputs:
        shape = spec.sizes(SIZES)
        if spec.dtype == "float32":
            inputs[spec.name] = rng.standard_normal(shape, np.float32)
        else:
            inputs[spec.name] = np.ones(shape, bool) if spec.dtype == "bool" else rng.integers(1, 9, shape)
    return inputs


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def small(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], half: int, inner: list[str]
) -> onnx.ModelProto:
    """A graph x (2, 4) → y with `inner` tensors of the type `half`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    graph = helper.make_graph(nodes, "small", [x], [y], constants)
    graph.value_info.extend(helper.make_tensor_value_info(name, half, [2, 4]) for name in inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# (graph, precision) → error against fp32 on random inputs, packaged model, with what was measured.
ERRORS = {
    ("decoder", "fp16"): 4e-3,  # 2.0e-3
    ("denoiser", "fp16"): 2e-3,  # 6.3e-4
    ("text_encoder", "fp16"): 2e-3,  # 5e-4
    ("conditioner", "fp16"): 2e-3,  # 5.8e-4
    ("denoiser", "bf16"): 1.5e-2,  # 5.0e-3
    ("text_encoder", "bf16"): 1.5e-2,  # 2.5e-3
    ("conditioner", "bf16"): 1.5e-2,  # 6.5e-3
}


@pytest.mark.parametrize(("name", "precision"), ERRORS)
def test_typed_graphs_are_close_to_fp32_emulated_and_where_it_runs_natively(
    name: str, precision: str, tmp_path: Path
) -> None:
    manifest = read_manifest(PACKAGED, verify=False)
    weights = onnx_writer.WeightFile(tmp_path / "weights")
    onnx_writer.write(typed(PACKAGED, name, precision), tmp_path / f"{name}.onnx", weights)
    weights.close()
    inputs = random_inputs(PACKAGED, name)
    expected = GraphSessions(PACKAGED, manifest, 1, "onnxruntime").run(name, **inputs)
    rounded = EmulatedSessions(tmp_path, manifest, 1, "onnxruntime").run(name, **inputs)
    bound = ERRORS[name, precision]
    for output, value in expected.items():
        assert 0 < relative_error(rounded[output], value) < bound
    if precision == "fp16":  # ONNX Runtime's CPU provider has no kernels for bf16
        native = GraphSessions(tmp_path, manifest, 1, "onnxruntime").run(name, **inputs)
        for output, value in rounded.items():
            assert relative_error(native[output], value) < bound  # 1.1e-3


def test_products_of_8_bits_open_without_vnni(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ONNX Runtime puts others in the place of their zero points, and cannot do so twice for one of two products."""
    monkeypatch.setattr(session, "_integers_overflow", lambda: True)
    model = ir.load(PACKAGED / "denoiser.onnx")
    typed_graphs.fold_widened_weights(model)
    nodes = typed_graphs.half_nodes(model, "denoiser", "int8")
    chosen = quantize.quantizable(node for node, level in nodes.items() if level == EIGHT_BITS)
    largest = {str(node.inputs[0].name): 10.0 for node in chosen}
    typed_graphs.apply_types(model, nodes, "int8")
    quantize.quantize(model, chosen, largest, "int8")
    weights = onnx_writer.WeightFile(tmp_path / "weights")
    onnx_writer.write(model, tmp_path / "denoiser.onnx", weights)
    weights.close()
    manifest = read_manifest(PACKAGED, verify=False)
    for sessions in (GraphSessions, EmulatedSessions):
        sessions(tmp_path, manifest, 1, "onnxruntime").open("denoiser")


def test_an_overflow_that_onnx_runtime_hides_is_seen() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["a", "four"], ["b"]),
        helper.make_node("Mul", ["b", "quarter"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = [
        helper.make_tensor("four", TensorProto.FLOAT16, [1], [4.0]),
        helper.make_tensor("quarter", TensorProto.FLOAT16, [1], [0.25]),
    ]
    model = small(nodes, constants, TensorProto.FLOAT16, ["a", "b", "c"])
    x = np.array([[1, 2, 3, 60000], [0, 0, 0, 0]], np.float32)
    assert np.isfinite(run(model, x=x)).all()  # computed in fp32 between the Casts
    assert np.isinf(run(emulated(model), x=x)[0, 3])


@pytest.mark.parametrize(
    ("half", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, ml_dtypes.bfloat16)]
)
def test_emulation_rounds_every_result_once(half: int, dtype: type) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((4, 4)).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=half),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 1]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    stored = helper.make_tensor("w", half, [4, 4], weight.tobytes(), raw=True)
    x = rng.standard_normal((2, 4), np.float32)
    exact = x.astype(dtype).astype(np.float32) @ weight.astype(np.float32)
    got = run(emulated(small(nodes, [stored], half, ["a", "b", "c"])), x=x)
    assert np.array_equal(got, got.astype(dtype).astype(np.float32))
    assert np.allclose(got, exact.astype(dtype).astype(np.float32), rtol=2 * float(ml_dtypes.finfo(dtype).eps))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_every_rule_of_the_policy_means_something(debug_bundle: Path, precision: str) -> None:
    """A rule that fits no node is a name that changed."""
    used = set()
    for bundle in (debug_bundle, PACKAGED):  # with a ControlNet; with an encoder that compands
        for name in read_manifest(bundle).graphs:
            for node in ir.load(bundle / f"{name}.onnx").graph:
                used.add(policy.decide(name, node, precision))
    unused = [rule for rule in POLICY if rule not in used and (rule.only == "*" or precision in rule.only.split("|"))]
    assert unused == []


def test_islands_of_the_denoiser_are_in_fp32(debug_bundle: Path) -> None:
    model = typed(debug_bundle, "denoiser", "fp16")
    half = [node for node in model.graph if any(value.dtype == ir.DataType.FLOAT16 for value in node.outputs)]
    roles = {policy.role_of(node) for node in half if node.op_type != "Cast"}
    assert roles == {"product", "gated", "scores", "mix", "bias", "Gelu", "Mul", *policy.MOVES} - {
        "Concat", "Expand", "Gather", "Unsqueeze",
    }  # fmt: skip
    names = {policy.weight_name(node) for node in half}
    assert "blocks.0.mlp.down.weight" in names
    assert not {name for name in names if name.startswith(("embedding.", "final_l"))}
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)].count(ir.DataType.FLOAT16) == 0


def test_the_text_encoder_keeps_wo_queries_keys_and_the_residual_stream_in_fp32(debug_bundle: Path) -> None:
    nodes = typed_graphs.half_nodes(ir.load(debug_bundle / "text_encoder.onnx"), "text_encoder", "fp16")
    roles = [policy.role_of(node) for node in nodes]
    assert roles.count("product") == 4  # of one layer: v, o, wi_0, wi_1
    assert not {"gated", "raw", "scores", "sum"} & set(roles)
    rules = [rule for rule in POLICY if rule.graphs == "text_encoder"]
    assert {rule.precision for rule in rules} == {FP32}


def test_nothing_hot_is_touched_in_half_precision(debug_bundle: Path) -> None:
    model = ir.load(debug_bundle / "denoiser.onnx")
    before = typed_graphs.half_nodes(model, "denoiser", "fp16")
    (up,) = (node for node in before if policy.weight_name(node) == "blocks.0.mlp.up.weight")
    hot = str(up.outputs[0].name)
    after = typed_graphs.half_nodes(model, "denoiser", "fp16", frozenset({hot}))
    assert hot not in typed_graphs.half_tensors(after)
    gone = [node for node in before if node not in after]
    assert {policy.role_of(node) for node in gone} <= {"product", "bias", "Split", "Gelu", "Mul"}  # the fewest: one MLP
    assert len(gone) <= 5


def test_weights_that_half_precision_cannot_hold_stay_in_fp32() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    assert typed_graphs.weight_error(weight, "fp16") < 3e-4  # 1.7e-4
    assert typed_graphs.weight_error(weight, "bf16") < 3e-3  # 1.7e-3
    assert typed_graphs.weight_error(weight * 1e-7, "fp16") > typed_graphs.MAX_WEIGHT_ERROR
    assert typed_graphs.weight_error(weight * 1e6, "fp16") == float("inf")
    assert typed_graphs.weight_error(weight * np.float32(np.nan), "bf16") == float("inf")
