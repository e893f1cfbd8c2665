"""Precisions for CPUs: weights in fewer bits, products of integers, and the scan that spares some of them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ezaudio.checkpoints import ModelSource, open_source
from ezaudio.export import bundle, cpu_bundle, precision, sensitivity
from ezaudio.export.precision import BOTH_WIDE, FP32, INT8, WIDE
from ezaudio.export.sensitivity import Group
from ezaudio.runtime import session
from ezaudio.runtime.emulation import open_session
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.measures import measure
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.teacher_forcing import TeacherForced

PROMPTS = ("rain", "a dog barks", "bells")

# Relative L2 of the debug model's velocity after guidance, with what was measured.
VELOCITY_ERROR = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 1.5e-2, "int8": 8e-2, "w8": 6e-2, "w4": 5e-1}


@pytest.fixture(autouse=True)
def small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MIN_HALF_VALUES", 64)  # the debug model's are small
    monkeypatch.setattr(precision, "MIN_INT8_INPUTS", 8)


@pytest.fixture(scope="module")
def asked(debug_bundle: Path) -> list[sensitivity.Question]:
    """The debug model's velocities in fp32: every prompt at one of three timesteps."""
    manifest = read_manifest(debug_bundle, verify=False)
    system = TeacherForced(GraphSessions(debug_bundle, manifest, 1, "onnxruntime"), debug_bundle, manifest, PROMPTS)
    latents = sensitivity.clean_latents(system, PROMPTS, seed=0)
    found = sensitivity.points(system, latents, PROMPTS, num_timesteps=3, seed=0)
    assert [point.timestep for point in found] == [999, 499, 249]  # the plan's first, one between, and its last
    assert [point.prompt for point in found] == list(PROMPTS)
    return sensitivity.ask(system, found)


def product(weight: np.ndarray) -> ir.Model:
    """y = x @ weight for x (rows, in)."""
    inputs, outputs = weight.shape
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape(["rows", inputs]))
    w = ir.Value(name="w", type=kind, shape=ir.Shape(weight.shape), const_value=ir.tensor(weight, name="w"))
    node = ir.node("MatMul", [x, w])
    node.outputs[0].type = kind
    end = ir.node("Identity", [node.outputs[0]])
    end.outputs[0].name, end.outputs[0].type, end.outputs[0].shape = "y", kind, ir.Shape(["rows", outputs])
    graph = ir.Graph([x], end.outputs, nodes=[node, end], initializers=[w], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(ir.to_proto(model), Path(), 1).run(None, {"x": x})[0])


def optimized(path: Path, tmp_path: Path) -> onnx.GraphProto:
    """The graph at `path` as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimized.onnx").graph


def rewritten(debug_bundle: Path, name: str, precision_name: str, tmp_path: Path) -> Path:
    """A graph of the debug bundle, with its weights inside."""
    model = ir.load(debug_bundle / f"{name}.onnx")
    precision.apply(model, name, precision_name)
    ir.save(ir.external_data.load_to_model(model), tmp_path / f"{name}.onnx")
    return tmp_path / f"{name}.onnx"


def weight_of(model: ir.Model, bits: int) -> np.ndarray:
    """What the codes of `product`'s weight in blocks stand for."""
    values = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    codes, scales = values[f"w.w{bits}"], values[f"w.w{bits}.scales"]
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=3).reshape(*codes.shape[:2], -1)
    return ((codes.astype(np.float32) - 2 ** (bits - 1)) * scales[:, :, None]).reshape(len(codes), -1).T[:70]


@pytest.mark.parametrize(
    ("bits", "weight_bound", "bound"),
    [(8, 7e-3, 9e-3), (4, 9e-2, 9e-2)],  # measured: 4.7e-3, 7.4e-3; 7.6e-2, 8.2e-2
)
def test_weights_in_blocks(bits: int, weight_bound: float, bound: float) -> None:
    """70 inputs: the last block is padded. One column is zero throughout. ONNX Runtime rounds activations, too."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((70, 24)).astype(np.float32)
    weight[:, 3] = 0
    x = generator.standard_normal((5, 70)).astype(np.float32)
    model = product(weight)
    precision.quantize_weights(model, bits)
    stored = weight_of(model, bits)
    assert measure(x @ stored, x @ weight)[1] < weight_bound
    assert not stored[:, 3].any()
    got = run(model, x)
    assert measure(got, x @ weight)[1] < bound
    assert np.abs(got[:, 3]).max() < 1e-3  # 1.2e-4
    assert "w" not in model.graph.initializers


@pytest.mark.parametrize("without_vnni", [False, True])
def test_both_sides_in_two_parts(without_vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI ONNX Runtime puts other codes in the place of a product's, and cannot for codes of two products."""
    if without_vnni:
        monkeypatch.setattr(session, "_integers_overflow", lambda: True)
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((256, 64)).astype(np.float32)
    x = generator.standard_normal((32, 256)).astype(np.float32)
    model = product(weight)
    precision.quantize_products(model, {"w": BOTH_WIDE})
    assert measure(run(model, x), x @ weight)[1] < 8e-5  # 4.7e-5


ON_ANOTHER_PROCESSOR = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from ezaudio.runtime.emulation import load_graph, open_session
from ezaudio.runtime.manifest import GraphEntry
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.tensor_spec import TensorSpec
folder = Path(sys.argv[1])
x = np.load(folder / "x.npy")
(x_spec,), (y_spec,) = ((TensorSpec(name, "float32", ()),) for name in "xy")
manifest = SimpleNamespace(graphs={"denoiser": GraphEntry("g.onnx", (x_spec,), (y_spec,))})
of_a_bundle = GraphSessions(folder, manifest, 1, "onnxruntime").run("denoiser", x=x)["y"]
of_an_export = open_session(load_graph(folder / "g.onnx"), folder, 1).run(["y"], {"x": x})[0]
np.save(folder / "y.npy", np.stack([of_a_bundle, of_an_export]))
"""


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind, a processor with AVX2 and no VNNI, is not here")
def test_integers_are_exact_without_vnni(tmp_path: Path) -> None:
    """There ONNX Runtime's usual product cuts the sum of two products of bytes to 16 bits."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((256, 64)).astype(np.float32)
    x = generator.random((32, 256)).astype(np.float32)
    model = product(weight)
    precision.quantize_products(model, {})
    ir.save(model, tmp_path / "g.onnx")
    np.save(tmp_path / "x.npy", x)
    command = ["valgrind", "--tool=none", "--quiet", sys.executable, "-c", ON_ANOTHER_PROCESSOR, str(tmp_path)]
    subprocess.run(command, check=True)
    for got in np.load(tmp_path / "y.npy"):
        assert measure(got, x @ weight)[1] < 1e-2  # 7.1e-3, otherwise 2.6e-2


def test_wide_activations_survive_an_outlier() -> None:
    """An activation of 400 among those of 1 leaves 8 bits nothing for the others; 16 bits hold both."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((256, 64)).astype(np.float32)
    x = generator.standard_normal((32, 256)).astype(np.float32)
    expected = np.delete(x, 7, axis=0) @ weight
    x[7, 7] = 400
    errors = {}
    for level in (INT8, WIDE, BOTH_WIDE, FP32):
        model = product(weight)
        precision.quantize_products(model, {"w": level})
        errors[level] = measure(np.delete(run(model, x), 7, axis=0), expected)[1]
    assert errors[INT8] > 0.3  # 0.48
    assert errors[WIDE] < 1e-2  # 7.6e-3, of the weights
    assert errors[BOTH_WIDE] < 3e-3  # 1.7e-3, of the outlier
    assert errors[FP32] < 1e-6


@pytest.mark.parametrize("name", VELOCITY_ERROR)
def test_velocities_in_every_precision(
    debug_bundle: Path, asked: list[sensitivity.Question], name: str, tmp_path: Path
) -> None:
    session = open_session(onnx.load(rewritten(debug_bundle, "denoiser", name, tmp_path)), tmp_path, 1)
    for question in asked:
        got = session.run(["next_latents"], question.inputs)[0]
        assert measure(got, question.velocity)[1] < VELOCITY_ERROR[name]


def test_int8_products_become_one_kernel_in_onnx_runtime(debug_bundle: Path, tmp_path: Path) -> None:
    graph = optimized(rewritten(debug_bundle, "denoiser", "int8", tmp_path), tmp_path)
    operators = [node.op_type for node in graph.node]
    assert operators.count("DynamicQuantizeMatMul") + operators.count("MatMulIntegerToFloat") > 10
    assert "MatMulInteger" not in operators


@pytest.mark.parametrize("name", ["denoiser", "conditioner", "text_encoder", "decoder"])
def test_half_precision_is_widened_once_when_loaded(debug_bundle: Path, name: str, tmp_path: Path) -> None:
    """No weight passes a Cast in a run, so that fp16 bundles take fp32's time; but rows of a table do."""
    path = rewritten(debug_bundle, name, "fp16", tmp_path)
    assert "Cast" in [node.op_type for node in onnx.load(path).graph.node]
    graph = optimized(path, tmp_path)
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    halves = {key for key, kind in constants.items() if kind == onnx.TensorProto.FLOAT16}
    assert not [node for node in graph.node if node.op_type == "Cast" and node.input[0] in constants]
    assert {node.op_type for node in graph.node if halves & set(node.input)} <= {"Gather"}
    assert bool(halves) == (name == "text_encoder")


def test_half_precision_refuses_weights_beyond_its_range() -> None:
    model = product(np.full((80, 80), 7e4, np.float32))
    with pytest.raises(BundleError, match="'w' reaches 7e\\+04"):
        precision.store_half(model, "fp16")
    precision.store_half(model, "bf16")


def test_levels_are_chosen_by_damage_and_cost() -> None:
    """`a` does most of the damage; WIDE does not help `b`; `c` is harmless but large."""
    groups = [Group("a 1/1", ("a",), 0.2), Group("b 1/1", ("b",), 0.05), Group("c 1/1", ("c",), 0.75)]
    rows = {"a": (9e-3, 1e-5), "b": (3e-3, 2.9e-3), "c": (1e-4, 5e-5)}
    damage = {
        (f"{name} 1/1", level): np.array([value / 2, value])
        for name, (low, wide) in rows.items()
        for level, value in ((INT8, low), (WIDE, wide), (FP32, 0.0))
    }
    levels, growth = sensitivity.choose(groups, damage, limit=1e-3, most=sensitivity.MAX_GROWTH)
    assert levels == {"a 1/1": WIDE, "b 1/1": FP32, "c 1/1": INT8}
    assert growth == pytest.approx(0.2 * 1.2 + 0.05 * 2.5)
    levels, growth = sensitivity.choose(groups, damage, limit=0, most=sensitivity.MAX_GROWTH)
    assert growth <= sensitivity.MAX_GROWTH  # as far as the time goes, and no further
    assert levels["c 1/1"] == INT8
    levels, growth = sensitivity.choose(groups, damage, limit=0, most=math.inf)
    assert set(levels.values()) == {FP32}
    assert growth == pytest.approx(2.5)


def test_a_scan_finds_what_int8_damages(debug_bundle: Path, asked: list[sensitivity.Question]) -> None:
    path = debug_bundle / "denoiser.onnx"
    choice = sensitivity.scan(path, asked, 5e-3)
    assert choice == sensitivity.scan(path, asked, 5e-3)
    assert choice.after > choice.before
    assert {level for name, level in choice.levels.items() if "mlp.down" in name} <= {WIDE, FP32}
    assert choice.after == min(cosine for cosine, _ in sensitivity.errors(path, choice.levels, asked))


def test_a_scan_takes_the_time_that_a_refusal_leaves_it_no_choice_of(
    debug_bundle: Path, asked: list[sensitivity.Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for nano, whose guidance multiplies errors by 5."""
    path = debug_bundle / "denoiser.onnx"
    monkeypatch.setattr(sensitivity, "MAX_GROWTH", 0.0)
    cheap = sensitivity.scan(path, asked, 1.0)
    turn = (1 - cheap.after) / 4
    found = sensitivity.scan(path, asked, turn)
    assert found.growth > cheap.growth
    assert 1 - found.after <= turn


@pytest.mark.parametrize("name", cpu_bundle.DERIVED)
def test_bundles_derived_from_fp32(debug_bundle: Path, name: str, tmp_path: Path) -> None:
    """Every graph is measured, and a bundle opens and answers."""
    manifest = cpu_bundle.write_cpu_bundle(debug_bundle, tmp_path, name, threads=1)
    assert manifest == read_manifest(tmp_path)
    assert manifest.precision == name
    assert {check.graph for check in manifest.checks} == manifest.graphs.keys() - {"controlnet"}  # whose velocity is
    assert any(check.output == "velocity, guided, 1 − cosine" for check in manifest.checks)
    model = onnx.load(tmp_path / "denoiser.onnx", load_external_data=False)
    scans = [json.loads(entry.value) for entry in model.metadata_props if entry.key == cpu_bundle.SCAN_KEY]
    assert [scan.keys() for scan in scans] == (
        [{"levels", "damage", "growth", "before", "after"}] if name == "int8" else []
    )


def test_weight_only_precisions_are_for_cpus(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--precision w4 is for CPUs: use fp16, bf16, int8 or fp8"):
        bundle.export_bundle(source, tmp_path / "out", "w4", target="tensorrt")


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return open_source("debug", random_weights=True)
