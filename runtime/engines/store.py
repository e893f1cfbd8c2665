"""Engines on disk: found by their records, built when none fits, whole or not there.

A folder holds `<graph>.<key>.engine` and, written last, `<graph>.<key>.json`. Engines built ahead of time lie in the
bundle's `engines/` and travel with it; those built for the GPU at hand lie in the user's cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ezaudio.runtime.bundle_store import PACKAGED, cache_folder
from ezaudio.runtime.engines.builder import Options, build_engine
from ezaudio.runtime.engines.library import Library, check_precision, target_of
from ezaudio.runtime.engines.profiles import Durations, profiles_of
from ezaudio.runtime.engines.record import Place, Purpose, Record, graph_digest, weight_bytes
from ezaudio.runtime.errors import BundleError, InputError, MissingExtraError
from ezaudio.runtime.gpu import find_gpu
from ezaudio.runtime.manifest import FileEntry, Manifest

logger = logging.getLogger(__name__)

FOLDER = "engines"
SUFFIX = ".engine"
ROOM = 1.1  # of the weights' size, that must be free before a build begins

OnGraph = Callable[[str, str, float], None]
"""Called with a graph's name, what the library does, and the part of the engine that is done."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that can be used: its file was compared with its record."""

    path: Path
    record: Record


def cached_engines(manifest: Manifest) -> Path:
    """Where engines for the GPU at hand lie. Bundles of one model, target and precision share the folder: a graph that
    changed is then seen as such, and its old engine replaced."""
    parts = (manifest.config.name, target_of(manifest), manifest.precision)
    return cache_folder() / FOLDER / "-".join(part for part in parts if part)


def output_folder(bundle: Path, manifest: Manifest, ahead: bool) -> Path:
    """Where a build goes. Nothing is written into the installed package."""
    return bundle / FOLDER if ahead and bundle != PACKAGED else cached_engines(manifest)


class EngineStore:
    """The engines of one bundle for one library."""

    def __init__(self, bundle: Path, manifest: Manifest, library: Library) -> None:
        self.bundle, self.manifest, self.library = bundle, manifest, library
        self._digests: dict[str, str] = {}

    def digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = graph_digest(self.manifest, self.bundle, name)
        return self._digests[name]

    def folders(self) -> list[Path]:
        return [self.bundle / FOLDER, cached_engines(self.manifest)]

    def find(self, name: str, place: Place, folders: Sequence[Path] | None = None) -> tuple[list[Engine], list[str]]:
        """The engines of a graph that can run in a place, and why each other one cannot, one line each."""
        usable, reasons = [], []
        for folder in self.folders() if folders is None else folders:
            for path in sorted(folder.glob(f"{name}.*.json")):
                try:
                    record = Record.read(path)
                except BundleError as error:
                    reasons.append(str(error))
                    continue
                engine = path.with_suffix(SUFFIX)
                if mismatch := record.mismatch(self.digest(name), place):
                    reasons.append(f"'{engine}' was built for {mismatch}")
                elif damage := record.damage(engine):
                    reasons.append(damage)
                else:
                    usable.append(Engine(engine, record))
        return usable, reasons

    def place(self, options: Options) -> Place:
        """Where engines are to run: on the first GPU that the options name, else on the one of this machine.

        Raises InputError when neither is there, the library does not build for it, or it lacks the graphs' precision.
        """
        name, version = self.library.name, self.library.version
        self.library.check_ahead(options.compute_capabilities)
        gpu = find_gpu()
        if options.strip and self.library.builds_ahead and isinstance(gpu, str):
            raise InputError(f"{name} strips weights only where a GPU is ({gpu}): leave out --strip")
        typed = self.manifest.precision if target_of(self.manifest) else "fp32"
        for capability in options.compute_capabilities:
            check_precision(typed, capability)
        if options.compute_capabilities:
            return Place(name, version, options.compute_capabilities[0], None)
        if isinstance(gpu, str):
            raise InputError(f"nothing to build for ({gpu}): name a GPU, as in --compute-capability 8.9")
        self.library.check_capability(gpu.compute_capability)
        check_precision(typed, gpu.compute_capability)
        return Place(name, version, gpu.compute_capability, gpu.driver)

    def purpose(self, name: str, options: Options, place: Place, durations: Sequence[Durations] = ()) -> Purpose:
        """What an engine built now would be for."""
        # TensorRT-RTX compiles kernels for the very shape at run time, so more profiles only make the engine larger.
        buckets = self.library.name == "tensorrt"
        return Purpose(
            graph=name,
            graph_sha256=self.digest(name),
            library=self.library.name,
            version=self.library.version,
            compute_capabilities=options.compute_capabilities or (place.compute_capability,),
            driver=None if options.compute_capabilities else place.driver,
            flags=options.flags(),
            profiles=profiles_of(name, self.manifest.graphs[name], self.manifest.config, durations, buckets),
        )

    def build(
        self, purpose: Purpose, options: Options, folder: Path, on_graph: OnGraph = lambda name, phase, part: None
    ) -> tuple[Engine, bool]:
        """The engine for a purpose: the one in `folder`, or a new one, and whether it is new.

        One process builds at a time; another that waits for the same engine finds it built.

        Raises:
            BackendError: the library refuses the graph. InputError: no room, or the folder cannot be written.
        """
        name = purpose.graph
        path = folder / f"{name}.{purpose.key}{SUFFIX}"
        entry = self.manifest.graphs[name]
        with _locked(path):
            if (engine := _intact(path, purpose)) is not None:
                return engine, False
            _check_room(folder, 0 if options.strip else round(ROOM * weight_bytes(self.manifest, self.bundle, name)))
            logger.info("building the engine of %s with %s %s", name, purpose.library, purpose.version)
            start = time.perf_counter()
            timing = folder / f"timing-{purpose.version}-{purpose.compute_capabilities[0]}.cache"
            data, new_timing = build_engine(
                self.library,
                self.bundle / entry.file,
                entry,
                purpose.profiles,
                options,
                timing.read_bytes() if self.library.has_timing_cache and timing.is_file() else b"",
                lambda phase, part: on_graph(name, phase, part),
            )
            content = memoryview(data)
            record = Record(
                purpose,
                FileEntry(content.nbytes, hashlib.sha256(content).hexdigest()),
                round(time.perf_counter() - start, 3),
            )
            _write(path, content, record)
            if new_timing:
                with _whole_file(timing) as partial:
                    partial.write_bytes(new_timing)
            self._remove_stale(path, purpose)
            return Engine(path, record), True

    def _remove_stale(self, new: Path, purpose: Purpose) -> None:
        """Delete engines that the new one takes the place of: of another version, driver or graph, otherwise equal."""
        for path in new.parent.glob(f"{purpose.graph}.*.json"):
            if path.with_suffix(SUFFIX) == new:
                continue
            try:
                old = Record.read(path).purpose
            except BundleError:
                continue
            same = ("library", "compute_capabilities", "flags", "profiles")
            if all(getattr(old, field) == getattr(purpose, field) for field in same):
                logger.info("removing '%s': '%s' takes its place", path.with_suffix(SUFFIX), new)
                path.unlink(missing_ok=True)
                path.with_suffix(SUFFIX).unlink(missing_ok=True)


def _intact(path: Path, purpose: Purpose) -> Engine | None:
    """The engine at its place when it is whole; otherwise the log says what is wrong with it."""
    recorded = path.with_suffix(".json")
    if not recorded.exists():
        return None
    try:
        record = Record.read(recorded)
    except BundleError as error:
        logger.warning("%s", error)
        return None
    if record.purpose.key != purpose.key:
        logger.warning("'%s' tells of another engine: building it again", recorded)
        return None
    if damage := record.damage(path):
        logger.warning("%s: building it again", damage)
        return None
    return Engine(path, record)


def _check_room(folder: Path, needed: int) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(_no_room(folder, f"{needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free"))


def _no_room(folder: Path, reason: str) -> str:
    return f"cannot write engines to '{folder}' ({reason}): free space, or set EZAUDIO_CACHE to another folder"


def _write(path: Path, content: Any, record: Record) -> None:
    """Engine first, record last: without its record an engine does not exist."""
    recorded = path.with_suffix(".json")
    recorded.unlink(missing_ok=True)
    with _whole_file(path) as partial:
        partial.write_bytes(content)
    try:
        with _whole_file(recorded) as partial:
            record.write(partial)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A hidden file that takes the name `path` when the block succeeds and vanishes when it fails."""
    folder = path.parent
    partial = folder / f".{path.name}.partial"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(_no_room(folder, error.strerror or str(error))) from error
    finally:
        partial.unlink(missing_ok=True)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder of a file at a time. The lock's own file lies in the user's cache and stays: removing it races."""
    try:
        from filelock import FileLock
    except ImportError as error:
        raise MissingExtraError('filelock is not installed: pip install "ezaudio[tensorrt-rtx]"') from error
    locks = cache_folder() / FOLDER / "locks"
    lock = locks / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}.lock"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        if not _try(held):
            logger.info("another process builds '%s': waiting for it", path)
            held.acquire()
    except OSError as error:
        raise InputError(_no_room(locks, error.strerror or str(error))) from error
    try:
        yield
    finally:
        held.release()


def _try(lock: Any) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
