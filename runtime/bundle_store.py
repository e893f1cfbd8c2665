"""Where bundles are: the one inside the package, those that ezaudio-export put into the user's cache, or any folder."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from ezaudio.runtime.errors import BundleError, InputError, MissingExtraError
from ezaudio.runtime.manifest import FILE_NAME

PACKAGED = Path(__file__).parent / "nano"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "w8", "w4")  # of several bundles the first is taken
TARGETS = ("cpu", "tensorrt", "tensorrt-rtx")  # what a bundle's graphs are written for
GPU_PRECISIONS = ("fp8",)  # no CPU computes in these
CACHED = re.compile(r"(?P<model>l|xl|nano)(?P<random>-random)?(?P<target>-tensorrt|-tensorrt-rtx)?")


def cache_folder() -> Path:
    """EZAUDIO_CACHE, or the platform's cache folder. Raises InputError where there is neither."""
    if named := os.environ.get("EZAUDIO_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "ezaudio"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "ezaudio"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "ezaudio"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # a container's user may have none, nor a name
        raise InputError("there is no home folder to look for bundles in: name a folder by EZAUDIO_CACHE") from error


def cached_bundle(model: str, precision: str) -> Path:
    """Where ezaudio-export puts a bundle unless told otherwise, and where `--bundle l` looks.

    Args:
        model: what `CACHED` fits: a model, `-random` after it where its weights are, and the target unless it is `cpu`.
    """
    return cache_folder() / "bundles" / f"{model}-{precision}"


def find_bundle(name: str | os.PathLike[str] | None, precision: str | None = None) -> Path:
    """The folder of a bundle.

    Args:
        name: None for the packaged model; `l`, `xl` or `nano` for one that was exported, `l-tensorrt` for one that was
            exported for a target; otherwise a folder.
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
    model = str(name)
    if (parts := CACHED.fullmatch(model)) is None:
        return _folder(Path(name), precision)
    wanted = PRECISIONS if precision is None else (precision,)
    for candidate in wanted:
        if os.path.isfile(path := cached_bundle(model, candidate) / FILE_NAME):
            return path.parent
    if model == "nano" and _precision_of(PACKAGED) == precision:
        return PACKAGED
    target = (parts["target"] or "")[1:] or ("tensorrt-rtx" if precision in GPU_PRECISIONS else "")
    command = f"ezaudio-export --model {parts['model']} --precision {precision or ('fp16' if target else 'fp32')}"
    command += (" --random-weights" if parts["random"] else "") + (f" --target {target}" if target else "")
    if target and not parts["target"]:
        command += f", then use --bundle {model}-{target}"
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

    if not os.path.isfile(folder / FILE_NAME):
        return None
    return read_manifest(folder, verify=False).precision
