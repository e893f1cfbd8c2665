"""What a user waits for before anything happens: new processes that import, print help, or make a first sound.

    python benchmarks/cold_start.py --save

Each round starts one process of every kind; the first round warms the disk's cache. `python` is an interpreter that
does nothing, for comparison. The sound is one of the packaged model at its default settings, from the command line to
the WAV file, which must be the same every time. Importing the runtime must load neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import click
from measure import hardware_line, rounds_option, save_option, write_row
from timing import interleave, spread, told

HEAVY = ("torch", "transformers")
IMPORTS = "import ezaudio.runtime"
FIRST_SOUND: tuple[str, ...] = ()  # settings: the model's defaults
SHOWN = 8


@click.command(help=__doc__)
@click.option("--prompt", default="dog barking", show_default=True)
@rounds_option
@save_option
def main(prompt: str, rounds: int, save: Path | None) -> None:
    script = Path(sysconfig.get_path("scripts"), "ezaudio-run")
    if not script.is_file():
        raise click.ClickException(f"'{script}' is missing: pip install this package first")
    heavy = loaded(IMPORTS, "import ezaudio.runtime.cli")
    if heavy:
        raise click.ClickException(f"the runtime imports {', '.join(heavy)}: nothing is timed")
    print(hardware_line())
    with tempfile.TemporaryDirectory() as folder:
        sound, digests = Path(folder, "sound.wav"), set()

        def first_sound() -> None:
            _run([script, prompt, "--seed", "1", "--quiet", "-o", sound, *FIRST_SOUND])
            digests.add(hashlib.sha256(sound.read_bytes()).hexdigest())

        timing = interleave(
            {
                "python": lambda: _run([sys.executable, "-c", ""]),
                "import": lambda: _run([sys.executable, "-c", IMPORTS]),
                "help": lambda: _run([script, "--help"]),
                "sound": first_sound,
            },
            rounds,
        )
    if len(digests) != 1:
        raise click.ClickException("the same command gave different sounds: nothing is told")
    for side, seconds in timing.seconds.items():
        print(f"{side:8} {told(spread(seconds), ' s')}")
    heaviest = {code: slowest_imports(code) for code in (IMPORTS, "import ezaudio.runtime.text_to_audio")}
    for code, rows in heaviest.items():
        print(f"{code}: " + ", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in rows.items()))
    row = {"benchmark": "cold_start", "case": "processes", "model": "nano", "imports_ms": heaviest}
    write_row(row | timing.fields(), save)


def _run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{command[0]} failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return done.stdout + done.stderr


def loaded(*imports: str) -> list[str]:
    """Which heavy packages these statements load."""
    code = f"{'; '.join(imports)}; import sys; print(*({set(HEAVY)!r} & sys.modules.keys()))"
    return sorted(_run([sys.executable, "-c", code]).split())


def slowest_imports(code: str) -> dict[str, float]:
    """Module → milliseconds with all it imports, the slowest first; modules of ours, and those that ours import."""
    rows = re.findall(
        r"import time:\s+\d+ \|\s+(\d+) \|( *)(\S+)", _run([sys.executable, "-X", "importtime", "-c", code])
    )
    times = {name: int(cumulative) / 1e3 for cumulative, indent, name in rows if len(indent) <= 7}
    return dict(sorted(times.items(), key=lambda item: -item[1])[:SHOWN])


if __name__ == "__main__":
    main()
