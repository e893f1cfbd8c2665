"""Which backend runs: what `auto` takes and passes over, what a named one refuses, and what the doctor says of each."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from console import answers_at_once_and_teaches, fails, imports_none_of, runner
from engine_cases import no_gpu

from ezaudio.runtime.backends import AUTO_ORDER, BACKENDS, Problem, Status, choose_backend, pick, survey
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.errors import InputError, MissingExtraError
from ezaudio.runtime.manifest import Manifest, read_manifest
from ezaudio.runtime.text_to_audio import TextToAudio

SCRIPT = Path(sys.executable).with_name("ezaudio-doctor")

has_cuda_bindings = pytest.mark.skipif(
    find_spec("cuda") is None, reason="cuda-bindings has no wheels for this platform"
)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(PACKAGED, verify=False)


def test_every_backend_is_surveyed_and_each_that_is_passed_over_has_a_reason(manifest: Manifest) -> None:
    table = survey(manifest)
    assert tuple(status.name for status in table) == BACKENDS
    assert set(AUTO_ORDER) < set(BACKENDS)
    assert table[-1] == Status("onnxruntime")  # runs everywhere
    for status in table:
        assert bool(status.reason) != status.chosen_by_auto
        assert "\n" not in status.reason


@no_gpu
def test_auto_takes_the_cpu_and_logs_why_it_passed_the_others_over(
    manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert choose_backend("auto", manifest) == "onnxruntime"
    (line,) = caplog.messages
    assert line.startswith("backend onnxruntime chosen; passed over: tensorrt (no NVIDIA driver")
    assert "torch (no NVIDIA driver" in line
    assert "on a CPU it is slower than onnxruntime; the bundle has no certificate" in line
    assert "onnxruntime-cuda (no NVIDIA driver" in line


@no_gpu
def test_a_clip_says_what_computed_it_and_named_equals_chosen() -> None:
    options = {"duration_s": 0.2, "num_steps": 2, "seed": 1}
    chosen, named = TextToAudio(), TextToAudio(backend="onnxruntime")
    assert (chosen.backend, named.backend) == ("onnxruntime", "onnxruntime")
    assert chosen.generate("rain", **options).samples.tobytes() == named.generate("rain", **options).samples.tobytes()


@no_gpu
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("onnxruntime-cuda", ["no NVIDIA driver", "lacks CUDAExecutionProvider", "pip install onnxruntime-gpu"]),
        ("onnxruntime-tensorrt", ["no NVIDIA driver", "lacks TensorrtExecutionProvider", "onnxruntime-gpu"]),
        ("tensorrt", ["backend 'tensorrt' cannot run here (no NVIDIA driver"]),
        (
            "cuda",
            ["unknown backend 'cuda': expected auto, tensorrt, torch, onnxruntime-cuda, onnxruntime-tensorrt, ope"],
        ),
    ],
)
def test_a_named_backend_never_falls_back(name: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        TextToAudio(backend=name)
    fails(runner("ezaudio-run")("rain", "--backend", name), str(error.value), *parts)


def test_a_missing_library_is_named_with_its_extra(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r'neither tensorrt nor .*pip install "ezaudio\[tensorrt-rtx\]"$'):
        choose_backend("tensorrt", manifest)


@has_cuda_bindings
def test_missing_cuda_bindings_are_named_with_their_extra(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtraError, match=r"cuda-bindings is not installed"):
        choose_backend("tensorrt", manifest)


def test_the_fix_is_one_command_or_none() -> None:
    missing, hopeless = Problem("a is missing", "pip install a", missing_extra=True), Problem("there is no GPU")
    doubt = Problem("the bundle has no certificate", "ezaudio-export")
    status = Status("tensorrt", (missing,), (doubt,))
    assert (status.usable, status.fix) == (False, "pip install a")
    assert status.reason == "a is missing; the bundle has no certificate"
    assert replace(status, problems=(missing, hopeless)).fix == ""  # no command brings a GPU
    uncertified = replace(status, problems=())
    assert (uncertified.usable, uncertified.chosen_by_auto, uncertified.fix) == (True, False, "ezaudio-export")
    assert replace(uncertified, doubts=()).chosen_by_auto
    assert not Status("onnxruntime-tensorrt").chosen_by_auto


def test_auto_takes_the_first_that_runs_and_says_when_none_does() -> None:
    broken = Problem("no driver")
    table = [Status("tensorrt", (broken,)), Status("torch"), Status("onnxruntime-tensorrt"), Status("onnxruntime")]
    assert pick(table) == (table[1], [table[0]])
    assert pick([table[0], table[2], table[3]]) == (table[3], [table[0]])
    mended = Status("onnxruntime", (Problem("no bf16 on a CPU", "ezaudio-export --target cpu"),))
    with pytest.raises(InputError) as error:
        pick([table[0], table[2], mended])
    assert str(error.value) == (
        "no backend can run this bundle here: tensorrt (no driver), onnxruntime (no bf16 on a CPU): "
        "ezaudio-export --target cpu"
    )


def test_the_doctor_prints_what_auto_considers(manifest: Manifest) -> None:
    run = runner("ezaudio-doctor")
    report = json.loads(run("--json").stdout)
    table = survey(manifest)
    assert [row["name"] for row in report["backends"]] == list(BACKENDS)
    for row, status in zip(report["backends"], table, strict=True):
        assert row == {"name": status.name, "usable": status.usable, "reason": status.reason, "fix": status.fix}
    assert report["bundle"] == {"model": "nano", "precision": "fp16", "bundle_id": manifest.bundle_id}
    assert report["packages"]["numpy"]
    lines = run().stdout.splitlines()
    assert lines[1].startswith("GPU: ")
    for status in table:
        (line,) = [line for line in lines if line.split(" ")[0] == status.name]
        assert ("chosen by auto" in line) == (status.name == report["chosen"])
        assert line.endswith(status.reason if status.name != report["chosen"] else "chosen by auto")


@no_gpu
def test_without_a_gpu_the_doctor_proposes_nothing_to_install() -> None:
    report = json.loads(runner("ezaudio-doctor")("--json").stdout)
    assert report["gpu"] is None
    assert report["chosen"] == "onnxruntime"
    assert [row["fix"] for row in report["backends"]] == [""] * len(BACKENDS)


def test_the_doctor_refuses_what_is_no_bundle() -> None:
    fails(runner("ezaudio-doctor")("--bundle", "nowhere"), "no bundle at 'nowhere'")
    fails(runner("ezaudio-doctor")("--precision", "fp4"), "unknown precision 'fp4'")


def test_script_answers_at_once_and_teaches() -> None:
    answers_at_once_and_teaches(SCRIPT, "ezaudio-doctor --json > doctor.json", "--bundle", "--json")


def test_importing_the_command_loads_nothing_heavy() -> None:
    imports_none_of("ezaudio.runtime.doctor", {"numpy", "onnxruntime", "tensorrt_rtx", "torch", "tqdm"})
