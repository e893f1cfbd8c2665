"""Benchmarks run as their users do, in this process; a test that uses this needs the fixture `benchmark_scripts`."""

from __future__ import annotations

import importlib
from typing import Any

from click.testing import CliRunner, Result


def run(name: str, *arguments: Any) -> Result:
    """`python benchmarks/NAME.py ARGUMENTS…`; a defect keeps its traceback."""
    result = CliRunner().invoke(importlib.import_module(name).main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
