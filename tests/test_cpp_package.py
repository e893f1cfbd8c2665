"""Where the package keeps its C++ library. The library's own tests are in runtime/cpp/tests, run by .ci/cpp."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ezaudio import __version__
from ezaudio.runtime import cpp


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ezaudio.runtime.cpp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("--include-dir", "ezaudio/ezaudio.hpp"),
        ("--cmake-dir", "ezaudio-config.cmake"),
        ("--source-dir", "examples/text_to_audio.cpp"),
    ],
)
def test_prints_the_folder(tmp_path: Path, option: str, file: str) -> None:
    result = run(tmp_path, option)
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.rstrip("\n")) / file).is_file()


def test_one_folder_at_a_time(tmp_path: Path) -> None:
    for arguments in ([], ["--include-dir", "--cmake-dir"]):
        result = run(tmp_path, *arguments)
        assert result.returncode == 2
        assert (
            result.stderr == "Error: one of --include-dir, --cmake-dir, --source-dir is expected; --help has examples\n"
        )
    assert "find_package(ezaudio CONFIG REQUIRED)" in run(tmp_path, "--help").stdout


def test_the_header_has_the_version_of_the_package() -> None:
    header = Path(cpp.__file__).parent / "include" / "ezaudio" / "detail" / "version.hpp"
    assert re.findall(r'#define EZAUDIO_VERSION "(.*)"', header.read_text()) == [__version__]
