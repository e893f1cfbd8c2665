"""One graph in OpenVINO and in ONNX Runtime, on the CPU: time by turns, after both have given the same numbers.

    python benchmarks/openvino_cpu.py denoiser.onnx --size batch=1 --size frames=500 --size tokens=16
    python benchmarks/openvino_cpu.py decoder.onnx --size batch=1 --size frames=500 --hint bf16 --save rows.jsonl
    python benchmarks/openvino_cpu.py l32/denoiser.onnx --step 10 --hint bf16 --save rows.jsonl

The graph holds standard operators only, as those that other targets are typed from: OpenVINO does not know ONNX
Runtime's own. Inputs are drawn from a seed; with `--step` they are those of a guided step of the graph's bundle, for
so many seconds of sound, and the row has the cosine of the velocities. Needs `pip install openvino`.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from ezaudio.runtime.machine import processor

TOLERANCES = {"f32": 1e-4, "bf16": 5e-2}


def sizes_of(shape: list[int | str], sizes: dict[str, int]) -> list[int]:
    """Declared dimensions, each a number, an axis or a multiple as `2*batch`, in numbers."""
    result = []
    for dim in shape:
        match = re.fullmatch(r"(?:(\d+)\*)?(\w+)", str(dim))
        if isinstance(dim, int):
            result.append(dim)
        elif match is None or match[2] not in sizes:
            raise click.ClickException(f"the graph has an axis {dim!r}: give --size NAME=NUMBER for it")
        else:
            result.append(int(match[1] or 1) * sizes[match[2]])
    return result


def draw(inputs: list[Any], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Normals of a size at which no activation overflows, small token ids, masks of True."""
    random = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    for node in inputs:
        shape = sizes_of(node.shape, sizes)
        if "bool" in node.type:
            values[node.name] = np.ones(shape, np.bool_)
        elif "int64" in node.type:
            values[node.name] = random.integers(0, 9, shape)
        else:
            values[node.name] = random.standard_normal(shape).astype(np.float32)
    return values


def guided_step(bundle: Path, duration_s: float) -> dict[str, np.ndarray]:
    """What a bundle's denoiser is fed with in the middle of a clip, to give the velocity."""
    from models import PROMPT, TIMESTEPS, Bundle, start_latents

    from ezaudio.runtime.teacher_forcing import Point

    opened = Bundle.open(bundle)
    return opened.teacher.inputs(Point(start_latents(opened.config, duration_s), TIMESTEPS[1], PROMPT))


def by_turns(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> list[tuple[float, float]]:
    """Seconds of each, in pairs."""
    pairs = []
    for _ in range(repeats):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        pairs.append((middle - start, time.perf_counter() - middle))
    return pairs


@click.command(help=__doc__)
@click.argument("graph", type=click.Path(path_type=Path, exists=True))
@click.option("--size", "sizes", multiple=True, help="Axis and its size, NAME=NUMBER.")
@click.option(
    "--step", "duration_s", type=float, metavar="SECONDS", help="GRAPH is a bundle's denoiser: a guided step."
)
@click.option("--hint", type=click.Choice(sorted(TOLERANCES)), default="f32", show_default=True)
@click.option("--tolerance", type=float, help="Largest relative difference of an output. [1e-4 in f32, 5e-2 in bf16]")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--repeats", type=int, default=7, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Append the row to a JSON Lines file.")
def main(
    graph: Path,
    sizes: tuple[str, ...],
    duration_s: float | None,
    hint: str,
    tolerance: float | None,
    threads: int,
    repeats: int,
    save: Path | None,
) -> None:
    import onnxruntime
    import openvino

    from ezaudio.runtime.measures import measure

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    if duration_s is None:
        given = draw(session.get_inputs(), {name: int(number) for name, number in (size.split("=") for size in sizes)})
    else:
        given = guided_step(graph.parent, duration_s)
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(str(graph)), "CPU", settings).create_infer_request()

    def in_openvino() -> list[np.ndarray]:
        results = request.infer(given)
        return [np.array(value) for value in results.values()]

    expected, got = session.run(None, given), in_openvino()
    compared = [measure(a, b) for a, b in zip(got, expected, strict=True) if np.any(b)]  # a step for its velocity
    cosine, difference = min(cosine for cosine, _ in compared), max(l2 for _, l2 in compared)
    limit = TOLERANCES[hint] if tolerance is None else tolerance
    if not difference <= limit:
        raise click.ClickException(f"OpenVINO differs by {difference:.1e}, more than {limit:.0e}: nothing is told")
    pairs = by_turns(lambda: session.run(None, given), in_openvino, repeats)
    ratios = [ort / other for ort, other in pairs]
    low, median, high = np.percentile(ratios, [20, 50, 80])
    row = {
        "benchmark": "openvino",
        "graph": graph.stem,
        "sizes": dict(size.split("=") for size in sizes),
        "step_of_s": duration_s,
        "hint": hint,
        "threads": threads,
        "relative_difference": difference,
        "cosine": cosine,
        "onnxruntime_s": statistics.median(ort for ort, _ in pairs),
        "openvino_s": statistics.median(other for _, other in pairs),
        "onnxruntime_over_openvino": {"p20": low, "median": median, "p80": high},
        "hardware": processor(),
        "versions": {name: version(name) for name in ("openvino", "onnxruntime", "numpy")},
    }
    print(
        f"{graph.stem}, {hint}: ONNX Runtime {row['onnxruntime_s']:.3f} s, OpenVINO {row['openvino_s']:.3f} s, "
        f"ratio {median:.2f} ({low:.2f} to {high:.2f}), difference {difference:.1e}, cosine {cosine:.6f}; "
        f"{row['hardware']}"
    )
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        with save.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
