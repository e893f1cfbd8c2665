"""A network's forward and backward as CUDA graphs: a launch each, where a host would be slower than its GPU.

A step of L on the fused operators is 3,200 kernels, which an H100 does in less than half the time that a host takes to
launch them from Python.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

MAX_SHAPES = 4  # each has a graph's memory of its own for what goes in and out
WARM_UPS = 3


class Recorded(nn.Module):
    """Calls a network whose inputs keep their shapes; what comes in more than a few shapes runs as it is.

    Gradients are in the graph's memory until the next step overwrites them, so they must not be accumulated over calls.
    Parameters may change in place, as optimizers and checkpoints change them.

    Args:
        network: takes tensors or None, by position, and gives one tensor.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._recordings: dict[Any, _Recording] = {}
        # What a recording has freed in the pool another takes on the same stream alone.
        self._pool: Any = None
        self._stream: Any = None

    def forward(self, *inputs: Tensor | None) -> Tensor:
        first = next(x for x in inputs if x is not None)
        if not (first.is_cuda and self.training and torch.is_grad_enabled()):
            return self.network(*inputs)
        key = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        if key not in self._recordings:
            if len(self._recordings) == MAX_SHAPES:
                return self.network(*inputs)
            if self._pool is None:
                self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            self._recordings[key] = _Recording(self.network, inputs, self._pool, self._stream)
        recording = self._recordings[key]
        return _Replay.apply(recording, inputs, *recording.parameters)


class _Recording:
    """Both graphs of a network for inputs of these shapes.

    The weights are recorded as leaves of their own on the same memory: those of the network belong to the stream of
    whatever used them before, which a recording must not wait for.
    """

    def __init__(self, network: nn.Module, inputs: tuple[Tensor | None, ...], pool: Any, stream: Any) -> None:
        named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self.parameters = tuple(named.values())
        self.inputs = tuple(None if x is None else x.detach().clone() for x in inputs)
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in named.items()}
        # What autocast keeps between uses of a weight would be of the step that was recorded.
        autocast = torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        )

        def forward() -> Tensor:
            with autocast:
                return functional_call(network, leaves, self.inputs)

        def backward(output: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(output, tuple(leaves.values()), gradient, allow_unused=True)

        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):  # kernels compile, libraries take their workspace
                output = forward()
                backward(output, torch.zeros_like(output))
                del output
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may use the device meanwhile.
        how: dict[str, Any] = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, **how):
            output = forward()
        self.gradient = torch.zeros_like(output)
        with torch.cuda.graph(self.backward, **how):
            self.gradients = backward(output, self.gradient)
        self.output = output.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, inputs: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.recording = recording
        for own, given in zip(recording.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        recording.forward.replay()
        return recording.output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        recording: _Recording = ctx.recording
        recording.gradient.copy_(gradient)
        recording.backward.replay()
        return None, None, *(None if g is None else g.detach() for g in recording.gradients)
