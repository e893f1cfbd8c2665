"""No kernel reads or writes outside of its tensors, on either side of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kernel_bounds.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are forbidden by Linux's mmap and mprotect")


def bounded(side: str, part: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-X", "faulthandler", SCRIPT, side, part], capture_output=True, text=True)


@pytest.mark.parametrize("side", ["start", "end"])
@pytest.mark.parametrize("part", ["norms", "attention", "folded", "rest"])
def test_every_access_is_inside(side: str, part: str) -> None:
    ended = bounded(side, part)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize("side", ["start", "end"])
def test_one_value_beyond_is_caught(side: str) -> None:
    assert bounded(side, "wrong").returncode == -signal.SIGSEGV
