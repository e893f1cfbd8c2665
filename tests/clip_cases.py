"""Clips that every backend must make alike, on the debug model with its ControlNet."""

from __future__ import annotations

from typing import Any

import numpy as np

CONTROL = np.sin(np.arange(24000, dtype=np.float32) / 20)
CASES: dict[str, dict[str, Any]] = {
    "guided": {},
    "negative": {"negative_prompt": "wind and a very loud engine"},
    "unguided": {"guidance_scale": 1.0},
    "noise": {"eta": 1.0},
    "philox": {"eta": 1.0, "noise": "philox"},
    "solver": {"solver": "dpmpp_2m_sde"},
    "interval and reuse": {"guidance_interval": (0.3, 1.0), "reuse": [1, 2]},
    "preset": {"preset": "fast", "num_steps": None},
    "controlled": {"control_audio": CONTROL, "control_scale": 0.8},
    "controlled, negative": {"control_audio": CONTROL, "negative_prompt": "wind"},
}


def settings(**given: Any) -> dict[str, Any]:
    return {"duration_s": 1.01, "num_steps": 4, "seed": 3, **given}
