"""`ezaudio-calibrate`: the presets of a bundle, chosen and measured on this machine and written into its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ezaudio import __version__
from ezaudio.runtime.command import Command, errors_only
from ezaudio.runtime.errors import InputError

if TYPE_CHECKING:
    from ezaudio.runtime.presets import Preset

MAX_PROMPTS = 200
MAX_PROMPTS_BYTES = 1_000_000

HELP = """Choose the presets of a bundle, and measure what they cost.

BUNDLE is a folder, or the name of an exported model (l, xl). For each preset, sampling plans (solver, steps, guided
noise levels, reused blocks) within its budget are compared with clips of 100 guided steps from the same noise. The
best plan and its distance are written into the bundle's manifest, from where ezaudio-run --preset takes them. Nothing
else changes, but the bundle's id does, being that of the manifest.

\b
Examples:
  ezaudio-calibrate bundle/ --dry-run                  # shows what is there and what would be written
  ezaudio-calibrate l --precision int8 --duration 2.5  # shorter clips: less time
  ezaudio-calibrate bundle/ --prompts-file mine.txt    # half to choose on, half to measure on

A bar shows how far it is: about four minutes for nano, hours for l on two cores.

Exit code: 0 done, 2 wrong input (one line says what to do), 130 interrupted, the bundle as it was.
"""


@click.command(cls=Command, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle")
@click.option(
    "--precision", metavar="NAME", help="Which one of an exported model: fp32, fp16, bf16, int8, fp8, w8 or w4."
)
@click.option("--prompts-file", type=click.Path(path_type=Path), metavar="FILE", help="One a line. [a dozen sounds]")
@click.option("--seeds", type=click.IntRange(1, 100), default=2, show_default=True, help="Clips of each prompt.")
@click.option("--duration", "duration_s", type=float, default=5.0, show_default=True, help="Seconds of each clip.")
@click.option("--backend", metavar="NAME", default="auto", help="What computes, see ezaudio-doctor. [the best here]")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads. [all cores]")
@click.option("--dry-run", is_flag=True, help="Leave the bundle as it is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout in place of the table.")
@click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only (and what --json prints).")
@click.version_option(__version__, message="ezaudio %(version)s")
def main(
    bundle: str,
    precision: str | None,
    prompts_file: Path | None,
    seeds: int,
    duration_s: float,
    backend: str,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from dataclasses import replace

    from tqdm import tqdm

    from ezaudio.runtime.bundle_store import find_bundle
    from ezaudio.runtime.calibration import PROMPTS, calibrate
    from ezaudio.runtime.manifest import read_manifest
    from ezaudio.runtime.naming import Destination
    from ezaudio.runtime.text_to_audio import TextToAudio

    prompts = PROMPTS if prompts_file is None else read_prompts(prompts_file)
    folder = find_bundle(bundle, precision)
    model = TextToAudio(folder, backend=backend, threads=threads)
    if not dry_run:
        Destination.parse(str(folder), "BUNDLE")  # whether it can be written to is asked before hours of work
    for prompt in prompts:
        model.settings(prompt, duration_s=duration_s, seed=0)
    with tqdm(unit="", leave=False, disable=True if quiet else None) as bar:

        def progress(doing: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(doing, refresh=False)
            bar.n = done
            bar.refresh()

        presets = calibrate(model, prompts, range(1, seeds + 1), duration_s, progress=progress)
    presets = {**presets, **{name: old for name, old in model.presets.items() if name not in presets}}
    if not dry_run:
        if read_manifest(folder, verify=False).bundle_id != model.manifest.bundle_id:
            raise InputError(f"the bundle at '{folder}' was changed meanwhile, and stays as it is: calibrate it again")
        try:
            replace(model.manifest, presets=presets).write(folder)
        except OSError as error:
            raise InputError(
                f"cannot write to '{folder}' ({error.strerror}): free space or check its rights"
            ) from error
    if as_json:
        click.echo(json.dumps({name: preset.to_dict() for name, preset in presets.items()}))
    elif not quiet:
        click.echo(preset_table(presets))


def read_prompts(path: Path) -> tuple[str, ...]:
    """Non-blank lines of a UTF-8 file. Raises InputError for anything else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROMPTS_BYTES + 1)
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"--prompts-file: '{path}' cannot be read ({reason}): name a text file") from error
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if len(data) > MAX_PROMPTS_BYTES or not 2 <= len(prompts) <= MAX_PROMPTS:
        raise InputError(
            f"--prompts-file: '{path}' has {len(prompts)} prompts: name 2 to {MAX_PROMPTS}, one a line, at most "
            f"{MAX_PROMPTS_BYTES:,} bytes"
        )
    return prompts


def preset_table(presets: dict[str, Preset]) -> str:
    """A line for each preset."""
    from ezaudio.runtime.certificate import table

    rows: list[tuple[str, ...]] = [
        ("preset", "solver", "steps", "spacing", "guided at", "reusing", "evaluations", "latents", "mel")
    ]
    for name, preset in presets.items():
        low, high = preset.guidance_interval
        measured = ("not measured",) * 3
        if preset.fidelity is not None:
            found = preset.fidelity
            measured = (f"{found.evaluations:g}", f"{found.latent_error:.3f}", f"{found.level_distance_db:.2f} dB")
        plan = (
            preset.solver,
            str(preset.num_steps),
            f"{preset.spacing:g}",
            f"{low:g} to {high:g}",
            f"{len(preset.reuse)} steps",
        )
        rows.append((name, *plan, *measured))
    return table(rows)
