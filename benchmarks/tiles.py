"""Times of the kernels under other tile sizes: for a GPU that they were not chosen on.

    python benchmarks/tiles.py                  # XL and L; from a checkout, like gpu.py
    python benchmarks/tiles.py --models xl --only self-attention,cross-attention

A candidate takes the place of what the kernels' modules say, is checked against float64 as in kernels.py, and timed as
a CUDA graph with a cold second-level cache; backward is timed with the forward pass that it needs. What does not fit
or is not correct is said. Rows are appended to benchmarks/results/gpu_tiles.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from checkout import ROOT, use_checkout

use_checkout("kernels", "runtime")

from gpu_goals import KERNEL_BATCH  # noqa: E402
from gpu_rig import GPU, REHEARSAL, Rig, copy_bandwidth, hardware  # noqa: E402
from timing import spread  # noqa: E402

import kernels  # noqa: E402
from ezaudio.kernels import adaln, adaln_backward, attention, attention_backward, geglu, norm_tiles, skip_norm  # noqa: E402

Setting = dict[tuple[Any, str], Any]
"""(module, name) → what takes its place."""


def attention_tile(block_q: int, block_k: int, warps: int, stages: int) -> dict[str, int]:
    return {"BLOCK_Q": block_q, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages}


FORWARD = [(128, 64, 8, 3), (128, 64, 4, 3), (128, 32, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 3)]
BACKWARD = [(64, 32, 4, 2), (64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 3), (32, 64, 8, 2)]
Settings = list[tuple[str, bool, Setting]]
"""What a candidate is called, whether backward is what it changes, and what it sets."""


def forward_settings(module: Any, name: str, kept: Any, rows: tuple[int, ...], warps: tuple[int, ...]) -> Settings:
    found: Settings = [("in use", False, {(module, name): kept})]
    return found + [
        (f"rows {r}, warps {w}", False, {(module, name): {"whole": (r, w), "padded": (r, w)}})
        for r, w in product(rows, warps)
    ]


def attention_settings() -> Settings:
    in_use = attention_backward.tiles
    found: Settings = [("in use", False, {}), ("in use", True, {})]

    def forward(values: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *shape: attention_tile(*values)

    def backward(index: int, values: tuple[int, ...]) -> Callable[..., Any]:
        def chosen(dtype: torch.dtype, tail: int) -> tuple[dict[str, int], dict[str, int]]:
            dq, dkv = in_use(dtype, tail)
            return (attention_tile(*values), dkv) if index == 0 else (dq, attention_tile(*values))

        return chosen

    found += [(f"{v}", False, {(attention, "forward_tile"): forward(v)}) for v in FORWARD]
    found += [
        (f"{name} {v}", True, {(attention_backward, "tiles"): backward(i, v)})
        for i, name in enumerate(("dq", "dkv"))
        for v in BACKWARD
    ]
    return found


def norm_backwards() -> Settings:
    """Programs of one row have fewer registers, so that more of them fit on a multiprocessor."""
    in_use = norm_tiles.backward_tile

    def chosen(rows: int, warps: int) -> Callable[..., dict[str, int]]:
        return lambda *shape, **halves: in_use(*shape, **halves) | {"ROWS": rows, "num_warps": warps}

    found: Settings = [("in use", True, {})]
    for rows, warps, programs in product((1, 2), (4, 8), (128, 256, 384, 512, 640)):
        tile = chosen(rows, warps)
        setting: Setting = {(module, "backward_tile"): tile for module in (adaln_backward, skip_norm)}
        label = f"rows {rows}, warps {warps}, programs {programs}"
        found.append((label, True, setting | {(norm_tiles, "PROGRAMS"): programs}))
    return found


def settings() -> dict[str, Settings]:
    """By operator."""
    return {
        "adaln-sola": forward_settings(adaln, "NORM_TILE", adaln.NORM_TILE, (1, 2, 4), (1, 2, 4, 8)) + norm_backwards(),
        "skip norm": forward_settings(skip_norm, "SKIP_TILE", skip_norm.SKIP_TILE, (1, 2, 4), (1, 2, 4, 8))
        + norm_backwards(),
        "geglu": [("in use", False, {})]
        + [
            (f"block {b}, warps {w}", False, {(geglu, "BLOCK"): b, (geglu, "WARPS"): w})
            for b, w in product((256, 512, 1024, 2048), (2, 4, 8))
        ],
        "self-attention": attention_settings(),
        "cross-attention": attention_settings(),
    }


@contextmanager
def in_place(setting: Setting) -> Iterator[None]:
    before = {(module, name): getattr(module, name) for module, name in setting}
    try:
        for (module, name), value in setting.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def measured(case: kernels.Case, backward: bool, setting: Setting, rig: Rig) -> dict[str, Any]:
    try:
        with in_place(setting):
            if bad := kernels.wrong(case, rig.device):
                return {"reason": f"not correct: {bad[0]}"}
            times = kernels.measure(case, backward, rig, rivals=())["rounds_ms"]["fused"]
    except Exception as error:  # noqa: BLE001  what does not fit on the device says so
        return {"reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"}
    return {"us": 1e3 * spread(times)["median"], "rounds_ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="xl,l", help="with a comma between them [%(default)s]")
    parser.add_argument("--only", default=",".join(settings()), help="operators [all]")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_tiles.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="two candidates of each on tiny CPU tensors; not saved")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.dry_run:
        sys.exit("A CUDA GPU is needed to measure. --dry-run rehearses, with TRITON_INTERPRET=1.")
    rig = REHEARSAL if arguments.dry_run else GPU
    facts, bandwidth = hardware(rig.device), copy_bandwidth(rig)
    rows = []
    for model in arguments.models.split(","):
        width, batch = (32, 2) if arguments.dry_run else (kernels.WIDTHS[model], KERNEL_BATCH)
        if arguments.dry_run:
            kernels.HEADS, kernels.FRAMES, kernels.TOKENS = 2, rig.frames, rig.tokens
        for case in (*kernels.norm_cases(batch, width), *kernels.attention_cases(batch, width, rig)):
            if case.name not in arguments.only.split(","):
                continue
            candidates = settings()[case.name][: 2 if arguments.dry_run else None]
            for label, backward, setting in candidates:
                row = {"benchmark": "gpu_tiles", "model": model, "operator": case.name, "tile": label}
                row["pass"] = "both" if backward else "forward"
                rows.append(row | measured(replace(case), backward, setting, rig) | facts)
                if "us" in rows[-1]:
                    speed = case.moved[backward] / rows[-1]["us"] / 1e3
                    told = f"{rows[-1]['us']:8.1f} µs {speed:6.0f} GB/s {speed / bandwidth:4.0%}"
                else:
                    told = rows[-1]["reason"]
                print(f"{model:3} {case.name:16} {row['pass']:8} {label:22} {told}", flush=True)
    if not arguments.dry_run:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
