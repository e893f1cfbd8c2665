"""ONNX graph → engine. Precision is what the graph says: the network is strongly typed, and TF32 is off."""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ezaudio.runtime.command import one_line
from ezaudio.runtime.engines.library import MAX_ERROR_CHARS, Library
from ezaudio.runtime.engines.profiles import Profile, shape_range
from ezaudio.runtime.errors import BackendError, InputError
from ezaudio.runtime.manifest import GraphEntry

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, float], None]
"""Called with the library's name for what it does, and the part of the engine that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an engine is built for and how.

    Attributes:
        compute_capabilities: GPUs named ahead of time, such as ("8.9",); one engine serves all of them. Empty: the GPU
            of this machine.
        optimization_level: 0 (fast to build) to 5 (fast to run); None takes the library's own.
        weight_streaming: weights may stay in host memory and stream to a GPU that is too small for them.
        strip: leave weights out that the graph has anyway, and put them in when the engine is loaded.
    """

    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    weight_streaming: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization level must be from 0 to 5, got {self.optimization_level}")

    def flags(self) -> dict[str, Any]:
        """What the cache key holds besides GPU, library and profiles."""
        return {
            "optimization_level": self.optimization_level,
            "weight_streaming": self.weight_streaming,
            "strip": self.strip,
            "tf32": False,
        }


def normalized(compute_capabilities: Iterable[str]) -> tuple[str, ...]:
    """Each once, by size. Raises InputError for what is no compute capability."""
    for capability in compute_capabilities:
        if not re.fullmatch(r"\d{1,2}\.\d", capability):
            raise InputError(f"{capability!r} is no compute capability: expected a number such as 8.9")
    return tuple(sorted(set(compute_capabilities), key=float))


def build_engine(
    library: Library,
    path: Path,
    entry: GraphEntry,
    profiles: list[Profile],
    options: Options,
    timing_cache: bytes = b"",
    on_progress: OnProgress = lambda phase, part: None,
) -> tuple[Any, bytes]:
    """Build one engine.

    Args:
        path: of the graph, with its weights beside it.
        entry: the graph's inputs and outputs.
        timing_cache: of earlier builds on this GPU.

    Returns:
        The engine, an object with the buffer protocol, and the new timing cache; empty where the library has none.

    Raises:
        BackendError: the library refuses the graph; its first error is in the line. KeyboardInterrupt: Ctrl-C.
    """
    with _interruptible() as interrupted:
        built = _build(library, path, entry, profiles, options, timing_cache, on_progress, interrupted)
    if built is None:
        raise KeyboardInterrupt
    return built


def _build(
    library: Library,
    path: Path,
    entry: GraphEntry,
    profiles: list[Profile],
    options: Options,
    timing_cache: bytes,
    on_progress: OnProgress,
    interrupted: threading.Event,
) -> tuple[Any, bytes] | None:
    """None when interrupted."""
    trt, log = library.trt, library.logger()
    builder = trt.Builder(log)
    # TensorRT 11 has no other kind of network and may drop the flag.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        where = f"{errors[0].node_operator()} {errors[0].node_name()!r}: {errors[0].desc()}" if errors else "no reason"
        raise _refused(library, path, "read", [where])
    _check_names(library, network, path, entry)
    config = _configure(library, builder, entry, profiles, options)
    cache = _set_timing_cache(library, config, timing_cache)
    config.progress_monitor = _monitor(trt, on_progress, interrupted)
    engine = None if interrupted.is_set() else builder.build_serialized_network(network, config)
    if interrupted.is_set():
        return None
    if engine is None:
        raise _refused(library, path, "build", log.errors)
    for warning in log.warnings:
        logger.debug("%s: %s: %s", library.name, path.name, warning)
    return engine, bytes(memoryview(cache.serialize())) if cache is not None else b""


def _refused(library: Library, path: Path, what: str, errors: list[str]) -> BackendError:
    reason = one_line(errors[0])[:MAX_ERROR_CHARS] if errors else "it gives no reason"
    fix = f"export the bundle with --target {library.name}, or try another precision"
    return BackendError(f"{library.name} {library.version} cannot {what} '{path}' ({reason}): {fix}")


def _check_names(library: Library, network: Any, path: Path, entry: GraphEntry) -> None:
    """The parser must see the inputs and outputs of the manifest: a graph of another bundle is refused here."""
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]
    expected = [spec.name for spec in (*entry.inputs, *entry.outputs)]
    if sorted(inputs + outputs) != sorted(expected):
        raise _refused(library, path, "use", [f"it has {', '.join(inputs + outputs)}, the manifest says otherwise"])


def _configure(library: Library, builder: Any, entry: GraphEntry, profiles: list[Profile], options: Options) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa where the graph says fp32
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for spec in entry.inputs:
            if spec.axes():
                shapes.set_shape(spec.name, *shape_range(spec, profile))
        config.add_optimization_profile(shapes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    wanted = {
        "WEIGHT_STREAMING": options.weight_streaming,
        "STRIP_PLAN": options.strip,
        "REFIT_IDENTICAL": options.strip,
    }
    for name in (name for name, chosen in wanted.items() if chosen):
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise InputError(f"{library.name} {library.version} has no {name.lower()}: leave the option out")
        config.set_flag(flag)
        logger.info("%s: %s is on", library.name, name.lower())
    if options.compute_capabilities:
        library.check_ahead(options.compute_capabilities)
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)
    return config


def _set_timing_cache(library: Library, config: Any, data: bytes) -> Any:
    if not library.has_timing_cache:
        logger.debug("%s has no timing cache", library.name)
        return None
    cache = config.create_timing_cache(data)
    config.set_timing_cache(cache, False)
    return cache


def _monitor(trt: Any, on_progress: OnProgress, interrupted: threading.Event) -> Any:
    """The library's progress monitor; its phases nest, and each gives its share of the phase around it."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: list[tuple[str, int, int]] = []  # name, steps done, steps in all; outermost first
            self.part = 0.0

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self.phases.append((name, 0, max(num_steps, 1)))
            self.tell()

        def step_complete(self, name: str, step: int) -> bool:
            self.phases = [(n, step + 1 if n == name else done, total) for n, done, total in self.phases]
            self.tell()
            return not interrupted.is_set()  # False stops the builder

        def phase_finish(self, name: str) -> None:
            self.phases = [phase for phase in self.phases if phase[0] != name]

        def tell(self) -> None:
            part = 0.0
            for _, done, total in reversed(self.phases):
                part = min(1.0, (done + part) / total)
            self.part = max(self.part, part)  # phases may follow each other within one step of the phase around them
            if self.phases:
                on_progress(self.phases[-1][0], self.part)

    return Monitor()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event: the library's C++ swallows an exception that is raised in one of its callbacks."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
