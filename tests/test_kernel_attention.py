"""Fused QK-norm, RoPE and attention against the reference."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, dtype_name, failures, mutant, random
from torch import Tensor

from ezaudio.kernels import attention, head_norm, target
from ezaudio.kernels import reference as ops

HEADS = 2
# float32 tiles are 32 × 32 forward and 16 × 16 backward, those of 16-bit numbers 128 × 64 and 64 × 64
SELF = {"one-token": 1, "one-tile": 16, "ragged": 37}
CROSS = {"one-token": (5, 1), "one-query": (1, 41), "ragged": (19, 41), "more-queries": (67, 3)}


def inputs(batch: int, length: int, keys: int, width: int, mean: float = 0.0) -> dict[str, Tensor]:
    size = HEADS * width
    return {
        "q": random(batch, length, size, seed=1, mean=mean),
        "k": random(batch, keys, size, seed=2, mean=mean),
        "v": random(batch, keys, size, seed=3),
        "q_weight": 1 + 0.5 * random(width, seed=4),
        "q_bias": 0.5 * random(width, seed=5),
        "k_weight": 1 + 0.5 * random(width, seed=6),
        "k_bias": 0.5 * random(width, seed=7),
    }


def key_mask(batch: int, keys: int, lengths: tuple[int, ...] = ()) -> Tensor:
    """Of each row the first `lengths`; or three in five keys, in the last clip only among the first three."""
    if lengths:
        return torch.arange(keys) < torch.tensor(lengths)[:, None]
    mask = torch.rand(batch, keys, generator=torch.Generator().manual_seed(8)) < 0.6
    mask[:, 0] = True
    mask[-1, 3:] = False
    return mask


def fails(
    length: int,
    keys: int | None,
    width: int,
    dtype: torch.dtype,
    module: ModuleType = attention,
    batch: int = 2,
    mean: float = 0.0,
    lengths: tuple[int, ...] = (),
) -> dict[str, str]:
    """Self-attention with RoPE where keys is None, masked cross-attention otherwise."""
    given = inputs(batch, length, length if keys is None else keys, width, mean)
    mask = None if keys is None else key_mask(batch, keys, lengths).to(DEVICE)

    def call(operator, rope_dtype, q, k, v, q_weight, q_bias, k_weight, k_bias):
        rope = None
        if keys is None:
            rope = tuple(table.to(DEVICE, rope_dtype or q.dtype) for table in ops.rope_tables(length, width))
        q, k, v = (ops.split_heads(x, HEADS) for x in (q, k, v))
        return operator(q, k, v, (q_weight, q_bias), (k_weight, k_bias), rope, mask)

    def plain(**tensors: Tensor) -> Tensor:
        double = tensors["q"].dtype == torch.float64
        return call(double_attention if double else ops.qk_norm_attention, None if double else torch.float32, **tensors)

    def fused(**tensors: Tensor) -> Tensor:
        return call(module.qk_norm_attention, torch.float32, **tensors)

    # A bias on every key adds the same to all scores of a row: without RoPE its gradient is zero.
    cancels = {"k_bias": "k_weight"} if keys is not None else {}
    if (length if keys is None else keys) == 1:  # attention to one key does not depend on the scores
        cancels = dict.fromkeys(("q", "k", "q_weight", "q_bias", "k_weight", "k_bias"), "v")
    return failures(fused, plain, given, [(batch, length, HEADS * width)], dtype, cancels=cancels)


def double_attention(q, k, v, norm_q, norm_k, rope, mask):  # type: ignore[no-untyped-def]
    """`ops.qk_norm_attention` without its rotation in float32."""
    q = torch.nn.functional.layer_norm(q, q.shape[-1:], *norm_q, eps=ops.NORM_EPS)
    k = torch.nn.functional.layer_norm(k, k.shape[-1:], *norm_k, eps=ops.NORM_EPS)
    if rope is not None:
        cos, sin = rope
        q, k = (
            torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1) for a, b in (x.chunk(2, dim=-1) for x in (q, k))
        )
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("width", [64, 72], ids="E={}".format)
def test_self_attention_matches(width: int, dtype: torch.dtype) -> None:
    assert fails(37, None, width, dtype) == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("width", [64, 72], ids="E={}".format)
def test_masked_cross_attention_matches(width: int, dtype: torch.dtype) -> None:
    assert fails(19, 41, width, dtype) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("length", SELF.values(), ids=SELF.keys())
def test_lengths_of_self_attention(length: int, dtype: torch.dtype) -> None:
    assert fails(length, None, 72, dtype) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize(("length", "keys"), CROSS.values(), ids=CROSS.keys())
def test_lengths_of_cross_attention(length: int, keys: int, dtype: torch.dtype) -> None:
    assert fails(length, keys, 72, dtype) == {}


@pytest.mark.parametrize("width", [8, 16, 24, 32, 40, 48, 96], ids="E={}".format)
def test_other_head_widths(width: int) -> None:
    assert fails(11, None, width, torch.float32) == {}


def test_many_rows_take_a_larger_block_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "capability", lambda: 9)
    monkeypatch.setattr(target, "multiprocessors", lambda: 132)
    one, many = (attention.forward_tile(torch.bfloat16, 16, 500, rows * 16) for rows in (2, 16))
    assert (one["BLOCK_Q"], many["BLOCK_Q"]) == (64, 128)
    assert attention.forward_tile(torch.bfloat16, 0, 500, 16 * 16)["BLOCK_Q"] == 64  # heads that are a power of two


@pytest.mark.parametrize("keys", [None, 41], ids=["self", "cross"])
def test_the_larger_block_matches(keys: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = {"BLOCK_Q": 128, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
    monkeypatch.setattr(attention, "forward_tile", lambda *shape: larger)
    assert fails(37, keys, 72, torch.bfloat16) == {}


@pytest.mark.parametrize(
    ("width", "tiles"), [(64, (64, 0)), (72, (64, 16)), (32, (32, 0)), (16, (16, 0)), (48, (32, 16))]
)
def test_head_tiles(width: int, tiles: tuple[int, int]) -> None:
    assert head_norm.tile_widths(width) == tiles


def test_several_tiles_of_16_bit_numbers() -> None:
    assert fails(150, None, 72, torch.bfloat16, batch=1) == {}


@pytest.mark.parametrize("shift", [1, 4, 8], ids="from value {}".format)
def test_heads_may_start_anywhere_in_memory(shift: int) -> None:
    """Where wide loads cannot read them, they are copied."""
    whole = random(2, 5, 2 * 72 + 16, seed=1).to(DEVICE, torch.float16)
    q = ops.split_heads(whole[..., shift : shift + 2 * 72], HEADS)
    norm = torch.ones(72, device=DEVICE), torch.zeros(72, device=DEVICE)
    expected = attention.qk_norm_attention(*(3 * [q.contiguous()]), norm, norm)
    assert torch.equal(attention.qk_norm_attention(q, q, q, norm, norm), expected)
    assert (head_norm.head_rows(q) is q) == (shift == 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_mean_far_from_zero_costs_nothing(dtype: torch.dtype) -> None:
    assert fails(21, None, 72, dtype, mean=30.0) == {}


@pytest.mark.parametrize(("width", "keys"), [(64, None), (72, 23)], ids=["self-E=64", "cross-E=72"])
def test_a_mean_far_from_zero_in_the_other_forms(width: int, keys: int | None) -> None:
    assert fails(21, keys, width, torch.bfloat16, mean=30.0) == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_each_row_has_its_own_number_of_keys(dtype: torch.dtype) -> None:
    assert fails(5, 37, 64, dtype, batch=4, lengths=(37, 1, 16, 33)) == {}


def test_a_row_without_a_valid_key_gives_zeros() -> None:
    given = {name: x.to(DEVICE).requires_grad_() for name, x in inputs(2, 5, 7, 16).items()}
    mask = torch.tensor([[True] * 7, [False] * 7], device=DEVICE)
    q, k, v = (ops.split_heads(given[name], HEADS) for name in "qkv")
    norms = (given["q_weight"], given["q_bias"]), (given["k_weight"], given["k_bias"])
    out = attention.qk_norm_attention(q, k, v, *norms, None, mask)
    out.backward(random(*out.shape, seed=9).to(DEVICE))
    assert not out[1].any()
    assert all(x.grad.isfinite().all() for x in given.values())
    assert not given["v"].grad[1].any()


def test_what_is_kept_for_backward() -> None:
    """q, k, v, lse and the output, nothing of size L×L or S×L; q, k, v are the projections' own memory."""
    given = {name: x.to(DEVICE).requires_grad_() for name, x in inputs(1, 5, 7, 16).items()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        q, k, v = (ops.split_heads(given[name], HEADS) for name in "qkv")
        norms = (given["q_weight"], given["q_bias"]), (given["k_weight"], given["k_bias"])
        out = attention.qk_norm_attention(q, k, v, *norms)
    large = [x for x in kept if x.dim() > 1]
    assert [tuple(x.shape) for x in large] == [(1, 2, 5, 16), (1, 2, 7, 16), (1, 2, 7, 16), (1, 5, 2, 16), (1, 2, 5)]
    expected = [given["q"], given["k"], given["v"], out]
    assert [x.data_ptr() for x in large[:4]] == [x.data_ptr() for x in expected]


@pytest.mark.parametrize("keys", [None, 23], ids=["self", "cross"])
def test_two_runs_give_equal_bits(keys: int | None) -> None:
    runs = []
    for _ in range(2):
        given = {name: x.to(DEVICE).requires_grad_() for name, x in inputs(2, 37, keys or 37, 72).items()}
        rope = None if keys else tuple(table.to(DEVICE) for table in ops.rope_tables(37, 72))
        q, k, v = (ops.split_heads(given[name], HEADS) for name in "qkv")
        norms = (given["q_weight"], given["q_bias"]), (given["k_weight"], given["k_bias"])
        out = attention.qk_norm_attention(q, k, v, *norms, rope)
        out.backward(random(2, 37, 144, seed=9).to(DEVICE))
        runs.append([out, *(x.grad for x in given.values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


MUTANTS = [
    ("attention.py", "score = product(q_tail, tl.trans(load", "_ = product(q_tail, tl.trans(load", "out0"),
    ("attention.py", "total = total * shrink +", "total = total +", "out0"),
    ("attention.py", "out_main * shrink[:, None])", "out_main)", "out0"),
    ("attention.py", "out_tail * shrink[:, None])", "out_tail)", "out0"),
    ("attention_backward.py", "dshare - delta[:, None]", "dshare", "q"),
    ("attention_backward.py", "dshare - delta[None, :]", "dshare", "k"),
    ("attention_backward.py", "delta += tl.sum(out * dout_tail.to(tl.float32), axis=1)", "delta += 0.0", "q"),
    ("attention_backward.py", "score = product(q_tail, tl.trans(k_tail), score)", "pass", "q"),
    ("attention_backward.py", "score = product(k_tail, tl.trans(q_tail), score)", "pass", "v"),
    ("attention_backward.py", "dshare = product(v_tail, tl.trans(dout_tail), dshare)", "pass", "k"),
    ("attention_backward.py", "dq_tail = product(dscore, k_tail, dq_tail)", "pass", "q"),
    ("attention_backward.py", "dk_tail = product(dscore, q_tail, dk_tail)", "pass", "k"),
    ("attention_backward.py", "dv_tail = product(share, dout_tail, dv_tail)", "pass", "v"),
    ("attention_backward.py", "dk_main * LN_2", "dk_main", "k"),
    ("attention_backward.py", "product(dscore, k_main, dq_main)", "product(dscore, k_main, 0.0 * dq_main)", "q"),
    ("head_norm.py", "        sin = -sin\n", "        sin = sin\n", "q"),
    ("head_norm.py", "(main - level[:, None] - normal", "(main - normal", "q"),
    ("head_norm.py", "(main - level[:, None] - normal * tilt[:, None])", "(main - level[:, None])", "k"),
    ("head_norm.py", "(tail - level[:, None] - tail_normal", "(tail - tail_normal", "q"),
    ("head_norm.py", "        level += tl.sum(tail, axis=1)\n", "", "q"),
    ("head_norm.py", "        tilt += tl.sum(tail * tail_normal, axis=1)\n", "", "k"),
    ("head_norm.py", "column, tl.sum(main * normal, axis=0)", "column, tl.sum(main, axis=0)", "q_weight"),
    ("head_norm.py", "E + tail_column, tl.sum(tail, axis=0)", "E + tail_column, tl.sum(tail, axis=0) * 0.0", "k_bias"),
    ("head_norm.py", "E + column, tl.sum(main, axis=0)", "E + column, tl.sum(main, axis=0) * 0.0", "q_bias"),
    ("head_norm.py", "tl.sum(tail * tail_normal, axis=0)", "tl.sum(tail, axis=0)", "k_weight"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "old", "new", "gradient"), MUTANTS, ids=[f"{m[3]}-{m[1].strip()[:30]}" for m in MUTANTS]
)
def test_a_dropped_term_is_caught(file: str, old: str, new: str, gradient: str, tmp_path: Path) -> None:
    module = mutant(tmp_path, file, old, new)("attention")
    assert gradient in fails(37, None, 72, torch.float32, module, batch=1)


def test_a_dropped_mask_is_caught(tmp_path: Path) -> None:
    old = "allowed = valid & (tl.load(mask_ptr + batch * keys + key, mask=valid, other=0) != 0)"
    module = mutant(tmp_path, "attention.py", old, "allowed = valid")("attention")
    assert "out0" in fails(5, 7, 16, torch.float32, module)
