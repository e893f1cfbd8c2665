"""Where the seconds of a clip go: opening the bundle, text, steps, decoding; with peak memory.

    python benchmarks/sampling.py --bundle l --steps 2          # or --bundle DIR; default: the packaged model
    python benchmarks/sampling.py --bundle l --backend tensorrt --save result.jsonl
    python benchmarks/sampling.py --save benchmarks/results/sampling.jsonl

One process measures one bundle, so that peak memory is its own. The first clip is reported as `first`, later ones as
the median of `--repeats`. Another backend than ONNX Runtime on the CPU is compared with it on one second of sound, and
nothing is told when it differs by more than a twentieth. The row holds what `ezaudio-doctor --json` prints.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

MAX_DIFFERENCE = 0.05


def processor() -> str:
    """Name of the CPU and number of usable cores."""
    import os

    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def measure_clip(model: Any, steps: int | None, duration_s: float) -> dict[str, float]:
    """Seconds of one clip by stage. The text cache is emptied first."""
    marks: list[float] = []
    conditioning = model._conditioning
    conditioning.forget()
    start = time.perf_counter()
    conditioning.prompt("dog barking")
    conditioning.prompt("")
    text = time.perf_counter()
    model.generate(
        "dog barking",
        duration_s=duration_s,
        num_steps=steps,
        seed=0,
        on_step=lambda step: marks.append(time.perf_counter()),
    )
    end = time.perf_counter()
    gaps = [after - before for before, after in pairwise(marks)]
    return {
        "text_s": text - start,
        "before_first_step_done_s": marks[0] - text,
        "step_s": statistics.median(gaps) if gaps else marks[0] - text,
        "decode_s": end - marks[-1],
        "total_s": end - start,
    }


def parity(model: Any, bundle: str | None, precision: str | None) -> float:
    """‖samples − the CPU's‖ / ‖the CPU's‖ of one second at 2 steps without noise. Fails beyond MAX_DIFFERENCE.

    Few steps, because rounding grows with every one of them whatever the backend.
    """
    import numpy as np

    from ezaudio.runtime import TextToAudio

    settings = {"duration_s": 1.0, "num_steps": 2, "eta": 0.0, "seed": 0}
    got = model.generate("dog barking", **settings).samples
    expected = (
        TextToAudio(bundle, precision=precision, backend="onnxruntime").generate("dog barking", **settings).samples
    )
    difference = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    if not difference <= MAX_DIFFERENCE:
        raise click.ClickException(f"{model.backend} differs from the CPU by {difference:.1e}: nothing is told")
    return difference


@click.command(help=__doc__)
@click.option("--bundle", help="Folder, l, xl or nano. [the packaged model]")
@click.option("--precision", help="Of a named bundle.")
@click.option("--backend", default="auto", show_default=True, help="See ezaudio-doctor.")
@click.option("--steps", type=int, help="[the model's default]")
@click.option("--duration", type=float, default=10.0, show_default=True)
@click.option("--threads", type=int)
@click.option("--repeats", type=int, default=3, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Append the row to a JSON Lines file.")
def main(
    bundle: str | None,
    precision: str | None,
    backend: str,
    steps: int | None,
    duration: float,
    threads: int | None,
    repeats: int,
    save: Path | None,
) -> None:
    start = time.perf_counter()
    from ezaudio.runtime import TextToAudio
    from ezaudio.runtime.bundle_store import find_bundle
    from ezaudio.runtime.doctor import diagnose

    model = TextToAudio(bundle, precision=precision, threads=threads, backend=backend)
    opened = time.perf_counter() - start
    first = measure_clip(model, steps, duration)
    later = [measure_clip(model, steps, duration) for _ in range(repeats)]
    peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    difference = None if model.backend == "onnxruntime" else parity(model, bundle, precision)
    row = {
        "benchmark": "sampling",
        "model": model.model,
        "backend": model.backend,
        "relative_difference_to_cpu": difference,
        "precision": model.precision,
        "origin": model.manifest.origin,
        "duration_s": duration,
        "num_steps": steps or model.config.defaults.num_steps,
        "open_s": opened,
        "first": first,
        "median": {key: statistics.median(clip[key] for clip in later) for key in first} if later else None,
        "clips": later,
        "peak_memory_mib": peak_memory_mib,
        "bundle_bytes": sum(entry.size for entry in model.manifest.files.values()),
        "hardware": processor(),
        "doctor": diagnose(find_bundle(bundle, precision)),
        "versions": {name: version(name) for name in ("ezaudio", "onnxruntime", "numpy")},
    }
    print(
        f"{model.model} {model.precision}, {model.backend}, {duration:g} s, {row['num_steps']} steps; {row['hardware']}"
    )
    size = f"peak memory {row['peak_memory_mib']:,.0f} MiB, bundle {row['bundle_bytes'] / 1e6:,.0f} MB"
    print(f"open {opened:.2f} s, {size}")
    for name in ("first", "median"):
        if row[name]:
            print(f"{name:7}" + "  ".join(f"{key} {value:.3f}" for key, value in row[name].items()))  # type: ignore[attr-defined]
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        with save.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
