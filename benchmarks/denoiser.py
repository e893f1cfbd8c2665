"""One guided step of a bundle by parts: against plain ONNX Runtime, with its hoists off, and product by product.

    python benchmarks/denoiser.py --model l4                       # quick: L's width in five blocks
    python benchmarks/denoiser.py --model l --precision int8 --save
    python benchmarks/denoiser.py --model xl --bundle DIR --no-plain --save

Without --bundle the model is exported with random weights into the cache first. The sides run in turn:

\b
  ours       the guided step: prompt, and the empty prompt as a constant vector
  unguided   the same without guidance
  unhoisted  the same graphs, blocks and engine with nothing computed ahead: in every step the keys and values of
             both prompts padded to the full number of tokens, the modulation, the constant part of the first
             convolution, and cross-attention of both branches (not of an int8 bundle, whose conditioner is fp32:
             moved into the step it would cost more than hoisting saved)
  plain      the PyTorch model exported as it stands (fp32) and run with the same settings

Before they are timed, all but `unguided` must give the same guided velocity. Then a session of its own is profiled by
ONNX Runtime: time by operator, and for each shape of product its rate as a share of what this machine reaches with a
product of 1000 × 1024 × 4096, measured in the same run.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import click
import measure as shared
import onnxruntime as ort
from measure import hardware_line, require, rounds_option, save_option, write_row
from models import (
    MAX_RELATIVE_L2,
    MIN_COSINE,
    MODELS,
    TIMESTEPS,
    Bundle,
    find_bundle,
    start_latents,
    worst,
)
from timing import interleave, told

PROFILED_STEPS = 3
INTEGER_PRODUCTS = ("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul")
PRODUCTS = ("FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits", *INTEGER_PRODUCTS)
SHOWN = 12


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(MODELS), default="l4", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="[exported with random weights]")
@click.option("--duration", "duration_s", default=10.0, show_default=True)
@click.option("--plain/--no-plain", default=True, show_default=True)
@click.option("--min-cosine", type=float, help="Of velocities to the plain export's. [0.999 in int8]")
@rounds_option
@save_option
def main(
    model: str,
    precision: str,
    bundle: Path | None,
    duration_s: float,
    plain: bool,
    min_cosine: float | None,
    rounds: int,
    save: Path | None,
) -> None:
    opened = Bundle.open(find_bundle(model, precision, bundle))
    latents = start_latents(opened.config, duration_s)
    print(f"{model} in {precision}, {duration_s:g} s; {hardware_line()}")
    timestep = TIMESTEPS[1]
    at: dict[str, Callable[[int], Callable[[], Any]]] = {}
    if precision != "int8":
        at["unhoisted"] = lambda t: opened.unhoisted_step(latents, t)
    if plain:
        from plain import PlainStep

        graph = PlainStep(opened, latents, *opened.padded_states())
        at["plain"] = lambda t: lambda: graph(t)
    at_least = MIN_COSINE[precision] if min_cosine is None else min_cosine
    parity = {}
    for side, make in at.items():
        cosine, relative_l2, worst_at = worst(lambda t: opened.step(latents, t), make)
        print(f"parity with {side}: cosine {cosine:.6f}, relative L2 {relative_l2:.1e} (worst at timestep {worst_at})")
        require(f"step against {side}", relative_l2, MAX_RELATIVE_L2[precision], cosine, at_least)
        parity[side] = {"cosine": cosine, "relative_l2": relative_l2}
    opened.sessions.release("text_encoder")
    timing = interleave(
        {
            "ours": opened.step(latents, timestep),
            "unguided": opened.step(latents, timestep, guided=False),
            **{side: make(timestep) for side, make in at.items()},
        },
        rounds,
    )
    ratios = {side: timing.ratio(side, "ours") for side in ("unguided", *at)}
    for side in timing.seconds:
        ratio = f", {side} ÷ ours {told(ratios[side])}" if side in ratios else ""
        print(f"{side:10} {timing.median(side):.4f} s{ratio}")
    opened.sessions.release()
    profile = profiled(opened.folder, latents, shared.floor())
    print(profile_table(profile))
    row = {"benchmark": "denoiser", "case": "step", "model": model, "precision": precision, "duration_s": duration_s}
    row |= {"origin": opened.manifest.origin, "over_ours": ratios, "parity": parity, "profile": profile}
    write_row(row | timing.fields(), save)


@contextmanager
def profiling(folder: Path) -> Iterator[None]:
    """Sessions that the runtime opens meanwhile have its own options and write a profile each into `folder`.

    ONNX Runtime adds only the second to a profile's name: two sessions opened within one must differ before that.
    """
    number = itertools.count()

    class Options(ort.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(folder / f"profile{next(number)}")

    with mock.patch.object(ort, "SessionOptions", Options):
        yield


def profiled(folder: Path, latents: Any, floor: dict[str, float]) -> dict[str, Any]:
    """Seconds of one step by operator and by shape of product."""
    with tempfile.TemporaryDirectory() as made:
        with profiling(Path(made)):
            bundle = Bundle.open(folder)
            step = bundle.step(latents, TIMESTEPS[1])
            before = set(Path(made).iterdir())  # of the graphs that prepared the inputs
            for _ in range(PROFILED_STEPS + 1):
                step()
            (path,) = set(Path(made).iterdir()) - before
            bundle.sessions.release()
        events = json.loads(path.read_text())
    return summary(events, floor)


def summary(events: list[dict[str, Any]], floor: dict[str, float]) -> dict[str, Any]:
    """Of ONNX Runtime's events, the first run left out."""
    runs = [event for event in events if event["name"] == "model_run"][1:]
    operators: dict[str, float] = defaultdict(float)
    shapes: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time") or event["ts"] < runs[0]["ts"]:
            continue
        name, seconds = event["args"]["op_name"], event["dur"] / 1e6 / len(runs)
        operators[name] += seconds
        if name in PRODUCTS:
            ((_, x),) = event["args"]["input_type_shape"][0].items()
            ((_, output),) = event["args"]["output_type_shape"][0].items()
            inner = x[-1] if len(x) < 2 or x[-2] == output[-2] else x[-2]  # FusedMatMul may transpose
            key = (name, f"{x} → {output}", 2 * prod(output) * inner)
            shapes[key].append(seconds)
    total = sum(run["dur"] for run in runs) / 1e6 / len(runs)
    products: list[dict[str, Any]] = []
    for (name, shape, work), times in sorted(shapes.items(), key=lambda item: -sum(item[1])):
        count = len(times) // len(runs)
        rate = work * count / sum(times) / 1e9
        reached = floor["ort_int8" if name in INTEGER_PRODUCTS else "ort_fp32"]
        products.append(
            {
                "operator": name,
                "shape": shape,
                "count": count,
                "seconds": sum(times),
                "gflop_per_s": rate,
                "share_of_floor": rate / reached,
            }
        )
    in_products = sum(row["seconds"] for row in products)
    return {
        "step_s": total,
        "products_share": in_products / total,
        "gflop_per_s": sum(work * len(times) / len(runs) for (_, _, work), times in shapes.items()) / 1e9 / total,
        "operators": dict(sorted(operators.items(), key=lambda item: -item[1])),
        "products": products,
        "floor": floor,
    }


def profile_table(profile: dict[str, Any]) -> str:
    floor = "  ".join(f"{name} {rate:.0f}" for name, rate in profile["floor"].items())
    lines = [
        f"profiled step {profile['step_s']:.4f} s, {profile['products_share']:.0%} of it in products, "
        f"{profile['gflop_per_s']:.0f} GFLOP/s over all; floor in GFLOP/s and GB/s: {floor}",
        "",
        "operator                     ms   share",
    ]
    for name, seconds in [*profile["operators"].items()][:SHOWN]:
        lines.append(f"{name:24} {seconds * 1e3:7.1f} {seconds / profile['step_s']:6.1%}")
    lines += ["", "product                                                    count      ms  GFLOP/s  of floor"]
    for row in profile["products"][:SHOWN]:
        what = f"{row['operator']} {row['shape']}"
        lines.append(
            f"{what:58} {row['count']:5} {row['seconds'] * 1e3:7.1f} {row['gflop_per_s']:8.0f} "
            f"{row['share_of_floor']:8.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
