"""Lets a benchmark run from a plain checkout: its top-level folders get the import names of `setup.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def use_checkout(*folders: str) -> None:
    """Make `ezaudio` and `ezaudio.<folder>` this checkout's, whatever else is installed. May be called again."""
    assert "ezaudio" not in sys.modules or str(sys.modules["ezaudio"].__file__).startswith(str(ROOT))
    sys.path.insert(0, str(ROOT))
    ezaudio = importlib.import_module("ezaudio")
    sys.path.remove(str(ROOT))  # where `kernels` is another thing than here
    for folder in folders:
        name = f"ezaudio.{folder}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(
            name, ROOT / folder / "__init__.py", submodule_search_locations=[str(ROOT / folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        setattr(ezaudio, folder, module)
