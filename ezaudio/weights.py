"""Tensors from files to modules and back: strict, finite, and never a pickle that does more than hold tensors."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.naming import make_folder

StateDict = dict[str, Tensor]
Fill = Callable[[nn.Module], None]
"""Gives values to a module that was built on the meta device."""

RELEASE = "OpenSound/EzAudio"
VAE_PREFIX = "autoencoder."
MAX_JSON_BYTES = 1_000_000
SAMPLED = 256  # values of a tensor that a fingerprint is made of
# What a damaged file makes torch.load raise, depending on where the damage is.
_DAMAGE = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)


def read_state_dict(path: Path, *, entry: Literal["model", "state_dict"] | None = None) -> StateDict:
    """Tensors of a checkpoint, mapped from the file where its format allows.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.ckpt` holding a dictionary.
        entry: where the release wraps its tensors in a `.pt`: "model" (DiT, ControlNet), or "state_dict" (VAE: only the
            keys under `autoencoder.`, which is taken off; the rest is a discriminator). None: nowhere.

    Raises:
        BundleError: missing, damaged, of another format, or a pickle of more than tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in (".pt", ".pth", ".ckpt"):
        raise BundleError(f"'{path}' is no checkpoint: expected .safetensors, .pt, .pth or .ckpt")
    if not path.is_file():
        raise BundleError(f"'{path}' does not exist or is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise BundleError(
            f"'{path}' holds more than tensors, or is damaged: its pickled code was not run; expected a file of tensors"
            " alone, .safetensors at best"
        ) from error
    except _DAMAGE as error:
        raise BundleError(f"'{path}' cannot be read ({first_line(error)}): download or save it again") from error
    if entry is not None:
        if not isinstance(content, dict) or not isinstance(content.get(entry), dict):
            raise BundleError(f"'{path}' has no dictionary {entry!r}: expected a file laid out as {RELEASE}'s")
        content = content[entry]
    if not isinstance(content, dict):
        raise BundleError(f"'{path}' holds {type(content).__name__}: expected a dictionary of tensors")
    others = [str(key) for key in content if not isinstance(key, str)]
    if entry == "state_dict" and not others:
        content = {key.removeprefix(VAE_PREFIX): value for key, value in content.items() if key.startswith(VAE_PREFIX)}
    others += [str(key) for key, value in content.items() if isinstance(key, str) and not _is_plain(value)]
    if others:
        raise BundleError(f"'{path}' holds values that are no plain tensors: {', '.join(others)}")
    return content


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with all of its numbers at hand: neither sparse nor on the meta device."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], source_name: str) -> None:
    """Strict load, in the module's dtypes. A module on the meta device takes the tensors over, any other copies them.

    Raises:
        BundleError: keys missing, unexpected or of another shape, or values that are not finite: every one is listed,
            one a line below a summary, and nothing was loaded.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    misshapen = [
        f"{key}: expected {_describe(value)}, got {_describe(state_dict[key])}"
        for key, value in expected.items()
        if key in state_dict and _describe(value) != _describe(state_dict[key])
    ]
    if missing or unexpected or misshapen:
        raise BundleError(
            f"{source_name} does not fit {type(module).__name__}:"
            f" {len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} of another shape"
            + _list("missing", missing)
            + _list("unexpected", unexpected)
            + _list("shape", misshapen)
        )
    tensors = {key: state_dict[key].detach().to(value.dtype) for key, value in expected.items()}
    _check_finite(tensors, source_name)
    module.load_state_dict(tensors, assign=any(value.is_meta for value in expected.values()))


def fingerprint(module: nn.Module) -> str:
    """16 hex digits that tell a module's weights from others: of names, shapes, and values from all over each tensor.

    In seconds also where every value would take a minute. Two trainings differ everywhere; an edit of single values can
    go unseen.
    """
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        values = value.detach().flatten()
        sampled = values[:: max(1, len(values) // SAMPLED)].double().cpu().numpy()
        digest.update(f"{name} {tuple(value.shape)} ".encode() + sampled.tobytes())
    return digest.hexdigest()[:16]


def fingerprints(**modules: nn.Module | None) -> dict[str, str]:
    """Of those that are there, by name."""
    return {name: fingerprint(module) for name, module in modules.items() if module is not None}


def check_present(folder: Path, names: Iterable[str], what: str) -> None:
    """Raises InputError where there is no such folder, BundleError with the files that it lacks."""
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder: expected {what}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BundleError(f"'{folder}' is not {what}: missing {', '.join(missing)}")


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BundleError(f"'{path}' is larger than {MAX_JSON_BYTES} bytes: no settings file")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"'{path}' cannot be read: {first_line(error)}") from error
    if not isinstance(data, dict):
        raise BundleError(f"'{path}' holds {type(data).__name__}: expected a JSON object")
    return data


def read_safetensors(path: Path, keep: Callable[[str], bool] = lambda key: True) -> StateDict:
    from safetensors import SafetensorError, safe_open  # here: models run without it

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if keep(key)}  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError) as error:
        raise BundleError(f"'{path}' cannot be read as safetensors: {first_line(error)}") from error


def write_safetensors(path: Path, module: nn.Module, dtype: torch.dtype) -> None:
    tensors = {name: buffer.contiguous() for name, buffer in module.named_buffers()}
    for name, parameter in module.named_parameters():  # a tied parameter once, under its first name
        tensors[name] = parameter.detach().to("cpu", dtype).contiguous()
    _check_finite(tensors, f"{path.stem} in {dtype}")
    save_atomic(tensors, path, {"format": "pt"})


def save_atomic(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write beside `path`, to the disk itself, then rename: a reader sees the old file or the new one.

    Raises InputError when it cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        temporary.chmod(0o644)  # safetensors leaves 0600, which an installed package must not have
        flush(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"'{path}' cannot be written ({first_line(error)}): free some room or name another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """To the disk itself, so that a power cut after a rename leaves no empty file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    # aminmax passes NaN on, and in contrast to isfinite makes no copy.
    bad = [key for key, value in tensors.items() if value.numel() and not torch.stack(value.aminmax()).isfinite().all()]
    if bad:
        raise BundleError(f"{name} holds values that are not finite in {len(bad)} tensors" + _list("not finite", bad))


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' of {tensor.dtype}'}"


def _list(label: str, names: Collection[str]) -> str:
    return "".join(f"\n  {label}: {name}" for name in names)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
