"""A generation on the backend `torch`: fused against plain, batches, recordings; and what only a GPU can show."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar
from unittest.mock import Mock

import golden
import numpy as np
import pytest
import torch

from ezaudio.config import DEBUG
from ezaudio.export.text_graph import relative_buckets
from ezaudio.runtime.errors import BackendError, CancelledError
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.torch_backend import generation, recording
from ezaudio.runtime.torch_backend.exact import exact
from ezaudio.runtime.torch_backend.modules import compute_type
from ezaudio.runtime.torch_backend.random_graphs import random_graphs
from ezaudio.runtime.torch_backend.recording import Direct, Recording
from ezaudio.runtime.torch_backend.request import Request, Shape, StepKind
from ezaudio.runtime.torch_backend.sessions import TorchSessions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
no_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="stands in for a GPU where there is none")


def states(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((length, DEBUG.text.width), np.float32) for length in lengths]


def request(batch: int = 1, negative: int = 1, num_steps: int = 2, **given: Any) -> Request:
    """negative: tokens of the negative prompts, 0 without guidance."""
    plan = solver_plan("ddim", num_steps, 1.0, DEBUG.diffusion)
    steps = given.pop("steps", (StepKind(negative > 0, False),) * num_steps)
    return Request(
        text_states=given.pop("text_states", states(*range(5, 5 + batch))),
        negative_states=states(*[negative] * batch, seed=1) if negative else None,
        plan=plan,
        steps=steps,
        num_frames=5,
        seeds=list(range(batch)),
        scale=[3.0] * batch,
        rescale=[0.5] * batch,
        **given,
    )


def sessions(
    dtype: torch.dtype = torch.float32, fused: bool = False, device: str = "cpu", **given: Any
) -> TorchSessions:
    return TorchSessions(random_graphs(DEBUG, controlnet=True), DEBUG, device, dtype, fused=fused, **given)


def controlled(batch: int = 1) -> dict[str, Any]:
    return {"energy": np.random.default_rng(5).random((batch, 1, 10), np.float32), "control_scale": 0.7}


def edited(batch: int = 1) -> dict[str, Any]:
    mask = np.ones((batch, 5), np.bool_)
    mask[:, :2] = False
    return {"given": np.random.default_rng(6).standard_normal((batch, 8, 5), np.float32), "mask": mask}


SHALLOW = (StepKind(True, False), StepKind(True, True), StepKind(False, True))
REQUESTS: dict[str, dict[str, Any]] = {
    "unguided": {"negative": 0},
    "constant": {"noise": "philox"},
    "negative": {"negative": 3, **edited()},
    "reuse": {"num_steps": 3, "steps": SHALLOW},
    "controlled": {**controlled()},
    "controlled, negative": {"negative": 3, **controlled()},
}


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


def test_requests_of_one_shape_share_a_recording() -> None:
    model = sessions()
    asked = request()
    model.generate(asked)
    values = replace(asked, seeds=[9], scale=[1.5], rescale=[0.0], text_states=states(16), **edited())
    model.generate(values)
    model.generate(replace(asked, plan=solver_plan("dpmpp_2m_sde", 2, 1.0, DEBUG.diffusion)))
    assert len(model._functions) == 1
    model.generate(replace(asked, text_states=states(17)))
    model.generate(replace(asked, negative_states=states(2)))
    model.generate(replace(asked, decoded=False))
    assert len(model._functions) == 4
    for length in range(1, 10):
        model.generate(replace(asked, num_frames=length, decoded=False))
    assert len(model._functions) == 8
    model.release()
    assert not model._functions


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


class MockedRecording(Direct):
    """Runs the function; a GPU has room for one at a time."""

    held: ClassVar[weakref.WeakSet[MockedRecording]] = weakref.WeakSet()

    def __init__(self, function: Any, inputs: Any, num_steps: int, stream: Any, pool: Any) -> None:
        super().__init__(function, torch.device("cpu"))
        self.pool = pool
        if num_steps > 2 or self.held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.held.add(self)


@no_gpu
def test_with_a_mock_of_recordings_older_ones_make_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ezaudio.runtime.torch_backend.sessions.Recording", MockedRecording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    model = sessions()
    model._stream = Mock()
    made = [model.generate(request(decoded=decoded)) for decoded in (True, False)]
    assert np.array_equal(made[0].latents, made[1].latents)
    assert len(model._functions) == 1
    with pytest.raises(BackendError, match="no room on the GPU for this length and batch"):
        model.generate(request(num_steps=3))
    assert not model._functions
    model.generate(request())


def test_a_full_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sessions()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    monkeypatch.setattr(generation, "denoise", full)
    with pytest.raises(
        BackendError, match=r"no room on the GPU for this length and batch \(CUDA out .* 9 GiB\): close"
    ):
        model.generate(request())


@no_gpu
def test_a_recording_on_a_mocked_cuda_keeps_its_buffers_and_counts_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is replaced: a replay runs the function again, on the buffers of the recording, a step at each query."""
    mock = MockedCuda()
    monkeypatch.setattr(recording.torch, "cuda", mock)
    monkeypatch.setattr(recording.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    addresses = set()

    def function(inputs: recording.Tensors, after_step: recording.OnStepDone) -> dict[str, torch.Tensor]:
        addresses.add(inputs["x"].data_ptr())
        total = inputs["x"]
        for step in range(3):
            total = total * 2
            after_step(step)
        return {"y": total}

    recorded = Recording(function, {"x": torch.ones(2)}, 3, mock, None)  # type: ignore[arg-type]
    assert mock.runs == ["warm-up", "captured"]
    for value in (3.0, 5.0):
        steps: list[int] = []
        mock.replayed = lambda: recorded._outputs.update(function(recorded._inputs, mock.tell(recorded)))
        outputs = recorded({"x": torch.full((2,), value)}, steps.append)
        assert outputs["y"].tolist() == [8 * value] * 2
        assert steps == [0, 1, 2]
    assert len(addresses) == 1

    def cancel(step: int) -> None:
        raise CancelledError("enough")

    mock.waited = False
    with pytest.raises(CancelledError):
        recorded({"x": torch.ones(2)}, cancel)
    assert mock.waited  # the device is idle before anything else uses the buffers


class MockedCuda:
    """What `Recording` calls of torch.cuda, and the stream it gets."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.replayed: Any = None
        self.waited = False
        self.queries = 0

    def tell(self, recorded: Recording) -> Any:
        return recorded._mark

    def current_stream(self, device: torch.device) -> MockedCuda:
        return self

    def wait_stream(self, stream: MockedCuda) -> None: ...

    def stream(self, stream: MockedCuda) -> MockedCuda:
        self.runs.append("warm-up")
        return self

    def graph(self, graph: MockedCuda, **options: Any) -> MockedCuda:
        self.runs.append("captured")
        return self

    def CUDAGraph(self) -> MockedCuda:
        return self

    def Event(self) -> MockedCuda:
        self.queries = 0
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def record(self) -> None: ...

    def query(self) -> bool:
        self.queries += 1
        return self.queries > 2

    def synchronize(self) -> None:
        self.waited = True

    def replay(self) -> None:
        self.replayed()


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("case", REQUESTS)
def test_a_recording_gives_what_the_operators_give(case: str, dtype: torch.dtype) -> None:
    asked = request(**REQUESTS[case])
    eager, recorded = (sessions(dtype, True, "cuda", recorded=one).generate(asked) for one in (False, True))
    assert eager.samples is not None
    assert recorded.samples is not None
    assert recorded.samples.tobytes() == eager.samples.tobytes()
    reference = sessions().generate(asked)
    bound = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    assert golden.relative_error(recorded.latents, reference.latents) < bound


@gpu
@pytest.mark.gpu
def test_one_seed_gives_the_same_bytes_whatever_runs_between() -> None:
    model = sessions(torch.float16, True, "cuda")
    asked, other = request(noise="philox"), replace(request(noise="philox"), seeds=[7], text_states=states(9))
    first = model.generate(asked)
    assert first.samples is not None
    for _ in range(500):  # 1000 generations
        model.generate(other)
        again = model.generate(asked)
        assert again.samples is not None
        assert again.samples.tobytes() == first.samples.tobytes()
    assert len(model._functions) == 1


@gpu
@pytest.mark.gpu
def test_released_recordings_give_their_memory_back() -> None:
    model = sessions(torch.float16, True, "cuda")
    before = torch.cuda.memory_reserved()
    model.generate(replace(request(), num_frames=400))
    held = torch.cuda.memory_reserved()
    model.release()
    assert torch.cuda.memory_reserved() < held
    assert torch.cuda.memory_reserved() <= before + (32 << 20)  # workspaces of libraries stay
