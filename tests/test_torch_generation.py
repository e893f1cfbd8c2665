"""A generation on the backend `torch`: fused against plain, batches, switches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import golden
import pytest
import torch
from torch_cases import DEVICE, REQUESTS, controlled, edited, request, sessions, states

from ezaudio.config import DEBUG
from ezaudio.export.text_graph import relative_buckets
from ezaudio.runtime.torch_backend import generation
from ezaudio.runtime.torch_backend.exact import exact
from ezaudio.runtime.torch_backend.modules import compute_type
from ezaudio.runtime.torch_backend.random_graphs import random_graphs
from ezaudio.runtime.torch_backend.request import Shape
from ezaudio.runtime.torch_backend.sessions import TorchSessions


@pytest.mark.parametrize("case", REQUESTS)
def test_fused_operators_give_the_plain_latents(case: str) -> None:
    made = [
        sessions(fused=fused, device=DEVICE).generate(request(decoded=False, **REQUESTS[case]))
        for fused in (False, True)
    ]
    assert made[1].samples is None
    assert golden.relative_error(made[1].latents, made[0].latents) < 1e-5  # measured: 2e-6


@pytest.mark.parametrize("case", ["reuse", "controlled"])
def test_fused_blocks_take_the_skips_of_their_own_depth(case: str) -> None:
    """Of a model with several in blocks: the debug model has one, whose skip and residual could not be mistaken."""
    deeper = replace(DEBUG, dit=replace(DEBUG.dit, depth=6))
    asked = request(decoded=False, **REQUESTS[case])
    made = [
        TorchSessions(random_graphs(deeper, controlnet=True), deeper, DEVICE, torch.float32, fused=fused)
        for fused in (False, True)
    ]
    plain, fused = (model.generate(asked).latents for model in made)
    assert golden.relative_error(fused, plain) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_fused_half_precision_strays_no_further_than_plain(dtype: torch.dtype) -> None:
    asked = request(batch=2, num_steps=2, noise="philox")
    exact = sessions().generate(asked)
    errors = []
    for fused in (False, True):
        made = sessions(dtype, fused, DEVICE).generate(asked)
        assert made.samples is not None
        assert exact.samples is not None
        errors.append(golden.relative_error(made.latents, exact.latents))
        assert golden.relative_error(made.samples, exact.samples) < 2e-2  # measured: fp16 8e-4, bf16 4e-3
    plain, fused_error = errors  # measured: fp16 1.2e-3 and 1.3e-3, bf16 1.4e-2 and 1.3e-2
    assert fused_error < 1.5 * plain


def test_an_item_does_not_depend_on_its_neighbours() -> None:
    """Bitwise in batches of one size. In others a library may choose another kernel, which sums in another order."""
    model = sessions()
    first, second, third = states(5, 9, 7)
    others = states(12, 3, seed=8)
    a, b = (
        model.generate(request(batch=3, text_states=text))
        for text in ([first, second, third], [others[0], second, others[1]])
    )
    assert a.samples is not None
    assert b.samples is not None
    assert a.samples[1].tobytes() == b.samples[1].tobytes()
    assert a.samples[0].tobytes() != b.samples[0].tobytes()
    alone = model.generate(replace(request(text_states=[second]), seeds=[1]))
    negative = request(batch=3).negative_states
    assert negative is not None
    alone = model.generate(replace(request(text_states=[second]), seeds=[1], negative_states=[negative[1]]))
    assert golden.relative_error(alone.latents[0], a.latents[1]) < 1e-5  # measured: 9e-7


def test_a_programs_own_types_and_autocast_change_nothing() -> None:
    run = sessions()
    asked = request()
    expected = run.generate(asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run.generate(asked).latents.tobytes() == expected.latents.tobytes()
    torch.set_default_dtype(torch.float64)
    try:
        got = run.generate(asked)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.latents.tobytes() == expected.latents.tobytes()


def test_switches_stay_exact_until_the_last_run_ends_and_come_back() -> None:
    """Runs of several threads: the first one to end must not give the others the program's switches."""
    matmul, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    own = [(matmul, "allow_bf16_reduced_precision_reduction", True), (cudnn, "deterministic", False)]
    own += [(matmul, "allow_fp16_accumulation", True), (mkldnn.matmul, "fp32_precision", "bf16")]  # type: ignore[attr-defined]
    before = [(place, name, getattr(place, name)) for place, name, _ in own]
    try:
        for place, name, value in own:
            setattr(place, name, value)
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(exact())
            with ThreadPoolExecutor(1) as pool:
                pool.submit(second.enter_context, exact()).result()
                inside = [getattr(place, name) for place, name, _ in own]
                first.close()
                assert [getattr(place, name) for place, name, _ in own] == inside == [False, True, False, "ieee"]
                pool.submit(second.close).result()
        assert [getattr(place, name) for place, name, _ in own] == [value for _, _, value in own]
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@pytest.mark.parametrize("part", ["given", "mask", "energy"])
def test_a_request_has_the_same_number_of_everything(part: str) -> None:
    arrays = edited(2) | controlled(2)
    request(2, **arrays)
    with pytest.raises(AssertionError):
        request(2, **arrays | {part: arrays[part][:1]})


def test_modulation_in_several_parts_is_that_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of more than 64 steps, as the official one, has several parts."""
    asked = request(num_steps=5, decoded=False)
    expected = sessions().generate(asked).latents
    monkeypatch.setattr(generation, "MODULATION_CHUNK", 2)
    assert golden.relative_error(sessions().generate(asked).latents, expected) < 1e-5


def test_padding_of_prompts_changes_nothing() -> None:
    """Masked keys add exact zeros; products of more rows may sum in another order."""
    short, model = request(negative=3), sessions()
    padded = replace(short, text_states=[*short.text_states], negative_states=states(40, seed=1))
    shapes = [Shape.of(one, DEBUG.text.max_tokens, False) for one in (short, padded)]
    assert [shape.tokens for shape in shapes] == [16, 64]
    scale = replace(short, scale=[1.0], rescale=[0.0]), replace(padded, scale=[1.0], rescale=[0.0])  # negative: unused
    a, b = (model.generate(one).latents for one in scale)
    assert golden.relative_error(a, b) < 1e-5


def test_islands_are_in_fp32() -> None:
    for name in (
        "modulation.time_ada.weight",
        "denoiser.embedding.patch.weight",
        "denoiser_shallow.final_linear.weight",
        "denoiser.blocks.0.attn.norm_q.weight",
        "decoder.layers.0.weight",
        "decoder.layers.1.1.bias",
        "decoder.layers.5.weight",  # the last one of three strides; of four it is 6
        "decoder.layers.6.weight",
        "decoder.layers.1.0.frequency",
        "text_encoder.position_bias",
    ):
        assert compute_type(name, torch.float16) == torch.float32, name
    for name in ("denoiser.blocks.0.attn.qkv.weight", "text_encoder.layers.0.wo.weight", "conditioner.keys.0.weight"):
        assert compute_type(name, torch.bfloat16) == torch.bfloat16
    residual = "decoder.layers.1.2.layers.1.weight"
    assert compute_type(residual, torch.float16) == torch.float16
    assert compute_type(residual, torch.bfloat16) == torch.float32


def test_distances_fall_into_t5s_buckets() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-99, 100)
    expected = T5Attention._relative_position_bucket(distance, bidirectional=True, num_buckets=32, max_distance=128)
    assert torch.equal(relative_buckets(100), expected)
