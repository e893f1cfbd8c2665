"""What lies beside an engine: one JSON file that says what the engine was built from and for, sealed like a manifest.

The library sees an engine only after its record, its length and its sha256 were checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ezaudio.runtime.engines import profiles
from ezaudio.runtime.engines.profiles import Profile
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import FileEntry, Manifest, file_sha256, sealed

FORMAT = "ezaudio-engine"
FORMAT_VERSION = 1
MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Purpose:
    """Everything that decides an engine's content.

    Attributes:
        graph_sha256: of the graph and its weights, see `graph_digest`.
        library, version: `tensorrt` or `tensorrt-rtx`, and which.
        compute_capabilities: the GPUs it runs on.
        driver: the driver it was tuned with; None for one built ahead of time, which any driver of the library runs.
        flags: the builder's options.
    """

    graph: str
    graph_sha256: str
    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    driver: str | None
    flags: dict[str, Any]
    profiles: list[Profile]

    def to_dict(self) -> dict[str, Any]:
        return {
            "graph": self.graph,
            "graph_sha256": self.graph_sha256,
            "library": self.library,
            "version": self.version,
            "compute_capabilities": list(self.compute_capabilities),
            "driver": self.driver,
            "flags": self.flags,
            "profiles": [profiles.to_json(profile) for profile in self.profiles],
        }

    @property
    def key(self) -> str:
        """16 hex digits of the sha256 over all of it."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine is to run: what decides whether one that exists can be used there."""

    library: str
    version: str
    compute_capability: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """The content of an engine's JSON file."""

    purpose: Purpose
    engine: FileEntry
    build_s: float

    def write(self, path: Path) -> None:
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **self.purpose.to_dict(),
            "size": self.engine.size,
            "sha256_of_engine": self.engine.sha256,
            "build_s": self.build_s,
        }
        path.write_text(json.dumps(sealed(data), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises BundleError when the file is no record of an engine, is damaged, or was changed."""
        try:
            if path.stat().st_size > MAX_RECORD_BYTES:
                raise ValueError(f"larger than {MAX_RECORD_BYTES:,} bytes")
            found = json.loads(path.read_bytes())
            if found["format"] != FORMAT or found["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {found['format']!r} {found['format_version']!r}")
            if found["sha256"] != sealed(found)["sha256"]:
                raise ValueError("its sha256 differs")
            driver = found["driver"]
            purpose = Purpose(
                graph=str(found["graph"]),
                graph_sha256=str(found["graph_sha256"]),
                library=str(found["library"]),
                version=str(found["version"]),
                compute_capabilities=tuple(str(one) for one in found["compute_capabilities"]),
                driver=None if driver is None else str(driver),
                flags=dict(found["flags"]),
                profiles=[profiles.from_json(profile) for profile in found["profiles"]],
            )
            entry = FileEntry(int(found["size"]), str(found["sha256_of_engine"]))
            return cls(purpose, entry, float(found["build_s"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
            raise BundleError(f"'{path}' is no record of an engine ({error}): build the engine again") from error

    def mismatch(self, graph_sha256: str, place: Place) -> str:
        """Why this engine cannot serve the graph in that place, naming what changed; empty when it can."""
        purpose = self.purpose
        pairs = [
            ("library", purpose.library, place.library),
            ("library version", purpose.version, place.version),
            ("graph or weights", purpose.graph_sha256[:16], graph_sha256[:16]),
        ]
        if purpose.driver is not None and place.driver is not None:
            pairs.append(("driver", purpose.driver, place.driver))
        found = [f"{what} {built}, here {here}" for what, built, here in pairs if built != here]
        if place.compute_capability not in purpose.compute_capabilities:
            found.append(
                f"compute capability {' and '.join(purpose.compute_capabilities)}, here {place.compute_capability}"
            )
        return "; ".join(found)

    def damage(self, engine: Path) -> str:
        """What is wrong with the engine's file; empty when it is the one that was built."""
        if not engine.is_file():
            return f"'{engine}' is missing"
        size = engine.stat().st_size
        if size != self.engine.size:
            return f"'{engine}' has {size:,} bytes instead of {self.engine.size:,}"
        return "" if file_sha256(engine) == self.engine.sha256 else f"'{engine}' has changed (its sha256 differs)"


def graph_digest(manifest: Manifest, folder: Path, name: str) -> str:
    """Hex digest over the sha256 of a graph's file and of each weights file that it refers to.

    A graph refers to its weights by their plain file name, so a name that occurs in its bytes counts.
    """
    file = manifest.graphs[name].file
    content = (folder / file).read_bytes()
    used = sorted(other for other in manifest.files if other.endswith(".weights") and other.encode() in content)
    lines = [f"{one} {manifest.files[one].sha256}" for one in (file, *used)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weight_bytes(manifest: Manifest, folder: Path, name: str) -> int:
    """Size of the weights files that a graph refers to."""
    content = (folder / manifest.graphs[name].file).read_bytes()
    return sum(
        f.size for other, f in manifest.files.items() if other.endswith(".weights") and other.encode() in content
    )
