"""`benchmarks/kernels.py` from a plain checkout: what it says without a GPU, and that its own check can fail."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says and rehearses what there is without a GPU")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kernels.py"


@no_gpu
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("A CUDA GPU is needed to measure")
    rows = run.stdout.splitlines()[1:]
    assert len(rows) == 21
    assert all(row.endswith("not measured") for row in rows)


# Where the package is not installed, it is found in the checkout alone.
NOT_INSTALLED = f"""
import sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "ezaudio":
            return None
        if (root := {str(SCRIPT.parents[1])!r}) not in sys.path:
            raise ModuleNotFoundError("No module named 'ezaudio'")
        return PathFinder.find_spec(name, [root])

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("name", ["gpu", "kernels", "tiles", "products", "gpu_profile"])
def test_a_checkout_is_enough(name: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOT_INSTALLED)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    bare = [sys.executable, "-c", "import ezaudio"]
    assert subprocess.run(bare, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL).returncode == 1
    command = [sys.executable, SCRIPT.with_name(f"{name}.py"), "--help"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"python benchmarks/{name}.py" in run.stdout


CHECK = """
import sys
sys.path.insert(0, "benchmarks")
import operators
from gpu_rig import REHEARSAL
cases = operators.all_cases(REHEARSAL, "l")
for case in cases:
    assert operators.wrong(case, "cpu") == [], (case.name, operators.wrong(case, "cpu"))
import dataclasses
swapped = dataclasses.replace(cases[2], fused=lambda x: cases[2].plain(x) * 1.1)
assert len(operators.wrong(swapped, "cpu")) == 2
"""


@no_gpu
def test_its_check_passes_the_operators_and_fails_others() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def kernels(benchmark_scripts: None) -> ModuleType:
    """The script as a module."""
    return importlib.import_module("kernels")


@no_gpu
def test_operators_are_rehearsed_side_by_side_and_timed_in_turn(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--dry-run", "--models", "xl", "--only", "geglu,cross-attention"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = run.stdout.splitlines()[2:]
    assert [row.split()[:3:2] for row in rows] == [["xl", "forward"], ["xl", "both"]] * 2
    assert all("µs" in row and "torch.compile" in row for row in rows), run.stdout
    assert all("FlexAttention" in row for row in rows[2:]), run.stdout


class Mock:
    """A worker that answers what it is given: faults need a GPU."""

    def __init__(self, job: Any, answers: list[dict[str, Any]]) -> None:
        self.job, self.answers, self.process = job, answers, self

    def answer(self) -> dict[str, Any]:
        return self.answers.pop(0)

    def timed(self) -> dict[str, Any]:
        return self.answer()

    def kill(self) -> None: ...

    def join(self) -> None: ...


def test_with_mocks_of_processes_a_rivals_fault_leaves_the_others_measured(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def started(job: Any, rig: Any, batch: int) -> Mock:
        given.append(job)
        if job.index == 1:
            return Mock(job, [{"problem": "its process ended with status 1"}])
        if "flex" in job.faulty or job.index == 2:
            return Mock(job, [{}, {"ms": {"fused": 1.0}}])
        return Mock(job, [{"problem": f"RuntimeError: {kernels.FAULT}flex: an illegal access"}])

    monkeypatch.setattr(kernels, "started", started)
    jobs = [kernels.Job("l", index, "forward") for index in range(3)]
    found = {job.index: answer for job, answer in kernels.measured(jobs, None, 2, at_once=2)}
    assert found == {
        1: {"problem": "its process ended with status 1"}, 2: {"ms": {"fused": 1.0}}, 0: {"ms": {"fused": 1.0}}
    }  # fmt: skip
    assert [job.faulty for job in given] == [{}, {}, {}, {"flex": "an illegal access"}]


def test_the_report_has_a_line_for_every_operator_and_pass(kernels: ModuleType, tmp_path: Path) -> None:
    tables, operators = importlib.import_module("gpu_tables"), importlib.import_module("operators")
    rig = sys.modules["gpu_rig"].REHEARSAL
    planned = [(model, case.name) for model in ("l", "xl") for case in operators.all_cases(rig, model)]
    assert sorted(planned) == sorted(tables.KERNELS)
    quantiles = {"median": 1.25, "p20": 1.2, "p80": 1.3}
    ratios = ("fused", "eager", "torch.compile", "compiled + SDPA cudnn", "FlexAttention")
    found = {"ms": {"fused": 0.1}, "ratio": dict.fromkeys(ratios, quantiles), "refused": {}}
    found["ratio"] |= {"compiled + SDPA flash": quantiles | {"median": 1.5}}
    case = operators.all_cases(rig, "xl")[3]
    made = kernels.row_of(kernels.Job("xl", 3, "both"), case, 16, found) | {"flops": 2 * 10**10, "copy_gb_per_s": 1.0}
    made |= {"gpu": "a GPU", "torch": "2", "triton": "3"}
    (tmp_path / "kernels.jsonl").write_text(json.dumps(made) + "\n")
    lines = tables.kernel_rivals(importlib.import_module("rows").Results(tmp_path))
    told = [line for line in lines if "TFLOP/s" in line]
    assert told == [
        "| XL | self-attention | both | 221 MB, 65 GFLOP | 100 µs; 200 TFLOP/s | 1.25 | 1.25 | 1.25, cudnn | 1.25 |"
    ]
    assert sum("not measured" in line for line in lines) == 20
    assert lines[-1] == "Measured on: a GPU, torch 2, triton 3."


def test_products_are_rehearsed() -> None:
    command = [sys.executable, SCRIPT.with_name("products.py"), "--dry-run", "--models", "xl"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = run.stdout.splitlines()
    assert len(rows) == 5
    assert all(f"split {split}" in row for row in rows for split in (1, 2, 4)), run.stdout


@pytest.mark.parametrize("script", ["products", "tiles"])
def test_with_a_mock_of_a_gpu_a_run_that_is_stopped_keeps_its_rows(
    script: str, benchmark_scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, output = importlib.import_module(script), tmp_path / "new" / "rows.jsonl"
    answers = iter([{"reason": "the first"}])

    def measured(*_: Any) -> dict[str, Any]:
        for answer in answers:
            return answer
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    mocks = {"GPU": module.REHEARSAL, "measured": measured, "prepare": print, "hardware": lambda device: {}}
    for name, mock in mocks.items():
        monkeypatch.setattr(module, name, mock, raising=name != "prepare")
    monkeypatch.setattr(sys, "argv", [script, "--models", "l", "--output", str(output)])
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert [json.loads(line)["reason"] for line in output.read_text().splitlines()] == ["the first"]


@pytest.mark.slow
@no_gpu
def test_tiles_takes_candidates_in_turn() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    operators = "adaln-sola,folded norm,cross-attention"
    command = [sys.executable, SCRIPT.with_name("tiles.py"), "--dry-run", "--models", "l", "--only", operators]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = run.stdout.splitlines()
    assert len(rows) == 10 + 5  # two candidates of each operator and pass, then the fastest
    assert all("µs" in row for row in rows), run.stdout
