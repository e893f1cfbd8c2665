"""The report of the benchmarks is what their rows give, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import run
from click.testing import Result

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("benchmark_scripts")


def fixture_rows() -> list[dict[str, Any]]:
    """Of every benchmark, as the scripts write them."""
    spread = {"median": 2.0, "p20": 1.9, "p80": 2.1}
    machine = {"hardware": "CPU, 2 cores", "versions": {"onnxruntime": "1.32.0", "torch": "2.13.0"}}
    device = {"gpu": "H200", "driver": "1", "cuda": "13.0", "torch": "2.13.0", "triton": "3.7.1"}
    model = {"model": "l", "duration_s": 10.0}
    sides = ("official fp32", "plain fp32", "ours fp32", "ours int8")
    times = (8.0, 7.0, 5.0, 2.0)
    timed = {
        "rounds": {side: [t] * 7 for side, t in zip(sides, times, strict=True)},
        "seconds": {side: dict.fromkeys(spread, t) for side, t in zip(sides, times, strict=True)},
        "official_over": {side: dict.fromkeys(spread, 8 / t) for side, t in zip(sides, times, strict=True)},
        "parity": {side: {"cosine": 0.9995, "relative_l2": 0.03} for side in sides[1:]},
    }
    del timed["official_over"]["official fp32"]
    profile = {"step_s": 5.0, "products_share": 0.8, "gflop_per_s": 150.0, "operators": {"MatMul": 4.0}}
    product = {"operator": "MatMul", "shape": "[2, 3] → [2, 4]", "count": 5, "seconds": 4.0}
    profile |= {"products": [product | {"gflop_per_s": 160.0, "share_of_floor": 0.85}]}
    profile |= {"floor": {"ort_fp32": 190.0, "ort_int8": 770.0}}
    clip = {"step_s": 2.0, "decode_s": 3.0, "total_s": 203.0, "outside_share": 0.004}
    usual = {"num_steps": 100, "backend": "onnxruntime", "bundle_bytes": 1e9, "peak_memory_mib": 2500.0}
    return [
        {"benchmark": "official", "case": case, **model, **timed, **machine, "num_steps": 100, "preset": "fast"}
        for case in ("step", "decode", "clip", "preset")
    ] + [
        {"benchmark": "denoiser", "case": "step", **model, "precision": "fp32", "profile": profile, **machine}
        | {"over_ours": {"unhoisted": {"median": 1.07, "p20": 1.06, "p80": 1.08}}},
        {
            "benchmark": "sampling",
            "case": "clip",
            **model,
            "precision": "int8",
            "preset": None,
            "median": clip,
            **usual,
        },
        {"benchmark": "sampling", "case": "preset", **model, "precision": "int8", "preset": "fast", "num_steps": 100}
        | {"official_over_preset": {"median": 25.0, "p20": 24.0, "p80": 26.0}},
        {"benchmark": "memory", "case": "low_memory", **model, "precision": "int8", "peak_memory_mib": 1500.0}
        | {"peak_over_weights": 1.15},
        {"benchmark": "cold_start", "seconds": dict.fromkeys(("import", "help", "sound"), spread)},
        {"benchmark": "gpu", "goal": "G1", "model": "xl", "what": "loop", "unit": "share", "note": "300 ms", **device}
        | {"value": {"median": 0.5, "p20": 0.49, "p80": 0.51}},
        {"benchmark": "gpu", "goal": "G2", "model": "xl", "what": "loop", "failed": True, "reason": "broke", **device},
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the report writes, with fixture rows."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copy(ROOT / "docs" / "performance.md", tmp_path / "docs")
    text = "\n".join(json.dumps(row) for row in fixture_rows())
    (tmp_path / "results" / "all.jsonl").write_text(text + "\n", encoding="utf-8")
    return tmp_path


def report(tree: Path, *arguments: str) -> Result:
    return run("report", "--root", tree, "--results", tree / "results", *arguments)


def test_report_tells_what_was_measured(tree: Path) -> None:
    assert report(tree).exit_code == 0
    readme, page = ((tree / name).read_text("utf-8") for name in ("README.md", "docs/performance.md"))
    assert "1.60 times as fast in fp32 (5 s) and 4.00 times as fast in int8 (2 s)" in readme
    assert "| L | this | int8 | 2 s | 4.00 (4.00 to 4.00) | 2 s | not measured / 1,500 MiB |" in readme
    assert "| XL | this | int8 | not measured |" in readme
    measured = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| C")}
    for name, value in {
        "C1": "L 1.60 (1.60 to 1.60)",
        "C2": "L 4.00 (4.00 to 4.00), cosine 0.99950",
        "C4": "L fp32 1.07 (1.06 to 1.08)",
        "C5": "L plain fp32 1.14 (1.14 to 1.14), fp32 1.60 (1.60 to 1.60), int8 4.00 (4.00 to 4.00)",
        "C6": "L int8 0.40%",
        "C7": "2.00 s; 2.00 s",
        "C8": "L int8 low memory 1.15",
        "C9": "not measured",
    }.items():
        assert f"| {value} |" in measured[name]
    assert "| L int8 25.00 (24.00 to 26.00), clips of 10 s |" in page
    assert "| XL, loop | 45 % | 60 % | 50.0% (49.0% to 51.0%); 300 ms | 1.573 TFLOP a step |" in page
    assert "| XL, loop | 60 % | 70 % | failed: broke | 12.59 TFLOP a step |" in page
    assert "| L, loop | 45 % | 60 % | not measured | 1.078 TFLOP a step |" in page
    assert "Measured on: H200, driver 1, CUDA 13.0, torch 2.13.0, triton 3.7.1." in page
    chart = (tree / "docs" / "performance.svg").read_text("utf-8")
    for factor in ("1.14×", "1.4×", "2.5×", "25×"):
        assert f">{factor}</text>" in chart


def test_report_takes_the_newest_row(tree: Path) -> None:
    newer = {**fixture_rows()[6], "official_over_preset": {"median": 30.0, "p20": 29.0, "p80": 31.0}}
    with (tree / "results" / "all.jsonl").open("a") as file:
        file.write(json.dumps(newer) + "\n")
    report(tree)
    page = (tree / "docs" / "performance.md").read_text("utf-8")
    assert "30.00 (29.00 to 31.00)" in page
    assert "25.00" not in page


def test_report_check_finds_what_differs(tree: Path) -> None:
    report(tree)
    assert report(tree, "--check").exit_code == 0
    readme = tree / "README.md"
    readme.write_text(readme.read_text("utf-8").replace("4.00 times", "5.00 times"), "utf-8")
    found = report(tree, "--check")
    assert found.exit_code == 1
    assert "README.md differ from the results: run python benchmarks/report.py" in found.stderr


def test_this_repository_tells_what_its_rows_give() -> None:
    result = run("report", "--check", "--results", ROOT / "benchmarks" / "results")
    assert result.exit_code == 0, result.stderr
