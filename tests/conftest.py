from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from filelock import FileLock

if TYPE_CHECKING:
    from console import Run

    from ezaudio.checkpoints import ModelSource
    from ezaudio.runtime.engines.library import Library
    from ezaudio.runtime.engines.store import Engine, EngineStore

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core, so one thread a process, in torch and in what tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU Triton's kernels run in its interpreter. It decides when a kernel is defined, so before any is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A GPU would round the operands of fp32 convolutions to 10 bits, which the bounds of the tests know nothing of.
torch.backends.cudnn.allow_tf32 = False

# The helper modules of the tests are imported by name whichever folder pytest starts from.
sys.path.insert(0, str(Path(__file__).parent))


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One folder a run for all of its processes, and never that of an earlier run."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _exported_once(factory: pytest.TempPathFactory, name: str, source: Callable[[Path], ModelSource]) -> Path:
    """An fp32 bundle that the first process to ask exports for all."""
    from ezaudio.export.bundle import export_bundle

    shared = _shared_folder(factory)
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            export_bundle(source(shared), shared / name)
    return shared / name


@pytest.fixture(scope="session")
def debug_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of the debug model with a ControlNet and random weights."""
    from ezaudio.checkpoints import open_source

    return _exported_once(
        tmp_path_factory, "debug", lambda _: open_source("debug", controlnet="energy", random_weights=True)
    )


@pytest.fixture
def own_debug_bundle(debug_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the debug bundle that a test may damage."""
    return Path(shutil.copytree(debug_bundle, tmp_path / "debug-copy"))


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the official code's tiny models."""
    import golden

    return _exported_once(tmp_path_factory, "golden", lambda shared: golden.source(shared / "golden-weights"))


@pytest.fixture(scope="session")
def typed_debug_bundle(debug_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug bundle in fp16 for TensorRT, with its certificate."""
    import typed

    shared = _shared_folder(tmp_path_factory)
    with FileLock(shared / "debug-typed.lock"):
        if not (shared / "debug-typed").exists():
            typed.retyped(debug_bundle, shared / "debug-typed", "fp16")
    return shared / "debug-typed"


@pytest.fixture
def engine_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of engines for all processes of this run, so that none is built twice. The cache lies in it."""
    folder = _shared_folder(tmp_path_factory) / "built-engines"
    monkeypatch.setenv("EZAUDIO_CACHE", str(folder / "cache"))
    return folder


@pytest.fixture(scope="session")
def library() -> Library:
    """TensorRT-RTX, which builds engines without a GPU."""
    from ezaudio.runtime.engines.library import open_library

    return open_library("tensorrt-rtx")


@pytest.fixture(scope="session")
def engine_store(debug_bundle: Path, library: Library) -> EngineStore:
    """Of the debug bundle."""
    from ezaudio.runtime.engines.store import EngineStore
    from ezaudio.runtime.manifest import read_manifest

    return EngineStore(debug_bundle, read_manifest(debug_bundle, verify=False), library)


@pytest.fixture
def small_engine(engine_store: EngineStore, engine_cache: Path, tmp_path: Path) -> Engine:
    """A small real engine, for 8.9, in a folder that the test may damage."""
    from engine_cases import build

    from ezaudio.runtime.engines.builder import Options

    engine, _ = build(engine_store, "frame_bias", engine_cache / "small", Options(("8.9",)))
    for path in (engine.path, engine.path.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return replace(engine, path=tmp_path / engine.path.name)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of four sounds with captions, to train on."""
    from training_cases import captioned_clips

    return captioned_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def own_accelerator() -> None:
    """A run does not find the state that another test's run left."""
    from training_cases import forget_accelerator

    forget_accelerator()


@pytest.fixture
def benchmark_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of benchmarks/ are imported by name, as a run from there does, and forgotten afterwards."""
    folder = Path(__file__).parents[1] / "benchmarks"
    ours = {path.stem for path in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in ours & set(sys.modules)}
    monkeypatch.syspath_prepend(str(folder))
    yield
    for name in ours & set(sys.modules):
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is an empty one, and so is the cache of exported models."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EZAUDIO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def ezaudio_run(empty_folder: None) -> Run:
    """Runs `ezaudio-run ARGUMENTS…` there."""
    from console import runner

    return runner("ezaudio-run")


@pytest.fixture
def make(ezaudio_run: Run, debug_bundle: Path) -> Run:
    """Runs `ezaudio-run ARGUMENTS… --bundle DIR` on the debug model."""
    return lambda *arguments, **kwargs: ezaudio_run(*arguments, "--bundle", debug_bundle, **kwargs)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the tests of kernels, new memory holds NaN: what a kernel forgets to write is seen."""
    if not request.module.__name__.split(".")[-1].startswith("test_kernel"):
        yield
        return
    # On a GPU, warn_only: cuBLAS refuses the strict form unless the environment sets its workspace.
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLAP."""
    import tiny_models

    return tiny_models.save_clap(tmp_path_factory.mktemp("clap"))
