"""Every kernel compiles ahead of time for three GPUs: no spills, no atomics, tensor cores in the products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import kernel_compile
import pytest

SCRIPT = Path(__file__).parent / "kernel_compile.py"
SHARED_LIMIT = {80: 166_912, 90: 232_448, 120: 101_376}  # bytes a block may have
PRODUCTS = (
    "_attention_fwd_kernel", "_attention_bwd_dq_kernel", "_attention_bwd_dkv_kernel", "_geglu_product_kernel",
)  # fmt: skip
BANDWIDTH_BOUND = {
    f"_{name}_{way}_kernel" for name in ("residual_norm", "skip_norm", "geglu") for way in ("fwd", "bwd")
}
FORWARD_NORMS = ("_residual_norm_fwd_kernel", "_skip_norm_fwd_kernel")
BARRIERS = 5  # of the two sums over a row that several warps share; what changes its order of columns takes more


# Of the attention that ptxas 12.8 compiled wrongly: where UR30 should start from UR8.
DESCRIPTORS = """
        /*3ce0*/                   USGXT.U32 UR8, UR5, 0xe ;
        /*3c20*/                   UIADD3 UR30, UP0, {source}, 0x20, URZ ;
        /*3c90*/                   UIADD3 UR34, UP1, UR30, 0x20, URZ ;
        /*58c0*/                   UMOV UR10, UR8 ;
        /*58d0*/                   UMOV UR11, 0xc0000010 ;
        /*58f0*/                   HGMMA.64x16x16.F32.BF16 R88, R24, gdesc[UR8].tnspB, R88 ;
"""


def test_registers_that_nothing_wrote_are_found() -> None:
    start = "        /*0010*/                   ULDC.64 UR4, c[0x0][0x270] ;\n"
    assert kernel_compile.unset_registers(start + DESCRIPTORS.format(source="UR8")) == []
    wrong = kernel_compile.unset_registers(start + DESCRIPTORS.format(source="UR30"))
    assert wrong == ["UIADD3 UR30, UP0, UR30, 0x20, URZ"]
    product = DESCRIPTORS.format(source="UR8").replace("gdesc[UR8]", "gdesc[UR24]")
    assert [line.split()[0] for line in kernel_compile.unset_registers(start + product)] == ["HGMMA.64x16x16.F32.BF16"]


def narrow_loads(
    TAIL: int = 0, HAS_UPDATE: bool = False, HAS_GATE: bool | None = None, MODULATED: bool = False, **_: object
) -> int:
    """Of the second piece of a row, a value a thread: weight, scale and gate of AdaLN-SOLA, gate of a skip."""
    if not TAIL:
        return 0
    return HAS_UPDATE if HAS_GATE is None else 1 + MODULATED + HAS_GATE


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
    assert len(kernels) == 15 + (capability == 90), kernels  # the product with GEGLU is Hopper's
    for row in rows:
        if row["constants"].get("E") in (None, 64, 72):  # those of L and XL
            assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_LIMIT[capability], row
        assert row["atomics"] == 0, row
        assert not row["serialized"], row  # products that ptxas makes wait for one another
        assert not row["unset"], row
        if row["kernel"] in BANDWIDTH_BOUND:
            assert row["scalar_loads"] == narrow_loads(**row["constants"]), row  # every other load is of 8 or 16 bytes
        if row["kernel"] in FORWARD_NORMS:
            assert row["barriers"] <= (BARRIERS if row["num_warps"] > 1 else 0), row
        if row["kernel"] in PRODUCTS and ("*bf16" in row["dtypes"] or "*fp16" in row["dtypes"]):
            # on sm_90 the warpgroup products of Hopper, elsewhere those of a warp
            assert row["wgmma" if capability == 90 else "mma"] > 0, row
