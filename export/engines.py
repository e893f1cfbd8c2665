"""The end of an export: engines for the targets that have them.

They are built by `ezaudio.runtime.engines`, which needs no PyTorch: a user's machine builds them in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ezaudio.runtime.errors import InputError
from ezaudio.runtime.gpu import find_gpu

if TYPE_CHECKING:
    from ezaudio.runtime.engines.builder import Options
    from ezaudio.runtime.engines.library import Library


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What builds the engines of an export, and for which GPUs; without a library none are built, and `skipped` says
    why."""

    library: Library | None
    options: Options
    skipped: str = ""


def engine_plan(target: str, precision: str, compute_capabilities: tuple[str, ...]) -> EnginePlan | None:
    """Checked before minutes of export; None for the target `cpu`.

    Raises:
        InputError: a GPU that the library does not build for or that lacks the precision, or one for the target `cpu`.
        MissingExtraError: the library is not installed, and there is something to build for.
    """
    if target == "cpu":
        if compute_capabilities:
            raise InputError("--compute-capability is for engines: add --target tensorrt-rtx, or leave it out")
        return None
    from ezaudio.runtime.engines.builder import Options, normalized
    from ezaudio.runtime.engines.library import check_precision, open_library

    options = Options(normalized(compute_capabilities))
    gpu = find_gpu()
    here = () if isinstance(gpu, str) else (gpu.compute_capability,)
    for capability in options.compute_capabilities or here:
        check_precision(precision, capability)
    if isinstance(gpu, str) and not options.compute_capabilities:
        return EnginePlan(None, options, f"no engines yet ({gpu}, no --compute-capability): the first use builds them")
    library = open_library(target)
    library.check_ahead(options.compute_capabilities)
    return EnginePlan(library, options)


def build_bundle_engines(folder: Path, plan: EnginePlan, quiet: bool) -> str:
    """Build a bundle's engines under a progress bar: where they are and what they are, in one line."""
    from ezaudio.runtime.build_cli import build_all
    from ezaudio.runtime.engines.store import EngineStore
    from ezaudio.runtime.manifest import read_manifest

    if plan.library is None:
        return plan.skipped
    return build_all(EngineStore(folder, read_manifest(folder, verify=False), plan.library), plan.options, quiet=quiet)
