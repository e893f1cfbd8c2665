"""`ezaudio-export`: official or own checkpoints → a bundle of ONNX graphs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ezaudio import __version__
from ezaudio.runtime.bundle_store import PRECISIONS, TARGETS, cached_bundle
from ezaudio.runtime.certificate import certificate_table
from ezaudio.runtime.command import Command, errors_only
from ezaudio.runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from ezaudio.runtime.manifest import Check, Manifest

NEEDED = ("torch", "transformers", "safetensors", "onnx", "onnxscript", "tokenizers")

HELP = """Export a model to a bundle: a folder of ONNX graphs, tokenizer files and a manifest, which ezaudio-run opens.

\b
Examples:
  ezaudio-export --precision fp16                        # EzAudio-L from the Hub; then: ezaudio-run "rain" --bundle l
  ezaudio-export --model xl --precision int8
  ezaudio-export --checkpoint release/ --output bundle/  # a local copy of the release (ckpts/...)
  ezaudio-export --model my_model/ --output bundle/      # a folder that ezaudio's training wrote
  ezaudio-export --precision fp16 --target tensorrt      # typed graphs with a certificate, for TensorRT
  ezaudio-export --model l --random-weights -o random/   # right size and speed, meaningless sound: for benchmarks
  ezaudio-export --precision fp16 --target tensorrt-rtx --compute-capability 8.9   # with engines for an RTX 40

Precisions: fp32; fp16 and bf16 halve the files and compute in fp32 on a CPU; int8 makes a step's products integer ones,
the fastest on a CPU, and finds out which of them need more bits; w8 and w4 keep weights of 8 and 4 bits in memory. Each
graph is run against the PyTorch module it came from, or the fp32 graph; the table of errors is printed and kept in the
manifest, and an export beyond the tolerance fails. The folder appears when all is done, not before.

With --target tensorrt the graphs' own types say what computes in fp16, bf16, int8 or fp8 (from compute capability 8.9
on). They are certified against fp32 over a set of prompts: about a minute for nano, much longer for l. What is not
certified is not written. ezaudio-verify measures it again, anywhere.

Exit code: 0 done, 2 wrong input or failed check (one line says what to do), 130 interrupted.
"""


@click.command(cls=Command, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option(
    "--target", type=click.Choice(TARGETS), default="cpu", show_default=True, help="What the graphs are written for."
)
@click.option("--model", metavar="l|xl|nano|FOLDER", default="l", show_default=True, help="What to export.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Local copy of the release, or one DiT file.")
@click.option("--text-encoder", type=click.Path(path_type=Path), help="Local FLAN-T5 folder. [from the Hub]")
@click.option("--controlnet", metavar="energy|FILE", help="Export the energy ControlNet, too.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle. [the user's cache]")
@click.option(
    "--random-weights", is_flag=True, help="Random weights of the right shapes: benchmarks without downloads."
)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    multiple=True,
    help="GPU to build engines for, here or not; may be given repeatedly. [this machine's]",
)
@click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only.")
@click.version_option(__version__, message="ezaudio %(version)s")
def main(
    precision: str,
    target: str,
    model: str,
    checkpoint: Path | None,
    text_encoder: Path | None,
    controlnet: str | None,
    output: Path | None,
    random_weights: bool,
    compute_capability: tuple[str, ...],
    quiet: bool,
) -> None:
    from ezaudio.export.engines import build_bundle_engines, engine_plan

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'exporting needs {", ".join(missing)}: pip install "ezaudio[export]"')
    engines = engine_plan(
        target, precision, compute_capability
    )  # before minutes of export: what it needs may be missing
    from tqdm import tqdm

    from ezaudio.checkpoints import open_source
    from ezaudio.export.bundle import export_bundle

    source = open_source(
        model,
        checkpoint=checkpoint,
        text_encoder=text_encoder,
        controlnet=controlnet,
        random_weights=random_weights,
    )
    name = f"{source.config.name}-random" if random_weights else source.config.name
    folder = output or cached_bundle(name if target == "cpu" else f"{name}-{target}", precision)
    with tqdm(unit="graph", leave=False, disable=True if quiet else None) as bar:

        def progress(doing: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(doing, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        manifest = export_bundle(source, folder, precision, progress, target)
    if not quiet:
        click.echo(error_table(manifest.checks))
        if manifest.certificate is not None:
            click.echo(certificate_table(manifest.certificate, manifest.precision))
        click.echo(summary(folder, manifest))
    if engines is not None:
        report = build_bundle_engines(folder, engines, quiet)
        if not quiet:
            click.echo(report)


def error_table(checks: tuple[Check, ...]) -> str:
    """One line per output of a graph: relative error against PyTorch, and the tolerance."""
    width = max(len(f"{check.graph}.{check.output}") for check in checks)
    rows = [f"{'output':{width}}  error    tolerance"]
    rows += [f"{f'{c.graph}.{c.output}':{width}}  {c.relative_error:.1e}  {c.tolerance:.0e}" for c in checks]
    return "\n".join(rows)


def summary(folder: Path, manifest: Manifest) -> str:
    size = sum(entry.size for entry in manifest.files.values())
    return (
        f"{folder}: {manifest.config.name} in {manifest.precision}, {len(manifest.graphs)} graphs, {size / 1e6:,.1f} MB"
    )
