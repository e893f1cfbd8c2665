"""Engines on disk: kept, found by what they were built for, replaced, and refused when damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from engine_cases import build, rtx, truncate

from ezaudio.runtime.engines import record
from ezaudio.runtime.engines.builder import Options
from ezaudio.runtime.engines.library import Library
from ezaudio.runtime.engines.profiles import Durations
from ezaudio.runtime.engines.record import Place, Purpose, Record
from ezaudio.runtime.engines.store import Engine, EngineStore
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.manifest import read_manifest, sealed

pytestmark = pytest.mark.usefixtures("engine_cache")


@rtx
def test_an_engine_is_built_once(
    engine_store: EngineStore, small_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    again, new = build(engine_store, "frame_bias", small_engine.path.parent, Options(("8.9",)))
    assert (again, new) == (small_engine, False)
    assert Record.read(small_engine.path.with_suffix(".json")) == small_engine.record


@rtx
def test_the_key_depends_on_all_that_decides_an_engine(engine_store: EngineStore) -> None:
    options = Options(("8.9",))
    purpose = engine_store.purpose("denoiser", options, engine_store.place(options))
    others = [
        replace(purpose, graph_sha256="0" * 64),
        replace(purpose, library="tensorrt"),
        replace(purpose, version="1.8"),
        replace(purpose, compute_capabilities=("8.6",)),
        replace(purpose, driver="580.1"),
        replace(purpose, flags={**purpose.flags, "strip": True}),
        engine_store.purpose("denoiser", options, engine_store.place(options), [Durations(10, 10)]),
        engine_store.purpose("denoiser_shallow", options, engine_store.place(options)),
    ]
    assert len({one.key for one in (purpose, *others)}) == 9
    assert engine_store.digest("denoiser") != engine_store.digest("denoiser_shallow")  # they share their weights file


@rtx
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"version": "1.8.0"}, "library version 1.7.1.116, here 1.8.0"),
        ({"library": "tensorrt"}, "library tensorrt-rtx, here tensorrt"),
        ({"compute_capability": "8.6"}, "compute capability 8.9, here 8.6"),
    ],
    ids=["version", "library", "GPU"],
)
def test_foreign_engines_are_not_used_and_the_reason_is_said(
    engine_store: EngineStore, small_engine: Engine, changed: dict[str, str], reason: str
) -> None:
    here = Place("tensorrt-rtx", engine_store.library.version, "8.9", "580.1")
    assert engine_store.find("frame_bias", here, [small_engine.path.parent]) == ([small_engine], [])
    found, (said,) = engine_store.find("frame_bias", replace(here, **changed), [small_engine.path.parent])
    assert found == []
    assert said == f"'{small_engine.path}' was built for {reason.replace('1.7.1.116', engine_store.library.version)}"


@rtx
def test_an_engine_tuned_here_is_stale_after_a_driver_update(engine_store: EngineStore, small_engine: Engine) -> None:
    here = Place("tensorrt-rtx", engine_store.library.version, "8.9", "580.1")
    tuned = replace(small_engine.record, purpose=replace(small_engine.record.purpose, driver="570.9"))
    tuned.write(small_engine.path.with_suffix(".json"))
    assert engine_store.find("frame_bias", here, [small_engine.path.parent])[1] == [
        f"'{small_engine.path}' was built for driver 570.9, here 580.1"
    ]


@rtx
def test_a_stale_engine_makes_way_for_the_new_one_and_a_foreign_one_stays(
    engine_store: EngineStore, small_engine: Engine
) -> None:
    folder = small_engine.path.parent
    for key, changed in (
        ("stale", {"version": "1.6", "graph_sha256": "0" * 64}),
        ("foreign", {"compute_capabilities": ("8.6",)}),
    ):
        shutil.copy(small_engine.path, folder / f"frame_bias.{key}.engine")
        purpose = replace(small_engine.record.purpose, **changed)
        replace(small_engine.record, purpose=purpose).write(folder / f"frame_bias.{key}.json")
    small_engine.path.with_suffix(".json").unlink()
    _, new = build(engine_store, "frame_bias", folder, Options(("8.9",)))
    assert new
    assert {path.name.split(".")[1] for path in folder.iterdir()} == {"foreign", small_engine.record.purpose.key}


def _flip(engine: Path) -> None:
    data = bytearray(engine.read_bytes())
    data[5000] ^= 1
    engine.write_bytes(data)


def _change_record(engine: Path) -> None:
    path = engine.with_suffix(".json")
    path.write_text(path.read_text().replace('"8.9"', '"8.6"'))


@rtx
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "has 1,000 bytes instead of"),
        (_flip, "has changed (its sha256 differs)"),
        (Path.unlink, "is missing"),
        (_change_record, "is no record of an engine (its sha256 differs)"),
        (lambda engine: engine.with_suffix(".json").write_text("{"), "is no record of an engine"),
        (lambda engine: engine.with_suffix(".json").write_text("[]"), "is no record of an engine"),
    ],
    ids=["truncated", "changed", "missing", "record changed", "record cut", "another record"],
)
def test_a_damaged_engine_never_reaches_the_library_and_is_built_again(
    engine_store: EngineStore,
    small_engine: Engine,
    damage: Callable[[Path], Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(small_engine.path)
    here = Place("tensorrt-rtx", engine_store.library.version, "8.9", None)
    found, (said,) = engine_store.find("frame_bias", here, [small_engine.path.parent])
    assert found == []
    assert reason in said
    again, new = build(engine_store, "frame_bias", small_engine.path.parent, Options(("8.9",)))
    assert new
    assert reason in caplog.text
    assert engine_store.find("frame_bias", here, [small_engine.path.parent]) == ([again], [])


@rtx
def test_a_record_of_another_engine_is_replaced(
    engine_store: EngineStore, small_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """As after copying files under other names."""
    recorded = small_engine.path.with_suffix(".json")
    other = replace(small_engine.record, purpose=replace(small_engine.record.purpose, graph_sha256="0" * 64))
    other.write(recorded)
    again, new = build(engine_store, "frame_bias", small_engine.path.parent, Options(("8.9",)))
    assert new
    assert f"'{recorded}' tells of another engine" in caplog.text
    assert Record.read(recorded) == again.record


@rtx
def test_two_processes_build_an_engine_once(debug_bundle: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from ezaudio.runtime.engines.builder import Options
from ezaudio.runtime.engines.library import open_library
from ezaudio.runtime.engines.store import EngineStore
from ezaudio.runtime.manifest import read_manifest, sealed
bundle, options = Path({str(debug_bundle)!r}), Options(("8.9",))
store = EngineStore(bundle, read_manifest(bundle, verify=False), open_library("tensorrt-rtx"))
print(store.build(store.purpose("denoiser", options, store.place(options)), options, Path("out"))[1])
assert not {{"torch", "onnx", "transformers", "onnxruntime"}} & sys.modules.keys()
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=120)[0] for process in processes) == ["False\n", "True\n"]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".engine", ".json"]


@rtx
def test_engines_in_a_precision_that_the_gpu_lacks_are_refused(debug_bundle: Path, library: Library) -> None:
    manifest = replace(read_manifest(debug_bundle, verify=False), precision="bf16", target="tensorrt-rtx")
    with pytest.raises(
        InputError, match=r"bf16 needs compute capability 8\.0 or later, got 7\.5: use a bundle in fp16"
    ):
        EngineStore(debug_bundle, manifest, library).place(Options(("7.5", "8.9")))


def test_record_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "denoiser.x.json"
    path.write_text('{"format": "other"}')
    with pytest.raises(BundleError, match="is no record of an engine"):
        Record.read(path)
    numbers = {"size": float("inf"), "sha256_of_engine": "", "build_s": 1.0}
    purpose = Purpose("denoiser", "", "tensorrt", "", (), None, {}, [])
    named = {"format": record.FORMAT, "format_version": record.FORMAT_VERSION}
    path.write_text(json.dumps(sealed({**named, **purpose.to_dict(), **numbers})))
    with pytest.raises(BundleError, match="is no record of an engine"):
        Record.read(path)
    with pytest.raises(InputError, match="optimization level"):
        Options(optimization_level=-1)
