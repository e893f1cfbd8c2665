"""What the tests of the commands and of messages share."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ezaudio import __version__

Run = Callable[..., Result]


def runner(name: str) -> Run:
    """Calls the console script `name` through its entry point; a defect of ours is raised, not reported."""
    (script,) = entry_points(group="console_scripts", name=name)
    command = script.load()

    def run(*arguments: Any, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(command, [str(a) for a in arguments], input=stdin, prog_name=name)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def fails(result: Result, *parts: str) -> None:
    """Exit code 2, one line on stderr with all `parts`, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def answers_at_once_and_teaches(script: Path, *parts: str) -> None:
    """`--help` shows all `parts`, `--version` the version."""
    start = time.perf_counter()
    result = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, encoding="utf-8")
    assert time.perf_counter() - start < 2.0  # measured 0.13 s; that nothing heavy is imported is tested by itself
    for part in parts:
        assert part in result.stdout
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"ezaudio {__version__}\n"


def imports_none_of(module: str, heavy: set[str]) -> None:
    """Importing the module in a new process loads none of these packages."""
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def listen_to_interrupts() -> None:
    """For Popen's preexec_fn: a shell starts background jobs with SIGINT ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes fails, as on a disk that is full. Skips the test where there are no such limits."""
    resource = pytest.importorskip("resource", reason="POSIX limits")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def killed_once(ready: Callable[[], bool], command: str, *arguments: Any) -> None:
    """Runs a command in a forked process, whose imports are done, and kills it (SIGKILL) as soon as `ready()`."""
    import multiprocessing

    import torch

    def work() -> None:
        torch.set_num_threads(1)  # a thread pool does not survive a fork
        runner(command)(*arguments)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while process.is_alive() and not ready():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    """The message of what was raised, which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message
