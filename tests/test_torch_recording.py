"""Recordings of the backend `torch`: what shares one and makes way, with mocks; and what only a GPU can show."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any, ClassVar
from unittest.mock import Mock

import golden
import numpy as np
import pytest
import torch
from torch_cases import REQUESTS, edited, gpu, no_gpu, request, sessions, states

from ezaudio.config import DEBUG
from ezaudio.runtime.errors import BackendError, CancelledError
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.torch_backend import generation, recording
from ezaudio.runtime.torch_backend.recording import Direct, Recording


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
