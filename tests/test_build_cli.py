"""`ezaudio-build`, and `ezaudio-export --target`: what they build, and what ends in one line and leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from console import Run, answers_at_once_and_teaches, fails, imports_none_of, listen_to_interrupts, runner
from engine_cases import GPUS, SCRIPT, build, no_gpu, rtx, truncate

from ezaudio.export.engines import build_bundle_engines, engine_plan
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.engines.builder import Options
from ezaudio.runtime.engines.store import EngineStore, output_folder
from ezaudio.runtime.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("engine_cache")


@pytest.fixture
def run() -> Run:
    return runner("ezaudio-build")


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
def test_engines_travel_in_the_bundle(
    own_debug_bundle: Path, engine_cache: Path, engine_store: EngineStore, run: Run
) -> None:
    for name in engine_store.manifest.graphs:
        build(engine_store, name, engine_cache / "debug", Options(GPUS))
    shutil.copytree(engine_cache / "debug", own_debug_bundle / "engines")
    gpus = [part for one in GPUS for part in ("--compute-capability", one)]
    result = run(own_debug_bundle, *gpus)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{own_debug_bundle}/engines: all 13 engines are there, ")
    assert result.stdout.endswith(
        f"tensorrt-rtx {engine_store.library.version} for compute capability 8.0, 8.9, 12.0\n"
    )
    assert run(own_debug_bundle, *gpus, "--check").stdout == "39 engines fit\n"
    read_manifest(own_debug_bundle)  # the bundle's own files are as they were
    missing = run(own_debug_bundle, "--check", "--compute-capability", "8.6")
    fails(missing, "no engine of 'conditioner' fits (", "compute capability 8.0 and 8.9 and 12.0, here 8.6")
    (engine,) = (own_debug_bundle / "engines").glob("denoiser.*.engine")
    truncate(engine)
    fails(run(own_debug_bundle, "--check", "--compute-capability", "8.9"), f"'{engine}' has 1,000 bytes instead of")
    assert output_folder(PACKAGED, engine_store.manifest, ahead=True) != PACKAGED / "engines"


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
def test_an_export_ends_with_engines(own_debug_bundle: Path, engine_store: EngineStore, engine_cache: Path) -> None:
    plan = engine_plan("tensorrt-rtx", "fp32", GPUS)
    assert plan is not None
    assert (plan.options, plan.skipped) == (Options(GPUS), "")
    assert engine_plan("cpu", "fp32", ()) is None
    for name in engine_store.manifest.graphs:
        build(engine_store, name, engine_cache / "debug", Options(GPUS))
    shutil.copytree(engine_cache / "debug", own_debug_bundle / "engines")
    for path in (own_debug_bundle / "engines").glob("frame_bias.*"):
        path.unlink()
    report = build_bundle_engines(own_debug_bundle, plan, quiet=True)
    assert report.startswith(f"{own_debug_bundle}/engines: 1 of 13 engines built, ")


def test_script_answers_at_once_and_teaches() -> None:
    options = ("--compute-capability", "--duration", "--optimization-level", "--weight-streaming", "--strip", "--check")
    answers_at_once_and_teaches(SCRIPT, "ezaudio-build bundle/ --compute-capability 8.9", *options)


def test_importing_the_command_loads_nothing_heavy() -> None:
    imports_none_of("ezaudio.runtime.build_cli", {"numpy", "onnx", "onnxruntime", "tensorrt_rtx", "torch", "tqdm"})
