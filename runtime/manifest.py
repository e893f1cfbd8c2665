"""`manifest.json`: what a bundle is made of, and the checks between a folder and the sessions that run it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ezaudio.config import EzAudioConfig, plain_name
from ezaudio.runtime.certificate import TOLERANCES, Certificate
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.naming import replace_file
from ezaudio.runtime.presets import PRESETS, Preset
from ezaudio.runtime.tensor_spec import TensorSpec

FILE_NAME = "manifest.json"
# How the weights were trained, and how well; a bundle may lack it.
CARD_FILE = "model_card.md"
FORMAT = "ezaudio-bundle"
FORMAT_VERSION = 2
MAX_MANIFEST_BYTES = 4 << 20
_CHUNK = 1 << 22

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One ONNX graph: its file, and its inputs and outputs in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Check:
    """Error of one output of a graph against the PyTorch module it came from: ‖got − expected‖ / ‖expected‖."""

    graph: str
    output: str
    relative_error: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a runtime needs to know about a bundle.

    Attributes:
        config: model, diffusion and default settings.
        origin: where the weights came from, in words.
        graphs: name → entry; every file besides the manifest is in `files`.
        packages: versions of the packages that made the bundle.
        bundle_id: the first 16 hex digits of the manifest's own sha256, hence of all it lists.
        target: `cpu`, or the builder whose typed graphs the bundle holds.
        certificate: what its precision costs; of typed bundles only.
        presets: sampling plans by name.
    """

    config: EzAudioConfig
    precision: str
    origin: str
    licence: str
    graphs: dict[str, GraphEntry]
    files: dict[str, FileEntry]
    checks: tuple[Check, ...]
    packages: dict[str, str]
    bundle_id: str = ""
    target: str = "cpu"
    certificate: Certificate | None = None
    presets: dict[str, Preset] = field(default_factory=lambda: dict(PRESETS))

    def with_card(self, folder: Path, text: str) -> Manifest:
        """The manifest once `text` is the bundle's model card, which is written; `write` makes it count."""
        replace_file(folder / CARD_FILE, text.encode())
        return replace(self, files={**self.files, CARD_FILE: describe_file(folder / CARD_FILE)})

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.config.name,
            "precision": self.precision,
            "target": self.target,
            "origin": self.origin,
            "licence": self.licence,
            "config": self.config.to_dict(),
            "graphs": {
                name: {
                    "file": graph.file,
                    "inputs": [spec.to_dict() for spec in graph.inputs],
                    "outputs": [spec.to_dict() for spec in graph.outputs],
                }
                for name, graph in self.graphs.items()
            },
            "checks": [
                {"graph": c.graph, "output": c.output, "relative_error": c.relative_error, "tolerance": c.tolerance}
                for c in self.checks
            ],
            "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in self.files.items()},
            "packages": self.packages,
            "presets": {name: preset.to_dict() for name, preset in self.presets.items()},
            **({} if self.certificate is None else {"certificate": self.certificate.to_dict()}),
        }

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        text = json.dumps(sealed(self.to_dict()), indent=1, ensure_ascii=False) + "\n"
        partial = folder / f".{FILE_NAME}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / FILE_NAME)
        finally:
            partial.unlink(missing_ok=True)


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """The manifest's data with its own `sha256`: of its other fields as JSON with sorted keys and no blanks."""
    others = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return {**others, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def copy_texts(source: Path, manifest: Manifest, target: Path) -> None:
    """Copy what a bundle holds besides graphs, weights and reference data."""
    for name in ("tokenizer.json", "spiece.model", CARD_FILE):
        if name in manifest.files:
            shutil.copyfile(source / name, target / name)


def describe_file(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, file_sha256(path))


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Hex digest; `on_bytes` is told the size of every piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def read_manifest(folder: Path, verify: bool = True, on_bytes: OnBytes = lambda done, total: None) -> Manifest:
    """Read a bundle's manifest and, unless told not to, compare every file with its sha256.

    Args:
        on_bytes: called with the bytes compared since the last call, and the bytes there are in all.

    Raises BundleError when the folder is no bundle, is of a newer format, or a file is missing, changed or unreadable.
    """
    path = folder / FILE_NAME
    if not os.path.isdir(folder):
        raise BundleError(f"no bundle at '{folder}': there is no such folder; make one with ezaudio-export")
    if not os.path.isfile(path):
        raise BundleError(f"'{folder}' is no bundle: it has no {FILE_NAME}; make one with ezaudio-export")
    with _readable(path):
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"'{path}' is larger than {MAX_MANIFEST_BYTES:,} bytes: it is no manifest of a bundle")
        data = path.read_bytes()
    manifest = _parse(data, path)
    total = sum(entry.size for entry in manifest.files.values())
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry)
    for name, entry in manifest.files.items() if verify else ():
        with _readable(folder / name):
            found = file_sha256(folder / name, lambda count: on_bytes(count, total))
        if found != entry.sha256:
            changed = f"'{folder / name}' has changed since the bundle was made (its sha256 differs)"
            raise BundleError(f"{changed}: copy or export the bundle again")
    return manifest


def listed_files(folder: Path) -> set[str]:
    """Names of the files of a bundle of any version, damaged or not; empty where there is no manifest of one."""
    try:
        found = json.loads((folder / FILE_NAME).read_bytes()[: MAX_MANIFEST_BYTES + 1])
        return {str(name) for name in found["files"]} if found["format"] == FORMAT else set()
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        fix = "mend its permissions, or copy the bundle again"
        raise BundleError(f"'{path}' cannot be read ({reason}): {fix}") from error


def _parse(data: bytes, path: Path) -> Manifest:
    try:
        found = json.loads(data)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise BundleError(f"'{path}' is no manifest of an EzAudio bundle: make one with ezaudio-export")
        version = found["format_version"]
        if not isinstance(version, int) or version != FORMAT_VERSION:
            what = "newer" if isinstance(version, int) and version > FORMAT_VERSION else "unknown"
            fix = "upgrade ezaudio, or export the bundle again"
            raise BundleError(f"'{path}' has the {what} format {version!r}, this version reads {FORMAT_VERSION}: {fix}")
        digest = sealed(found)["sha256"]
        if found["sha256"] != digest:
            changed = f"'{path}' has changed since the bundle was made (its sha256 differs)"
            raise BundleError(f"{changed}: copy or export the bundle again")
        files = {plain_name(name): FileEntry(int(f["size"]), str(f["sha256"])) for name, f in found["files"].items()}
        graphs = {plain_name(name): _graph(entry, files) for name, entry in found["graphs"].items()}
        return Manifest(
            config=EzAudioConfig.from_dict(found["config"]),
            precision=str(found["precision"]),
            origin=str(found["origin"]),
            licence=str(found["licence"]),
            graphs=graphs,
            files=files,
            checks=tuple(Check(**check) for check in found["checks"]),
            packages={str(name): str(version) for name, version in found["packages"].items()},
            bundle_id=digest[:16],
            target=str(found.get("target", "cpu")),
            certificate=_certificate(found.get("certificate"), files, found["precision"]),
            presets={str(name): Preset.from_dict(preset) for name, preset in found["presets"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise BundleError(f"'{path}' is damaged ({detail}): copy or export the bundle again") from error


def _graph(entry: dict[str, Any], files: dict[str, FileEntry]) -> GraphEntry:
    if entry["file"] not in files:
        raise ValueError(f"graph file {entry['file']!r} is not listed")
    inputs, outputs = (tuple(TensorSpec.from_dict(spec) for spec in entry[key]) for key in ("inputs", "outputs"))
    return GraphEntry(entry["file"], inputs, outputs)


def _certificate(data: dict[str, Any] | None, files: dict[str, FileEntry], precision: str) -> Certificate | None:
    if data is None:
        return None
    if precision not in TOLERANCES:
        raise ValueError(f"no certificate is of precision {precision!r}")
    certificate = Certificate.from_dict(data)
    if certificate.reference.file not in files:
        raise ValueError(f"reference file {certificate.reference.file!r} is not listed")
    return certificate


def _check_file(path: Path, entry: FileEntry) -> None:
    fix = "copy or export the bundle again"
    if not os.path.isfile(path):
        raise BundleError(f"the bundle lacks '{path}': {fix}")
    size = path.stat().st_size
    if size != entry.size:
        raise BundleError(f"'{path}' has {size:,} bytes, the manifest says {entry.size:,}: {fix}")
