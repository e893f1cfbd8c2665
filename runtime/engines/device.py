"""The few calls of the CUDA runtime that running engines takes, through cuda-python; an error is one line.

Nothing here needs PyTorch. Everything runs on one stream of device 0.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ezaudio.runtime.errors import BackendError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

ALIGNMENT = 256  # of every address that an engine is given


def cuda_runtime() -> Any:
    """The module `cuda.bindings.runtime`. Raises MissingExtraError."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingExtraError('cuda-bindings is not installed: pip install "ezaudio[tensorrt-rtx]"') from error
    return runtime


def call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime by name: its result, or None. Raises BackendError with CUDA's own reason."""
    runtime = cuda_runtime()
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        _, reason = runtime.cudaGetErrorString(status)
        raise BackendError(f"{function} failed ({reason.decode()}): see ezaudio-doctor, or choose another backend")
    return results[0] if results else None


def aligned(num_bytes: int) -> int:
    return math.ceil(num_bytes / ALIGNMENT) * ALIGNMENT


class Stream:
    """A CUDA stream and the work on it."""

    def __init__(self) -> None:
        self._kind = cuda_runtime().cudaMemcpyKind
        self.handle = int(call("cudaStreamCreateWithFlags", cuda_runtime().cudaStreamNonBlocking))

    def upload(self, address: int, array: Array) -> None:
        """Host to device; the array may change afterwards."""
        call(
            "cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, self._kind.cudaMemcpyHostToDevice, self.handle
        )
        self.wait()

    def download(self, address: int, device_address: int, num_bytes: int) -> None:
        """Device to pinned host memory, done when the stream gets there."""
        call("cudaMemcpyAsync", address, device_address, num_bytes, self._kind.cudaMemcpyDeviceToHost, self.handle)

    def clear(self, address: int, num_bytes: int) -> None:
        call("cudaMemsetAsync", address, 0, num_bytes, self.handle)

    def wait(self) -> None:
        call("cudaStreamSynchronize", self.handle)

    def busy(self) -> bool:
        """Whether work remains. Raises BackendError when it failed."""
        runtime = cuda_runtime()
        (status,) = runtime.cudaStreamQuery(self.handle)
        if status == runtime.cudaError_t.cudaErrorNotReady:
            return True
        call("cudaStreamSynchronize", self.handle)  # at once; raises what went wrong
        return False

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` puts on the stream, as a graph to launch."""
        call(
            "cudaStreamBeginCapture", self.handle, cuda_runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            cuda_runtime().cudaStreamEndCapture(self.handle)  # fails as well, for the reason that is being raised
            raise
        return Graph(self, call("cudaStreamEndCapture", self.handle))


class Graph:
    """A captured CUDA graph, ready to launch."""

    def __init__(self, stream: Stream, graph: Any) -> None:
        self._stream = stream
        self._executable = call("cudaGraphInstantiate", graph, 0)
        call("cudaGraphDestroy", graph)

    def launch(self) -> None:
        call("cudaGraphLaunch", self._executable, self._stream.handle)

    def free(self) -> None:
        call("cudaGraphExecDestroy", self._executable)


class DeviceMemory:
    """Device memory, by name: a buffer is allocated when first asked for, and again when it must be larger."""

    def __init__(self) -> None:
        self._buffers: dict[str, tuple[int, int]] = {}

    def address(self, name: str, num_bytes: int) -> int:
        address, size = self._buffers.get(name, (0, -1))
        if size < num_bytes:
            if size >= 0:
                call("cudaFree", address)
            address = int(call("cudaMalloc", max(num_bytes, ALIGNMENT)))
            self._buffers[name] = (address, max(num_bytes, ALIGNMENT))
        return address

    def free(self) -> None:
        for address, _ in self._buffers.values():
            call("cudaFree", address)
        self._buffers.clear()


class PinnedArray:
    """A host array that a device writes to without a detour."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.num_bytes = max(1, math.prod(shape) * dtype.itemsize)
        self.address = int(call("cudaMallocHost", self.num_bytes))
        memory = (ctypes.c_char * self.num_bytes).from_address(self.address)
        self.array: Array = np.frombuffer(memoryview(memory), dtype, math.prod(shape)).reshape(shape)

    def free(self) -> None:
        call("cudaFreeHost", self.address)
