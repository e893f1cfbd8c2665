"""Presets: what trades fidelity for time, by name, and what each was measured to cost.

A preset is a sampling plan: solver, steps, the noise levels that are guided, and the steps that run only the outermost
blocks. A bundle carries its own in the manifest, where `ezaudio-calibrate` writes what it measured; a bundle that was
not calibrated has those of this file, unmeasured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far clips of a preset are from the same clips (same noise) in many steps; medians over the clips.

    Attributes:
        reference_steps: deterministic, each of them guided and with every block.
        num_clips: prompts × seeds, other ones than the preset was chosen on.
        latent_error: ‖latents − reference‖ / ‖reference‖.
        level_distance_db: mean |difference| of the mel levels, dB.
        evaluations: of the network, for a clip: a guided step counts two, a shallow one its share of the blocks.
    """

    reference_steps: int
    num_clips: int
    latent_error: float
    level_distance_db: float
    evaluations: float


@dataclass(frozen=True, slots=True)
class Preset:
    """A sampling plan.

    Attributes:
        spacing: 1 for even timesteps; above, denser at high noise (`solvers.spaced_timesteps`).
        guidance_interval: lowest and highest noise level that is guided, 0 to 1 (`solvers.guided_steps`).
        reuse: steps, from 0, that take what the inner blocks made last in place of running them.
        fidelity: None where it was not measured.
    """

    solver: str
    num_steps: int
    eta: float
    spacing: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: tuple[int, ...] = ()
    fidelity: Fidelity | None = None

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data |= {name: list(data[name]) for name in ("guidance_interval", "reuse")}
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preset:
        """Inverse of `to_dict`. Raises TypeError, ValueError or KeyError when the data is no preset."""
        low, high = data["guidance_interval"]
        fidelity = data.get("fidelity")
        return cls(
            solver=str(data["solver"]),
            num_steps=int(data["num_steps"]),
            eta=float(data["eta"]),
            spacing=float(data["spacing"]),
            guidance_interval=(float(low), float(high)),
            reuse=tuple(int(step) for step in data["reuse"]),
            fidelity=None if fidelity is None else Fidelity(**fidelity),
        )


# Of a bundle that was not calibrated: the plans found for the packaged model. `official` is what the official code
# does; the others are deterministic, because noise is not averaged out in few steps.
PRESETS = {
    "fast": Preset("dpmpp_2m", 5, 0.0, 2.0, guidance_interval=(0.4, 1.0), reuse=(3,)),
    "balanced": Preset("dpmpp_2m", 10, 0.0, 2.0),
    "best": Preset("dpmpp_2m", 24, 0.0, 1.6),
    "official": Preset("ddim", 100, 1.0),
}
