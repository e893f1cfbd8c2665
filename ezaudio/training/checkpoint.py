"""A run's checkpoints: folders of safetensors that appear whole, the newest few kept.

RUN/checkpoints/step-00001000/
    <network>.safetensors      weights of each network in training
    average.safetensors        exponential moving average of the one that is published
    <network>.optimizer.safetensors
    state.json                 step, settings, loss scale; written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.weights import first_line, flush, save_atomic

Arrays = dict[str, Tensor]
FOLDER, PREFIX = "checkpoints", "step-"
STATE = "state.json"


def weights(module: nn.Module) -> Arrays:
    """Parameters and buffers by name, not detached; a tied one once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder holds; tensors by part, on the CPU."""

    step: int
    settings: dict[str, Any]
    scaler: dict[str, Any]
    parts: dict[str, Arrays]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint of a run, then delete all but the newest `keep`. The run's only process that writes does.

    Raises InputError when it cannot be written, as on a full disk; older ones are untouched.
    """
    root = folder / FOLDER
    final = root / f"{PREFIX}{checkpoint.step:08d}"
    temporary = root / f".{final.name}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for part, tensors in checkpoint.parts.items():
            save_atomic(tensors, temporary / f"{part}.safetensors")
        state = {"step": checkpoint.step, "settings": checkpoint.settings, "scaler": checkpoint.scaler}
        (temporary / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        flush(temporary / STATE)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush(root)
    except OSError as error:
        raise InputError(f"the checkpoint '{final}' cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in (*stored_checkpoints(folder)[:-keep], *root.glob(f".{PREFIX}*")):  # and what a killed process left
        shutil.rmtree(old, ignore_errors=True)
    return final


def stored_checkpoints(folder: Path) -> list[Path]:
    """Of a run, the oldest first. What a killed process left half-written has another name."""
    return sorted(path for path in (folder / FOLDER).glob(f"{PREFIX}*") if (path / STATE).is_file())


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises BundleError when a file is damaged."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        parts = {file.name.removesuffix(".safetensors"): load_file(file) for file in path.glob("*.safetensors")}
        return Checkpoint(int(state["step"]), dict(state["settings"]), dict(state["scaler"]), parts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BundleError(
            f"the checkpoint '{path}' is damaged ({first_line(error)}): delete it to go on from the one before"
        ) from error


def check_parts(path: Path, checkpoint: Checkpoint, networks: Iterable[str]) -> None:
    """Raises BundleError where a file is missing: without its moments a run would go on as another, unnoticed."""
    expected = {"average", *(part for name in networks for part in (name, f"{name}.optimizer"))}
    missing = sorted(expected - checkpoint.parts.keys())
    if missing:
        raise BundleError(
            f"the checkpoint '{path}' lacks {missing[0]}.safetensors: delete it to go on from the one before"
        )


def take_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy a complete set of weights into a module. Raises BundleError when names or shapes are others."""
    own = weights(module)
    if own.keys() != tensors.keys():
        differing = sorted(own.keys() ^ tensors.keys())
        raise BundleError(f"{where} is of another model: {differing[0]!r} and {len(differing) - 1} more do not match")
    with torch.no_grad():
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise BundleError(
                    f"{where} is of another model: {name!r} is {tuple(tensors[name].shape)}, expected "
                    f"{tuple(value.shape)}"
                )
            value.copy_(tensors[name])


def _moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{key}.{name}", value


def optimizer_state(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Arrays:
    """Moments and step counts by parameter name."""
    return {key: value for optimizer in optimizers for key, value in _moments(module, optimizer)}


def take_optimizer_state(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `optimizer_state`. Step counts stay on the CPU, where AdamW keeps them."""
    parameters = dict(module.named_parameters())
    owners = {p: each for each in optimizers for group in each.param_groups for p in group["params"]}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        parameter = parameters[name]
        stored = value.clone() if key == "step" else value.to(parameter, copy=True)
        owners[parameter].state[parameter][key] = stored
