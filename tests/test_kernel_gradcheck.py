"""Each operator's gradient against finite differences of its own output: no second implementation takes part.

The kernels compute in float32, so differences are taken over steps of 1e-2: rounding leaves 1e-5 of a value, the third
derivative about 1e-4. Two backward runs have to agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
import torch
from kernel_cases import DEVICE, random
from torch import Tensor

from ezaudio.kernels import reference as ops
from ezaudio.kernels.adaln import residual_norm
from ezaudio.kernels.attention import qk_norm_attention
from ezaudio.kernels.geglu import geglu
from ezaudio.kernels.skip_norm import skip_norm

STEP, TOLERANCE = 1e-2, 2e-3  # of gradients of size 1; measured: below 2e-4

Operator = Callable[..., Tensor | tuple[Tensor, ...]]


def adaln(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, *vectors: Tensor) -> tuple[Tensor, Tensor]:
    gate, shift, scale = vectors
    return residual_norm(x, weight, bias, update, gate, shift, scale)


def skip(x: Tensor, skip: Tensor, update: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    return skip_norm(x, skip, weight, bias, update, gate)


def attend(q: Tensor, k: Tensor, v: Tensor, *norms: Tensor, masked: bool) -> Tensor:
    q, k, v = (x[:, None] for x in (q, k, v))  # one head of 18: a main tile and a tail
    rope = None if masked else tuple(table.to(q.device) for table in ops.rope_tables(q.shape[2], q.shape[3]))
    mask = torch.tensor([[True, False, True]], device=q.device) if masked else None
    return qk_norm_attention(q, k, v, norms[:2], norms[2:], rope, mask)


def self_attention(*inputs: Tensor) -> Tensor:
    return attend(*inputs, masked=False)


def cross_attention(*inputs: Tensor) -> Tensor:
    return attend(*inputs, masked=True)


TOKENS, ROW, VECTOR, QUERIES, KEYS, HEAD = (1, 3, 10), (10,), (1, 10), (1, 2, 18), (1, 3, 18), (18,)
ALL = range(7)
# Operator, shapes of its inputs, and which of them are tried in the interpreter, where each value takes a tenth of a
# second in attention; on a GPU all are.
CASES: dict[str, tuple[Operator, list[tuple[int, ...]], Collection[int]]] = {
    "adaln": (adaln, [TOKENS, TOKENS, ROW, ROW, VECTOR, VECTOR, VECTOR], ALL),
    "skip norm": (skip, [TOKENS, TOKENS, TOKENS, (20,), (20,), VECTOR], ALL),
    "geglu": (geglu, [TOKENS], ALL),
    "self-attention": (self_attention, [QUERIES, QUERIES, QUERIES, HEAD, HEAD, HEAD, HEAD], (0, 6)),
    "cross-attention": (cross_attention, [QUERIES, KEYS, KEYS, HEAD, HEAD, HEAD, HEAD], (1, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(name: str) -> None:
    operator, shapes, tried = CASES[name]
    tried = ALL if DEVICE == "cuda" else tried
    given = [random(*shape, seed=i, mean=float(len(shape) == 1)) for i, shape in enumerate(shapes)]

    def in_float32(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = operator(*(x.float() for x in inputs))
        return tuple(x.double() for x in (outputs if isinstance(outputs, tuple) else (outputs,)))

    torch.autograd.gradcheck(
        in_float32,
        [x.to(DEVICE, torch.float64).requires_grad_(i in tried) for i, x in enumerate(given)],
        eps=STEP,
        atol=TOLERANCE,
        rtol=TOLERANCE,
        nondet_tol=0.0,
    )
