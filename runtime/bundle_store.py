"""Where bundles are: the one inside the package, those that ezaudio-export put into the user's cache, or any folder."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ezaudio.runtime.errors import BundleError, InputError, MissingExtraError
from ezaudio.runtime.manifest import FILE_NAME

PACKAGED = Path(__file__).parent / "nano"
PRECISIONS = (
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "w8",
    "w4",
)  # the order in which a bundle is chosen when none is asked for
TARGETS = ("cpu", "tensorrt", "tensorrt-rtx")  # what a bundle's graphs are written for
CACHED_MODELS = ("l", "xl", "nano")


def cache_folder() -> Path:
    """EZAUDIO_CACHE, or the platform's cache folder."""
    if named := os.environ.get("EZAUDIO_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "ezaudio"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ezaudio"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ezaudio"


def cached_bundle(model: str, precision: str) -> Path:
    """Where ezaudio-export puts a bundle unless told otherwise, and where `--bundle l` looks."""
    return cache_folder() / "bundles" / f"{model}-{precision}"


def find_bundle(name: str | os.PathLike[str] | None, precision: str | None = None) -> Path:
    """The folder of a bundle.

    Args:
        name: None for the packaged model; `l`, `xl` or `nano` for one that was exported; otherwise a folder.
        precision: which one of several; None takes what there is. A folder has one precision only.

    Raises:
        InputError: unknown precision. BundleError: no such bundle. MissingExtraError: nor the means to export it.
    """
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if name is None or (name == "nano" and precision is None):
        if precision is None:
            return PACKAGED
        name = "nano"
    if name not in CACHED_MODELS:
        return _folder(Path(name), precision)
    model = str(name)
    wanted = PRECISIONS if precision is None else (precision,)
    for candidate in wanted:
        if (path := cached_bundle(model, candidate) / FILE_NAME).is_file():
            return path.parent
    if model == "nano" and _precision_of(PACKAGED) == precision:
        return PACKAGED
    command = f"ezaudio-export --model {model} --precision {precision or 'fp32'}"
    if find_spec("torch") is None or find_spec("onnxscript") is None:
        raise MissingExtraError(
            f'model {model!r} must be exported first: pip install "ezaudio[export]", then {command}'
        )
    raise BundleError(
        f"model {model!r} has not been exported{f' in {precision}' if precision else ''} yet: run {command}"
    )


def _folder(path: Path, precision: str | None) -> Path:
    found = _precision_of(path)
    if precision is not None and found not in (None, precision):
        raise InputError(f"the bundle at '{path}' is {found}, not {precision}: leave out --precision")
    return path  # whether it is a bundle at all is said when it is opened


def _precision_of(folder: Path) -> str | None:
    from ezaudio.runtime.manifest import read_manifest

    if not (folder / FILE_NAME).is_file():
        return None
    return read_manifest(folder, verify=False).precision
