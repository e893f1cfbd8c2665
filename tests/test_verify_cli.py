"""`ezaudio-verify` through its entry point: what holds, what does not, and what it says of either."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from console import Run, answers_at_once_and_teaches, fails, imports_none_of, runner
from typed import changed, scaled

from ezaudio.runtime.manifest import sealed

SCRIPT = Path(sys.executable).with_name("ezaudio-verify")


@pytest.fixture
def verify() -> Run:
    return runner("ezaudio-verify")


def test_a_certified_bundle_holds(verify: Run, typed_debug_bundle: Path) -> None:
    result = verify(typed_debug_bundle, "--certificate")
    assert result.exit_code == 0, result.output
    assert "headroom of" in result.stdout
    assert "velocity at timestep 999" in result.stdout
    assert "(at export 1.0000" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last == "debug in fp16 for tensorrt: all 6 checks hold (certificate measured again)"
    assert verify(typed_debug_bundle, "--quiet").output == ""


def test_json(verify: Run, typed_debug_bundle: Path) -> None:
    found = json.loads(verify(typed_debug_bundle, "--json").stdout)
    assert (found["model"], found["precision"], found["target"], found["certified"]) == (
        "debug",
        "fp16",
        "tensorrt",
        True,
    )
    assert all(check["holds"] for check in found["checks"])


def test_a_plain_bundle_is_checked_as_far_as_it_goes(verify: Run) -> None:
    result = verify()
    assert result.exit_code == 0, result.output
    assert "prompt of 0 characters" in result.stdout
    assert "(no certificate: files, graphs and finite numbers only)" in result.stdout


def test_graphs_that_changed_with_their_manifest_fail(verify: Run, typed_debug_bundle: Path, tmp_path: Path) -> None:
    def change(model: ir.Model, name: str) -> None:
        scaled(model, "blocks.0.mlp.down.weight.fp16", 1.2)

    result = verify(changed(typed_debug_bundle, tmp_path / "changed", change))
    assert result.exit_code == 1
    assert "FAILS" in result.stdout
    assert "of 6 checks fail" in result.stdout


def test_nan_in_a_graph_fails(verify: Run, debug_bundle: Path, tmp_path: Path) -> None:
    def change(model: ir.Model, name: str) -> None:
        scaled(model, "blocks.0.mlp.down.weight", float("nan"))

    result = verify(changed(debug_bundle, tmp_path / "changed", change))
    assert result.exit_code == 1
    assert "not finite" in result.stdout


def test_damage_is_one_line(verify: Run, typed_debug_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(typed_debug_bundle, tmp_path / "copy")
    data = bytearray((folder / "certificate.f16").read_bytes())
    data[100] ^= 1
    (folder / "certificate.f16").write_bytes(data)
    fails(verify(folder), "certificate.f16' has changed since the bundle was made")
    fails(verify(tmp_path / "none"), "no bundle at", "make one with ezaudio-export")
    fails(verify(folder, "--precision", "fp4"), "unknown precision 'fp4'")


def test_a_certificate_of_another_precision_is_one_line(verify: Run, typed_debug_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(typed_debug_bundle, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(sealed({**manifest, "precision": "w8"})))
    fails(verify(folder), "is damaged (ValueError: no certificate is of precision 'w8')")


def test_half_precision_needs_onnx(verify: Run, typed_debug_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    fails(verify(typed_debug_bundle), 'verifying half precision needs onnx: pip install "ezaudio[verify]"')
    assert verify("nano").exit_code == 0


def test_help() -> None:
    answers_at_once_and_teaches(SCRIPT, "Examples:", "ezaudio-verify l --precision fp16", "Exit code: 0 all holds")


def test_importing_the_command_loads_nothing_heavy() -> None:
    imports_none_of("ezaudio.runtime.verify_cli", {"numpy", "onnx", "onnxruntime", "torch", "transformers", "tqdm"})
