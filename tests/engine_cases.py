"""Which engines tests build, what they need, and what damages one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ezaudio.runtime.engines.builder import Options
from ezaudio.runtime.engines.library import installed
from ezaudio.runtime.engines.store import Engine, EngineStore
from ezaudio.runtime.gpu import Gpu, find_gpu

SCRIPT = Path(sys.executable).with_name("ezaudio-build")
GPUS = ("8.0", "8.9", "12.0")  # A100, RTX 40 and L4, RTX 50

rtx = pytest.mark.skipif(not installed("tensorrt-rtx"), reason="tensorrt-rtx has no wheels for this platform")
no_gpu = pytest.mark.skipif(isinstance(find_gpu(), Gpu), reason="says what happens without a GPU")
gpu = pytest.mark.skipif(isinstance(find_gpu(), str), reason="needs an NVIDIA GPU and its driver")


def build(store: EngineStore, name: str, folder: Path, options: Options, **given: Any) -> tuple[Engine, bool]:
    return store.build(store.purpose(name, options, store.place(options), **given), options, folder)


def truncate(engine: Path) -> None:
    os.truncate(engine, 1000)
