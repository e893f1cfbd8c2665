"""Engines: really built by TensorRT-RTX where it is installed, for GPUs that are not here; kept, replaced and refused.

What cannot run without a GPU goes as far as the real libraries let it, and its test's name says so. Tests marked `gpu`
run the rest: `pytest -m gpu`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import golden
import numpy as np
import onnx
import pytest
from console import Run, answers_at_once_and_teaches, fails, imports_none_of, listen_to_interrupts, runner
from onnx import TensorProto, helper, numpy_helper

from ezaudio.export.engines import build_bundle_engines, engine_plan
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.denoising import Evaluation, StepGraph
from ezaudio.runtime.engines import device, profiles
from ezaudio.runtime.engines.builder import Options, build_engine, normalized
from ezaudio.runtime.engines.library import Library, installed, open_library
from ezaudio.runtime.engines.loop import loop_shape, pad_rows
from ezaudio.runtime.engines.profiles import Durations
from ezaudio.runtime.engines.record import Place, Record
from ezaudio.runtime.engines.sessions import Execution
from ezaudio.runtime.engines.store import Engine, EngineStore, output_folder
from ezaudio.runtime.errors import BackendError, BundleError, InputError
from ezaudio.runtime.gpu import Gpu, find_gpu
from ezaudio.runtime.manifest import GraphEntry, read_manifest
from ezaudio.runtime.tensor_spec import Axis, TensorSpec
from ezaudio.runtime.text_to_audio import TextToAudio

SCRIPT = Path(sys.executable).with_name("ezaudio-build")
GPUS = ("8.0", "8.9", "12.0")  # A100, RTX 40 and L4, RTX 50

rtx = pytest.mark.skipif(not installed("tensorrt-rtx"), reason="tensorrt-rtx has no wheels for this platform")
no_gpu = pytest.mark.skipif(isinstance(find_gpu(), Gpu), reason="says what happens without a GPU")
gpu = pytest.mark.skipif(isinstance(find_gpu(), str), reason="needs an NVIDIA GPU and its driver")


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this run, so that no engine is built twice."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built-engines"


@pytest.fixture(autouse=True)
def _cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EZAUDIO_CACHE", str(shared / "cache"))


@pytest.fixture(scope="module")
def store(debug_bundle: Path, library: Library) -> EngineStore:
    return EngineStore(debug_bundle, read_manifest(debug_bundle, verify=False), library)


@pytest.fixture
def run() -> Run:
    return runner("ezaudio-build")


def build(store: EngineStore, name: str, folder: Path, options: Options, **given: Any) -> tuple[Engine, bool]:
    return store.build(store.purpose(name, options, store.place(options), **given), options, folder)


@pytest.fixture
def small(store: EngineStore, shared: Path, tmp_path: Path) -> Engine:
    """A small real engine, for 8.9, in a folder that the test may damage."""
    engine, _ = build(store, "frame_bias", shared / "small", Options(("8.9",)))
    for path in (engine.path, engine.path.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return replace(engine, path=tmp_path / engine.path.name)


@rtx
@pytest.mark.parametrize("name", ["debug", "packaged"])
def test_every_graph_builds_for_gpus_that_are_not_here(
    name: str, debug_bundle: Path, library: Library, shared: Path
) -> None:
    """All 13 graphs of the debug model and all 8 of the packaged one; one engine each for SM80, SM89 and SM120."""
    bundle = debug_bundle if name == "debug" else PACKAGED
    store = EngineStore(bundle, read_manifest(bundle, verify=False), library)
    assert len(store.manifest.graphs) == (13 if name == "debug" else 8)
    for graph in store.manifest.graphs:
        engine, _ = build(store, graph, shared / name, Options(GPUS))
        assert engine.path.stat().st_size == engine.record.engine.size > 10_000
        for capability in GPUS:
            place = Place("tensorrt-rtx", library.version, capability, "580.1")
            assert store.find(graph, place, [shared / name]) == ([engine], [])


@rtx
@pytest.mark.parametrize("capability", GPUS)
def test_an_engine_for_one_gpu(store: EngineStore, shared: Path, capability: str) -> None:
    engine, _ = build(store, "denoiser", shared / "single", Options((capability,)))
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
def test_graphs_that_the_library_refuses_are_named(library: Library, tmp_path: Path, store: EngineStore) -> None:
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
    other = store.manifest.graphs["frame_bias"]
    with pytest.raises(BackendError, match="the manifest says otherwise"):
        build_engine(library, store.bundle / "decoder.onnx", other, [profiles.ranges(other)], Options(GPUS))
    assert "\n" not in str(refused.value)


@rtx
def test_progress_grows_to_the_end(store: EngineStore, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    options = Options(("8.9",), optimization_level=2, weight_streaming=True)
    purpose = store.purpose("frame_bias", options, store.place(options))
    engine, new = store.build(purpose, options, tmp_path, lambda name, phase, part: seen.append((phase, part)))
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
def test_an_engine_is_built_once(store: EngineStore, small: Engine, caplog: pytest.LogCaptureFixture) -> None:
    again, new = build(store, "frame_bias", small.path.parent, Options(("8.9",)))
    assert (again, new) == (small, False)
    assert Record.read(small.path.with_suffix(".json")) == small.record


@rtx
def test_the_key_depends_on_all_that_decides_an_engine(store: EngineStore) -> None:
    options = Options(("8.9",))
    purpose = store.purpose("denoiser", options, store.place(options))
    others = [
        replace(purpose, graph_sha256="0" * 64),
        replace(purpose, library="tensorrt"),
        replace(purpose, version="1.8"),
        replace(purpose, compute_capabilities=("8.6",)),
        replace(purpose, driver="580.1"),
        replace(purpose, flags={**purpose.flags, "strip": True}),
        store.purpose("denoiser", options, store.place(options), [Durations(10, 10)]),
        store.purpose("denoiser_shallow", options, store.place(options)),
    ]
    assert len({one.key for one in (purpose, *others)}) == 9
    assert store.digest("denoiser") != store.digest("denoiser_shallow")  # they share their weights file


@rtx
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"version": "1.8.0"}, "library version 1.7.1.116, here 1.8.0"),
        ({"library": "tensorrt"}, "library tensorrt-rtx, here tensorrt"),
        ({"compute_capability": "8.6"}, "compute capability 8.9, here 8.6"),
    ],
    ids=["version", "library", "GPU"],
)
def test_foreign_engines_are_not_used_and_the_reason_is_said(
    store: EngineStore, small: Engine, changed: dict[str, str], reason: str
) -> None:
    here = Place("tensorrt-rtx", store.library.version, "8.9", "580.1")
    assert store.find("frame_bias", here, [small.path.parent]) == ([small], [])
    found, (said,) = store.find("frame_bias", replace(here, **changed), [small.path.parent])
    assert found == []
    assert said == f"'{small.path}' was built for {reason.replace('1.7.1.116', store.library.version)}"


@rtx
def test_an_engine_tuned_here_is_stale_after_a_driver_update(store: EngineStore, small: Engine) -> None:
    here = Place("tensorrt-rtx", store.library.version, "8.9", "580.1")
    tuned = replace(small.record, purpose=replace(small.record.purpose, driver="570.9"))
    tuned.write(small.path.with_suffix(".json"))
    assert store.find("frame_bias", here, [small.path.parent])[1] == [
        f"'{small.path}' was built for driver 570.9, here 580.1"
    ]


@rtx
def test_a_stale_engine_makes_way_for_the_new_one_and_a_foreign_one_stays(store: EngineStore, small: Engine) -> None:
    folder = small.path.parent
    for key, changed in (
        ("stale", {"version": "1.6", "graph_sha256": "0" * 64}),
        ("foreign", {"compute_capabilities": ("8.6",)}),
    ):
        shutil.copy(small.path, folder / f"frame_bias.{key}.engine")
        purpose = replace(small.record.purpose, **changed)
        replace(small.record, purpose=purpose).write(folder / f"frame_bias.{key}.json")
    small.path.with_suffix(".json").unlink()
    _, new = build(store, "frame_bias", folder, Options(("8.9",)))
    assert new
    assert {path.name.split(".")[1] for path in folder.iterdir()} == {"foreign", small.record.purpose.key}


def _truncate(engine: Path) -> None:
    os.truncate(engine, 1000)


def _flip(engine: Path) -> None:
    data = bytearray(engine.read_bytes())
    data[5000] ^= 1
    engine.write_bytes(data)


def _change_record(engine: Path) -> None:
    path = engine.with_suffix(".json")
    path.write_text(path.read_text().replace('"8.9"', '"8.6"'))


@rtx
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "has 1,000 bytes instead of"),
        (_flip, "has changed (its sha256 differs)"),
        (Path.unlink, "is missing"),
        (_change_record, "is no record of an engine (its sha256 differs)"),
        (lambda engine: engine.with_suffix(".json").write_text("{"), "is no record of an engine"),
        (lambda engine: engine.with_suffix(".json").write_text("[]"), "is no record of an engine"),
    ],
    ids=["truncated", "changed", "missing", "record changed", "record cut", "another record"],
)
def test_a_damaged_engine_never_reaches_the_library_and_is_built_again(
    store: EngineStore, small: Engine, damage: Callable[[Path], Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(small.path)
    here = Place("tensorrt-rtx", store.library.version, "8.9", None)
    found, (said,) = store.find("frame_bias", here, [small.path.parent])
    assert found == []
    assert reason in said
    again, new = build(store, "frame_bias", small.path.parent, Options(("8.9",)))
    assert new
    assert reason in caplog.text
    assert store.find("frame_bias", here, [small.path.parent]) == ([again], [])


@rtx
def test_two_processes_build_an_engine_once(debug_bundle: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from ezaudio.runtime.engines.builder import Options
from ezaudio.runtime.engines.library import open_library
from ezaudio.runtime.engines.store import EngineStore
from ezaudio.runtime.manifest import read_manifest
bundle, options = Path({str(debug_bundle)!r}), Options(("8.9",))
store = EngineStore(bundle, read_manifest(bundle, verify=False), open_library("tensorrt-rtx"))
print(store.build(store.purpose("denoiser", options, store.place(options)), options, Path("out"))[1])
assert not {{"torch", "onnx", "transformers", "onnxruntime"}} & sys.modules.keys()
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=120)[0] for process in processes) == ["False\n", "True\n"]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".engine", ".json"]


def _own_cache(folder: Path) -> dict[str, str]:
    return {**os.environ, "EZAUDIO_CACHE": str(folder), "OMP_NUM_THREADS": "1"}


def _files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@rtx
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("wait_s", [0.0, 0.2], ids=["reading the graph", "building"])
def test_ctrl_c_while_it_builds_leaves_nothing(tmp_path: Path, wait_s: float) -> None:
    command = [SCRIPT, "--compute-capability", "8.9"]
    options: dict[str, Any] = {"stdout": PIPE, "stderr": PIPE, "text": True, "preexec_fn": listen_to_interrupts}
    with subprocess.Popen(command, env=_own_cache(tmp_path), **options) as running:
        while not list(tmp_path.rglob("*.lock")):  # of the first engine
            assert running.poll() is None, running.stderr.read() if running.stderr else ""
            time.sleep(0.01)
        time.sleep(wait_s)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (130, "")
    assert stderr.endswith("Interrupted: no unfinished file was left.\n")
    assert "Traceback" not in stderr
    assert _files(tmp_path) == []


@rtx
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_fills_up_is_one_line_and_no_file(tmp_path: Path) -> None:
    """The system refuses to let the engine's file grow, as a full disk would."""

    import resource  # POSIX only

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [SCRIPT, "--compute-capability", "8.9"]
    result = subprocess.run(command, env=_own_cache(tmp_path), capture_output=True, text=True, preexec_fn=limit)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: cannot write engines to ")
    assert result.stderr.endswith("File too large): free space, or set EZAUDIO_CACHE to another folder\n")
    assert _files(tmp_path) == []


@rtx
@pytest.mark.skipif(sys.platform != "linux", reason="a file system of its own takes Linux")
def test_a_disk_without_room_is_refused_before_the_build(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=1m none "$EZAUDIO_CACHE" && exec "$@"'
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*own, "true"], env=_own_cache(tmp_path), capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of its own")
    command = [*own, SCRIPT, "--compute-capability", "8.9"]
    result = subprocess.run(command, env=_own_cache(tmp_path), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert "MB needed, 1 MB free): free space, or set EZAUDIO_CACHE to another folder\n" in result.stderr
    assert result.stderr.count("\n") == 1


@rtx
def test_engines_travel_in_the_bundle(own_debug_bundle: Path, shared: Path, store: EngineStore, run: Run) -> None:
    for name in store.manifest.graphs:
        build(store, name, shared / "debug", Options(GPUS))
    shutil.copytree(shared / "debug", own_debug_bundle / "engines")
    gpus = [part for one in GPUS for part in ("--compute-capability", one)]
    result = run(own_debug_bundle, *gpus)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{own_debug_bundle}/engines: all 13 engines are there, ")
    assert result.stdout.endswith(f"tensorrt-rtx {store.library.version} for compute capability 8.0, 8.9, 12.0\n")
    assert run(own_debug_bundle, *gpus, "--check").stdout == "39 engines fit\n"
    read_manifest(own_debug_bundle)  # the bundle's own files are as they were
    missing = run(own_debug_bundle, "--check", "--compute-capability", "8.6")
    fails(missing, "no engine of 'conditioner' fits (", "compute capability 8.0 and 8.9 and 12.0, here 8.6")
    (engine,) = (own_debug_bundle / "engines").glob("denoiser.*.engine")
    _truncate(engine)
    fails(run(own_debug_bundle, "--check", "--compute-capability", "8.9"), f"'{engine}' has 1,000 bytes instead of")
    assert output_folder(PACKAGED, store.manifest, ahead=True) != PACKAGED / "engines"


@rtx
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--compute-capability", "9.0"], ["does not build for compute capability '9.0'", "8.9, 12.0", "use tensorrt"]),
        (["--compute-capability", "89"], ["'89' is no compute capability: expected a number such as 8.9"]),
        (["--optimization-level", "6"], ["optimization level must be from 0 to 5, got 6"]),
        (["--compute-capability", "8.9", "--duration", "31"], ["duration '31' is out of range", "to 30 seconds"]),
        (["--compute-capability", "8.9", "--duration", "5-4"], ["duration '5-4' is out of range"]),
        (["--compute-capability", "8.9", "--duration", "long"], ["duration 'long' is no length: expected seconds"]),
        (["nowhere", "--compute-capability", "8.9"], ["no bundle at 'nowhere'"]),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], parts: list[str]) -> None:
    fails(run(*arguments), *parts)


@rtx
@no_gpu
def test_without_a_gpu_one_must_be_named(run: Run) -> None:
    plan = engine_plan("tensorrt-rtx", "fp16", ())
    assert plan is not None
    assert plan.skipped.endswith("no --compute-capability): the first use builds them")
    fails(run(), "nothing to build for (no NVIDIA driver", "name a GPU, as in --compute-capability 8.9")
    fails(run("--compute-capability", "8.9", "--strip"), "strips weights only where a GPU is", "leave out --strip")


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("command", ["ezaudio-build", "ezaudio-export"])
def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, command: str, target: str) -> None:
    module = target.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    result = runner(command)("--target", target, "--compute-capability", "8.9")
    fails(result, f'{module} is not installed: pip install "ezaudio[{target}]"')


@rtx
def test_an_export_checks_its_target_first() -> None:
    run = runner("ezaudio-export")
    fails(run("--target", "tensorrt-rtx", "--compute-capability", "9.0"), "does not build for compute capability '9.0'")
    fails(run("--compute-capability", "8.9"), "is for engines: add --target tensorrt-rtx, or leave it out")
    fp8 = ("--precision", "fp8", "--target", "tensorrt-rtx")
    fails(run(*fp8, "--compute-capability", "8.6"), "fp8 needs compute capability 8.9 or later, got 8.6: use a bundle")
    fails(run("--precision", "fp8"), "--precision fp8 is for GPUs: add --target tensorrt or tensorrt-rtx, or use int8")
    fails(run("--precision", "w4", *fp8[2:]), "--precision w4 is for CPUs: use fp16, bf16, int8 or fp8")


@no_gpu
def test_without_a_gpu_to_build_for_an_export_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    plan = engine_plan("tensorrt", "fp16", ())
    assert plan is not None
    assert plan.library is None
    assert "the first use builds them" in plan.skipped


@rtx
def test_engines_in_a_precision_that_the_gpu_lacks_are_refused(debug_bundle: Path, library: Library) -> None:
    manifest = replace(read_manifest(debug_bundle, verify=False), precision="bf16", target="tensorrt-rtx")
    with pytest.raises(
        InputError, match=r"bf16 needs compute capability 8\.0 or later, got 7\.5: use a bundle in fp16"
    ):
        EngineStore(debug_bundle, manifest, library).place(Options(("7.5", "8.9")))


@rtx
def test_an_export_ends_with_engines(own_debug_bundle: Path, store: EngineStore, shared: Path) -> None:
    plan = engine_plan("tensorrt-rtx", "fp32", GPUS)
    assert plan is not None
    assert (plan.options, plan.skipped) == (Options(GPUS), "")
    assert engine_plan("cpu", "fp32", ()) is None
    for name in store.manifest.graphs:
        build(store, name, shared / "debug", Options(GPUS))
    shutil.copytree(shared / "debug", own_debug_bundle / "engines")
    for path in (own_debug_bundle / "engines").glob("frame_bias.*"):
        path.unlink()
    report = build_bundle_engines(own_debug_bundle, plan, quiet=True)
    assert report.startswith(f"{own_debug_bundle}/engines: 1 of 13 engines built, ")


@rtx
def test_a_length_that_no_profile_covers_names_those_that_do(store: EngineStore, tmp_path: Path) -> None:
    lengths = [Durations.parse(text, store.manifest.config) for text in ("10", "12-20")]
    engine, _ = build(store, "denoiser", tmp_path, Options(("8.9",)), durations=lengths)
    built = Record.read(engine.path.with_suffix(".json")).purpose.profiles
    assert [profile["frames"] for profile in built] == [(500, 500, 500), (600, 1000, 1000)]
    sizes = {"batch": 1, "tokens": 7, "prompt_rows": 1, "constant_rows": 0}
    assert [profiles.covering(built, {**sizes, "frames": n}) for n in (500, 600, 1000, 499, 550, 1001)] == [
        0, 1, 1, None, None, None
    ]  # fmt: skip
    error = profiles.uncovered("denoiser", [built], {**sizes, "frames": 550}, store.manifest.config)
    assert str(error) == (
        "no engine of 'denoiser' covers 11 s, they are built for 10 s, 12 to 20 s: "
        "ask for one of these lengths or run ezaudio-build --duration 11"
    )
    decoder = store.manifest.graphs["decoder"]
    assert profiles.profiles_of("decoder", decoder, store.manifest.config, lengths) == [profiles.ranges(decoder)]


def test_length_buckets_meet_at_the_usual_length(debug_bundle: Path) -> None:
    manifest = read_manifest(debug_bundle, verify=False)
    usual, long = profiles.profiles_of("denoiser", manifest.graphs["denoiser"], manifest.config, buckets=True)
    assert (usual["frames"], long["frames"]) == ((1, 500, 500), (500, 1500, 1500))
    assert profiles.covering([usual, long], {"batch": 1, "frames": 501, "tokens": 100}) == 1
    spec = next(spec for spec in manifest.graphs["denoiser"].inputs if spec.name == "cross_keys")
    assert [shape[1] for shape in profiles.shape_range(spec, usual)] == [1, 1, 16]  # up to two branches a clip


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
    library: Library, small: Engine, store: EngineStore
) -> None:
    log = library.logger()
    with pytest.raises(BackendError, match=r"tensorrt-rtx refuses .*CUDA driver version is insufficient"):
        Execution(library, library.trt.Runtime(log), log, small, store.bundle / "frame_bias.onnx")


@rtx
@no_gpu
@pytest.mark.parametrize("call", [("cudaMalloc", 256), ("cudaMallocHost", 256), ("cudaStreamCreateWithFlags", 1)])
def test_as_far_as_it_goes_without_a_gpu_cuda_errors_are_one_line(call: tuple[str, int]) -> None:
    with pytest.raises(BackendError, match=f"{call[0]} failed .CUDA driver version is insufficient") as error:
        device.call(*call)
    assert "\n" not in str(error.value)


def test_compute_capabilities_are_put_in_order() -> None:
    assert normalized(["12.0", "8.9", "8.9", "8.6"]) == ("8.6", "8.9", "12.0")


def test_record_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "denoiser.x.json"
    path.write_text('{"format": "other"}')
    with pytest.raises(BundleError, match="is no record of an engine"):
        Record.read(path)
    with pytest.raises(InputError, match="optimization level"):
        Options(optimization_level=-1)


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


def test_script_answers_at_once_and_teaches() -> None:
    options = ("--compute-capability", "--duration", "--optimization-level", "--weight-streaming", "--strip", "--check")
    answers_at_once_and_teaches(SCRIPT, "ezaudio-build bundle/ --compute-capability 8.9", *options)


def test_importing_the_command_loads_nothing_heavy() -> None:
    imports_none_of("ezaudio.runtime.build_cli", {"numpy", "onnx", "onnxruntime", "tensorrt_rtx", "torch", "tqdm"})
