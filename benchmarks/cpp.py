"""The C++ runtime against the Python runtime on one bundle: whole clips, and how soon a clip can be heard.

    python benchmarks/cpp.py --build BUILD --steps 25                  # BUILD: where CMake built runtime/cpp
    python benchmarks/cpp.py --build BUILD --bundle DIR --save

Each run is a process of its own that opens the bundle, makes one clip to warm up and then `--clips` more; runs of the
two languages alternate. Samples must be equal before a ratio is printed. `first chunk` is the time from the last step
to the first quarter of a second of sound, `decode` that to the whole clip.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from measure import hardware_line, save_option, write_row
from timing import spread, told

PYTHON_SIDE = """
import hashlib, sys, time
from ezaudio.runtime import TextToAudio
bundle, steps, duration_s, clips = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
model = TextToAudio(bundle, verify=False)
for _ in range(clips):
    start = time.perf_counter()
    audio = model.generate("dog barking", num_steps=steps, duration_s=duration_s, seed=1).samples
    print(time.perf_counter() - start, hashlib.sha256(audio.tobytes()).hexdigest())
"""


def run(command: list[str], digests: set[str]) -> list[list[float]]:
    """Rows of seconds that a run prints, without the first clip; the sha256 of each clip's samples joins `digests`."""
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    digests.update(line.split()[-1] for line in lines)
    return [[float(word) for word in line.split()[:-1]] for line in lines[1:]]


@click.command(help=__doc__)
@click.option("--build", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="[the packaged model]")
@click.option("--steps", default=25, show_default=True)
@click.option("--duration", default=10.0, show_default=True)
@click.option("--clips", default=3, show_default=True, help="A process.")
@click.option("--pairs", default=7, show_default=True)
@save_option
def main(
    build: Path, bundle: Path | None, steps: int, duration: float, clips: int, pairs: int, save: Path | None
) -> None:
    from ezaudio.runtime.bundle_store import PACKAGED
    from ezaudio.runtime.manifest import read_manifest

    folder = bundle or PACKAGED
    words = [str(folder), str(steps), str(duration), str(clips + 1)]
    rows: list[dict[str, list[list[float]]]] = []
    digests: set[str] = set()
    for pair in range(pairs):
        rows.append(
            {
                "python": run([sys.executable, "-c", PYTHON_SIDE, *words], digests),
                "cpp": run([str(build / "ezaudio_parity"), "time", *words], digests),
            }
        )
        print(f"pair {pair + 1} of {pairs}", file=sys.stderr)
    if len(digests) != 1:
        raise click.ClickException("the samples differ between the languages or runs: nothing is told")
    seconds = {side: [statistics.median(row[0] for row in pair[side]) for pair in rows] for side in ("python", "cpp")}
    manifest = read_manifest(folder, verify=False)
    result: dict[str, Any] = {
        "benchmark": "cpp",
        "model": manifest.config.name,
        "precision": manifest.precision,
        "duration_s": duration,
        "num_steps": steps,
        "cpp_over_python": spread([b / a for a, b in zip(seconds["python"], seconds["cpp"], strict=True)]),
        "first_chunk_over_decode": spread([row[2] / row[1] for pair in rows for row in pair["cpp"]]),
        "clip_s": {side: spread(values) for side, values in seconds.items()},
        "pairs": rows,
    }
    print(f"{result['model']} {result['precision']}, {duration:g} s, {steps} steps; {hardware_line()}")
    for name in ("cpp_over_python", "first_chunk_over_decode"):
        print(f"{name:24} {told(result[name])}")
    for side, values in result["clip_s"].items():
        print(f"{side:24} {values['median']:.3f} s a clip")
    write_row(result, save)


if __name__ == "__main__":
    main()
