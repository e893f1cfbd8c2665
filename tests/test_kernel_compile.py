"""Every kernel compiles ahead of time for three GPUs: no spills, no atomics, tensor cores in the products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kernel_compile.py"
SHARED_LIMIT = {80: 166_912, 90: 232_448, 120: 101_376}  # bytes a block may have
PRODUCTS = ("_attention_fwd_kernel", "_attention_bwd_dq_kernel", "_attention_bwd_dkv_kernel")
BANDWIDTH_BOUND = {
    f"_{name}_{way}_kernel" for name in ("residual_norm", "skip_norm", "geglu") for way in ("fwd", "bwd")
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120], ids="sm_{}".format)
def test_kernels_compile(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, SCRIPT, str(capability)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    kernels = Counter(row["kernel"] for row in rows)
    assert len(kernels) == 15, kernels
    for row in rows:
        if row["constants"].get("E") in (None, 64, 72):  # those of L and XL
            assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_LIMIT[capability], row
        assert row["atomics"] == 0, row
        assert not row["unset"], row
        if row["kernel"] in BANDWIDTH_BOUND:
            assert row["scalar_loads"] == 0, row  # every load is of 16 bytes
        if row["kernel"] in PRODUCTS and ("*bf16" in row["dtypes"] or "*fp16" in row["dtypes"]):
            # on sm_90 the warpgroup products of Hopper, elsewhere those of a warp
            assert row["wgmma" if capability == 90 else "mma"] > 0, row
