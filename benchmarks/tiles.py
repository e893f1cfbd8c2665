"""Times of the kernels under other tile sizes: for a GPU that they were not chosen on.

    python benchmarks/tiles.py                  # XL and L; from a checkout, like gpu.py
    python benchmarks/tiles.py --models xl --only self-attention,cross-attention

A candidate takes the place of what the kernels' modules say, is checked against float64 as in kernels.py, and timed as
a CUDA graph with a cold second-level cache; backward is timed with the forward pass that it needs. What does not fit
or is not correct is said. All candidates are compiled first, side by side. Rows are appended to
benchmarks/results/gpu_tiles.jsonl.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from checkout import ROOT, use_checkout

use_checkout("kernels", "runtime")

from gpu_goals import PASSES, Sizes  # noqa: E402
from gpu_rig import GPU, REHEARSAL, Rig, copy_bandwidth, hardware, save  # noqa: E402
from operators import Case, attention_cases, measure, norm_cases, run_once, sized, wrong  # noqa: E402
from timing import spread  # noqa: E402
from torch import Tensor  # noqa: E402

from ezaudio.kernels import adaln, adaln_backward, attention, attention_backward, folded, geglu, norm_tiles, skip_norm  # noqa: E402
from ezaudio.kernels import reference as ops  # noqa: E402
from kernels import MODELS, named  # noqa: E402

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


NORM_BACKWARD = [(2, 4, 3), (1, 4, 1), (1, 4, 2), (1, 4, 3), (1, 8, 1), (1, 8, 3)]


def norm_backwards() -> Settings:
    """Programs of one row have fewer registers, so that more of them fit on a multiprocessor."""
    in_use = norm_tiles.backward_tile

    def chosen(rows: int, warps: int, stages: int) -> Callable[..., dict[str, int]]:
        tile = {"ROWS": rows, "num_warps": warps, "STAGES": stages}
        return lambda *shape, **halves: in_use(*shape, **halves) | tile

    found: Settings = [("in use", True, {})]
    for (rows, warps, stages), programs in product(NORM_BACKWARD, (256, 384, 512, 640)):
        tile = chosen(rows, warps, stages)
        setting: Setting = {(module, "backward_tile"): tile for module in (adaln_backward, skip_norm)}
        label = f"rows {rows}, warps {warps}, stages {stages}, programs {programs}"
        found.append((label, True, setting | {(norm_tiles, "PROGRAMS"): programs}))
    return found


FOLDED = {
    "NORM_TILE": ("folded norm", "folded norm of 8 clips"),
    "SKIP_TILE": ("folded skip", "folded skip of 8 clips"),
}
REPEATED = 20  # launches in a row, as a step is made of: a single one is not much longer than what starts it


def folded_cases(sizes: Sizes) -> list[Case]:
    """The norms of inference, of one guided clip and of eight."""

    def total(m_x: Tensor, update: Tensor, m_gate: Tensor) -> Tensor:
        return m_x + (1.0 - m_gate) * update

    def plain_norm(m_x: Tensor, update: Tensor, m_gate: Tensor, m_weight: Tensor, m_bias: Tensor) -> tuple[Tensor, ...]:
        added = total(m_x, update, m_gate)
        return added, F.layer_norm(added, (width,), m_weight, m_bias, ops.NORM_EPS)

    def norm(m_x: Tensor, update: Tensor, m_gate: Tensor, m_weight: Tensor, m_bias: Tensor) -> tuple[Tensor, ...]:
        for _ in range(REPEATED):
            found = folded.norm(m_x, m_weight, m_bias, update.dtype, update, m_gate)
        return found

    def plain_skip(
        m_x: Tensor, m_skip: Tensor, update: Tensor, m_gate: Tensor, m_weight: Tensor, m_bias: Tensor
    ) -> Tensor:
        return ops.skip_norm(total(m_x, update, m_gate), m_skip, m_weight, m_bias)

    def skip(m_x: Tensor, m_skip: Tensor, update: Tensor, m_gate: Tensor, m_weight: Tensor, m_bias: Tensor) -> Tensor:
        for _ in range(REPEATED):
            found = folded.skip_norm(m_x, m_skip, m_weight, m_bias, update.dtype, update, m_gate)
        return found

    cases, frames, width = [], sizes.frames, sizes.width
    for index, rows in enumerate((2, sizes.batch)):
        tokens, row = (rows, frames, width), {"m_gate": (width,)}
        values = REPEATED * rows * frames * width
        given = {"m_x": tokens, "update": tokens, **row, "m_weight": (width,), "m_bias": (width,)}
        name, skip_name = (names[index] for names in FOLDED.values())
        cases.append(Case(name, plain_norm, norm, given, (12 * values,) * 2, (0, 0), {}))
        given = {"m_x": tokens, "m_skip": tokens, "update": tokens, **row}
        given |= {"m_weight": (2 * width,), "m_bias": (2 * width,)}
        cases.append(Case(skip_name, plain_skip, skip, given, (14 * values,) * 2, (0, 0), {}))
    return [replace(case, trained=False, cached=True) for case in cases]


def settings() -> dict[str, Settings]:
    """By operator."""
    return {
        "adaln-sola": forward_settings(adaln, "NORM_TILE", adaln.NORM_TILE, (1, 2, 4), (1, 2, 4, 8)) + norm_backwards(),
        "skip norm": forward_settings(skip_norm, "SKIP_TILE", skip_norm.SKIP_TILE, (1, 2, 4), (1, 2, 4, 8))
        + norm_backwards(),
        **{
            name: forward_settings(folded, attribute, getattr(folded, attribute), (1, 2, 4), (1, 2, 4, 8))
            for attribute, names in FOLDED.items()
            for name in names
        },
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


def cases(model: str, rig: Rig) -> list[Case]:
    sizes = sized(rig, model)
    return [*norm_cases(sizes), *folded_cases(sizes), *attention_cases(sizes, rig)]


def compile_candidates(model: str, operator: str, numbers: list[int]) -> None:
    """In a process of its own, for what it leaves in Triton's cache. Failures are told when measured."""
    case = next(case for case in cases(model, GPU) if case.name == operator)
    inputs = {name: x.requires_grad_() for name, x in case.inputs(GPU.device).items()}
    for number in numbers:
        _, backward, setting = settings()[operator][number]
        with suppress(Exception), in_place(setting):
            run_once(case, inputs, backward)


def prepare(models: list[str], operators: list[str], passes: list[str]) -> None:
    """Compile all candidates, a few in each process."""
    jobs = []
    for model, operator in product(models, operators):
        numbers = [i for i, (_, backward, _) in enumerate(settings()[operator]) if PASSES[backward] in passes]
        jobs += [(model, operator, numbers[first::8]) for first in range(min(8, len(numbers)))]
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    print(f"compiling {sum(len(job[2]) for job in jobs)} candidates in {workers} processes …", file=sys.stderr)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(compile_candidates, *job) for job in jobs]:
            done.result()


def fastest(rows: list[dict[str, Any]]) -> str:
    """By operator and pass: the four fastest candidates, and what is in use."""
    lines = []
    for key in dict.fromkeys((row["model"], row["operator"], row["pass"]) for row in rows):
        timed = [row for row in rows if (row["model"], row["operator"], row["pass"]) == key and "us" in row]
        timed.sort(key=lambda row: row["us"])
        kept = timed[:4] + [row for row in timed[4:] if row["tile"] == "in use"]
        lines.append(" ".join(key) + ": " + "; ".join(f"{row['us']:.1f} µs {row['tile']}" for row in kept))
    return "\n".join(lines)


def rehearsed(candidates: Settings) -> Settings:
    """Two of each pass."""
    return [found for each in (False, True) for found in [c for c in candidates if c[1] is each][:2]]


def measured(case: Case, backward: bool, setting: Setting, rig: Rig) -> dict[str, Any]:
    try:
        with in_place(setting):
            if bad := wrong(case, rig.device):
                return {"reason": f"not correct: {bad[0]}"}
            times = measure(case, backward, rig, rivals=())["rounds_ms"]["fused"]
    except Exception as error:  # noqa: BLE001  what does not fit on the device says so
        return {"reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"}
    return {"us": 1e3 * spread(times)["median"], "rounds_ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="xl,l", help="with a comma between them [%(default)s]")
    parser.add_argument("--only", default=",".join(settings()), help="operators [all]")
    parser.add_argument("--passes", default=",".join(PASSES), help="whose tiles to try [%(default)s]")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_tiles.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="two candidates of each on tiny CPU tensors; not saved")
    arguments = parser.parse_args()
    rig = REHEARSAL if arguments.dry_run else GPU
    models = named(parser, "--models", arguments.models, MODELS)
    operators = named(parser, "--only", arguments.only, tuple(settings()))
    passes = named(parser, "--passes", arguments.passes, PASSES)
    if not torch.cuda.is_available() and not arguments.dry_run:
        sys.exit("A CUDA GPU is needed to measure. --dry-run rehearses, with TRITON_INTERPRET=1.")
    if not arguments.dry_run:
        start = time.monotonic()
        prepare(models, operators, passes)
        print(f"compiled in {time.monotonic() - start:.0f} s", file=sys.stderr)
    facts, bandwidth = hardware(rig.device), copy_bandwidth(rig)
    rows = []
    for model in models:
        for case in (case for case in cases(model, rig) if case.name in operators):
            candidates = [found for found in settings()[case.name] if PASSES[found[1]] in passes]
            for label, backward, setting in rehearsed(candidates) if arguments.dry_run else candidates:
                row = {"benchmark": "gpu_tiles", "model": model, "operator": case.name, "tile": label}
                row["pass"] = PASSES[backward]
                rows.append(row | measured(case, backward, setting, rig) | facts)
                if "us" in rows[-1]:
                    speed = case.moved[backward] / rows[-1]["us"] / 1e3
                    told = f"{rows[-1]['us']:8.1f} µs {speed:6.0f} GB/s {speed / bandwidth:4.0%}"
                else:
                    told = rows[-1]["reason"]
                print(f"{model:3} {case.name:16} {row['pass']:8} {label:44} {told}", flush=True)
                if not arguments.dry_run:
                    save(rows[-1], arguments.output)
    print(fastest(rows))


if __name__ == "__main__":
    main()
