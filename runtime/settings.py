"""What a generation is asked for and what it gives back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ezaudio.config import EzAudioConfig
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.presets import Preset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ezaudio.runtime.solvers import SolverPlan

NOISE_SOURCES = ("torch", "philox")
MAX_GUIDANCE = 100.0
MAX_SPACING = 4.0
MAX_CONTROL_SCALE = 100.0
MAX_PROMPT_CHARS = 10_000


@dataclass(frozen=True, slots=True)
class Edit:
    """Which part of a given clip was made anew, and how much of it the model saw on each side at most; seconds."""

    start_s: float
    end_s: float
    context_s: float


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides one sound, given a bundle (and, to edit or control, the given sound).

    Two equal `Settings` give equal bytes on one machine with one version of the backend and as many threads.

    Attributes:
        prompt: what to hear.
        negative_prompt: what to steer away from; "" is the model's unconditional prompt.
        duration_s: seconds; the sound has round(duration_s · sample_rate) samples.
        guidance_scale: 1 is no guidance.
        guidance_rescale: 0 to 1, how far the deviation of the guided velocity returns to that of the unguided one.
        eta: 0 (deterministic) to 1, for solvers that add noise.
        seed: −2⁶³ to 2⁶⁴ − 1.
        noise: `torch` draws PyTorch's CPU stream, `philox` a counter-based one for every backend alike.
        edit: the part that was made anew; None when the whole clip was made. `duration_s` is then what the model saw.
        control_scale: how far the ControlNet steers; None without one.
        spacing: 1 for even timesteps; above, denser at high noise (`solvers.spaced_timesteps`).
        guidance_interval: lowest and highest noise level that is guided, 0 to 1 (`solvers.guided_steps`).
        reuse: steps, from 0, that take what the inner blocks made last in place of running them.
    """

    prompt: str
    negative_prompt: str
    duration_s: float
    num_steps: int
    guidance_scale: float
    guidance_rescale: float
    eta: float
    seed: int
    solver: str
    noise: str
    edit: Edit | None = None
    control_scale: float | None = None
    spacing: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON: without `edit` and `control_scale` where they are None."""
        fields = asdict(self)
        fields |= {name: list(fields[name]) for name in ("guidance_interval", "reuse")}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: step `index` (from 0) of `num_steps` of item `item` (from 0) of `num_items` is done."""

    item: int
    num_items: int
    index: int
    num_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """Samples (B, T) float32, not clipped, with what made them."""

    samples: NDArray[np.float32]
    sample_rate: int
    settings: tuple[Settings, ...]
    warnings: tuple[str, ...]


def resolve(config: EzAudioConfig, prompt: str, presets: Mapping[str, Preset] | None = None, **given: Any) -> Settings:
    """Fill what is not given (or None) from the preset, or else from the model's defaults, and check everything.

    A number of steps or a solver that differs from the preset's leaves its `reuse` aside, which is made for those.

    Args:
        presets: what `given["preset"]` names one of.

    Raises InputError with what was got, what is expected and what to do.
    """
    from ezaudio.runtime.solvers import SOLVERS, guided_steps

    defaults = config.defaults
    plan = Preset(defaults.solver, defaults.num_steps, defaults.eta)
    if (name := given.get("preset")) is not None:
        if not presets or name not in presets:
            raise InputError(f"unknown preset {name!r}: expected one of {', '.join(presets or ())}")
        plan = presets[name]
    solver = given.get("solver") or plan.solver
    if solver not in SOLVERS:
        raise InputError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    usual_eta = plan.eta if solver == plan.solver else float(SOLVERS[solver].stochastic)
    num_steps = _value(given, "num_steps", plan.num_steps)
    unchanged = (solver, num_steps) == (plan.solver, plan.num_steps) and given.get("control_scale") is None
    settings = Settings(
        prompt=prompt,
        negative_prompt=_value(given, "negative_prompt", ""),
        duration_s=_value(given, "duration_s", defaults.duration_s),
        num_steps=num_steps,
        guidance_scale=_value(given, "guidance_scale", defaults.guidance_scale),
        guidance_rescale=_value(given, "guidance_rescale", defaults.guidance_rescale),
        eta=_value(given, "eta", usual_eta),
        seed=_value(given, "seed", None),
        solver=solver,
        noise=_value(given, "noise", NOISE_SOURCES[0]),
        edit=given.get("edit"),
        control_scale=_value(given, "control_scale", None),
        spacing=_value(given, "spacing", plan.spacing),
        guidance_interval=_interval(_value(given, "guidance_interval", plan.guidance_interval)),
        reuse=_steps(_value(given, "reuse", plan.reuse if unchanged else ())),
    )
    if settings.seed is None:
        settings = replace(settings, seed=secrets.randbelow(2**32))
    _check(settings, config)
    _check_reuse(settings, guided_steps(plan_of(settings, config), settings.guidance_interval))
    return settings


def plan_of(settings: Settings, config: EzAudioConfig) -> SolverPlan:
    """The solver's table."""
    from ezaudio.runtime.solvers import solver_plan

    return solver_plan(settings.solver, settings.num_steps, settings.eta, config.diffusion, settings.spacing)


def _interval(value: Any) -> tuple[float, float]:
    expected = "guidance_interval must be the lowest and the highest noise level to guide, 0 to 1"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{expected}, got {value!r}")
    low, high = (plain(bound) for bound in value)
    for bound in (low, high):
        _number("a bound of guidance_interval", bound, 0, 1)
    if low > high:
        raise InputError(f"{expected}, got {value!r}")
    return float(low), float(high)


def _steps(value: Any) -> tuple[int, ...]:
    steps = tuple(plain(n) for n in value) if isinstance(value, (tuple, list)) else (None,)
    if any(isinstance(n, bool) or not isinstance(n, int) for n in steps):
        raise InputError(f"reuse must be numbers of steps, got {value!r}")
    return steps


def _check_reuse(settings: Settings, guided: tuple[bool, ...]) -> None:
    """Each step must exist and come after one with as many guidance branches that ran every block."""
    reuse = settings.reuse
    if not reuse:
        return
    if settings.control_scale is not None:
        raise InputError("reuse does not go with control_audio, which steers every block: leave one out")
    if list(reuse) != sorted(set(reuse)) or not reuse[0] >= 1 or reuse[-1] >= settings.num_steps:
        raise InputError(
            f"reuse must be rising numbers of steps from 1 to {settings.num_steps - 1} (the first step has nothing to "
            f"reuse), got {list(reuse)}"
        )
    whole = 0
    for step in range(settings.num_steps):
        if step not in reuse:
            whole = step
        elif guided[step] and not guided[whole]:
            raise InputError(
                f"step {step} is guided and reuses step {whole}, which is not: take {step} out of reuse or widen "
                "guidance_interval"
            )


def _value(given: dict[str, Any], name: str, default: Any) -> Any:
    value = given.get(name)
    return default if value is None else plain(value)


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which a file's settings can hold; anything else as it is."""
    import numpy as np

    return value.item() if isinstance(value, np.generic) else value


def _check(settings: Settings, config: EzAudioConfig) -> None:
    if not isinstance(settings.prompt, str) or not settings.prompt.strip():
        raise InputError(f'the prompt is blank ({settings.prompt!r}): describe a sound, such as "a dog barking"')
    if not isinstance(settings.negative_prompt, str):
        raise InputError(f"negative_prompt must be text, got {settings.negative_prompt!r}")
    for name, text in (("prompt", settings.prompt), ("negative_prompt", settings.negative_prompt)):
        if len(text) > MAX_PROMPT_CHARS:
            raise InputError(f"{name} has {len(text):,} characters, at most {MAX_PROMPT_CHARS:,} fit: shorten it")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{name} is not valid UTF-8: check where the text comes from")
    _number("duration_s", settings.duration_s, 0, config.max_duration_s, "seconds", above=True)
    if round(settings.duration_s * config.vae.sample_rate) < 1:
        raise InputError(f"duration_s {settings.duration_s} is shorter than one sample: ask for more")
    most = config.diffusion.num_train_steps
    steps = settings.num_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise InputError(f"num_steps must be a whole number from 1 to {most}, got {steps!r}")
    _number("guidance_scale", settings.guidance_scale, 0, MAX_GUIDANCE)
    _number("guidance_rescale", settings.guidance_rescale, 0, 1)
    _number("eta", settings.eta, 0, 1)
    _number("spacing", settings.spacing, 1, MAX_SPACING)
    if settings.control_scale is not None:
        _number("control_scale", settings.control_scale, 0, MAX_CONTROL_SCALE)
    if isinstance(settings.seed, bool) or not isinstance(settings.seed, int) or not -(2**63) <= settings.seed < 2**64:
        raise InputError(f"seed must be a whole number from −2⁶³ to 2⁶⁴ − 1, got {settings.seed!r}")
    if settings.noise not in NOISE_SOURCES:
        raise InputError(f"unknown noise {settings.noise!r}: expected one of {', '.join(NOISE_SOURCES)}")


def _number(name: str, value: Any, low: float, high: float, unit: str = "", above: bool = False) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (above and value == low):
        span = f"more than {low:g} and at most {high:g} {unit}".rstrip() if above else f"from {low:g} to {high:g}"
        raise InputError(f"{name} must be {span}, got {value!r}")
