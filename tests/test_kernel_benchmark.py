"""`benchmarks/kernels.py` from a plain checkout: what it says without a GPU, and that its own check can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kernels.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said on a machine without a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("A CUDA GPU is needed to measure")
    rows = run.stdout.splitlines()[1:]
    assert len(rows) == 21
    assert all(row.endswith("not measured") for row in rows)


CHECK = """
import sys
sys.path.insert(0, "benchmarks")
import kernels
from gpu_rig import REHEARSAL
kernels.FRAMES, kernels.TOKENS, kernels.HEADS, kernels.CHANNELS = 9, 5, 2, 4
cases = [*kernels.norm_cases(2, 32), *kernels.attention_cases(2, 32, REHEARSAL), kernels.sampler_case(2, "cpu")]
for case in cases:
    assert kernels.wrong(case, "cpu") == [], (case.name, kernels.wrong(case, "cpu"))
import dataclasses
swapped = dataclasses.replace(cases[2], fused=lambda x: cases[2].plain(x) * 1.1)
assert len(kernels.wrong(swapped, "cpu")) == 2
failed, found = kernels.alone("l", 0, 1)  # a process that cannot measure: there is no GPU
assert found == [] and failed[0].startswith("failed: AssertionError: "), failed
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter, on tiny shapes")
def test_its_check_passes_the_operators_and_fails_others() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter, on tiny shapes")
def test_tiles_takes_candidates_in_turn() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, SCRIPT.with_name("tiles.py"), "--dry-run", "--models", "l"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = run.stdout.splitlines()
    assert len(rows) == 26 + 13  # two candidates of each operator and pass, then the fastest
    assert all("µs" in row for row in rows), run.stdout
