"""The import switch between `tensorrt` and `tensorrt_rtx`: one API family, so everything else is one code path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ezaudio.runtime.command import one_line
from ezaudio.runtime.errors import BackendError, InputError, MissingExtraError

if TYPE_CHECKING:
    from ezaudio.runtime.manifest import Manifest

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Target, as in `--target`, → module. The target is the name of the extra that installs it, too."""

MAX_ERROR_CHARS = 400
SINCE = {"bf16": "8.0", "fp8": "8.9"}
"""Precision → the first compute capability that computes in it; the others need none of their own."""


@dataclass(frozen=True, slots=True)
class Library:
    """An imported library.

    Attributes:
        name: a key of `MODULES`.
        version: its own, such as `1.7.1.116`.
        trt: the module.
    """

    name: str
    version: str
    trt: Any

    @property
    def builds_ahead(self) -> bool:
        """Whether it builds for GPUs that this machine lacks."""
        return self.name == "tensorrt-rtx" and hasattr(self.trt, "ComputeCapability")

    @property
    def has_timing_cache(self) -> bool:
        """TensorRT-RTX keeps the functions, but they do nothing: it times on the user's machine instead."""
        return self.name == "tensorrt"

    def known_capabilities(self) -> tuple[str, ...]:
        """Compute capabilities that can be named, such as `8.9`; empty when it builds for the GPU at hand only."""
        if not self.builds_ahead:
            return ()
        numbers = (name[2:] for name in self.trt.ComputeCapability.__members__ if name.startswith("SM"))
        return tuple(f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int))

    def check_capability(self, capability: str) -> None:
        """Raises InputError for a compute capability that the library does not build for."""
        known = self.known_capabilities()
        if known and capability not in known:
            other = "tensorrt" if self.name == "tensorrt-rtx" else "a newer version"
            raise InputError(
                f"{self.name} {self.version} does not build for compute capability {capability!r}: "
                f"expected one of {', '.join(known)}; for other GPUs use {other}"
            )

    def check_ahead(self, capabilities: Iterable[str]) -> None:
        """Raises InputError where engines for these GPUs cannot be built ahead of time."""
        for capability in capabilities:
            if not self.builds_ahead:
                raise InputError(
                    f"{self.name} {self.version} builds for the GPU of this machine only: leave out "
                    "--compute-capability, or use --target tensorrt-rtx"
                )
            self.check_capability(capability)

    def logger(self) -> Any:
        """A logger of the library that collects errors in `errors` and warnings in `warnings`."""
        trt = self.trt

        class Log(trt.ILogger):  # type: ignore[name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []
                self.warnings: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    self.errors.append(one_line(message)[:MAX_ERROR_CHARS])
                elif severity == trt.ILogger.WARNING:
                    self.warnings.append(one_line(message)[:MAX_ERROR_CHARS])

        return Log()


def check_precision(precision: str, capability: str) -> None:
    """Raises InputError for a compute capability, such as `8.6`, that does not compute in a precision."""
    since = SINCE.get(precision)
    if since is not None and float(capability) < float(since):
        raise InputError(
            f"{precision} needs compute capability {since} or later, got {capability}: use a bundle in fp16 or int8"
        )


def installed(target: str) -> bool:
    """Whether the target's package is there, without importing it."""
    try:
        return find_spec(MODULES[target]) is not None
    except ValueError:  # a module without a spec, as tests and import hooks leave
        return False


def default_target() -> str:
    """The first library that is installed, else the one that can be: `open_library` then names its extra."""
    return next((target for target in MODULES if installed(target)), "tensorrt-rtx")


def target_of(manifest: Manifest) -> str:
    """What the bundle's graphs were typed for: a key of `MODULES`, or empty."""
    target = getattr(manifest, "target", None)
    return str(target) if target in MODULES else ""


def missing_library(target: str) -> MissingExtraError:
    return MissingExtraError(f'{MODULES[target]} is not installed: pip install "ezaudio[{target}]"')


def open_library(target: str) -> Library:
    """Import the library of a target.

    Raises:
        MissingExtraError: it is not installed. BackendError: it is, but does not load.
    """
    if not installed(target):
        raise missing_library(target)
    try:
        trt = import_module(MODULES[target])
        return Library(target, str(trt.__version__), trt)
    except Exception as error:
        raise BackendError(
            f"{MODULES[target]} is installed but cannot be loaded ({one_line(str(error))[:MAX_ERROR_CHARS]}): "
            f'pip install --force-reinstall "ezaudio[{target}]"'
        ) from error
