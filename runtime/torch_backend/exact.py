"""The switches under which a run computes what its types say, and the same in every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


@contextmanager
def exact() -> Iterator[None]:
    """No gradients, no TF32 in float32, sums of float16 in float32, deterministic convolutions; then all as before."""
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program has set the newer switch, and the older one refuses to be read beside it
        older = None
    before = (
        matmul.fp32_precision,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        cudnn.conv.fp32_precision,
        cudnn.benchmark,
        cudnn.deterministic,
    )
    try:
        torch.set_float32_matmul_precision("highest")
        _set("ieee", False, False, "ieee", False, True)
        with torch.inference_mode():
            yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        _set(*before)


def _set(products: str, fp16_sums: bool, bf16_sums: bool, convolutions: str, benchmark: bool, fixed: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    matmul.fp32_precision = products
    matmul.allow_fp16_reduced_precision_reduction = fp16_sums
    matmul.allow_bf16_reduced_precision_reduction = bf16_sums
    cudnn.conv.fp32_precision = convolutions
    cudnn.benchmark, cudnn.deterministic = benchmark, fixed
