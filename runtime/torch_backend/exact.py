"""The switches under which a run computes what its types say, and the same in every run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

FLAGS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
"""Sums of half-precision products: what they are rounded to between, and whether they may be split."""

_lock = threading.Lock()
_before: list[tuple[Any, str, Any]] = []  # the program's, from the first run that began until the last one ends
_older: str | None = None
_runs = 0


@contextmanager
def exact() -> Iterator[None]:
    """No gradients or autocast, no TF32 in float32, sums of float16 in float32, deterministic convolutions.

    Switches are the process's own: runs of several threads share them, and the last one to end puts the program's back.
    """
    _enter()
    try:
        with ExitStack() as stack:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(torch.inference_mode())
            yield
    finally:
        _leave()


def _enter() -> None:
    global _runs, _older
    with _lock:
        _runs += 1
        if _runs > 1:
            return
        try:
            _older = torch.get_float32_matmul_precision()
        except RuntimeError:  # the program has set the newer switches, and the older one refuses to be read beside them
            _older = None
        _before[:] = [(place, name, _read(place, name)) for place, name, _ in _switches()]
        torch.set_float32_matmul_precision("highest")
        for place, name, value in _switches():
            setattr(place, name, value)


def _leave() -> None:
    global _runs
    with _lock:
        _runs -= 1
        if _runs:
            return
        if _older is not None:
            torch.set_float32_matmul_precision(_older)
        for place, name, value in _before:
            setattr(place, name, value)


def _switches() -> list[tuple[Any, str, Any]]:
    """Where each is, its name, and its value in a run; those that this PyTorch has."""
    matmul, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    found: list[tuple[Any, str, Any]] = [
        (matmul, "fp32_precision", "ieee"),
        (mkldnn.matmul, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
        (cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        *((matmul, name, False) for name in FLAGS),
    ]
    if hasattr(matmul, "allow_fp16_accumulation"):
        found.append((matmul, "allow_fp16_accumulation", False))
    return found


def _read(place: Any, name: str) -> Any:
    """The value, in the form that sets all of it again."""
    value = getattr(place, name)
    return (value, getattr(place, f"{name}_split_k")) if name in FLAGS and hasattr(place, f"{name}_split_k") else value
