"""The processor that something ran on, in words, for reports and model cards."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """Name of the CPU and number of usable cores."""
    names = [line.split(":")[1].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores()} cores"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lines(path: str) -> list[str]:
    """Of a file of the system; none where there is no such file."""
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
