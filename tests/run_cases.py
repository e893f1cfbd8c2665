"""What the tests of `ezaudio-run` share: the script, and what a file says about itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ezaudio.runtime.audio_file import read_settings
from ezaudio.runtime.settings import Settings

RATE = 24000
SCRIPT = Path(sys.executable).with_name("ezaudio-run")
# What the debug model does unless told otherwise.
DEBUG = Settings("rain", "", 10.0, 4, 3.0, 0.5, 0.0, 0, "ddim", "torch").to_dict()


def files() -> list[str]:
    return sorted(os.listdir())


def settings_of(name: str | Path) -> dict[str, Any]:
    """The settings alone of what a file says about itself."""
    return {key: value for key, value in read_settings(name).items() if key in DEBUG}
