"""What a user installs to make sound: bundle + prompt → samples, on NumPy and ONNX Runtime.

Importing this package imports nothing else: each name below loads its module when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ezaudio.runtime.errors import BundleError, CancelledError, EzAudioError, InputError, MissingExtraError
    from ezaudio.runtime.noise import PhiloxNoise, TorchNoise
    from ezaudio.runtime.solvers import SOLVERS, SolverPlan, solver_plan
    from ezaudio.runtime.text_to_audio import TextToAudio

__all__ = [
    "SOLVERS",
    "BundleError",
    "CancelledError",
    "EzAudioError",
    "InputError",
    "MissingExtraError",
    "PhiloxNoise",
    "SolverPlan",
    "TextToAudio",
    "TorchNoise",
    "solver_plan",
]

_MODULES = {
    "BundleError": "errors",
    "CancelledError": "errors",
    "EzAudioError": "errors",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "PhiloxNoise": "noise",
    "SOLVERS": "solvers",
    "SolverPlan": "solvers",
    "TextToAudio": "text_to_audio",
    "TorchNoise": "noise",
    "solver_plan": "solvers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
