"""The products of a step on a GPU: what PyTorch's library reaches in each, and with the sum split over more programs.

    python benchmarks/products.py                       # L and XL, one guided clip; from a checkout, like gpu.py
    python benchmarks/products.py --models l --clips 8

A clip's 1000 rows by D columns are fewer tiles than a GPU has multiprocessors. Split in S, a product is a batch of S
whose results somebody has to add: its time is that without the addition, which a norm that follows could make. Weights
are read from memory, as in a step: there are more copies of them than the second-level cache holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from checkout import ROOT, use_checkout

use_checkout("kernels", "runtime")

from gpu_goals import sizes_of  # noqa: E402
from gpu_rig import CACHE_BYTES, GPU, REHEARSAL, Rig, captured, hardware, milliseconds, save  # noqa: E402
from timing import spread  # noqa: E402
from torch import Tensor  # noqa: E402

from kernels import MODELS, named  # noqa: E402

SPLITS = (1, 2, 4)
MAX_RELATIVE_L2 = 2e-3  # of a split product in fp16 to the whole


def shapes(width: int) -> dict[str, tuple[int, int]]:
    """Values in and out of each kind of product in a block."""
    return {
        "q, k, v": (width, 3 * width),
        "projection, cross q": (width, width),
        "MLP up": (width, 8 * width),
        "MLP down": (4 * width, width),
        "skip": (2 * width, width),
    }


def product_of(x: Tensor, weight: Tensor, bias: Tensor, split: int) -> Tensor:
    """x (R, K) · weight (K, N) + bias: (R, N), or without the bias (S, R, N) whose sum it is."""
    if split == 1:
        return F.linear(x, weight.T, bias)
    return torch.bmm(x.unflatten(1, (split, -1)).transpose(0, 1), weight.unflatten(0, (split, -1)))


def measured(rows: int, inside: int, outside: int, rig: Rig) -> dict[str, Any]:
    """Microseconds of one product by split, over the rounds; or which one is wrong."""
    dtype = torch.float16 if rig.measures else torch.float32
    copies = max(1, CACHE_BYTES // (2 * inside * outside)) if rig.measures else 2
    weights = [torch.randn(inside, outside, device=rig.device, dtype=dtype) for _ in range(copies)]
    x = torch.randn(rows, inside, device=rig.device, dtype=dtype)
    bias = torch.zeros(outside, device=rig.device, dtype=dtype)
    whole = product_of(x, weights[0], bias, 1).double()
    calls: dict[str, Callable[[], object]] = {}
    for split in SPLITS:
        if split > 1:
            added = product_of(x, weights[0], bias, split).double().sum(0)
            if not (error := ((added - whole).norm() / whole.norm()).item()) <= MAX_RELATIVE_L2:
                return {"reason": f"split in {split}: relative L2 {error:.1e}, at most {MAX_RELATIVE_L2}"}

        def call(split: int = split) -> None:
            for weight in weights:
                product_of(x, weight, bias, split)

        calls[str(split)] = captured(call, rig.device)
    cache = torch.zeros(1, device=rig.device)
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rig.rounds):
        for name, run in calls.items():
            rounds[name].append(1e3 * milliseconds(run, cache) / copies)
    return {"us": {name: spread(times)["median"] for name, times in rounds.items()}, "rounds_us": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="with a comma between them [%(default)s]")
    parser.add_argument("--clips", type=int, default=1, help="guided, at once [%(default)s]")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "products.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="tiny CPU tensors; nothing is saved")
    arguments = parser.parse_args()
    models = named(parser, "--models", arguments.models, MODELS)
    if arguments.clips < 1:
        parser.error(f"--clips must be at least 1, got {arguments.clips}")
    if not torch.cuda.is_available() and not arguments.dry_run:
        sys.exit("A CUDA GPU is needed to measure. --dry-run rehearses.")
    rig = REHEARSAL if arguments.dry_run else GPU
    facts = hardware(rig.device)
    for model in models:
        sizes = sizes_of(rig.models[0] if arguments.dry_run else model)
        count = 2 * arguments.clips * rig.frames
        for name, (inside, outside) in shapes(sizes.width).items():
            found = measured(count, inside, outside, rig)
            row = {"benchmark": "products", "model": model, "product": name, "shape": [count, inside, outside]}
            if not arguments.dry_run:
                save(row | found | facts, arguments.output)
            told = found.get("reason", "")
            for split, us in found.get("us", {}).items():
                told += f"  split {split}: {us:7.2f} µs {2e-6 * count * inside * outside / us:5.0f} TFLOP/s"
            print(f"{model:3} {name:20} {count} × {inside} × {outside} {told}", flush=True)


if __name__ == "__main__":
    main()
