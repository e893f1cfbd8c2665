"""Which NVIDIA GPU and driver are here, asked of the driver itself: needs no package, and takes milliseconds."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
NAMES = {"win32": ("nvcuda.dll", "nvml.dll")}
LINUX_NAMES = ("libcuda.so.1", "libnvidia-ml.so.1")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES shows.

    Attributes:
        compute_capability: such as `8.9`.
        driver: the driver's release, such as `580.65.06`; where only the CUDA version it supports is known, that.
    """

    name: str
    compute_capability: str
    driver: str


@cache
def find_gpu() -> Gpu | str:
    """The GPU, or why there is none, in words."""
    library, management = NAMES.get(sys.platform, LINUX_NAMES)
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver ({library} is not found)"
    if status := cuda.cuInit(0):
        return f"the NVIDIA driver finds no usable GPU (cuInit gives {status})"
    count, device, major, minor, supported = (ctypes.c_int() for _ in range(5))
    name = ctypes.create_string_buffer(256)
    status = (
        cuda.cuDeviceGetCount(ctypes.byref(count))
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
        or cuda.cuDriverGetVersion(ctypes.byref(supported))
    )
    if status:
        return f"the NVIDIA driver shows no GPU (error {status})"
    cuda_version = f"CUDA {supported.value // 1000}.{supported.value % 1000 // 10}"
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", _release(management) or cuda_version)


def _release(management: str) -> str:
    """The driver's release from its management library; empty where that is missing."""
    try:
        nvml = ctypes.CDLL(management)
    except OSError:
        return ""
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2():
        return ""
    status = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return "" if status else text.value.decode()
