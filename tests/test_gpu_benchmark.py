"""`benchmarks/gpu.py` without a GPU: its rehearsal, what it says, and that a section's failure stays its own."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ezaudio.config import preset
from ezaudio.dit import MaskDiT

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
NOT_NEEDED = (
    "click", "diffusers", "einops", "huggingface_hub", "onnx", "onnxruntime", "safetensors", "scipy", "sentencepiece",
    "soundfile", "tokenizers", "tqdm", "transformers",
)  # fmt: skip

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="what is tested is a machine without a GPU")


@pytest.fixture
def gpu(benchmark_scripts: None) -> ModuleType:
    """The script as a module."""
    return importlib.import_module("gpu")


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As on a machine that has PyTorch, Triton and NumPy alone."""
    for name in NOT_NEEDED:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not to be used')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, SCRIPT, *arguments, "--output", tmp_path / "rows.jsonl"]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_a_selection_of_nothing_is_one_line(tmp_path: Path) -> None:
    found = run(tmp_path, "--only", "G3", "--models", "l")
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].endswith("error: --only G3 has nothing to measure of l")


def test_without_a_gpu_it_prints_the_floors(tmp_path: Path) -> None:
    found = run(tmp_path, "--only", "G1,G7,G9")
    assert found.returncode == 0, found.stderr
    assert "nothing is measured" in found.stdout
    assert "XL    loop                       not measured: no GPU; floor 1.573 TFLOP a step" in found.stdout
    assert "XL    adaln-sola, forward        not measured: no GPU; floor 74 MB" in found.stdout
    assert not (tmp_path / "rows.jsonl").exists()


def test_goals_are_checked(tmp_path: Path) -> None:
    found = run(tmp_path, "--only", "G1,G99")
    assert found.returncode == 2
    assert "unknown goals G99: expected some of G1, G2" in found.stderr


@pytest.mark.slow
def test_every_section_can_be_rehearsed(tmp_path: Path) -> None:
    found = run(tmp_path, "--dry-run")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "failed" not in found.stdout
    assert "nothing is measured and nothing saved" in found.stdout
    told = found.stdout.split()
    assert {f"G{n}" for n in range(1, 12)} <= set(told)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("model", ["debug", "l", "xl"])
def test_flops_are_those_pytorch_counts(gpu: ModuleType, model: str) -> None:
    step_flops, config = sys.modules["gpu_goals"].step_flops, preset(model)
    with torch.device("meta"):
        dit = MaskDiT(config.dit)
        latents = torch.empty(2, config.dit.latent_channels, 50)
        context, mask = torch.empty(2, 10, config.text.width), torch.ones(2, 10, dtype=torch.bool)
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            dit(latents, torch.empty(2), context, mask)
    assert counted.get_total_flops() == step_flops(config, rows=2, frames=50, tokens=10)


def arguments(gpu: ModuleType, output: Path, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        dry_run=True, official=None, models={"xl", "l"}, seconds=gpu.TOTAL_S, output=output, **changes
    )


def test_a_section_that_takes_too_long_is_ended(gpu: ModuleType, tmp_path: Path) -> None:
    outcome = gpu.start([0], arguments(gpu, tmp_path), seconds=0.1)
    assert outcome.late
    assert outcome.reason == "not within its 0 s"
    assert outcome.rows == []


def test_a_section_that_is_held_waits_until_it_is_its_turn(gpu: ModuleType, tmp_path: Path) -> None:
    held, left = (gpu.launch([0], arguments(gpu, tmp_path), held=True) for _ in range(2))
    assert left.process.stdin is not None
    left.process.stdin.close()  # as when the parent ends
    assert left.process.wait(60) == 0
    left.reader.join(10)
    assert left.outcome.rows == []
    assert held.process.poll() is None
    outcome = gpu.finish(held, 120)
    assert outcome.reason == ""
    assert "G1" in {made["goal"] for made in outcome.rows}


def test_what_is_missing_is_said_and_what_was_measured_is_kept(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = {"median": 0.5, "p20": 0.4, "p80": 0.6}
    measured = gpu.row("G1", "xl", "loop", value=spread, unit="share", note="")

    happened: list[str] = []

    def launch(numbers: list[int], _: Any, prepared: str | None = None, held: bool = False) -> Any:
        section = gpu.SECTIONS[numbers[0]]
        assert held is (prepared is None)
        happened.append(f"{'launch' if held else 'compile'} {section.name} {section.model}")
        return section, prepared

    def finish(launched: Any, seconds: float) -> Any:
        section, prepared = launched
        if prepared is not None:
            return gpu.Outcome(rows=[measured], reason="is told when it is measured")
        happened.append(f"measure {section.name} {section.model}")
        late = section.model == "xl"
        return SimpleNamespace(
            rows=[measured] if late else [], facts={"gpu": "H200"}, late=late, reason="broke" * (not late)
        )

    monkeypatch.setattr(gpu, "launch", launch)
    monkeypatch.setattr(gpu, "finish", finish)
    rows, facts = gpu.measure_all(arguments(gpu, tmp_path / "rows.jsonl"), {"G1", "G2"})
    assert sorted(happened[:2]) == ["compile clips l", "compile clips xl"]
    assert happened[2:] == ["launch clips xl", "launch clips l", "measure clips xl", "measure clips l"]
    saved = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert saved == rows
    told = {(row["goal"], row["model"]): gpu.told(row) for row in rows}
    assert told == {
        ("G1", "xl"): "50.0% (40.0% to 60.0%)",
        ("G2", "xl"): "not measured: the section made no row",
        ("G1", "l"): "failed: broke",
        ("G2", "l"): "failed: broke",
    }
    assert facts["gpu"] == "H200"
    assert all(row["gpu"] == "H200" for row in rows[1:])
    table = gpu.table(rows)
    assert "XL    loop                       50.0% (40.0% to 60.0%)" in table
    assert "goal 45 % (stretch 60 %)" in table


def test_why_a_section_ended_reaches_its_rows(gpu: ModuleType) -> None:
    outcome = gpu.Outcome()
    outcome.take(gpu.FACTS + '{"gpu": "H200"}\n')
    outcome.take(gpu.WHY + '"RuntimeError: out of memory"\n')
    outcome.take(gpu.MARK + '{"goal": "G1"}\n')
    assert (outcome.facts, outcome.rows) == ({"gpu": "H200"}, [{"goal": "G1"}])
    assert outcome.reason == "RuntimeError: out of memory"


def test_every_planned_row_has_one_section(gpu: ModuleType) -> None:
    planned = [plan for section in gpu.SECTIONS for plan in gpu.planned(section, set(gpu.GOALS))]
    assert sorted(planned) == sorted(gpu.PLAN)
    assert {goal for goal, _, _ in gpu.PLAN} == set(gpu.GOALS)


def test_tests_that_run_natively_exist(gpu: ModuleType) -> None:
    assert all((ROOT / "tests" / f"test_kernel_{name}.py").is_file() for name in gpu.TESTS)


def test_every_part_of_a_section_is_compiled_beside_the_others(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[str, str]] = []
    monkeypatch.setattr(
        gpu, "start", lambda numbers, *_, prepared: compiled.append((gpu.SECTIONS[numbers[0]].name, prepared))
    )
    numbers = [n for n, section in enumerate(gpu.SECTIONS) if section.model == "xl"]
    gpu.prepare(numbers, arguments(gpu, tmp_path), 1.0)
    parts = ["norms", "self-attention", "cross-attention"]
    expected = [("clips", ""), *(("operators", part) for part in parts), ("fidelity", ""), ("rivals", "")]
    assert sorted(compiled) == sorted(expected)


def test_with_a_mock_of_cuda_what_a_graph_reads_lives_as_long_as_it(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph holds addresses alone: memory that is given back to the device is a fault in its next replay."""

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    class Graph:
        def replay(self) -> None: ...

    for name, mock in (("Stream", Stream), ("current_stream", Stream), ("CUDAGraph", Graph)):
        monkeypatch.setattr(torch.cuda, name, mock)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    read = torch.ones(3)
    watched = weakref.ref(read)
    replay = sys.modules["gpu_rig"].captured(partial(torch.add, read, 1), "cuda")
    del read
    assert watched() is not None
    assert torch.equal(replay(), torch.full((3,), 2.0))
    del replay
    assert watched() is None
