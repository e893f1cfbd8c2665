"""Which backend runs a bundle: one string, one table of what works here, and why the others do not."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ezaudio.runtime.engines.library import (
    MODULES,
    check_precision,
    default_target,
    installed,
    open_library,
    target_of,
)
from ezaudio.runtime.errors import BackendError, InputError, MissingExtraError
from ezaudio.runtime.gpu import Gpu, find_gpu

if TYPE_CHECKING:
    from ezaudio.config import EzAudioConfig
    from ezaudio.runtime.clips import Clips
    from ezaudio.runtime.conditioning import Conditioning
    from ezaudio.runtime.denoising import Graphs
    from ezaudio.runtime.manifest import Manifest

logger = logging.getLogger(__name__)

AUTO_ORDER = ("tensorrt", "torch", "onnxruntime-cuda", "onnxruntime")
BACKENDS = (*AUTO_ORDER[:3], "onnxruntime-tensorrt", "openvino", "onnxruntime")
"""By speed, as far as it is known; `auto` passes over those that are not in `AUTO_ORDER`."""

FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")

GPU_ONNXRUNTIME = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a backend cannot be used, and the one command that would mend it; empty where none does."""

    reason: str
    fix: str = ""
    missing_extra: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """A backend as it is on this machine.

    Attributes:
        problems: what keeps it from running at all.
        doubts: what keeps `auto` from taking it, although it runs when named.
    """

    name: str
    problems: tuple[Problem, ...] = ()
    doubts: tuple[Problem, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.problems

    @property
    def chosen_by_auto(self) -> bool:
        return self.usable and not self.doubts and self.name in AUTO_ORDER

    @property
    def reason(self) -> str:
        """Why `auto` passes it over, in one line; empty when it does not."""
        found = [problem.reason for problem in (*self.problems, *self.doubts)]
        return "; ".join([*found, *([] if self.name in AUTO_ORDER else ["taken only by name"])])

    @property
    def fix(self) -> str:
        """The first command to run; empty where none helps, as without a GPU."""
        found = (*self.problems, *self.doubts)
        return next((p.fix for p in found if p.fix), "") if all(p.fix for p in found) else ""


def survey(manifest: Manifest) -> list[Status]:
    """Every backend for a bundle, in the order of `BACKENDS`."""
    return [examine(name, manifest) for name in BACKENDS]


def examine(name: str, manifest: Manifest) -> Status:
    """One backend for a bundle."""
    if name == "onnxruntime":
        typed = target_of(manifest) and manifest.precision == "bf16"
        return Status(name, (_bf16_on_cpu(manifest),) if typed else ())
    if name == "openvino":
        return Status(name, tuple(_openvino_problems(manifest)))
    gpu = find_gpu()
    if name == "torch":
        return _examine_torch(manifest, gpu)
    problems = [Problem(gpu)] if isinstance(gpu, str) else []
    if name != "tensorrt":
        return Status(name, (*problems, *_onnxruntime_problems(name)))
    problems += _missing_packages(manifest)
    if not problems and isinstance(gpu, Gpu):
        problems += _refusals(manifest, gpu)
    return Status(name, tuple(problems), () if is_certified(manifest) else (_uncertified(manifest),))


def _examine_torch(manifest: Manifest, gpu: Gpu | str) -> Status:
    """It reads weights that are numbers; on a CPU it is for checking a GPU against."""
    model = manifest.config.name
    problems = [
        Problem(f"{module} is not installed", 'pip install "ezaudio[torch]"', missing_extra=True)
        for module in ("torch", "onnx")
        if not _found(module)
    ]
    if manifest.precision not in FLOAT_PRECISIONS:
        fix = f"ezaudio-export --model {model} --precision fp16"
        problems.append(Problem(f"it reads bundles in fp32, fp16 and bf16, this one is {manifest.precision}", fix))
    doubts = []
    if isinstance(gpu, str):
        doubts.append(Problem(f"{gpu}: on a CPU it is slower than onnxruntime"))
    elif not problems and not _torch_sees_gpu():
        doubts.append(Problem("this PyTorch was built without CUDA", "pip install --force-reinstall torch"))
    elif not _found("triton"):
        doubts.append(Problem("triton is not installed, so nothing is fused", 'pip install "ezaudio[torch]"'))
    if manifest.precision != "fp32" and not is_certified(manifest):
        doubts.append(_uncertified(manifest))
    return Status("torch", tuple(problems), tuple(doubts))


def _torch_sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _missing_packages(manifest: Manifest) -> list[Problem]:
    target = target_of(manifest)
    fix = f'pip install "ezaudio[{target or default_target()}]"'
    missing = []
    if target and not installed(target):
        missing.append(f"{MODULES[target]} is not installed")
    elif not any(installed(name) for name in MODULES):
        missing.append("neither tensorrt nor tensorrt_rtx is installed")
    if not _found("cuda.bindings"):
        missing.append("cuda-bindings is not installed")
    return [Problem(reason, fix, missing_extra=True) for reason in missing]


def _refusals(manifest: Manifest, gpu: Gpu) -> list[Problem]:
    """Why the library, which is installed, does not serve this GPU."""
    target = library_for(manifest)
    if target_of(manifest):
        try:
            check_precision(manifest.precision, gpu.compute_capability)
        except InputError as error:
            fix = f"ezaudio-export --model {manifest.config.name} --precision int8 --target {target}"
            return [Problem(str(error), fix)]
    other = next(name for name in MODULES if name != target)
    try:
        open_library(target).check_capability(gpu.compute_capability)
    except BackendError as error:
        return [Problem(str(error), f'pip install --force-reinstall "ezaudio[{target}]"')]
    except InputError as error:
        return [Problem(str(error), f'pip install "ezaudio[{other}]"')]
    return []


def _onnxruntime_problems(name: str) -> list[Problem]:
    import onnxruntime

    provider = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}[name]
    if provider in onnxruntime.get_available_providers():
        return []
    return [Problem(f"this ONNX Runtime lacks {provider}", GPU_ONNXRUNTIME)]


def _openvino_problems(manifest: Manifest) -> list[Problem]:
    """It reads standard operators, and computes bf16 only where the processor does."""
    if not _found("openvino"):
        return [Problem("openvino is not installed", 'pip install "ezaudio[openvino]"', missing_extra=True)]
    export = f"ezaudio-export --model {manifest.config.name} --target cpu --precision"
    if manifest.precision not in FLOAT_PRECISIONS or target_of(manifest):
        kind = f"{manifest.precision} for {target_of(manifest) or 'onnxruntime'}"
        return [Problem(f"it reads bundles for CPUs in fp32, fp16 and bf16, this one is {kind}", f"{export} bf16")]
    if manifest.precision == "bf16":
        from ezaudio.runtime.openvino_session import computes_bf16

        if not computes_bf16():
            return [Problem("this processor has no bf16 of its own", f"{export} int8")]
    return []


def _bf16_on_cpu(manifest: Manifest) -> Problem:
    fix = f"ezaudio-export --model {manifest.config.name} --precision bf16 --target cpu"
    return Problem(f"ONNX Runtime computes no bf16 on a CPU, which graphs for {target_of(manifest)} ask for", fix)


def is_certified(manifest: Manifest) -> bool:
    """Whether the export proved the graphs' numbers in the precision that a GPU computes in."""
    return bool(getattr(manifest, "certificate", None))


def _uncertified(manifest: Manifest) -> Problem:
    model, precision = manifest.config.name, manifest.precision
    half = "" if precision in ("fp16", "bf16") else f" (this one is {precision})"
    return Problem(
        f"the bundle has no certificate for half precision on a GPU{half}",
        f"ezaudio-export --model {model} --precision fp16 --target tensorrt-rtx",
    )


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing
        return False


def choose_backend(name: str, manifest: Manifest) -> str:
    """`auto` takes the first usable backend of `AUTO_ORDER` and logs why it passed over those before it.

    Raises:
        InputError: unknown name, or it cannot run here. MissingExtraError: the same, for want of a package.
    """
    if name not in ("auto", *BACKENDS):
        raise InputError(f"unknown backend {name!r}: expected auto, {', '.join(BACKENDS)}")
    if name == "auto":
        chosen, passed = pick(examine(one, manifest) for one in AUTO_ORDER)  # as far as needed: PyTorch loads slowly
        said = ", ".join(f"{status.name} ({status.reason})" for status in passed)
        logger.info("backend %s chosen%s", chosen.name, f"; passed over: {said}" if said else "")
        return chosen.name
    status = examine(name, manifest)
    if status.problems:
        fixes = list(dict.fromkeys(problem.fix for problem in status.problems if problem.fix))
        reasons = "; ".join(problem.reason for problem in status.problems)
        fix = ", then ".join(fixes) or "choose another backend; ezaudio-doctor lists those that run here"
        error = MissingExtraError if any(p.missing_extra for p in status.problems) else InputError
        raise error(f"backend {name!r} cannot run here ({reasons}): {fix}")
    for doubt in status.doubts:
        logger.warning("backend %s: %s", name, ": ".join(filter(None, (doubt.reason, doubt.fix))))
    return name


def pick(table: Iterable[Status]) -> tuple[Status, list[Status]]:
    """What `auto` takes, and the better ones it passes over. Raises InputError when nothing runs."""
    passed: list[Status] = []
    for status in (status for status in table if status.name in AUTO_ORDER):
        if status.chosen_by_auto:
            return status, passed
        passed.append(status)
    reasons = ", ".join(f"{status.name} ({status.reason})" for status in passed)
    fix = next((status.fix for status in reversed(passed) if status.fix), "see ezaudio-doctor")
    raise InputError(f"no backend can run this bundle here: {reasons}: {fix}")


def check_device(device: str | None, backend: str) -> None:
    """Raises InputError where `device` names none, or the backend has no choice of devices."""
    if device is None:
        return
    if backend != "torch":
        raise InputError(f"device {device!r} goes with backend torch, this is {backend}: leave it out or name torch")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise InputError(f"unknown device {device!r}: expected cpu, cuda or cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise InputError(f"device {device!r} is not there, PyTorch sees {count} GPUs: use cpu, or see ezaudio-doctor")


def open_sessions(
    backend: str,
    folder: Path,
    manifest: Manifest,
    threads: int | None,
    low_memory: bool = False,
    device: str | None = None,
) -> Graphs:
    """Open a bundle with a backend that `choose_backend` gave.

    Args:
        threads: of ONNX Runtime or OpenVINO on the CPU.
        low_memory: what ONNX Runtime frees goes back to the system, not into its arena.
        device: of the backend `torch`; None takes a GPU where there is one.
    """
    if backend == "torch":
        from ezaudio.runtime.torch_backend.bundle import open_bundle

        return open_bundle(folder, manifest, device)
    if backend == "tensorrt":
        from ezaudio.runtime.engines.sessions import EngineSessions

        return EngineSessions(folder, manifest, library_for(manifest))
    if backend == "openvino":
        from ezaudio.runtime.openvino_session import OpenVinoSessions

        return OpenVinoSessions(folder, manifest, threads)
    from ezaudio.runtime.session import GraphSessions

    return GraphSessions(folder, manifest, threads, backend, low_memory)


def open_clips(
    backend: str, sessions: Graphs, conditioning: Conditioning, config: EzAudioConfig, low_memory: bool
) -> Clips:
    """What makes clips on the sessions that `open_sessions` gave."""
    if backend == "torch":
        from ezaudio.runtime.torch_backend.clips import WholeClips

        return WholeClips(sessions, conditioning, config)  # type: ignore[arg-type]
    from ezaudio.runtime.clips import GraphByGraph

    return GraphByGraph(sessions, conditioning, config, low_memory)  # type: ignore[arg-type]


def library_for(manifest: Manifest) -> str:
    """The bundle's own target, else the first library that is installed."""
    return target_of(manifest) or default_target()
