"""`ezaudio-verify`: a bundle's certificate, measured again on this machine."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ezaudio import __version__
from ezaudio.runtime.certificate import certificate_table, table
from ezaudio.runtime.command import Command, errors_only, one_line

if TYPE_CHECKING:
    from ezaudio.runtime.verification import Row

HELP = """Measure a bundle again and compare it with what it promises.

BUNDLE is a folder, the name of an exported model (l, xl, nano), or left out for the model in the package.

\b
Examples:
  ezaudio-verify bundle/                 # files, graphs, and the certificate where there is one
  ezaudio-verify l --precision fp16
  ezaudio-verify bundle/ --certificate   # also print all that was measured at export

\b
Checked are
  every file       its size and sha256
  typed graphs     (ezaudio-export --target tensorrt) the velocity at stored latents against stored fp32 velocities,
                   through all graphs from the prompt on, and the levels of a decoded clip; fp16 and bf16 are emulated
                   in fp32, which shows what the types cost and not what a device's kernels add
  other bundles    every graph opens, and short, long and empty prompts give finite numbers; what their precision costs
                   was compared with PyTorch at export and cannot be measured again without it

Exit code: 0 all holds, 1 something does not (the table says what), 2 wrong input or a damaged bundle.
"""


@click.command(cls=Command, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", required=False)
@click.option(
    "--precision", metavar="NAME", help="Which one of an exported model: fp32, fp16, bf16, int8, fp8, w8 or w4."
)
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads. [all cores]")
@click.option("--certificate", "show", is_flag=True, help="Print what was measured at export, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout in place of the tables.")
@click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only.")
@click.version_option(__version__, message="ezaudio %(version)s")
def main(
    bundle: str | None, precision: str | None, threads: int | None, show: bool, as_json: bool, quiet: bool
) -> None:
    from tqdm import tqdm

    from ezaudio.runtime.bundle_store import find_bundle
    from ezaudio.runtime.manifest import read_manifest
    from ezaudio.runtime.verification import Row, verify_certificate, verify_plain

    folder = find_bundle(bundle, precision)
    hidden = True if quiet else None  # None: no bar where stderr is no terminal
    with tqdm(desc="comparing files", unit="B", unit_scale=True, delay=2, leave=False, disable=hidden) as bar:

        def on_bytes(count: int, total: int) -> None:
            bar.total = total
            bar.update(count)

        manifest = read_manifest(folder, on_bytes=on_bytes)
    with tqdm(unit="", delay=2, leave=False, disable=hidden) as bar:

        def progress(doing: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(doing, refresh=False)
            bar.update(done - bar.n)

        certificate = manifest.certificate
        size = sum(entry.size for entry in manifest.files.values())
        rows = [Row(f"{len(manifest.files)} files", f"{size:,} bytes, as listed", "as listed", True)]
        if certificate is None:
            rows += verify_plain(folder, manifest, threads, progress)
        else:
            rows += verify_certificate(folder, manifest, certificate, threads, progress)
    failed = sum(not row.holds for row in rows)
    if as_json:
        click.echo(json.dumps(_document(manifest, rows), ensure_ascii=False))
    elif not quiet or failed:
        if show and certificate is not None:
            click.echo(certificate_table(certificate, manifest.precision) + "\n")
        lines: list[tuple[str, ...]] = [("checked", "found", "expected", "")]
        lines += [(row.what, one_line(row.found), row.expected, "" if row.holds else "FAILS") for row in rows]
        click.echo(table(lines))
        kind = "certificate measured again" if certificate else "no certificate: files, graphs and finite numbers only"
        verdict = f"{failed} of {len(rows)} checks fail" if failed else f"all {len(rows)} checks hold"
        click.echo(f"{manifest.config.name} in {manifest.precision} for {manifest.target}: {verdict} ({kind})")
    sys.exit(1 if failed else 0)


def _document(manifest: Any, rows: list[Row]) -> dict[str, Any]:
    return {
        "model": manifest.config.name,
        "precision": manifest.precision,
        "target": manifest.target,
        "bundle_id": manifest.bundle_id,
        "certified": manifest.certificate is not None,
        "checks": [
            {"what": row.what, "found": row.found, "expected": row.expected, "holds": row.holds} for row in rows
        ],
    }
