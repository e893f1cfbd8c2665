"""What the benchmarks of a GPU measure with: graphs, events, a cold cache, the rates of the device.

On CPU tensors all of it runs, too, and takes times that mean nothing: so the benchmarks themselves are tested where
there is no GPU.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CACHE_BYTES = 2**28  # more than any second-level cache holds


@dataclass(frozen=True, slots=True)
class Rig:
    """Sizes of everything that is measured.

    Attributes:
        models: presets, the one that most rows are of first.
        frames, tokens: of a clip, and of a padded prompt in the baselines.
        steps: of a whole clip.
        batch: clips at once in G2.
        train_batch: clips of a training step.
        product: side of the square matrices that give P.
        copied: bytes of the copy that gives BW.
        compiler: settings of `torch.compile` for single operators.
        prepares: what runs is compiled and what it takes is thrown away.
    """

    device: str
    rounds: int
    models: tuple[str, ...]
    frames: int
    tokens: int
    steps: int
    batch: int
    train_batch: int
    product: int
    copied: int
    compiler: dict[str, Any]
    prepares: bool = False

    @property
    def measures(self) -> bool:
        return self.device == "cuda"


GPU = Rig("cuda", 7, ("xl", "l"), 500, 100, 50, 8, 16, 8192, 2**30, {"dynamic": False})
PREPARATION = replace(GPU, rounds=1, steps=2, copied=2**20, prepares=True)
REHEARSAL = Rig("cpu", 1, ("debug",), 9, 5, 2, 2, 1, 64, 2**10, {"backend": "eager"})


def settle(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str) -> float:
    """Of one call on the host's clock, from an idle device to an idle device."""
    settle(device)
    start = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - start


def cold_cache(device: str) -> Tensor:
    return torch.zeros(CACHE_BYTES // 4 if device == "cuda" else 1, device=device)


def milliseconds(call: Callable[[], object], cache: Tensor) -> float:
    """Of one call on the device's clock, the second-level cache full of something else before.

    It is read, not written: what was written there would have to go to memory during the call, at its cost.
    """
    cache.sum()
    if not cache.is_cuda:
        return 1e3 * seconds(call, "cpu")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def captured(call: Callable[[], Any], device: str, train: bool = False) -> Callable[[], Any]:
    """A CUDA graph of the call, warmed up: returns what it returned, in the graph's own memory.

    What the call reads lives as long as the graph, which would read that memory whoever had it.
    """
    grad = nullcontext() if train else torch.no_grad()
    with grad:
        if device != "cuda":
            call()
            return call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
    return partial(_replayed, graph, kept, call)


def _replayed(graph: torch.cuda.CUDAGraph, kept: Any, owner: Callable[[], Any]) -> Any:
    graph.replay()
    return kept


def copy_bandwidth(rig: Rig) -> float:
    """BW: GB/s of a device copy, read and write counted."""
    source = torch.zeros(rig.copied, dtype=torch.uint8, device=rig.device)
    target = torch.empty_like(source)
    cache = torch.empty(1, device=rig.device)
    times = [milliseconds(lambda: target.copy_(source), cache) for _ in range(12)]
    return 2 * source.numel() / statistics.median(times[3:]) / 1e6


def copy_milliseconds(rig: Rig, num_bytes: int) -> float:
    """Of a device copy that moves so many bytes, read and write counted, timed as an operator is."""
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=rig.device)
    target = torch.empty_like(source)
    call, cache = captured(lambda: target.copy_(source), rig.device), cold_cache(rig.device)
    return statistics.median(milliseconds(call, cache) for _ in range(rig.rounds))


def product_call(rig: Rig) -> tuple[Callable[[], object], float]:
    """Ten bf16 products of square matrices, and their FLOPs: the time of P."""
    size = rig.product
    a, b = (torch.randn(size, size, device=rig.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def call() -> None:
        for _ in range(10):
            torch.mm(a, b, out=out)

    for _ in range(3):
        call()
    return call, 10 * 2.0 * size**3


def used_bytes(rig: Rig) -> int:
    """Of the device's memory, by whatever runs on it: weights, graphs, libraries, PyTorch's cache emptied."""
    if not rig.measures:
        return 0
    settle(rig.device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def hardware(device: str = "cuda") -> dict[str, str]:
    """Fields of every row: GPU, driver, CUDA, versions."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        versions["triton"] = "none"
    if device != "cuda":
        return {"gpu": "none", "driver": "", "cuda": "", **versions}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
        driver = found[0].strip() if found else "unknown"
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    return {"gpu": torch.cuda.get_device_name(), "driver": driver, "cuda": torch.version.cuda or "", **versions}


def save(row: dict[str, Any], output: Path) -> None:
    """Append a row at once: a run that is stopped keeps what it has measured."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
