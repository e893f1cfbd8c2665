"""`ezaudio-doctor`: which backends work here, why the others do not, and the command that would mend each."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ezaudio import __version__
from ezaudio.runtime.command import Command

if TYPE_CHECKING:
    from ezaudio.runtime.backends import Status
    from ezaudio.runtime.gpu import Gpu

PACKAGES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13", "cuda-bindings"),
    *("torch", "triton"),
)

HELP = """Say which backends can run a bundle on this machine, in the order in which `--backend auto` considers them.

\b
Examples:
  ezaudio-doctor                        # for the model inside the package
  ezaudio-doctor --bundle l --precision fp16
  ezaudio-doctor --json > doctor.json   # to send along with a benchmark row, see docs/tensorrt.md

Exit code: 0 done, 2 wrong input (one line says what to do).
"""


@click.command(cls=Command, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--bundle", metavar="DIR|l|xl", help="Bundle to run. [the small one in the package]")
@click.option("--precision", metavar="NAME", help="Which one of the bundle: fp32, fp16, bf16, int8, fp8, w8 or w4.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
@click.version_option(__version__, message="ezaudio %(version)s")
def main(bundle: str | None, precision: str | None, as_json: bool) -> None:
    from ezaudio.runtime.bundle_store import find_bundle

    report = diagnose(find_bundle(bundle, precision))
    click.echo(json.dumps(report, indent=1) if as_json else as_text(report))


def diagnose(folder: Path) -> dict[str, Any]:
    """The doctor's report on a bundle, ready for JSON."""
    from ezaudio.runtime.backends import survey
    from ezaudio.runtime.gpu import find_gpu
    from ezaudio.runtime.manifest import read_manifest

    manifest = read_manifest(folder, verify=False)
    backends = survey(manifest)
    chosen = next((status.name for status in backends if status.chosen_by_auto), None)
    return {
        "ezaudio": __version__,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": _gpu(find_gpu()),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "bundle": {
            "model": manifest.config.name,
            "precision": manifest.precision,
            "bundle_id": manifest.bundle_id,
        },
        "chosen": chosen,
        "backends": [_row(status) for status in backends],
    }


def as_text(report: dict[str, Any]) -> str:
    gpu, bundle = report["gpu"], report["bundle"]
    found = f"{gpu['name']}, compute capability {gpu['compute_capability']}, driver {gpu['driver']}" if gpu else "none"
    lines = [
        f"ezaudio {report['ezaudio']}, Python {report['python']}, {report['system']}",
        f"GPU: {found}",
        f"Packages: {', '.join(f'{name} {number}' for name, number in report['packages'].items())}",
        f"Bundle: {bundle['model']} in {bundle['precision']}",
        "",
    ]
    width = max(len(row["name"]) for row in report["backends"])
    for row in report["backends"]:
        state = "usable" if row["usable"] else "no"
        chosen = "chosen by auto" if row["name"] == report["chosen"] else ""
        lines.append(f"{row['name']:{width}}  {state:6}  {chosen or row['reason']}".rstrip())
        if row["fix"]:
            lines.append(f"{'':{width}}          {row['fix']}")
    return "\n".join(lines)


def _row(status: Status) -> dict[str, Any]:
    return {"name": status.name, "usable": status.usable, "reason": status.reason, "fix": status.fix}


def _gpu(found: Gpu | str) -> dict[str, str] | None:
    if isinstance(found, str):
        return None
    return {"name": found.name, "compute_capability": found.compute_capability, "driver": found.driver}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
