"""Engines: really built by TensorRT-RTX where it is installed, for GPUs that are not here.

What cannot run without a GPU goes as far as the real libraries let it, and its test's name says so. Tests marked `gpu`
run the rest: `pytest -m gpu`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import golden
import numpy as np
import onnx
import pytest
from engine_cases import GPUS, build, gpu, no_gpu, rtx
from onnx import TensorProto, helper, numpy_helper

from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.denoising import Evaluation, StepGraph, loop_shape
from ezaudio.runtime.engines import device, profiles
from ezaudio.runtime.engines.builder import Options, build_engine, normalized
from ezaudio.runtime.engines.library import Library
from ezaudio.runtime.engines.loop import pad_rows
from ezaudio.runtime.engines.profiles import Durations
from ezaudio.runtime.engines.record import Place, Record
from ezaudio.runtime.engines.sessions import LoadedEngine
from ezaudio.runtime.engines.store import Engine, EngineStore
from ezaudio.runtime.errors import BackendError
from ezaudio.runtime.manifest import GraphEntry, read_manifest
from ezaudio.runtime.tensor_spec import Axis, TensorSpec
from ezaudio.runtime.text_to_audio import TextToAudio

pytestmark = pytest.mark.usefixtures("engine_cache")


@rtx
@pytest.mark.parametrize("name", ["debug", "packaged"])
def test_every_graph_builds_for_gpus_that_are_not_here(
    name: str, debug_bundle: Path, library: Library, engine_cache: Path
) -> None:
    """All 13 graphs of the debug model and all 8 of the packaged one; one engine each for SM80, SM89 and SM120."""
    bundle = debug_bundle if name == "debug" else PACKAGED
    store = EngineStore(bundle, read_manifest(bundle, verify=False), library)
    assert len(store.manifest.graphs) == (13 if name == "debug" else 8)
    for graph in store.manifest.graphs:
        engine, _ = build(store, graph, engine_cache / name, Options(GPUS))
        assert engine.path.stat().st_size == engine.record.engine.size > 10_000
        for capability in GPUS:
            place = Place("tensorrt-rtx", library.version, capability, "580.1")
            assert store.find(graph, place, [engine_cache / name]) == ([engine], [])


@rtx
@pytest.mark.parametrize("capability", GPUS)
def test_an_engine_for_one_gpu(engine_store: EngineStore, engine_cache: Path, capability: str) -> None:
    engine, _ = build(engine_store, "denoiser", engine_cache / "single", Options((capability,)))
    assert engine.record.purpose.compute_capabilities == (capability,)
    (profile,) = engine.record.purpose.profiles
    rows = {"prompt_rows": (1, 1, 16), "constant_rows": (0, 1, 8)}
    assert profile == {"batch": (1, 1, 8), "frames": (1, 500, 1500), "tokens": (1, 16, 100), **rows}


def typed_graph(path: Path, half: int, island: bool) -> GraphEntry:
    """x·W in half precision, a norm in fp32 if `island`; without its casts the types contradict each other."""
    kind = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: None}[half]
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    tensor = (
        numpy_helper.from_array(weight.astype(kind), "w")
        if kind is not None
        else helper.make_tensor("w", half, weight.shape, weight.ravel().tolist())
    )
    ones = [numpy_helper.from_array(np.full(16, value, np.float32), name) for name, value in (("g", 1), ("b", 0))]
    nodes = [
        helper.make_node("Cast", ["x"], ["x_half"], to=half),
        helper.make_node("MatMul", ["x_half", "w"], ["y_half"], name="product"),
        *([helper.make_node("Cast", ["y_half"], ["y"], to=TensorProto.FLOAT)] if island else []),
        helper.make_node("LayerNormalization", ["y" if island else "y_half", "g", "b"], ["out"], name="norm"),
    ]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5, 16]) for name in ("x", "out"))
    graph = helper.make_graph(nodes, "typed", [given], [made], [tensor, *ones])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    shape = (Axis("batch", 1, 1, 4), 5, 16)
    return GraphEntry(path.name, (TensorSpec("x", "float32", shape),), (TensorSpec("out", "float32", shape),))


@rtx
@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["fp16", "bf16"])
def test_precision_is_what_the_graph_says(library: Library, tmp_path: Path, half: int) -> None:
    entry = typed_graph(tmp_path / "typed.onnx", half, island=True)
    engine, _ = build_engine(library, tmp_path / "typed.onnx", entry, [profiles.ranges(entry)], Options(GPUS))
    assert memoryview(engine).nbytes > 1000
    entry = typed_graph(tmp_path / "mixed.onnx", half, island=False)
    with pytest.raises(BackendError, match=r"cannot (read|build) .*mixed\.onnx.*export the bundle with --target"):
        build_engine(library, tmp_path / "mixed.onnx", entry, [profiles.ranges(entry)], Options(GPUS))


@rtx
def test_graphs_that_the_library_refuses_are_named(library: Library, tmp_path: Path, engine_store: EngineStore) -> None:
    """The integer products that ONNX Runtime fuses on a CPU, a file that is no graph, and another graph's file."""
    names = ("a", "b", "product")
    shape = (Axis("batch", 1, 1, 4), 8)
    a, b, product = (
        helper.make_tensor_value_info(name, kind, [8, 8])
        for name, kind in zip(names, (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32), strict=True)
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["product"], name="m")], "g", [a, b], [product]
    )
    path = tmp_path / "integer.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    entry = GraphEntry("integer.onnx", (TensorSpec("a", "int8", shape),), ())
    with pytest.raises(BackendError, match=r"cannot read .*MatMulInteger") as refused:
        build_engine(library, path, entry, [], Options(GPUS))
    path.write_bytes(b"\x08\x0anot a graph")
    with pytest.raises(BackendError, match="cannot read"):
        build_engine(library, path, entry, [], Options(GPUS))
    other = engine_store.manifest.graphs["frame_bias"]
    with pytest.raises(BackendError, match="the manifest says otherwise"):
        build_engine(library, engine_store.bundle / "decoder.onnx", other, [profiles.ranges(other)], Options(GPUS))
    assert "\n" not in str(refused.value)


@rtx
def test_progress_grows_to_the_end(engine_store: EngineStore, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    options = Options(("8.9",), optimization_level=2, weight_streaming=True)
    purpose = engine_store.purpose("frame_bias", options, engine_store.place(options))
    engine, new = engine_store.build(purpose, options, tmp_path, lambda name, phase, part: seen.append((phase, part)))
    assert new
    assert engine.record.purpose.flags == {
        "optimization_level": 2, "weight_streaming": True, "strip": False, "tf32": False
    }  # fmt: skip
    parts = [part for _, part in seen]
    assert parts == sorted(parts)
    assert 0 <= parts[0] < 0.2
    assert 0.8 < parts[-1] <= 1
    assert len({phase for phase, _ in seen}) > 3


@rtx
def test_a_length_that_no_profile_covers_names_those_that_do(engine_store: EngineStore, tmp_path: Path) -> None:
    lengths = [Durations.parse(text, engine_store.manifest.config) for text in ("10", "12-20")]
    engine, _ = build(engine_store, "denoiser", tmp_path, Options(("8.9",)), durations=lengths)
    built = Record.read(engine.path.with_suffix(".json")).purpose.profiles
    assert [profile["frames"] for profile in built] == [(500, 500, 500), (600, 1000, 1000)]
    sizes = {"batch": 1, "tokens": 7, "prompt_rows": 1, "constant_rows": 0}
    assert [profiles.covering(built, {**sizes, "frames": n}) for n in (500, 600, 1000, 499, 550, 1001)] == [
        0, 1, 1, None, None, None
    ]  # fmt: skip
    error = profiles.uncovered("denoiser", [built], {**sizes, "frames": 550}, engine_store.manifest.config)
    assert str(error) == (
        "no engine of 'denoiser' covers 11 s, they are built for 10 s, 12 to 20 s: "
        "ask for one of these lengths or run ezaudio-build --duration 11"
    )
    decoder = engine_store.manifest.graphs["decoder"]
    assert profiles.profiles_of("decoder", decoder, engine_store.manifest.config, lengths) == [profiles.ranges(decoder)]


def test_length_buckets_meet_at_the_usual_length(debug_bundle: Path) -> None:
    manifest = read_manifest(debug_bundle, verify=False)
    usual, long = profiles.profiles_of("denoiser", manifest.graphs["denoiser"], manifest.config, buckets=True)
    assert (usual["frames"], long["frames"]) == ((1, 500, 500), (500, 1500, 1500))
    assert profiles.covering([usual, long], {"batch": 1, "frames": 501, "tokens": 100}) == 1
    spec = next(spec for spec in manifest.graphs["denoiser"].inputs if spec.name == "cross_keys")
    assert [shape[1] for shape in profiles.shape_range(spec, usual)] == [1, 1, 16]  # up to two branches a clip


@pytest.mark.parametrize("prompt_rows", [1, 2])
@pytest.mark.parametrize("constant_rows", [0, 1])
def test_profiles_cover_what_a_clip_asks_of_every_graph(
    debug_bundle: Path, prompt_rows: int, constant_rows: int
) -> None:
    manifest = read_manifest(debug_bundle, verify=False)
    asked = {"batch": 1, "frames": 500, "tokens": 7, "steps": 25}
    asked |= {"prompt_rows": prompt_rows, "constant_rows": constant_rows, "rows": prompt_rows + constant_rows}
    for name, entry in manifest.graphs.items():
        sizes = profiles.axis_sizes(entry.inputs, {spec.name: spec.sizes(asked) for spec in entry.inputs})
        assert profiles.covering(profiles.profiles_of(name, entry, manifest.config), sizes) == 0, (name, sizes)
    denoiser = manifest.graphs["denoiser"]
    sizes = {**asked, "frames": 2000}  # `rows` follows from inputs, and no profile tells of it
    error = profiles.uncovered("denoiser", [[profiles.ranges(denoiser)]], sizes, manifest.config)
    assert "covers 40 s, they are built for 0.02 to 30 s" in str(error)


@rtx
def test_executions_of_one_engine_keep_their_shapes(engine_store: EngineStore, small_engine: Engine) -> None:
    """With mocks of the GPU's side: a loop has guided and unguided steps, which share an engine."""
    log, library = SimpleNamespace(errors=[]), SimpleNamespace(name="mock", trt=SimpleNamespace())
    runtime = Mock()
    runtime.deserialize_cuda_engine.return_value.create_execution_context.side_effect = contexts = [Mock(), Mock()]
    loaded = LoadedEngine(library, runtime, log, small_engine, engine_store.bundle / "frame_bias.onnx")  # type: ignore[arg-type]
    inputs = engine_store.manifest.graphs["frame_bias"].inputs
    executions = [loaded.execution(inputs, {"batch": 1, "frames": frames}, 0) for frames in (50, 60)]
    for execution, context, frames in zip(executions, contexts, (50, 60), strict=True):
        execution.bind({})
        execution.enqueue(0)
        shapes = dict(call.args for call in context.set_input_shape.call_args_list)
        assert shapes == {spec.name: spec.sizes({"batch": 1, "frames": frames}) for spec in inputs}
        context.execute_async_v3.assert_called_once_with(0)


def test_the_loop_lays_rows_out_at_aligned_addresses() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(2, 6)
    padded = pad_rows(rows, device.aligned(rows[0].nbytes))
    assert padded.shape == (2, 256)
    assert padded[1, :24].tobytes() == rows[1].tobytes()
    assert not padded[:, 24:].any()
    graph = StepGraph((Evaluation("denoiser", {"a": rows}),), (0, 0), {"b": rows})
    other_values = StepGraph((Evaluation("denoiser", {"a": rows + 1}),), (0, 0), {"b": rows})
    other_inputs = StepGraph((Evaluation("denoiser", {}),), (0, 0), {"a": rows, "b": rows})
    other_steps = StepGraph((Evaluation("denoiser", {"a": rows}),) * 2, (0, 1), {"b": rows})
    assert loop_shape([graph], rows) == loop_shape([other_values], rows)
    assert loop_shape([graph], rows) not in [loop_shape([one], rows) for one in (other_inputs, other_steps)]


@rtx
@no_gpu
def test_as_far_as_it_goes_without_a_gpu_an_engine_is_refused_by_the_real_runtime(
    library: Library, small_engine: Engine, engine_store: EngineStore
) -> None:
    log = library.logger()
    with pytest.raises(BackendError, match=r"tensorrt-rtx refuses .*CUDA driver version is insufficient"):
        LoadedEngine(library, library.trt.Runtime(log), log, small_engine, engine_store.bundle / "frame_bias.onnx")


@rtx
@no_gpu
@pytest.mark.parametrize("call", [("cudaMalloc", 256), ("cudaMallocHost", 256), ("cudaStreamCreateWithFlags", 1)])
def test_as_far_as_it_goes_without_a_gpu_cuda_errors_are_one_line(call: tuple[str, int]) -> None:
    with pytest.raises(BackendError, match=f"{call[0]} failed .CUDA driver version is insufficient") as error:
        device.call(*call)
    assert "\n" not in str(error.value)


def test_compute_capabilities_are_put_in_order() -> None:
    assert normalized(["12.0", "8.9", "8.9", "8.6"]) == ("8.6", "8.9", "12.0")


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"negative_prompt": "wind"},
        {"guidance_scale": 1.0},
        {"eta": 1.0},
        {"solver": "dpmpp_2m"},
        {"control_scale": 1.0},
        {"guidance_interval": (0.3, 0.8), "reuse": [3]},
    ],
    ids=["guided", "negative", "unguided", "noise", "solver", "controlled", "interval and reuse"],
)
def test_on_a_gpu_a_clip_equals_the_cpus(debug_bundle: Path, backend: str, given: dict[str, Any]) -> None:
    if "control_scale" in given:
        given = {**given, "control_audio": np.sin(np.arange(24000, dtype=np.float32) / 20)}
    here = TextToAudio(debug_bundle, backend=backend)
    for duration_s in (1.0, 1.0, 3.0):  # captured, replayed, captured anew
        options = {"duration_s": duration_s, "num_steps": 5, "seed": 3, **given}
        expected = TextToAudio(debug_bundle, backend="onnxruntime").generate("a dog barks", **options).samples
        steps: list[int] = []
        got = here.generate("a dog barks", **options, on_step=lambda step: steps.append(step.index)).samples  # noqa: B023
        assert steps == list(range(5))
        assert golden.relative_error(got, expected) < 1e-3
