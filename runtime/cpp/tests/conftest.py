"""The folders that these tests need: `.ci/cpp` builds and names them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ezaudio.runtime import TextToAudio

sys.path.insert(0, str(Path(__file__).parent))
from binding import CPipeline, load_library


def _named_folder(variable: str) -> Path:
    folder = os.environ.get(variable)
    assert folder, f"{variable} names no folder: run .ci/cpp, which builds everything that these tests need"
    return Path(folder)


@pytest.fixture(scope="session")
def build() -> Path:
    """Where CMake built the library, the examples and `parity`."""
    return _named_folder("EZAUDIO_CPP_BUILD")


@pytest.fixture(scope="session")
def bundle() -> Path:
    """A bundle with a ControlNet."""
    return _named_folder("EZAUDIO_TEST_BUNDLE")


@pytest.fixture(scope="session")
def library(build: Path) -> ctypes.CDLL:
    return load_library(build / "libezaudio.so")


@pytest.fixture(scope="session")
def cpp(library: ctypes.CDLL, bundle: Path) -> Iterator[CPipeline]:
    pipeline = CPipeline(library, bundle)
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="session")
def model(bundle: Path) -> TextToAudio:
    return TextToAudio(bundle, threads=1)
