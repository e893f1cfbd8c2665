"""Where the seconds of a clip go: opening the bundle, text, modulation, steps, decoding, writing; and presets.

    python benchmarks/sampling.py --bundle l --steps 2          # or --bundle DIR; default: the packaged model
    python benchmarks/sampling.py --bundle l8/ --preset fast --save
    python benchmarks/sampling.py --bundle l8/ --against-official fast --save     # whole clips, 100 steps each
    python benchmarks/sampling.py --bundle l --backend tensorrt --save

One process measures one bundle, so that peak memory is its own. The first clip is reported as `first`, later ones as
the median of `--repeats`; the same seed must give the same samples every time. With ONNX Runtime on a CPU every call of
a model is timed by graph, and the time outside of them is what is left. Another backend is compared with the CPU on one
second of sound first, and nothing is told when it differs by more than a twentieth.

`--against-official PRESET` times whole clips in turn: the official settings (100 steps of ddim, eta 1, guidance 5,
rescale 0.75) and the preset. What a preset costs in fidelity is in the bundle's manifest, not here.
"""

from __future__ import annotations

import hashlib
import inspect
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from measure import hardware_line, peak_memory_mib, rounds_option, save_option, write_row
from timing import interleave, spread, told

MAX_DIFFERENCE = 0.05
PROMPT = "dog barking"
OFFICIAL = {"num_steps": 100, "solver": "ddim", "eta": 1.0, "guidance_scale": 5.0, "guidance_rescale": 0.75}
STAGES = {
    "text_s": ("text_encoder",),
    "conditioner_s": ("conditioner",),
    "modulation_s": ("modulation",),
    "frame_bias_s": ("frame_bias",),
}


class Clock:
    """Seconds inside ONNX Runtime by graph, of a model whose backend is ONNX Runtime on the CPU."""

    def __init__(self, sessions: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        opened: Callable[[str], Any] = sessions.open
        sessions.open = lambda name: _TimedSession(opened(name), name, self.seconds)


class _TimedSession:
    def __init__(self, session: Any, name: str, seconds: dict[str, float]) -> None:
        self._session, self._name, self._seconds = session, name, seconds

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._session, name)
        if name not in ("run", "run_with_iobinding"):
            return value

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return value(*args)
            finally:
                self._seconds[self._name] += time.perf_counter() - start

        return timed


def measure_clip(model: Any, clock: Clock | None, settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Seconds of one clip by stage, from prompt to file, and the digest of its samples. Nothing is kept of the clip
    before but open sessions."""
    from ezaudio.runtime.audio_file import write_audio

    model._conditioning.forget()
    if clock is not None:
        clock.seconds.clear()
    marks: list[float] = []
    start = time.perf_counter()
    made = model.generate(PROMPT, seed=0, on_step=lambda step: marks.append(time.perf_counter()), **settings)
    generated = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        writing = time.perf_counter()
        write_audio(Path(folder, "clip.wav"), made.samples[0], made.sample_rate, made.settings[0].to_dict())
        write_s = time.perf_counter() - writing
    gaps = [after - before for before, after in pairwise(marks)]
    total = generated - start + write_s
    stages: dict[str, Any] = {"before_first_step_done_s": marks[0] - start}
    if clock is not None:
        stages |= {stage: sum(clock.seconds[name] for name in names) for stage, names in STAGES.items()}
        outside = total - sum(clock.seconds.values())
        stages |= {"outside_s": outside, "outside_share": outside / total}
    return stages | {
        "step_s": statistics.median(gaps) if gaps else marks[0] - start,
        "steps_s": gaps,
        "decode_s": generated - marks[-1],
        "write_s": write_s,
        "total_s": total,
    }, hashlib.sha256(made.samples.tobytes()).hexdigest()


def parity(model: Any, bundle: str | None, precision: str | None) -> float:
    """‖samples − the CPU's‖ / ‖the CPU's‖ of one second at 2 steps without noise. Fails beyond MAX_DIFFERENCE.

    Few steps, because rounding grows with every one of them whatever the backend.
    """
    import numpy as np

    from ezaudio.runtime import TextToAudio

    settings: Any = {"duration_s": 1.0, "num_steps": 2, "eta": 0.0, "seed": 0}
    got = model.generate(PROMPT, **settings).samples
    expected = TextToAudio(bundle, precision=precision, backend="onnxruntime").generate(PROMPT, **settings).samples
    difference = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    if not difference <= MAX_DIFFERENCE:
        raise click.ClickException(f"{model.backend} differs from the CPU by {difference:.1e}: nothing is told")
    return difference


@click.command(help=__doc__)
@click.option("--bundle", help="Folder, l, xl or nano. [the packaged model]")
@click.option("--precision", help="Of a named bundle.")
@click.option("--backend", default="auto", show_default=True, help="See ezaudio-doctor.")
@click.option("--preset", help="fast, balanced, best or official. [the model's defaults]")
@click.option("--steps", type=int, help="[the preset's, or the model's default]")
@click.option("--duration", type=float, default=10.0, show_default=True)
@click.option("--threads", type=int)
@click.option("--repeats", type=int, default=3, show_default=True)
@click.option("--against-official", "against", metavar="PRESET", help="Compare this preset with the official settings.")
@rounds_option
@save_option
def main(
    bundle: str | None,
    precision: str | None,
    backend: str,
    preset: str | None,
    steps: int | None,
    duration: float,
    threads: int | None,
    repeats: int,
    against: str | None,
    rounds: int,
    save: Path | None,
) -> None:
    start = time.perf_counter()
    from ezaudio.runtime import TextToAudio
    from ezaudio.runtime.bundle_store import find_bundle
    from ezaudio.runtime.doctor import diagnose

    model = TextToAudio(bundle, precision=precision, threads=threads, backend=backend)
    opened = time.perf_counter() - start
    difference = None if model.backend == "onnxruntime" else parity(model, bundle, precision)
    title: dict[str, Any] = {"benchmark": "sampling", "model": model.model, "backend": model.backend}
    title["precision"] = model.precision
    title |= {"origin": model.manifest.origin, "duration_s": duration, "relative_difference_to_cpu": difference}
    print(f"{model.model} {model.precision}, {model.backend}, {duration:g} s; {hardware_line()}")
    named = preset or against
    if named is not None and "preset" not in inspect.signature(model.generate).parameters:
        print(f"preset {named}: not measured, this version has no presets")
        return
    if against is not None:
        write_row(title | compare(model, against, duration, steps, rounds), save)
        return
    settings = {"duration_s": duration, "num_steps": steps} | ({} if preset is None else {"preset": preset})
    clock = Clock(model._sessions) if model.backend == "onnxruntime" else None
    clips = [measure_clip(model, clock, settings) for _ in range(repeats + 1)]
    if len({digest for _, digest in clips}) != 1:
        raise click.ClickException("the same seed gave different samples: nothing is told")
    first, *later = [clip for clip, _ in clips]
    keys = [key for key in first if key != "steps_s"]
    row = title | {
        "case": "clip",
        "preset": preset,
        "num_steps": len(first["steps_s"]) + 1,
        "open_s": opened,
        "first": first,
        "median": {key: statistics.median(clip[key] for clip in later) for key in keys} if later else None,
        "clips": later,
        "peak_memory_mib": peak_memory_mib(),
        "bundle_bytes": sum(entry.size for entry in model.manifest.files.values()),
        "doctor": diagnose(find_bundle(bundle, precision)),
    }
    size = f"peak memory {row['peak_memory_mib'] or 0:,.0f} MiB, bundle {row['bundle_bytes'] / 1e6:,.0f} MB"
    print(f"{row['num_steps']} steps; open {opened:.2f} s, {size}")
    for name, clip in (("first", first), ("median", row["median"])):
        if clip:
            print(f"{name:7}" + "  ".join(f"{key} {clip[key]:.4g}" for key in keys))
    write_row(row, save)


def compare(model: Any, preset: str, duration_s: float, steps: int | None, rounds: int) -> dict[str, Any]:
    """C5: whole clips at the official settings (of `steps` steps when told) and with a preset, in turn."""
    official = OFFICIAL | ({} if steps is None else {"num_steps": steps})
    digests: dict[str, set[str]] = {"official": set(), preset: set()}

    def clip(side: str, settings: dict[str, Any]) -> Callable[[], None]:
        def run() -> None:
            _, digest = measure_clip(model, None, {"duration_s": duration_s, **settings})
            digests[side].add(digest)

        return run

    timing = interleave({"official": clip("official", official), preset: clip(preset, {"preset": preset})}, rounds)
    if any(len(found) != 1 for found in digests.values()):
        raise click.ClickException("the same seed gave different samples: nothing is told")
    ratio = timing.ratio("official", preset)
    for side, seconds in timing.seconds.items():
        print(f"{side:9} {told(spread(seconds), ' s')}")
    print(f"official ÷ {preset} {told(ratio)}")
    return {
        "case": "preset",
        "preset": preset,
        "num_steps": official["num_steps"],
        "official_over_preset": ratio,
    } | timing.fields()


if __name__ == "__main__":
    main()
