"""`ezaudio-build`: a bundle's graphs → engines, ahead of time or for a GPU that is elsewhere. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ezaudio import __version__
from ezaudio.runtime.command import Command, errors_only

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ezaudio.runtime.engines.builder import Options
    from ezaudio.runtime.engines.store import EngineStore

TARGETS = ("tensorrt", "tensorrt-rtx")
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"

HELP = """Build a bundle's engines for NVIDIA GPUs, which `--backend tensorrt` runs.

BUNDLE is a folder or an exported model (l, xl, nano); left out, the small model inside the package.

\b
Examples:
  ezaudio-build l                                       # for the GPU of this machine, into the user's cache
  ezaudio-build bundle/ --compute-capability 8.9        # for another machine's, into bundle/engines/
  ezaudio-build bundle/ --compute-capability 8.0 --compute-capability 12.0   # one engine for both
  ezaudio-build l --duration 10 --duration 15-30        # tuned for these lengths, and for no others
  ezaudio-build bundle/ --check --compute-capability 8.9

Compute capabilities: 8.0 A100, 8.6 RTX 30, 8.9 RTX 40 and L4, 12.0 RTX 50. Naming one takes tensorrt-rtx, and needs no
GPU here.
Engines appear when they are done; those that are there already are kept, those of another version are replaced.

Exit code: 0 done, 2 wrong input or an engine that does not fit (one line says what to do), 130 interrupted.
"""


@click.command(cls=Command, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", required=False)
@click.option("--precision", metavar="NAME", help="Which one of an exported model: fp32, fp16, bf16, int8 or fp8.")
@click.option("--target", type=click.Choice(TARGETS), help="Library to build with. [the bundle's, else the installed]")
@click.option("--compute-capability", metavar="X.Y", multiple=True, help="GPU to build for; may be given repeatedly.")
@click.option("--duration", metavar="S|S-S", multiple=True, help="Clip lengths to build for; may be given repeatedly.")
@click.option(
    "--optimization-level", type=int, metavar="0-5", help="From fast to build to fast to run. [the library's]"
)
@click.option("--weight-streaming", is_flag=True, help="Let weights stay in host memory, for a GPU that is too small.")
@click.option("--strip", is_flag=True, help="Leave weights out; they come from the bundle when an engine is loaded.")
@click.option(
    "--check", is_flag=True, help="Build nothing: fail where an engine is missing, damaged or of another kind."
)
@click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only.")
@click.version_option(__version__, message="ezaudio %(version)s")
def main(
    bundle: str | None,
    precision: str | None,
    target: str | None,
    compute_capability: tuple[str, ...],
    duration: tuple[str, ...],
    optimization_level: int | None,
    weight_streaming: bool,
    strip: bool,
    check: bool,
    quiet: bool,
) -> None:
    from ezaudio.runtime.bundle_store import find_bundle
    from ezaudio.runtime.engines.builder import Options, normalized
    from ezaudio.runtime.engines.library import default_target, open_library, target_of
    from ezaudio.runtime.engines.store import EngineStore
    from ezaudio.runtime.manifest import read_manifest

    options = Options(normalized(compute_capability), optimization_level, weight_streaming, strip)
    folder = find_bundle(bundle, precision)
    manifest = read_manifest(folder)
    library = open_library(target or target_of(manifest) or default_target())
    store = EngineStore(folder, manifest, library)
    if check:
        checked = check_engines(store, options)
        if not quiet:
            click.echo(f"{checked} engines fit")
    else:
        report = build_all(store, options, duration, quiet)
        if not quiet:
            click.echo(report)


def build_all(store: EngineStore, options: Options, durations: Iterable[str] = (), quiet: bool = False) -> str:
    """Build every engine of a bundle under a progress bar: where they are and what they are, in one line.

    Raises: InputError, BackendError (`EzAudioError`) with one line.
    """
    from tqdm import tqdm

    from ezaudio.runtime.engines.profiles import Durations
    from ezaudio.runtime.engines.store import output_folder

    manifest, library = store.manifest, store.library
    lengths = [Durations.parse(one, manifest.config) for one in durations]
    place = store.place(options)
    folder = output_folder(store.bundle, manifest, bool(options.compute_capabilities))
    size, new = 0, 0
    # None: no bar where stderr is no terminal
    with tqdm(total=len(manifest.graphs), leave=False, disable=True if quiet else None, bar_format=BAR) as bar:
        for index, name in enumerate(manifest.graphs):

            def on_graph(name: str, phase: str, part: float, index: int = index) -> None:
                bar.n = index + part
                bar.set_description(f"{name} ({index + 1}/{bar.total}): {phase}")

            engine, built = store.build(store.purpose(name, options, place, lengths), options, folder, on_graph)
            size += engine.record.engine.size
            new += built
    made = f"{new} of {len(manifest.graphs)} engines built" if new else f"all {len(manifest.graphs)} engines are there"
    gpus = ", ".join(options.compute_capabilities or (place.compute_capability,))
    kind = f"{library.name} {library.version} for compute capability {gpus}"
    return f"{folder}: {made}, {size / 1e6:,.1f} MB, {kind}"


def check_engines(store: EngineStore, options: Options) -> int:
    """How many engines fit, every graph having one for every GPU. Raises BundleError naming the first that lacks."""
    from dataclasses import replace

    from ezaudio.runtime.errors import BundleError

    place = store.place(options)
    count = 0
    for capability in options.compute_capabilities or (place.compute_capability,):
        for name in store.manifest.graphs:
            usable, reasons = store.find(name, replace(place, compute_capability=capability))
            if not usable:
                why = "; ".join(reasons) or f"there is none for compute capability {capability}"
                raise BundleError(f"no engine of {name!r} fits ({why}): run ezaudio-build without --check")
            count += len(usable)
    return count
